//! A Postgres that many nodes share. Several hosts may be named: each is asked who it is, and the one primary is used; never a standby,
//! and never a primary that another one has replaced, which is told by its older timeline.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Executor, PgConnection, Postgres, Row};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::backend::Backend;
use super::lent::Lent;
use super::news::Listener;
use super::{ACQUIRE_TIMEOUT, Connection, Hosts, SEEN, Schema, StoreError, Tx, corrupt, seen_or_none};

pub(super) static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/postgres");

/// Connections of one node: the ledger's writers and readers have one each, and what remains serves everything else. More only wait for
/// the database's cores.
const CONNECTIONS_MAX: u32 = 12;
/// No statement of ours takes so long unless the database hangs; who reads everything lifts it ([`Tx::take_your_time`]).
const STATEMENT_TIMEOUT: &str = "10s";
/// How long anybody waits for another's lock: a commit that waits for its standby holds its own.
const LOCK_TIMEOUT: &str = "5s";
/// A node that stops in the middle of a transaction holds its locks no longer: less than others wait for one try of a batch.
const IDLE_TIMEOUT: &str = "2s";
/// What comes with each of our connections.
const SETTINGS: [(&str, &str); 6] = [
    ("statement_timeout", STATEMENT_TIMEOUT),
    ("lock_timeout", LOCK_TIMEOUT),
    ("idle_in_transaction_session_timeout", IDLE_TIMEOUT),
    // Every statement of ours finds what it wants by an index, however small the table was when it was planned, and is planned
    // once: to plan the question of a check took twice as long as to answer it.
    ("enable_seqscan", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    // What would be compiled is over before it is.
    ("jit", "off"),
];
/// A statement that we gave up, and its place among the server's connections, end soon after our side of the connection.
const LOOK_FOR_US: &str = "SET client_connection_check_interval = '1s'";
/// How long a host has to say who it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How often each of several hosts is asked.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How often one address is asked where it leads to by now, with a new connection each time.
const ASK_ANEW_EVERY: Duration = Duration::from_secs(2);
/// How long a start waits for a primary.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A migration may take long, and so may another node's.
const BE_PATIENT: &str = "SET statement_timeout = 0; SET lock_timeout = 0";
/// All record transactions of all nodes, one after the other: they read, decide and write, as on SQLite.
const BEGIN: &str = "BEGIN; SELECT pg_advisory_xact_lock(7305807312)";
const BEGIN_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// A server that was promoted begins a new timeline, so of two that take writes the one with the higher number is the primary.
const WHO: &str = "SELECT pg_is_in_recovery() AS standby, CASE WHEN pg_is_in_recovery() THEN '' \
     ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline";
/// Which process of the server's a connection has.
const SESSION: &str = "SELECT CAST(pg_backend_pid() AS TEXT)";

/// What a host says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It does not answer.
    Away,
    Standby,
    Primary {
        timeline: u32,
    },
}

/// The one that is used.
#[derive(Clone, Debug)]
struct Current {
    pool: PgPool,
    host: usize,
    timeline: u32,
}

#[derive(Debug)]
struct Inner {
    hosts: Hosts,
    current: RwLock<Current>,
    /// Goes up whenever another server is used.
    generation: Arc<AtomicU64>,
    roles: Mutex<Vec<Role>>,
}

/// The database, open.
#[derive(Clone, Debug)]
pub struct Cluster {
    inner: Arc<Inner>,
    watch: Arc<Watch>,
}

