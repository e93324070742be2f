//! What was spent.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Days, NaiveTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::auth::{Bearer, Scope, require};
use super::body::{self, Name, NoParams, OneOrMany, Params, Time, UserPath};
use super::call::{self, Fault, with_tokens};
use super::error::{ErrorCode, Problem};
use super::openapi::shapes::{Amount, Cursor, Day, EntryDetail, EntryKindName, Grouping, Limit, ModelOrNone, Records};
use super::view::Moment;
use super::{App, page};
use crate::domain::money::Money;
use crate::domain::operation::{AHEAD_MAX, EntryKind, Receipt, Usage};
use crate::domain::user::UserId;
use crate::store::ledger::{self, GroupBy, StoredEntry, StoredSum, Stretch, SumPlace};

/// Records in one request.
pub(super) const MANY_MAX: usize = 1000;
/// A thousand records with full metadata fit.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
const METADATA_BYTES_MAX: usize = 4096;
/// Without `to`, whatever was booked is shown, also what a clock that runs ahead has dated.
const END_OF_TIME: DateTime<Utc> = DateTime::<Utc>::MAX_UTC;
/// The caller's own JSON object as text. Its keys are sorted, so that the same object is the same text.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Metadata(pub String);

impl TryFrom<Map<String, Value>> for Metadata {
    type Error = String;

    fn try_from(map: Map<String, Value>) -> Result<Self, String> {
        let text = Value::from_iter(map.into_iter().collect::<BTreeMap<_, _>>()).to_string();
        if METADATA_BYTES_MAX < text.len() { Err(format!("has more than {METADATA_BYTES_MAX} bytes")) } else { Ok(Self(text)) }
    }
}

with_tokens! {
    #[derive(Debug, Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Record {
        id: Name,
        user_id: UserId,
        #[schema(value_type = Option<Amount>)]
        cost: Option<Money>,
        model: Option<Name>,
        provider: Option<Name>,
        time: Option<Time>,
        metadata: Option<Metadata>,
    }
}

