//! What nodes tell each other through Postgres' notifications.

use sqlx::postgres::PgListener;
use tokio::time::timeout;

use super::{Backend, Connection, StoreError};
use crate::domain::user::UserId;

const CHANNEL: &str = "spendgate_changed";
const TELL: &str = "SELECT pg_notify('spendgate_changed', said) FROM UNNEST($1::text[]) AS said";
/// A notification takes 8000 bytes at most.
const BYTES_MAX: usize = 7900;

/// Begins what is said; no user's id has such a character.
const MARK: char = '\u{1}';

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Everything that is kept of these users.
    Users(Vec<UserId>),
    /// What these users have spent or hold, by a batch of the node of this number, and nothing else.
    Spent(u64, Vec<UserId>),
    /// Nobody knows what.
    All,
}

/// Tells it when the transaction commits, or at once where there is none.
pub async fn tell(db: &mut Connection, heard: &Heard) -> Result<(), StoreError> {
    let Backend::Postgres(db) = db else { return Ok(()) };
    let (connection, patience) = db.sends();
    let answer = timeout(patience, sqlx::query(TELL).bind(said(heard)).execute(connection)).await;
    db.answered(answer).map(drop)
}

/// A line that says what it is about, and one for each user: ids have no line breaks.
fn said(heard: &Heard) -> Vec<String> {
    let (head, users) = match heard {
        Heard::All => return vec![String::new()],
        Heard::Users(users) => (format!("{MARK}users"), users),
        Heard::Spent(node, users) => (format!("{MARK}spent {node:x}"), users),
    };
    let mut said: Vec<String> = Vec::new();
    for user in users {
        match said.last_mut().filter(|said| said.len() + 1 + user.as_str().len() <= BYTES_MAX) {
            Some(said) => said.extend(["\n", user.as_str()]),
            None => said.push(format!("{head}\n{user}")),
        }
    }
    said
}

/// Whoever says something else is another version of us.
fn understood(said: &str) -> Heard {
    let read = || {
        let (head, users) = said.strip_prefix(MARK)?.split_once('\n')?;
        let users = users.split('\n').map(UserId::parse).collect::<Result<_, _>>().ok()?;
        match head.split_once(' ') {
            None if head == "users" => Some(Heard::Users(users)),
            Some(("spent", node)) => Some(Heard::Spent(u64::from_str_radix(node, 16).ok()?, users)),
            _ => None,
        }
    };
    read().unwrap_or(Heard::All)
}

/// Hears what other nodes tell, and what this one does.
#[derive(Debug)]
pub struct Listener(PgListener);

impl Listener {
    pub(super) async fn begin(pool: &sqlx::PgPool) -> Result<Self, StoreError> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen(CHANNEL).await?;
        Ok(Self(listener))
    }

    /// An error where the connection was lost: what was told meanwhile was not heard.
    pub async fn hear(&mut self) -> Result<Heard, StoreError> {
        let heard = self.0.try_recv().await?.ok_or(sqlx::Error::PoolClosed)?;
        Ok(understood(heard.payload()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_fit_go_into_one_notification_and_are_understood() {
        let user = |number: usize| UserId::parse(&format!("{number:0>200}")).unwrap();
        let users: Vec<UserId> = (0..100).map(user).collect();
        for (heard, of) in [
            (Heard::Users(users.clone()), Heard::Users as fn(Vec<UserId>) -> Heard),
            (Heard::Spent(u64::MAX, users.clone()), |users| Heard::Spent(u64::MAX, users)),
        ] {
            let said = said(&heard);
            assert!(said.iter().all(|said| said.len() <= BYTES_MAX) && said.len() < 4, "{}", said.len());
            let each = users.chunks(users.len().div_ceil(said.len())).map(|users| of(users.to_vec()));
            let back: Vec<Heard> = said.iter().map(|said| understood(said)).collect();
            let users = |heard: &Heard| match heard {
                Heard::Users(users) | Heard::Spent(u64::MAX, users) => users.clone(),
                Heard::Spent(..) | Heard::All => Vec::new(),
            };
            assert_eq!(back.iter().flat_map(users).collect::<Vec<_>>(), each.flat_map(|heard| users(&heard)).collect::<Vec<_>>());
            assert!(back.iter().all(|back| std::mem::discriminant(back) == std::mem::discriminant(&heard)));
        }
        assert!(said(&Heard::Users(Vec::new())).is_empty());
    }

    #[test]
    fn what_is_not_understood_may_be_about_everything() {
        assert_eq!(understood(&said(&Heard::All)[0]), Heard::All);
        for said in
            ["u_42", "\u{1}users", "\u{1}users\n", "\u{1}spent\nu_42", "\u{1}spent x\nu_42", "\u{1}users 1\nu_42", "\u{1}held 1\nu_42"]
        {
            assert_eq!(understood(said), Heard::All, "{said}");
        }
        assert_eq!(understood("\u{1}spent 2a\nu_42"), Heard::Spent(42, vec![UserId::parse("u_42").unwrap()]));
    }
}