/// Asks the hosts until it is dropped.
#[derive(Debug)]
struct Watch(Vec<JoinHandle<()>>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds the lock, so a poisoned one is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    pub(super) async fn connect(hosts: &Hosts, schema: Schema) -> Result<Self, StoreError> {
        let mut hosts = hosts.clone();
        for options in &mut hosts.options {
            *options = options.clone().application_name("spendgate").options(SETTINGS);
        }
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        let mut roles = vec![Role::Away; hosts.options.len()];
        let (host, timeline) = loop {
            let mut last = None;
            for (role, options) in roles.iter_mut().zip(&hosts.options) {
                match ask_once(options).await {
                    Ok(is) => *role = is,
                    Err(error) => (*role, last) = (Role::Away, Some(error)),
                }
            }
            if let Some(found) = primary(&roles) {
                break found;
            }
            if last.as_ref().is_some_and(|error| error.to_string().contains("startup parameter")) {
                return Err(pooled(UNSET));
            }
            let refused = last.as_ref().is_some_and(|error| matches!(error, sqlx::Error::Database(error) if !is_starting(&**error)));
            if refused || deadline < tokio::time::Instant::now() {
                return Err(last.map_or_else(|| corrupt("no host is a primary: all of them are standbys"), StoreError::from));
            }
            tokio::time::sleep(ASK_EVERY).await;
        };
        let generation = Arc::new(AtomicU64::new(0));
        let pool = pool(&hosts, host, timeline, &generation);
        // Before anything is changed, and locked by a session that may be lent.
        look(&pool).await?;
        let mut migrating = hosts.options.get(host).cloned().unwrap_or_default().connect().await?;
        match schema {
            Schema::Migrate => {
                migrating.execute(sqlx::raw_sql(BE_PATIENT)).await?;
                MIGRATIONS.run(&mut migrating).await?;
            }
            Schema::AsItIs => {
                let seen = sqlx::query_scalar(SEEN).fetch_one(&mut migrating).await;
                Schema::check(seen_or_none(seen)?, &MIGRATIONS)?;
            }
        }
        migrating.close().await?;
        let current = RwLock::new(Current { pool, host, timeline });
        let inner = Arc::new(Inner { hosts, current, generation, roles: Mutex::new(roles) });
        let watch = match &*inner.hosts.options {
            [only] => vec![tokio::spawn(watch_address(inner.clone(), only.clone()))],
            several => {
                several.iter().enumerate().map(|(host, options)| tokio::spawn(watch(inner.clone(), host, options.clone()))).collect()
            }
        };
        Ok(Self { inner, watch: Arc::new(Watch(watch)) })
    }

    fn current(&self) -> Current {
        self.inner.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Goes up whenever another server is used: what a connection of before is told is told to nobody.
    pub fn generation(&self) -> u64 {
        self.inner.generation.load(Ordering::Acquire)
    }

    pub(super) async fn close(&self) {
        self.watch.0.iter().for_each(JoinHandle::abort);
        self.current().pool.close().await;
    }

    /// Hears what nodes tell each other, on a connection of its own.
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        Listener::begin(&self.current().pool).await
    }

    async fn acquire(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        Ok(self.current().pool.acquire().await?)
    }

    pub(super) async fn reader(&self) -> Result<Connection, StoreError> {
        Ok(Backend::Postgres(Lent::new(self.acquire().await?)))
    }

    pub(super) async fn begin_read(&self) -> Result<Tx, StoreError> {
        self.begun(BEGIN_READ).await
    }

    pub(super) async fn begin(&self) -> Result<Tx, StoreError> {
        self.begun(BEGIN).await
    }

    pub(super) async fn begin_aside(&self) -> Result<Tx, StoreError> {
        self.begun("BEGIN").await
    }

    async fn begun(&self, how: &'static str) -> Result<Tx, StoreError> {
        // Also where the caller goes away meanwhile, the connection is not used again.
        let mut tx = Tx { connection: Some(self.reader().await?) };
        if let Backend::Postgres(connection) = tx.connection()? {
            let (sent, patience) = connection.sends();
            let answer = tokio::time::timeout(patience, sent.execute(sqlx::raw_sql(how))).await;
            connection.answered(answer)?;
        }
        Ok(tx)
    }
}

/// The primary: of those that take writes the one with the latest timeline.
fn primary(roles: &[Role]) -> Option<(usize, u32)> {
    let timeline = |(host, role): (usize, &Role)| match role {
        Role::Primary { timeline } => Some((host, *timeline)),
        Role::Standby | Role::Away => None,
    };
    roles.iter().enumerate().filter_map(timeline).max_by_key(|(_, timeline)| *timeline)
}