impl Record {
    fn into_usage(self, now: DateTime<Utc>) -> Result<Usage, Fault> {
        if self.time.is_some_and(|time| now + AHEAD_MAX < time.0) {
            let why = format!("lies more than {} s ahead of this service's clock", AHEAD_MAX.num_seconds());
            return Err((ErrorCode::InvalidField, "time", why));
        }
        let used = self.counts().used(self.cost, self.model, self.provider, self.metadata.map(|metadata| metadata.0), false)?;
        Ok(Usage { id: self.id.0, user_id: self.user_id, time: self.time.map(|time| time.0), used })
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct ReceiptView {
    id: String,
    user_id: UserId,
    cost: Money,
    time: Moment,
    recorded_at: Moment,
    /// The model has no price, so it counts nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unpriced: bool,
    repeated: bool,
}

impl From<Receipt> for ReceiptView {
    fn from(receipt: Receipt) -> Self {
        Self {
            id: receipt.id,
            user_id: receipt.user_id,
            cost: receipt.cost,
            time: Moment(receipt.time),
            recorded_at: Moment(receipt.recorded_at),
            unpriced: receipt.unpriced,
            repeated: receipt.repeated,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct Receipts {
    results: Vec<ReceiptView>,
}

/// Answered as it was asked.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Recorded {
    One(ReceiptView),
    Many(Receipts),
}

/// `POST /v1/usage`: one record, or a list that is booked whole or not at all.
#[utoipa::path(
    post, path = "/v1/usage", tag = "usage", operation_id = "record_usage",
    request_body(content = Records, example = json!({"id": "call-1", "user_id": "u_42", "cost": "0.0125", "model": "gpt-4o"})),
    responses((status = 200, description = "it is on the disk", body = Recorded)),
    security(("bearer" = ["write"])),
    extensions(("x-problem-codes" = json!([ErrorCode::IdReused, ErrorCode::UnknownModel, ErrorCode::Busy]))),
)]
pub async fn record(
    State(app): State<Arc<App>>,
    key: Bearer,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Write).await?;
    let body = body::read(body, BODY_BYTES_MAX).await?;
    let (records, is_list) = OneOrMany::<Record>::read(&body, MANY_MAX)?.into_parts();
    let now = app.now();
    let mut usages = Vec::with_capacity(records.len());
    for (index, record) in records.into_iter().enumerate() {
        let prefix = if is_list { format!("[{index}].") } else { String::new() };
        usages.push(record.into_usage(now).map_err(|fault| call::problem(fault, &prefix))?);
    }
    // A copy of their names costs something, so it is made only where one may be needed.
    let models: Vec<Option<String>> = usages.iter().map(|usage| usage.used.model.clone().filter(|_| usage.used.cost.is_none())).collect();
    let receipts = app.meter.record(usages).await.map_err(|error| Problem::from_priced_write(&app, error, is_list))?;
    for (model, _) in models.iter().zip(&receipts).filter(|(_, receipt)| receipt.unpriced && !receipt.repeated) {
        app.notices.saw_unpriced(model.as_deref().unwrap_or_default(), now);
    }
    let mut results: Vec<ReceiptView> = receipts.into_iter().map(ReceiptView::from).collect();
    match if is_list { None } else { results.pop() } {
        Some(only) => Ok(Json(Recorded::One(only)).into_response()),
        None => Ok(Json(Recorded::Many(Receipts { results })).into_response()),
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    #[param(value_type = Option<Grouping>)]
    group_by: Option<String>,
    from: Option<Time>,
    to: Option<Time>,
    #[param(value_type = Option<Limit>)]
    limit: Option<String>,
    #[param(value_type = Option<Cursor>)]
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct EntryView {
    id: String,
    #[schema(value_type = EntryKindName)]
    kind: &'static str,
    cost: Money,
    time: Moment,
    recorded_at: Moment,
    model: Option<String>,
    provider: Option<String>,
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
    #[schema(value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    /// Tokens of other kinds, and `pricing`: the prices that were applied.
    #[serde(flatten)]
    #[schema(value_type = EntryDetail)]
    detail: BTreeMap<String, Box<RawValue>>,
}

impl From<StoredEntry> for EntryView {
    fn from(entry: StoredEntry) -> Self {
        Self {
            id: entry.id,
            kind: match entry.kind {
                EntryKind::Usage => "usage",
                EntryKind::Capture => "capture",
                EntryKind::Correction => "correction",
            },
            cost: entry.cost,
            time: Moment(entry.time),
            recorded_at: Moment(entry.recorded_at),
            model: entry.model,
            provider: entry.provider,
            input_tokens: entry.input_tokens,
            output_tokens: entry.output_tokens,
            metadata: entry.metadata.and_then(|text| RawValue::from_string(text).ok()),
            detail: entry.detail.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct Entries {
    entries: Vec<EntryView>,
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct SumView {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Day, required = false)]
    day: Option<String>,
    /// Absent where models are not told apart; null is usage that named none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ModelOrNone, required = false)]
    model: Option<Option<String>>,
    spent: Money,
    entries: i64,
    input_tokens: i64,
    output_tokens: i64,
}

impl From<StoredSum> for SumView {
    fn from(stored: StoredSum) -> Self {
        Self {
            day: stored.day.and_then(date).map(|date| date.date_naive().to_string()),
            model: stored.model.map(|model| Some(model).filter(|model| !model.is_empty())),
            spent: Money::from_nanos(stored.sum.spent).unwrap_or_default(),
            entries: stored.sum.entries,
            input_tokens: stored.sum.input_tokens,
            output_tokens: stored.sum.output_tokens,
        }
    }
}

fn date(day: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(day.checked_mul(86_400)?, 0)
}

#[derive(Debug, Serialize, ToSchema)]
struct Sums {
    sums: Vec<SumView>,
    next_cursor: Option<String>,
}

/// A page of entries, or of sums.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum UsagePage {
    Entries(Entries),
    Sums(Sums),
}

/// `GET /v1/users/{user_id}/usage`: entries, the latest first; with `group_by`, sums of whole UTC days.
#[utoipa::path(
    get, path = "/v1/users/{user_id}/usage", tag = "usage", operation_id = "list_usage",
    params(("user_id" = UserId, Path, description = "the application's own id, percent-encoded"), ListQuery),
    responses((status = 200, description = "entries, or with `group_by` sums", body = UsagePage)),
    security(("bearer" = ["check"])),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    key: Bearer,
    UserPath(user): UserPath,
    Params(query): Params<ListQuery>,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Check).await?;
    let limit = page::limit(query.limit.as_deref())?;
    let stretch = Stretch { from: query.from.map_or(DateTime::UNIX_EPOCH, |time| time.0), to: query.to.map_or(END_OF_TIME, |time| time.0) };
    match query.group_by.as_deref() {
        None => entries(&app, &user, stretch, limit, query.cursor.as_deref()).await,
        Some(names) => sums(&app, &user, stretch, group_by(names)?, limit, query.cursor.as_deref()).await,
    }
}

async fn entries(app: &App, user: &UserId, stretch: Stretch, limit: u16, cursor: Option<&str>) -> Result<Response, Problem> {
    let before = page::place(cursor, |place| {
        let (micros, seq) = place.split_once(' ')?;
        Some((DateTime::from_timestamp_micros(micros.parse().ok()?)?, seq.parse().ok()?))
    })?;
    let before = before.unwrap_or((stretch.to, i64::MAX));
    let found =
        ledger::entries(&mut app.meter.reader_of(std::slice::from_ref(user)).await?, user, stretch, before, i64::from(limit)).await?;
    let full = usize::from(limit) <= found.len();
    let last = found.last().filter(|_| full);
    let next_cursor = last.map(|entry| page::cursor(&format!("{} {}", entry.time.timestamp_micros(), entry.seq)));
    Ok(Json(UsagePage::Entries(Entries { entries: found.into_iter().map(EntryView::from).collect(), next_cursor })).into_response())
}

fn group_by(names: &str) -> Result<GroupBy, Problem> {
    let mut group_by = GroupBy::default();
    for name in names.split(',') {
        match name {
            "day" => group_by.day = true,
            "model" => group_by.model = true,
            _ => return Err(Problem::invalid("group_by", "must be day, model, or day,model")),
        }
    }
    Ok(group_by)
}

async fn sums(
    app: &App,
    user: &UserId,
    stretch: Stretch,
    group_by: GroupBy,
    limit: u16,
    cursor: Option<&str>,
) -> Result<Response, Problem> {
    let after = page::place(cursor, |place| {
        let (day, model) = place.split_once(' ')?;
        Some(SumPlace { day: day.parse().ok()?, model: Some(model.to_owned()) })
    })?;
    let after = after.unwrap_or(SumPlace { day: i64::MAX, model: None });
    // A day that has begun before `to` counts.
    let midnight = |at: DateTime<Utc>| at.time() == NaiveTime::MIN;
    let to = if midnight(stretch.to) { stretch.to } else { stretch.to.checked_add_days(Days::new(1)).unwrap_or(stretch.to) };
    let stretch = Stretch { to, ..stretch };
    let found =
        ledger::sums(&mut app.meter.reader_of(std::slice::from_ref(user)).await?, user, stretch, group_by, &after, i64::from(limit))
            .await?;
    let full = usize::from(limit) <= found.len();
    let place = |sum: &StoredSum| format!("{} {}", sum.day.unwrap_or_default(), sum.model.as_deref().unwrap_or_default());
    let next_cursor = found.last().filter(|_| full).map(|sum| page::cursor(&place(sum)));
    Ok(Json(UsagePage::Sums(Sums { sums: found.into_iter().map(SumView::from).collect(), next_cursor })).into_response())
}
