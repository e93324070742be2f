//! What nodes tell each other through Postgres' notifications.

use sqlx::postgres::PgListener;

use super::{Backend, Connection, StoreError};
use crate::domain::user::UserId;

const CHANNEL: &str = "spendgate_changed";
const TELL: &str = "SELECT pg_notify('spendgate_changed', said) FROM UNNEST($1::text[]) AS said";
/// A notification takes 8000 bytes at most.
const BYTES_MAX: usize = 7900;

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Everything that is kept of these users.
    Users(Vec<UserId>),
    /// Nobody knows what.
    All,
}

/// Tells it when the transaction commits, or at once where there is none.
pub async fn tell(db: &mut Connection, heard: &Heard) -> Result<(), StoreError> {
    let Backend::Postgres(db) = db else { return Ok(()) };
    let said = match heard {
        Heard::All => vec![String::new()],
        Heard::Users(users) => lines(users),
    };
    sqlx::query(TELL).bind(said).execute(&mut **db).await?;
    Ok(())
}

/// Ids have no line breaks.
fn lines(users: &[UserId]) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    for user in users {
        match said.last_mut().filter(|line| line.len() + 1 + user.as_str().len() <= BYTES_MAX) {
            Some(line) => line.extend(["\n", user.as_str()]),
            None => said.push(user.as_str().to_owned()),
        }
    }
    said
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
        if heard.payload().is_empty() {
            return Ok(Heard::All);
        }
        let users = heard.payload().split('\n').map(UserId::parse).collect::<Result<_, _>>();
        // Whoever says something else is a later version of us.
        Ok(users.map_or(Heard::All, Heard::Users))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_fit_go_into_one_notification() {
        let user = |number: usize| UserId::parse(&format!("{number:0>200}")).unwrap();
        let users: Vec<UserId> = (0..100).map(user).collect();
        let said = lines(&users);
        assert!(said.iter().all(|line| line.len() <= BYTES_MAX) && said.len() < 4, "{}", said.len());
        let back: Vec<UserId> = said.iter().flat_map(|line| line.split('\n')).map(|id| UserId::parse(id).unwrap()).collect();
        assert_eq!(back, users);
        assert!(lines(&[]).is_empty());
    }
}
