//! The real binary in a process of its own, which nobody asks before it ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::run;

pub const WEBHOOK_SECRET: &str = "whsec_of_the_faults";
pub const ADMIN_KEY: &str = "admin-key-of-the-faults-0123456789abcdef";

pub struct Service {
    child: Child,
    pub url: String,
    folder: PathBuf,
    /// Where it is not a file in the folder.
    database: Option<PathBuf>,
    /// Kept open: the service has more to say than is read.
    _says: BufReader<ChildStdout>,
}

impl Service {
    /// Starts the service on what is in `folder`, with `environment` beside its own settings, and waits until it listens.
    pub fn start(folder: &Path, environment: &[(&str, &Path)]) -> Self {
        let database = environment.iter().find(|(name, _)| *name == "DATABASE_URL").map(|(_, url)| (*url).to_owned());
        let mut child = serve(folder, environment).stdout(Stdio::piped()).spawn().unwrap();
        let mut says = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        says.read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        let url = url.unwrap_or_else(|| panic!("it says {line:?}, and not where it listens")).trim_end_matches('.').to_owned();
        Self { child, url, folder: folder.to_owned(), database, _says: says }
    }

    /// Starts the service where it must refuse to, and gives what it says of it.
    pub fn refuses(folder: &Path, environment: &[(&str, &Path)]) -> String {
        let mut child = serve(folder, environment).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if !line.is_empty() {
            child.kill().unwrap();
        }
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(line.is_empty() && ended.status.code() == Some(1), "it does not refuse: {:?}: {line}{said}", ended.status);
        said
    }

    /// Stops each thread where it is, as a power cut does: one that waits for the disk never comes back from there, and nobody is answered
    /// any more. (Without this, acknowledgements given after the cut had begun were lost, once in some forty long runs, and none from before it: a sync
    /// that is under way when ext4 is shut down seems to end well at times. A machine without power acknowledges nothing.)
    pub fn freeze(&self) {
        let pid = self.child.id().to_string();
        run(Command::new("kill").args(["-STOP", &pid])).unwrap();
        let tasks = Path::new("/proc").join(&pid).join("task");
        // `T` is stopped; `D` is in the kernel, and stops before it returns.
        let stands = |stat: &str| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['T', 'D']));
        let all_stand = || {
            fs::read_dir(&tasks).unwrap().all(|task| {
                let stat = fs::read_to_string(task.unwrap().path().join("stat"));
                // A thread that has just ended stands too.
                stat.map_or(true, |stat| stands(&stat))
            })
        };
        while !all_stand() {
            std::thread::yield_now();
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(&mut self) {
        run(Command::new("kill").arg(self.pid().to_string())).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    /// `kill -9`. When it returns, no file of the service is open any more.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Another process recomputes every counter on connections of its own, beside this one. Gives the entries that it sees.
    pub fn verify(&self) -> u64 {
        let mut verify = spendgate(&self.folder);
        verify.envs(self.database.as_ref().map(|url| ("DATABASE_URL", url))).env("RUST_LOG", "off");
        let verified = verify.arg("verify").output().unwrap();
        let said = String::from_utf8(verified.stdout).unwrap();
        assert!(verified.status.success(), "{said}{}", String::from_utf8_lossy(&verified.stderr));
        let words: Vec<&str> = said.split_whitespace().collect();
        let entries = words.windows(2).find(|pair| pair[1].starts_with("entries")).unwrap_or_else(|| panic!("{said}"));
        entries[0].parse().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // After a failed test too, and before the disk below it goes. A process that has ended already is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(folder: &Path, environment: &[(&str, &Path)]) -> Command {
    let mut command = spendgate(folder);
    // Its log would tell of each fault that it is made to meet; what ends it is told all the same.
    command
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .env("ADMIN_API_KEY", ADMIN_KEY)
        .env("STRIPE_WEBHOOK_SECRETS", WEBHOOK_SECRET)
        .env("RUST_LOG", "off");
    command.envs(environment.iter().copied());
    command
}

/// The folder is all that the service keeps, and where it looks for a `.env` or a `tiers.yaml`: none of the developer's counts.
fn spendgate(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spendgate"));
    command.current_dir(folder).env("DATA_DIR", folder).env_remove("DATABASE_URL").env_remove("TIERS_FILE");
    command
}