/// Whether the server said that it will answer soon.
fn is_starting(error: &dyn sqlx::error::DatabaseError) -> bool {
    // cannot_connect_now, and too many connections.
    error.code().is_some_and(|code| matches!(&*code, "57P03" | "53300"))
}

/// One address may lead to another server by and by: its later timeline makes it another generation, and what was connected before is not
/// handed out again.
fn pool(hosts: &Hosts, host: usize, timeline: u32, generation: &Arc<AtomicU64>) -> PgPool {
    let latest = Arc::new(Latest { timeline: AtomicU32::new(timeline), generation: generation.clone() });
    let after = latest.clone();
    let options = PgPoolOptions::new().max_connections(CONNECTIONS_MAX).acquire_timeout(ACQUIRE_TIMEOUT);
    let options = options.after_connect(move |connection, _| {
        let latest = after.clone();
        Box::pin(async move {
            // Where the server's system has no such thing, what was given up goes on to its end there.
            let _ = connection.execute(sqlx::raw_sql(LOOK_FOR_US)).await;
            latest.admit(who(connection).await?)
        })
    });
    // The same question says whether it is well.
    let options = options.test_before_acquire(false).before_acquire(move |connection, _| {
        let latest = latest.clone();
        Box::pin(async move { Ok(latest.admit(who(connection).await?).is_ok()) })
    });
    options.connect_lazy_with(hosts.options.get(host).cloned().unwrap_or_default())
}

/// The latest primary that a pool's connections met.
#[derive(Debug)]
struct Latest {
    timeline: AtomicU32,
    generation: Arc<AtomicU64>,
}

impl Latest {
    /// Whether a connection is used that leads to such a server.
    fn admit(&self, role: Role) -> Result<(), sqlx::Error> {
        match role {
            Role::Primary { timeline } => match self.timeline.fetch_max(timeline, Ordering::AcqRel) {
                before if timeline < before => Err(sqlx::Error::Protocol("the server was replaced by another primary".to_owned())),
                before => {
                    if before < timeline {
                        self.generation.fetch_add(1, Ordering::AcqRel);
                    }
                    Ok(())
                }
            },
            Role::Standby | Role::Away => Err(sqlx::Error::Protocol("the server is a standby".to_owned())),
        }
    }
}

async fn who(connection: &mut PgConnection) -> Result<Role, sqlx::Error> {
    let row = connection.fetch_one(sqlx::raw_sql(WHO)).await?;
    if row.try_get("standby")? {
        return Ok(Role::Standby);
    }
    let timeline: String = row.try_get("timeline")?;
    let timeline = u32::from_str_radix(&timeline, 16).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Role::Primary { timeline })
}

const UNSET: &str = "the settings of our connections do not reach the server";
const SHARED: &str = "two connections of ours are one session of the server";

/// Something between us and the server keeps our sessions from being ours.
fn pooled(why: &str) -> StoreError {
    let why = format!(
        "{why}: is a pooler (PgBouncer) between? Connect to Postgres itself; a node opens {CONNECTIONS_MAX} connections, and one more for each host"
    );
    StoreError(sqlx::Error::Configuration(why.into()))
}

/// The one value of a statement without parameters. Nothing is prepared, so that a pooler cannot be in the way.
async fn told(connection: &mut PgConnection, sql: &str) -> Result<String, sqlx::Error> {
    connection.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await?.try_get(0)
}

