//! One query text for both databases: what is bound and read is told apart here, once.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, Decode, Encode, Postgres, Row as _, Sqlite, Type};
use tokio::time::timeout;

use super::StoreError;
use super::lent::Lent;

/// The same for one database and for the other.
#[derive(Clone, Debug)]
pub enum Backend<S, P> {
    Sqlite(S),
    Postgres(P),
}

/// Compiles `$body` once for each database.
macro_rules! on {
    ($backend:expr, |$db:ident| $body:expr) => {
        match $backend {
            $crate::store::backend::Backend::Sqlite($db) => $body,
            $crate::store::backend::Backend::Postgres($db) => $body,
        }
    };
}

pub(super) use on;

/// A statement that finds rows by a list ($1 and so on) of texts, or of numbers, for SQLite and for Postgres: there a list that is a query
/// is joined, and with that a table may be read from its beginning to its end.
macro_rules! by_list {
    ($before:literal, $list:literal, $after:literal) => {
        (
            concat!($before, " IN (SELECT value FROM json_each(", $list, "))", $after),
            concat!($before, " = ANY(ARRAY(SELECT value FROM json_each(", $list, ")))", $after),
        )
    };
    ($before:literal, number $list:literal, $after:literal) => {
        (
            concat!($before, " IN (SELECT CAST(value AS BIGINT) FROM json_each(", $list, "))", $after),
            concat!($before, " = ANY(ARRAY(SELECT CAST(value AS BIGINT) FROM json_each(", $list, ")))", $after),
        )
    };
}

pub(super) use by_list;

/// A connection that goes back to its pool, in or outside a transaction.
pub type Connection = Backend<sqlx::pool::PoolConnection<Sqlite>, Lent>;

/// What both databases take as a parameter.
pub trait Bindable<'t>: Encode<'t, Sqlite> + Type<Sqlite> + Encode<'t, Postgres> + Type<Postgres> {}

impl<'t, T: Encode<'t, Sqlite> + Type<Sqlite> + Encode<'t, Postgres> + Type<Postgres>> Bindable<'t> for T {}

/// What both databases give in a column.
pub trait Readable: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres> {}

impl<T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>> Readable for T {}

impl Connection {
    /// From here on it is closed when it is dropped, unless it was trusted again: whoever keeps it may be stopped in the middle of a
    /// statement. SQLite has an answer to each.
    pub fn keep(&mut self) {
        if let Self::Postgres(db) = self {
            db.keep();
        }
    }

    /// It may go back to its pool.
    pub fn trust(&mut self) {
        if let Self::Postgres(db) = self {
            db.trust();
        }
    }

    /// Where the two databases part.
    pub(super) fn query_of(&mut self, sqlite: &'static str, postgres: &'static str) -> Query<'_> {
        let sql = match self {
            Self::Sqlite(_) => sqlite,
            Self::Postgres(_) => postgres,
        };
        self.query(sql)
    }

    /// `$1`, `$2`, … are what is bound, in its order.
    pub(super) fn query(&mut self, sql: &'static str) -> Query<'_> {
        let arguments = match self {
            Self::Sqlite(_) => Backend::Sqlite(SqliteArguments::default()),
            Self::Postgres(_) => Backend::Postgres(PgArguments::default()),
        };
        Query { db: self, sql, arguments: Ok(arguments) }
    }
}

/// A statement that is being made.
pub(super) struct Query<'c> {
    db: &'c mut Connection,
    sql: &'static str,
    arguments: Result<Backend<SqliteArguments, PgArguments>, StoreError>,
}

