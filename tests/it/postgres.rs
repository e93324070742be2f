//! A Postgres for the tests: one server for all of them, a database for each.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use spendgate::store::{Address, Store};

/// The folder of the server's socket. The server starts with the first test, and stops by itself after the last.
pub fn server() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/postgres.sh");
        let started = Command::new(script).arg("start").output().unwrap();
        let (told, faults) = (String::from_utf8(started.stdout).unwrap(), String::from_utf8_lossy(&started.stderr).into_owned());
        assert!(started.status.success(), "{faults}");
        PathBuf::from(told.trim())
    })
}

/// A database that nobody has used. `folder` is the test's own, and gives it a name that no other has.
pub fn fresh_database(folder: &Path) -> Address {
    let name: String = folder.file_name().unwrap().to_str().unwrap().to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    let name = format!("test_{}_{name}", std::process::id());
    let address = address(&name);
    // A run takes longer than the server waits for its next user.
    std::fs::write(server().join("used"), "").unwrap();
    sql(&self::address("postgres"), &format!("CREATE DATABASE {name} TEMPLATE {}", template()));
    address
}

/// One that has every table, and is not used otherwise: a copy of it is there sooner than all migrations are done.
fn template() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let name = format!("template_{}", std::process::id());
        sql(&address("postgres"), &format!("CREATE DATABASE {name}"));
        let address = address(&name);
        let made = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { Store::open(&address).await.unwrap().close().await });
        });
        made.join().unwrap();
        name
    })
}

/// A database with nothing in it at all, as an operator makes it.
pub fn empty_database(folder: &Path) -> Address {
    let address = fresh_database(folder);
    let name = name_of(&address);
    sql(&self::address("postgres"), &format!("DROP DATABASE {name}"));
    sql(&self::address("postgres"), &format!("CREATE DATABASE {name}"));
    address
}

fn name_of(address: &Address) -> String {
    address.url().rsplit('/').next().unwrap().to_owned()
}

/// It is not needed any more: nobody waits until it is gone. One that is left behind goes with the server.
pub fn drop_database(address: &Address) {
    if let Address::Postgres(_) = address {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", name_of(address));
        let mut psql = psql(&self::address("postgres"), &drop);
        std::thread::spawn(move || psql.output());
    }
}

pub fn address(database: &str) -> Address {
    let socket = server().to_str().unwrap().replace('/', "%2F");
    Address::parse(&format!("postgres://postgres@{socket}/{database}")).unwrap()
}

/// Does one statement as psql does, and gives what it printed.
pub fn sql(database: &Address, statement: &str) -> String {
    let done = psql(database, statement).output().unwrap();
    assert!(done.status.success(), "{statement}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

fn psql(database: &Address, statement: &str) -> Command {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement, &database.url()]);
    psql
}