/// What would cost money in silence, or only shows under load.
async fn look(pool: &PgPool) -> Result<(), StoreError> {
    let (mut first, mut other) = (pool.acquire().await?, pool.acquire().await?);
    for (setting, ours) in SETTINGS {
        if told(&mut first, &format!("SHOW {setting}")).await? != ours {
            return Err(pooled(UNSET));
        }
    }
    // Between two transactions: locks, prepared statements and what is listened to would be somebody else's.
    if told(&mut first, SESSION).await? == told(&mut other, SESSION).await? {
        return Err(pooled(SHARED));
    }
    for (setting, loses) in [("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off")] {
        if told(&mut first, &format!("SHOW {setting}")).await? == loses {
            warn!("the database has {setting} = {loses}: what was acknowledged is lost when its machine fails");
        }
    }
    Ok(())
}

async fn ask_once(options: &PgConnectOptions) -> Result<Role, sqlx::Error> {
    let ask = async {
        let mut connection = options.connect().await?;
        let role = who(&mut connection).await;
        // It was only asked.
        let _ = connection.close().await;
        role
    };
    tokio::time::timeout(ASK_TIMEOUT, ask).await.map_err(|_| sqlx::Error::PoolTimedOut)?
}

/// Asks one of several hosts who it is, again and again.
async fn watch(inner: Arc<Inner>, host: usize, options: PgConnectOptions) {
    let mut connection: Option<PgConnection> = None;
    loop {
        let ask = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => options.connect().await?,
            };
            let role = who(&mut open).await?;
            Ok::<_, sqlx::Error>((open, role))
        };
        let role = match tokio::time::timeout(ASK_TIMEOUT, ask).await {
            Ok(Ok((open, role))) => {
                connection = Some(open);
                role
            }
            Ok(Err(_)) | Err(_) => Role::Away,
        };
        inner.heard(host, role);
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Asks the one address where it leads to, again and again: what is connected already stays where it was.
async fn watch_address(inner: Arc<Inner>, options: PgConnectOptions) {
    loop {
        tokio::time::sleep(ASK_ANEW_EVERY).await;
        inner.heard(0, ask_once(&options).await.unwrap_or(Role::Away));
    }
}

impl Inner {
    /// Goes over to another server where another one is the primary now.
    fn heard(&self, host: usize, role: Role) {
        let found = {
            let mut roles = locked(&self.roles);
            if let Some(known) = roles.get_mut(host) {
                *known = role;
            }
            primary(&roles)
        };
        let Some((host, timeline)) = found else { return };
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // A primary on an older timeline than the one that was used has been replaced, and does not know it yet.
        if (host, timeline) == (current.host, current.timeline) || timeline < current.timeline {
            return;
        }
        let old = std::mem::replace(&mut *current, Current { pool: pool(&self.hosts, host, timeline, &self.generation), host, timeline });
        self.generation.fetch_add(1, Ordering::AcqRel);
        drop(current);
        info!(timeline, "the primary is {} now (timeline {timeline})", self.hosts.name(host));
        tokio::spawn(async move { old.pool.close().await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_that_take_writes_the_one_with_the_later_timeline_is_the_primary() {
        let deposed = Role::Primary { timeline: 3 };
        let promoted = Role::Primary { timeline: 4 };
        assert_eq!(primary(&[deposed, Role::Away, promoted]), Some((2, 4)));
        assert_eq!(primary(&[deposed, Role::Standby]), Some((0, 3)));
        assert_eq!(primary(&[Role::Standby, Role::Away]), None);
    }

    #[test]
    fn a_connection_to_a_server_that_was_replaced_is_not_used_and_another_server_is_another_generation() {
        let latest = Latest { timeline: AtomicU32::new(3), generation: Arc::default() };
        let admits = |role| (latest.admit(role).is_ok(), latest.generation.load(Ordering::Relaxed));
        assert_eq!(admits(Role::Primary { timeline: 3 }), (true, 0));
        assert_eq!(admits(Role::Standby), (false, 0));
        assert_eq!(admits(Role::Primary { timeline: 4 }), (true, 1));
        assert_eq!(admits(Role::Primary { timeline: 3 }), (false, 1));
        assert_eq!(admits(Role::Primary { timeline: 4 }), (true, 1));
        assert_eq!(admits(Role::Away), (false, 1));
    }
}