impl<'c> Query<'c> {
    pub fn bind<'t>(mut self, value: impl Bindable<'t>) -> Self {
        if let Ok(arguments) = &mut self.arguments {
            let added = on!(arguments, |arguments| arguments.add(value));
            self.arguments = match (added, self.arguments) {
                (Err(error), _) => Err(StoreError::from(sqlx::Error::Encode(error))),
                (Ok(()), arguments) => arguments,
            };
        }
        self
    }

    /// Gives how many rows it changed.
    pub async fn execute(self) -> Result<u64, StoreError> {
        match (self.db, self.arguments?) {
            (Backend::Sqlite(db), Backend::Sqlite(arguments)) => {
                Ok(sqlx::query_with(self.sql, arguments).execute(&mut **db).await?.rows_affected())
            }
            (Backend::Postgres(db), Backend::Postgres(arguments)) => {
                let (connection, patience) = db.sends();
                let answer = timeout(patience, sqlx::query_with(self.sql, arguments).execute(connection)).await;
                Ok(db.answered(answer)?.rows_affected())
            }
            (Backend::Sqlite(_), Backend::Postgres(_)) | (Backend::Postgres(_), Backend::Sqlite(_)) => Err(StoreError::torn()),
        }
    }

    pub async fn fetch_all(self) -> Result<Vec<Row>, StoreError> {
        match (self.db, self.arguments?) {
            (Backend::Sqlite(db), Backend::Sqlite(arguments)) => {
                let rows = sqlx::query_with(self.sql, arguments).fetch_all(&mut **db).await?;
                Ok(rows.into_iter().map(|row| Row(Backend::Sqlite(row))).collect())
            }
            (Backend::Postgres(db), Backend::Postgres(arguments)) => {
                let (connection, patience) = db.sends();
                let answer = timeout(patience, sqlx::query_with(self.sql, arguments).fetch_all(connection)).await;
                Ok(db.answered(answer)?.into_iter().map(|row| Row(Backend::Postgres(row))).collect())
            }
            (Backend::Sqlite(_), Backend::Postgres(_)) | (Backend::Postgres(_), Backend::Sqlite(_)) => Err(StoreError::torn()),
        }
    }

    /// Row by row, where there may be more than memory should hold.
    pub fn fetch(self) -> Result<BoxStream<'c, Result<Row, StoreError>>, StoreError> {
        match (self.db, self.arguments?) {
            (Backend::Sqlite(db), Backend::Sqlite(arguments)) => {
                let rows = sqlx::query_with(self.sql, arguments).fetch(&mut **db);
                Ok(rows.map(|row| Ok(Row(Backend::Sqlite(row?)))).boxed())
            }
            (Backend::Postgres(db), Backend::Postgres(arguments)) => {
                let rows = sqlx::query_with(self.sql, arguments).fetch(&mut **db);
                Ok(rows.map(|row| Ok(Row(Backend::Postgres(row?)))).boxed())
            }
            (Backend::Sqlite(_), Backend::Postgres(_)) | (Backend::Postgres(_), Backend::Sqlite(_)) => Err(StoreError::torn()),
        }
    }

    pub async fn fetch_optional(self) -> Result<Option<Row>, StoreError> {
        Ok(self.fetch_all().await?.into_iter().next())
    }

    pub async fn fetch_one(self) -> Result<Row, StoreError> {
        self.fetch_optional().await?.ok_or_else(|| sqlx::Error::RowNotFound.into())
    }

    /// The first column of the one row that there is.
    pub async fn scalar<T: Readable>(self) -> Result<T, StoreError> {
        self.fetch_one().await?.first()
    }

    /// The first column of the first row.
    pub async fn scalar_optional<T: Readable>(self) -> Result<Option<T>, StoreError> {
        self.fetch_optional().await?.as_ref().map(Row::first).transpose()
    }

    /// The first column of each row.
    pub async fn scalars<T: Readable>(self) -> Result<Vec<T>, StoreError> {
        self.fetch_all().await?.iter().map(Row::first).collect()
    }
}

/// What a statement gave.
#[derive(Debug)]
pub struct Row(Backend<SqliteRow, PgRow>);

impl Row {
    pub(super) fn try_get<T: Readable>(&self, column: &str) -> Result<T, StoreError> {
        Ok(on!(&self.0, |row| row.try_get(column))?)
    }

    /// The column at a place, counted from 0.
    pub(super) fn at<T: Readable>(&self, place: usize) -> Result<T, StoreError> {
        Ok(on!(&self.0, |row| row.try_get(place))?)
    }

    fn first<T: Readable>(&self) -> Result<T, StoreError> {
        self.at(0)
    }
}
