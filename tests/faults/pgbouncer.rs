//! A pooler between the service and its Postgres: settings that come with a connection do not reach the server, and what is kept there
//! between two transactions is somebody else's. A start says so, and ends.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::door::{Door, cents};
use crate::load::Load;
use crate::servers::{Server, give_away, host, unprivileged};
use crate::service::Service;
use crate::unable;

/// The database of every server.
const DATABASE: &str = "postgres";
/// What every connection of ours comes with, and who then forgets to tell the server.
const IGNORES: &str = "ignore_startup_parameters = extra_float_digits, options";
/// The same, told to the server for everybody.
const SET: [&str; 6] = [
    "statement_timeout = '10s'",
    "lock_timeout = '5s'",
    "idle_in_transaction_session_timeout = '2s'",
    "enable_seqscan = off",
    "plan_cache_mode = force_generic_plan",
    "jit = off",
];

/// A pooler that ends with its handle.
struct Pooler {
    child: Child,
    folder: TempDir,
}

impl Pooler {
    /// `None` where it is not installed. `settings` are lines of its configuration.
    fn before(server: &Server, settings: &[&str]) -> Option<Self> {
        let mut paths: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
        // Debian installs it where only root looks.
        paths.push("/usr/sbin".into());
        let Some(program) = paths.into_iter().map(|path| path.join("pgbouncer")).find(|path| path.exists()) else {
            unable("a pooler needs PgBouncer: apt-get install -y pgbouncer");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("spendgate-pooler.").tempdir_in("/tmp").unwrap();
        give_away(folder.path());
        let (file, socket) = (folder.path().join("pgbouncer.ini"), folder.path().display());
        let text = format!(
            "[databases]\n{DATABASE} = host={} user=postgres\n[pgbouncer]\nlisten_port = 5432\nunix_socket_dir = {socket}\nauth_type = any\n{}\n",
            server.path().display(),
            settings.join("\n")
        );
        fs::write(&file, text).unwrap();
        let child = unprivileged(&program).arg("-q").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut pooler = Self { child, folder };
        while UnixStream::connect(pooler.folder.path().join(".s.PGSQL.5432")).is_err() {
            assert!(pooler.child.try_wait().unwrap().is_none(), "PgBouncer has ended: it does not take its settings");
            std::thread::yield_now();
        }
        Some(pooler)
    }

    fn url(&self) -> String {
        format!("postgres://postgres@{}/{DATABASE}", host(self.folder.path()))
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the service says where it is started behind a pooler with these settings; nothing where there is no pooler.
fn refusal(server: &Server, settings: &[&str]) -> Option<String> {
    let pooler = Pooler::before(server, settings)?;
    let folder = tempfile::tempdir().unwrap();
    let said = Service::refuses(folder.path(), &[("DATABASE_URL", Path::new(&pooler.url()))]);
    assert_eq!(server.sql("SELECT COUNT(*) FROM pg_tables WHERE schemaname = 'public'"), "0", "nothing was changed");
    for words in ["PgBouncer", "Connect to Postgres itself", "12 connections"] {
        assert!(said.contains(words), "{settings:?}: {said}");
    }
    Some(said)
}

fn set_for_everybody(server: &Server) {
    for setting in SET {
        server.sql(&format!("ALTER DATABASE {DATABASE} SET {setting}"));
    }
}

#[test]
fn a_pooler_that_keeps_our_settings_from_the_server_ends_the_start_and_is_told() {
    let server = Server::make(&["shared_buffers = 32MB"]);
    for mode in ["pool_mode = transaction", "pool_mode = session", "pool_mode = statement"] {
        for more in ["", "ignore_startup_parameters = extra_float_digits", IGNORES] {
            let Some(said) = refusal(&server, &[mode, more]) else { return };
            assert!(said.contains("the settings of our connections do not reach the server"), "{mode}, {more}: {said}");
        }
    }
}

/// Then all looks well at the start, and goes wrong under load.
#[test]
fn a_pooler_that_lends_one_session_to_many_ends_the_start_and_is_told_though_the_settings_are_there() {
    let server = Server::make(&["shared_buffers = 32MB"]);
    set_for_everybody(&server);
    for mode in ["pool_mode = transaction", "pool_mode = statement"] {
        let Some(said) = refusal(&server, &[mode, IGNORES]) else { return };
        assert!(said.contains("two connections of ours are one session of the server"), "{mode}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_lends_whole_sessions_serves_once_the_server_has_the_settings_by_itself() {
    let server = Server::make(&["shared_buffers = 32MB"]);
    set_for_everybody(&server);
    let Some(pooler) = Pooler::before(&server, &["pool_mode = session", "default_pool_size = 30", IGNORES]) else { return };
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let url = pooler.url();
    let start = |folder: &TempDir| Service::start(folder.path(), &[("DATABASE_URL", Path::new(&url))]);
    let [one, other] = folders.each_ref().map(start);
    let load = Load::new();
    let callers = [load.start(&one), load.start(&other)];
    load.until(|told| 400 <= told.acknowledged.len()).await;
    for callers in callers {
        callers.stop().await;
    }
    let found = load.check(&one, "behind a pooler").await;
    assert_eq!(found.refused, 0);
    assert_eq!(one.verify(), other.verify());
    // What one writes the other sees at once.
    let (writes, reads) = (Door::of(&one), Door::of(&other));
    writes.post("/v1/usage", &json!({"id": "r", "user_id": "u", "cost": "0.03"})).await;
    assert_eq!(cents(&reads.get("/v1/users/u/enforcement").await["budgets"][0]["spent"]), 3);
}
