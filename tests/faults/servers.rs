//! Postgres servers of one's own, each with its folder and its socket: they sync, and can be killed, followed and promoted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A server that ends with its handle.
pub struct Server {
    folder: PathBuf,
}

/// Debian keeps the server's programs out of the path, and the server refuses to run as root.
fn program(name: &str) -> Command {
    let newest = || fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|version| version.path().join("bin")).max();
    let told = Command::new("pg_config").arg("--bindir").output().map(|told| String::from_utf8_lossy(&told.stdout).trim().to_owned());
    let told = told.ok().map(PathBuf::from).filter(|folder| folder.join("initdb").exists()).or_else(newest);
    unprivileged(&told.expect("PostgreSQL is installed: apt-get install -y postgresql").join(name))
}

/// A program that refuses to run as root.
pub fn unprivileged(path: &Path) -> Command {
    if !is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path).current_dir("/");
    command
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Lets such a program write into a folder.
pub fn give_away(folder: &Path) {
    if is_root() {
        done(Command::new("chown").arg("postgres").arg(folder));
    }
}

fn done(command: &mut Command) -> String {
    let done = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&done.stderr));
    said
}

/// The folder of a socket, as a host of `DATABASE_URL`.
pub fn host(folder: &Path) -> String {
    folder.to_string_lossy().replace('/', "%2F")
}

impl Server {
    /// Makes a server and starts it. `settings` are lines of postgresql.conf.
    pub fn make(settings: &[&str]) -> Self {
        let server = Self::folder();
        done(program("initdb").arg("-D").arg(server.data()).args(["-U", "postgres", "-A", "trust", "--locale=C.UTF-8", "--no-sync"]));
        server.set(settings);
        server.start();
        server
    }

    /// Makes a server that follows this one under `name`, and starts it.
    pub fn follower(&self, name: &str) -> Self {
        let server = Self::folder();
        let from = format!("host={} user=postgres application_name={name}", self.folder.display());
        done(program("pg_basebackup").arg("-D").arg(server.data()).args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-d"]).arg(from));
        server.start();
        server
    }

    fn folder() -> Self {
        let made = tempfile::Builder::new().prefix("spendgate-postgres.").tempdir_in("/tmp").expect("a folder").keep();
        give_away(&made);
        Self { folder: made }
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Appends to its settings; they count from the next start or [`Server::reload`] on.
    pub fn set(&self, settings: &[&str]) {
        let file = self.data().join("postgresql.conf");
        let text = fs::read_to_string(&file).expect("its settings") + &settings.join("\n") + "\n";
        fs::write(file, text).expect("its settings");
    }

    pub fn start(&self) {
        let log = self.folder.join("log");
        let options = format!("-c listen_addresses='' -k {}", self.folder.display());
        done(program("pg_ctl").arg("-D").arg(self.data()).arg("-l").arg(log).args(["-w", "-o", &options, "start"]));
    }

    pub fn reload(&self) {
        done(program("pg_ctl").arg("-D").arg(self.data()).arg("reload"));
    }

    /// Ends all its processes at once, and nothing is written any more.
    pub fn kill(&self) {
        done(program("pg_ctl").arg("-D").arg(self.data()).args(["-m", "immediate", "-w", "stop"]));
    }

    /// Makes a follower the primary. Comes back when it takes writes.
    pub fn promote(&self) {
        done(program("pg_ctl").arg("-D").arg(self.data()).args(["-w", "promote"]));
    }

    /// Lets nobody follow any more, and ends those who do: as when the network between two machines is cut.
    pub fn cut_followers(&self) {
        let file = self.data().join("pg_hba.conf");
        let text = fs::read_to_string(&file).expect("its rules");
        fs::write(file, format!("local replication all reject\n{text}")).expect("its rules");
        self.reload();
        self.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    }

    /// Does one statement, and gives what was printed.
    pub fn sql(&self, statement: &str) -> String {
        self.sql_in("postgres", statement)
    }

    pub fn sql_in(&self, database: &str, statement: &str) -> String {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-c", statement, "-h"]);
        done(psql.arg(&self.folder)).trim().to_owned()
    }

    /// As a host of `DATABASE_URL`.
    pub fn host(&self) -> String {
        host(&self.folder)
    }

    /// Where its socket is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join(".s.PGSQL.5432")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = program("pg_ctl").arg("-D").arg(self.data()).args(["-m", "immediate", "-w", "stop"]).output();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
