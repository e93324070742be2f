//! `spendgate keys`

use anyhow::bail;
use clap::Subcommand;

use super::table::table;
use super::{Machine, Misconfigured, open_store, read_config, say};
use crate::domain::period::rfc3339;
use crate::http::auth::{KEPT_FOR, Scopes, digest, new_key};
use crate::store::keys;

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
    },
    /// List keys; the keys themselves are not kept.
    List,
    /// Revoke a key; a running service refuses it within five seconds.
    Revoke {
        /// As `list` shows it, key_…
        key_id: String,
    },
}

pub async fn run(command: Keys, machine: &Machine) -> anyhow::Result<()> {
    let config = read_config(machine)?;
    let store = open_store(&config).await?;
    let now = (machine.clock)();
    match command {
        Keys::Create { name, scopes } => {
            let scopes =
                Scopes::parse(&scopes).ok_or_else(|| Misconfigured("--scopes takes check, write and admin, comma-separated".to_owned()))?;
            let key = new_key((machine.random)()?, &name, &scopes, now);
            let mut tx = store.begin().await?;
            keys::put(tx.connection()?, &key.stored, digest(&key.text)).await?;
            tx.commit().await?;
            say(format_args!("{}\n{} ({}), shown this once", key.text, key.stored.key_id, scopes.text()));
        }
        Keys::List => {
            let mut rows = vec![["KEY ID", "SCOPES", "CREATED", "REVOKED", "NAME"].map(str::to_owned).to_vec()];
            for key in keys::all(&mut store.reader().await?).await? {
                let revoked = key.revoked_at.map(rfc3339).unwrap_or_else(|| "-".to_owned());
                rows.push(vec![key.key_id, key.scopes, rfc3339(key.created_at), revoked, key.name]);
            }
            say(table(&rows));
        }
        Keys::Revoke { key_id } => {
            let mut tx = store.begin().await?;
            let found = keys::revoke(tx.connection()?, &key_id, now).await?;
            tx.commit().await?;
            if !found {
                bail!("there is no key {key_id}; `spendgate keys list` shows them");
            }
            say(format_args!("{key_id} is revoked; a running service refuses it within {} s", KEPT_FOR.num_seconds()));
        }
    }
    store.close().await;
    Ok(())
}
