//! `spendgate serve`, and the server that `demo` and tests start too.

use std::fs::{self, File, TryLockError};
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;

use anyhow::{Context, bail};
use chrono::{SubsecRound, TimeDelta};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{info, warn};

use super::catalogue::read_catalogue;
use super::listen::listen;
use super::{Machine, Misconfigured, open_store, read_config, say};
use crate::alerts::Teller;
use crate::config::{AdminKey, Authentication, Config, GateConfig, Listen};
use crate::current::{Current, Reload};
use crate::domain::catalogue::Catalogue;
use crate::domain::period::Period;
use crate::http::auth::{ENVIRONMENT_KEY_ID, Scopes, digest, new_key};
use crate::http::gate::Gate;
use crate::http::key_ring::KeyRing;
use crate::http::metrics::Kept;
use crate::http::notices::{self, Notices};
use crate::http::serve::Limits;
use crate::http::serve::tls::Tls;
use crate::http::{self, App};
use crate::meter::{Clock, Meter, Settings};
use crate::store::keys::StoredKey;
use crate::store::{Address, Backend, Store, copy, keys, links};
use crate::stripe::client::Client;
use crate::sync::Rules;
use crate::sync::asking::{Asker, Tell};
use crate::sync::reconcile::Reconciler;
use crate::telemetry::Telemetry;
use crate::upgrade::{Key, Upgrades};

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    /// Where it turned out to listen.
    pub address: Listen,
    /// Where metrics are read without a key, if anywhere.
    pub metrics_address: Option<SocketAddr>,
    /// The first admin key, where this start made it: it is shown once.
    pub new_admin_key: Option<String>,
    /// `None` where Stripe is not asked.
    pub asker: Option<Arc<Asker>>,
    pub reconciler: Option<Arc<Reconciler>>,
    pub keys: Arc<KeyRing>,
    pub teller: Arc<Teller>,
    reload: Reload,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Server {
    /// Opens the store, listens, and serves until [`Server::stop`].
    pub async fn start(config: &Config, catalogue: Catalogue, machine: &Machine) -> anyhow::Result<Self> {
        Self::start_within(Limits::default(), config, catalogue, machine).await
    }

    /// The same, with other limits on connections.
    pub async fn start_within(limits: Limits, config: &Config, catalogue: Catalogue, machine: &Machine) -> anyhow::Result<Self> {
        let tls = read_tls(config)?;
        let current = Current::new(catalogue);
        let settings = Settings { keep: retention(config, &current.load())?, max_staleness: config.max_staleness };
        // The store keeps microseconds; what memory holds must be the same to the last digit.
        let (reads, lock) = (machine.clock.clone(), lock(&config.database)?);
        let clock: Clock = Arc::new(move || reads().trunc_subsecs(6));
        let store = open_store(config).await?;
        if let Backend::Sqlite(files) = store.backend() {
            files.leave_the_logs().await?;
        }
        first_write(&store, config, machine).await?;
        let (listener, address, socket) = listen("LISTEN_ADDR", &config.listen_addr, &limits)?;
        let metrics = config.metrics_addr.map(|address| listen("METRICS_ADDR", &Listen::Tcp(address), &limits)).transpose()?;
        let metrics_address = metrics.as_ref().and_then(|(_, address, _)| address.tcp());
        let reload = Reload::new(current.clone(), reader(config, tls.clone()));
        let (meter, writer) = Meter::start(store.clone(), current.clone(), clock.clone(), settings).await?;
        let meter = Arc::new(meter);
        let asker = match &config.stripe.api_key {
            Some(_) => {
                let client = stripe_client(config, machine)?;
                let told = meter.clone();
                let tell: Tell = Arc::new(move |touched| http::forget(&told, touched));
                Some(Asker::new(store.clone(), current.clone(), client, clock.clone(), tell))
            }
            None => None,
        };
        let rules = Rules { livemode: config.stripe.livemode(), asks: asker.is_some() };
        let holder = hex::encode((machine.random)()?);
        let seed = u64::from_le_bytes((machine.random)()?[8..16].try_into()?);
        let teller = Teller::new(store.clone(), clock.clone(), &config.alerts, holder.clone(), seed)?;
        let reconciler = asker.clone().map(|asker| Reconciler::new(asker, rules, holder));
        let (notices, raised) = Notices::new();
        let mut background = JoinSet::new();
        background.spawn(notices::raise(store.clone(), raised, teller.clone()));
        if config.alerts.tells {
            background.spawn(teller.clone().run());
        }
        if let Some(asker) = asker.clone() {
            background.spawn(asker.run());
        }
        if let Some(reconciler) = reconciler.clone().filter(|_| config.stripe.compares) {
            background.spawn(reconciler.run(config.stripe.reconcile_every));
        }
        let public_url = config.public_url.clone().unwrap_or_else(|| url(config, &address));
        let upgrades = match asker.clone() {
            Some(asker) => Some(Arc::new(Upgrades::new(asker, link_key(&store, machine).await?, public_url.clone()))),
            None => None,
        };
        let keys = Arc::new(match config.authentication {
            Authentication::Required => KeyRing::default(),
            Authentication::Off => KeyRing::open_to_all(),
        });
        background.spawn(keys.clone().keep_writing(store.clone()));
        let app = Arc::new(App {
            store: store.clone(),
            meter,
            asker: asker.clone(),
            catalogue: current,
            reload: reload.clone(),
            notices,
            teller: teller.clone(),
            keys: keys.clone(),
            random: machine.random,
            webhook_secrets: config.webhook_secrets.clone(),
            rules,
            reconciler: reconciler.clone(),
            upgrades,
            public_url,
            return_url: config.return_url.clone(),
            store_timeout: config.store_timeout,
            gate: gate(&config.gate)?,
            turns: Semaphore::new(available_parallelism().map_or(1, NonZero::get)),
            started_at: clock(),
            clock,
            telemetry: Telemetry::default(),
            figures: Kept::default(),
        });
        // Nothing that may fail comes behind it: a key that is never shown is of no use.
        let new_admin_key = first_key(&store, config, machine).await?;
        if let Some((listener, ..)) = metrics {
            // It ends with everything else in the background: nobody's request is lost with it.
            background.spawn(http::serve_metrics(listener, limits, app.clone()));
        }
        let open = app.telemetry.connections.clone();
        let (stop, stopped) = oneshot::channel();
        let used = keys.clone();
        let ended = tokio::spawn(async move {
            let doors = http::Doors::new(app, limits);
            // An error is a `stop` that was dropped, which means the same.
            let answer = move |request| doors.answer(request);
            http::serve::serve(listener, tls, limits, open, answer, async { drop(stopped.await) }).await?;
            drop(socket);
            background.shutdown().await;
            // The last holder of the meter is gone with the router and the asker, so the writer ends once its queue is done.
            writer.await?;
            if let Err(error) = used.write_uses(&store).await {
                warn!(%error, "when keys were used last could not be written: {error}");
            }
            store.close().await;
            // Closing it would not free it while a child that was forked this moment has it open too.
            if let Some(lock) = lock {
                lock.unlock()?;
            }
            Ok(())
        });
        Ok(Self { address, metrics_address, new_admin_key, asker, reconciler, keys, teller, reload, stop, ended })
    }

    /// Finishes what is in flight.
    pub async fn stop(self) -> anyhow::Result<()> {
        drop((self.asker, self.reconciler, self.teller));
        // The server may have ended by itself.
        let _ = self.stop.send(());
        self.ended.await?
    }
}

