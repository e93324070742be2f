//! `spendgate keys`

use anyhow::bail;
use chrono::{SubsecRound, TimeDelta};
use clap::Subcommand;

use super::table::table;
use super::{Machine, Misconfigured, open_known_store, read_config, say};
use crate::domain::period::rfc3339;
use crate::http::auth::{NewKey, Scopes, new_key};
use crate::http::key_book::{self, COMMAND_LINE, Hand, LIFETIME_SECONDS, OVERLAP_SECONDS};
use crate::http::key_ring::KEPT_FOR;
use crate::store::{Store, keys};

#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Make a key and print it, this once.
    Create {
        /// What it is for, for people to read.
        #[arg(long)]
        name: String,
        /// What it may do, comma-separated: check (ask), write (book usage), admin (everything).
        #[arg(long, default_value = "check,write")]
        scopes: String,
        /// End by itself after so long, as in 12h or 90d, from a minute to ten years; without it, when it is revoked.
        #[arg(long, value_name = "TIME", value_parser = lifetime)]
        expires_in: Option<TimeDelta>,
    },
    /// List keys; the keys themselves are not kept. When one was used last is up to a minute behind.
    List,
    /// Make another key of the same name and scopes and print it, this once; the old one is good beside it for a while.
    Rotate {
        /// As `list` shows it, key_…
        key_id: String,
        /// How long the old key is good beside the new one, up to 30d; 0m ends it now.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = overlap)]
        overlap: TimeDelta,
    },
    /// Revoke a key; a running service refuses it within five seconds.
    Revoke {
        /// As `list` shows it, key_…
        key_id: String,
    },
}

fn lifetime(text: &str) -> Result<TimeDelta, String> {
    let good = time(text).filter(|time| LIFETIME_SECONDS.contains(&time.num_seconds()));
    good.ok_or_else(|| "must be a time such as 30m, 12h or 90d, from 1m to 3650d".to_owned())
}

fn overlap(text: &str) -> Result<TimeDelta, String> {
    let good = time(text).filter(|time| OVERLAP_SECONDS.contains(&time.num_seconds()));
    good.ok_or_else(|| "must be a time such as 30m, 24h or 7d, from 0m to 30d".to_owned())
}

/// A whole number and its unit.
fn time(text: &str) -> Option<TimeDelta> {
    let seconds = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)].into_iter().find_map(|(unit, seconds)| {
        let count: i64 = text.strip_suffix(unit)?.parse().ok()?;
        count.checked_mul(seconds)
    });
    seconds.and_then(TimeDelta::try_seconds)
}

pub async fn run(command: Keys, machine: &Machine) -> anyhow::Result<()> {
    let config = read_config(machine)?;
    let store = open_known_store(&config).await?;
    let hand = Hand { key_id: COMMAND_LINE, now: (machine.clock)().trunc_subsecs(6) };
    match command {
        Keys::Create { name, scopes, expires_in } => {
            let scopes =
                Scopes::parse(&scopes).ok_or_else(|| Misconfigured("--scopes takes check, write and admin, comma-separated".to_owned()))?;
            let key = new_key((machine.random)()?, &name, &scopes, hand.now, expires_in.map(|time| hand.now + time));
            let mut tx = store.begin().await?;
            key_book::create(tx.connection()?, hand, &key).await?;
            tx.commit().await?;
            show(&key);
        }
        Keys::List => list(&store).await?,
        Keys::Rotate { key_id, overlap } => {
            let mut tx = store.begin().await?;
            let rotated = key_book::rotate(tx.connection()?, hand, &key_id, overlap, (machine.random)()?).await??;
            tx.commit().await?;
            let (key, old) = (&rotated.successor, &rotated.replaced);
            show(key);
            say(format_args!("{} ends at {}", old.key_id, old.expires_at.map(rfc3339).unwrap_or_default()));
        }
        Keys::Revoke { key_id } => {
            let mut tx = store.begin().await?;
            let revoked = key_book::revoke(tx.connection()?, hand, &key_id, false).await?;
            tx.commit().await?;
            if revoked.is_err() {
                bail!("there is no key {key_id}; `spendgate keys list` shows them");
            }
            say(format_args!("{key_id} is revoked; a running service refuses it within {} s", KEPT_FOR.num_seconds()));
        }
    }
    store.close().await;
    Ok(())
}

fn show(key: &NewKey) {
    let until = key.stored.expires_at.map(|end| format!(", good until {}", rfc3339(end))).unwrap_or_default();
    say(format_args!("{}\n{} ({}), shown this once{until}", key.text, key.stored.key_id, key.stored.scopes));
}

async fn list(store: &Store) -> anyhow::Result<()> {
    let titles = ["KEY ID", "SCOPES", "CREATED", "LAST USED", "EXPIRES", "REVOKED", "SUCCESSOR", "NAME"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for key in keys::all(&mut store.reader().await?).await? {
        let times = [key.last_used_at, key.expires_at, key.revoked_at].map(|time| or_none(time.map(rfc3339)));
        let [used, expires, revoked] = times;
        rows.push(vec![key.key_id, key.scopes, rfc3339(key.created_at), used, expires, revoked, or_none(key.successor), key.name]);
    }
    say(table(&rows));
    Ok(())
}