fn gate(config: &GateConfig) -> anyhow::Result<Gate> {
    let GateConfig { user_header, model_header, cost_header, block_status } = config.clone();
    Gate::new(user_header, model_header, cost_header, block_status).context("GATE_BLOCK_STATUS: is no status")
}

/// Asks Stripe as the settings say. The caller has seen that there is a key.
pub fn stripe_client(config: &Config, machine: &Machine) -> anyhow::Result<Client> {
    let stripe = &config.stripe;
    let key = stripe.api_key.clone().context("STRIPE_API_KEY is not set")?;
    let seed = u64::from_le_bytes((machine.random)()?[..8].try_into()?);
    let client = Client::new(key, &stripe.api_base, seed)?;
    let client = match stripe.calls_per_second {
        Some(calls) => client.paced(calls),
        None => client,
    };
    Ok(client.with(stripe.patience))
}

/// The edges of a subscription's period are summed from rows, and a period of up to four years is believed.
const RETENTION_DAYS_OF_BILLING: u32 = 1500;

/// How long rows are kept.
pub fn retention(config: &Config, catalogue: &Catalogue) -> anyhow::Result<Option<TimeDelta>> {
    let Some(days) = config.retention_days else { return Ok(None) };
    if days < RETENTION_DAYS_OF_BILLING && catalogue.uses(Period::Billing) {
        let why = format!(
            "RETENTION_DAYS: must be at least {RETENTION_DAYS_OF_BILLING}, since tiers.yaml has a `billing` budget and a period may be years"
        );
        return Err(Misconfigured(why).into());
    }
    Ok(Some(TimeDelta::days(i64::from(days))))
}

/// What connections are made safe with, if they are.
pub fn read_tls(config: &Config) -> anyhow::Result<Option<Tls>> {
    let tls = config.tls.as_ref().map(|files| Tls::read(&files.cert, &files.key)).transpose();
    tls.map_err(|fault| Misconfigured(fault.to_string()).into())
}

/// What others on this machine call the service by.
pub fn url(config: &Config, address: &Listen) -> String {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    match address {
        Listen::Tcp(address) => format!("{scheme}://{address}"),
        // curl and others take the socket beside a URL, whose host says nothing then.
        Listen::Unix(_) => "http://localhost".to_owned(),
    }
}

/// Reads the files again, and checks what the start checks. The certificate comes last: what is right then holds, and so does the rest.
fn reader(config: &Config, tls: Option<Tls>) -> impl Fn() -> Result<Catalogue, String> + Send + Sync + 'static {
    let config = config.clone();
    move || {
        let read = read_catalogue(&config).and_then(|(catalogue, _)| {
            retention(&config, &catalogue)?;
            if let Some(tls) = &tls {
                tls.read_again()?;
            }
            Ok(catalogue)
        });
        read.map_err(|error| format!("{error:#}"))
    }
}

/// Has the files read again at each SIGHUP.
async fn reload_at_hangup(mut hangup: Signal, reload: Reload) {
    while hangup.recv().await.is_some() {
        let reload = reload.clone();
        // It tells the log what has come of it.
        drop(tokio::task::spawn_blocking(move || reload.run()).await);
    }
}

/// One process owns a database file (many share a Postgres): what it holds in memory would not see another one's writes.
pub fn lock(database: &Address) -> anyhow::Result<Option<File>> {
    let Some(database) = database.file() else { return Ok(None) };
    if let Some(folder) = database.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).with_context(|| format!("the folder {} cannot be made", folder.display()))?;
    }
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    let path = Path::new(&path);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("{} cannot be made", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            bail!("{} is served by another process already; stop it, or set another DATA_DIR", database.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{} cannot be locked", path.display())),
    }
}

/// Stores the admin key that came from outside. A database that is not all here yet is refused.
async fn first_write(store: &Store, config: &Config, machine: &Machine) -> anyhow::Result<()> {
    let (now, given) = ((machine.clock)(), config.admin_api_key.as_ref());
    let mut tx = store.begin().await?;
    if let Some(origin) = copy::unfinished(tx.connection()?).await? {
        let why = format!(
            "DATABASE_URL: {} is the unfinished copy of {origin}; `spendgate copy --from sqlite:{origin} --to <the address in DATABASE_URL>` finishes it",
            config.database
        );
        return Err(Misconfigured(why).into());
    }
    copy::forget_source(tx.connection()?).await?;
    if let Some(AdminKey(key)) = given {
        let stored = StoredKey {
            key_id: ENVIRONMENT_KEY_ID.to_owned(),
            name: "ADMIN_API_KEY".to_owned(),
            scopes: Scopes::admin().text(),
            created_at: now,
            expires_at: None,
            revoked_at: None,
            last_used_at: None,
            successor: None,
        };
        keys::put(tx.connection()?, &stored, digest(key)).await?;
    } else {
        // One that came from outside at an earlier start, and no longer does.
        keys::revoke(tx.connection()?, ENVIRONMENT_KEY_ID, now).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Where no admin key came from outside, and there is no key at all, makes the first.
async fn first_key(store: &Store, config: &Config, machine: &Machine) -> anyhow::Result<Option<String>> {
    if config.admin_api_key.is_some() {
        return Ok(None);
    }
    let mut tx = store.begin().await?;
    let mut made = None;
    if keys::all(tx.connection()?).await?.is_empty() {
        let key = new_key((machine.random)()?, "first", &Scopes::admin(), (machine.clock)(), None);
        keys::put(tx.connection()?, &key.stored, digest(&key.text)).await?;
        made = Some(key.text);
    }
    tx.commit().await?;
    Ok(made)
}

/// What signs links to buy more; made at the first start.
async fn link_key(store: &Store, machine: &Machine) -> anyhow::Result<Key> {
    let mut tx = store.begin().await?;
    let secret = links::secret(tx.connection()?, (machine.random)()?).await?;
    tx.commit().await?;
    Ok(Key::new(secret))
}

pub async fn run(machine: Machine) -> anyhow::Result<()> {
    let config = read_config(&machine)?;
    let (catalogue, sources) = read_catalogue(&config)?;
    let (signals, hangup) = (Signals::listen()?, signal(SignalKind::hangup())?);
    // A file that is not there for a moment, while it is replaced, must not give way to what is built in.
    let config = sources.pin(config);
    let server = Server::start(&config, catalogue, &machine).await?;
    let reloading = tokio::spawn(reload_at_hangup(hangup, server.reload.clone()));
    let url = url(&config, &server.address);
    let place = match &server.address {
        Listen::Tcp(_) => url.clone(),
        socket @ Listen::Unix(_) => socket.to_string(),
    };
    info!(address = %server.address, "listening on {place}; tiers from {}; prices from {}; data in {}", sources.tiers, sources.prices, config.database);
    if let Some(address) = server.metrics_address {
        info!(%address, "metrics on http://{address}/metrics, without a key");
    }
    match &server.asker {
        Some(asker) => info!("Stripe is asked: {}", if asker.client.livemode() { "live mode" } else { "test mode" }),
        None => info!("Stripe is not asked: events are applied as they show (payload mode)"),
    }
    match server.teller.endpoints() {
        nobody if nobody.is_empty() => info!("alerts are told to nobody: ALERT_WEBHOOKS is not set"),
        endpoints => info!("alerts are told to {}", endpoints.join(", ")),
    }
    if config.webhook_secrets.is_empty() {
        warn!("STRIPE_WEBHOOK_SECRETS is not set: POST /webhooks/stripe takes nothing");
    }
    if config.public_url.is_none() && config.listen_addr.tcp().is_none_or(|address| address.ip().is_unspecified()) {
        warn!("PUBLIC_URL is not set: upgrade URLs below this service lead to {url}, which nobody can reach");
    }
    if config.authentication == Authentication::Off {
        warn!("AUTHENTICATION=off: every process that gets to {place} may do everything, and so may a page in a browser on this machine");
    }
    let key = match &server.new_admin_key {
        Some(key) => {
            say(format_args!("The first admin key, shown this once: {key}"));
            key.as_str()
        }
        None => "$SPENDGATE_KEY",
    };
    let socket = match &server.address {
        Listen::Tcp(_) => String::new(),
        Listen::Unix(path) => format!("--unix-socket '{}' ", path.display()),
    };
    say(format_args!("Spendgate listens on {place}. Next:"));
    say(format_args!("  curl {socket}-H 'Authorization: Bearer {key}' '{url}/v1/users/u_42/enforcement?model=gpt-4o&estimated_cost=0.03'"));
    signals.told().await;
    reloading.abort();
    info!("stopping: finishing what is in flight");
    server.stop().await?;
    info!("stopped");
    Ok(())
}

/// SIGTERM and Ctrl-C. Made before anybody is told that the service runs: until then a signal ends the process as it stands.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn listen() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them.
    pub async fn told(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
