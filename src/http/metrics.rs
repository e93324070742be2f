//! What Prometheus reads, in `OpenMetrics` text. docs/METRICS.md describes each family; a test compares.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chrono::{DateTime, TimeDelta, Utc};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Mutex;

use super::auth::{Bearer, Scope, require};
use super::error::{ErrorCode, Problem};
use super::{App, health};
use crate::store::figures::{self, Figures};
use crate::telemetry::Seen;

/// How long what the database said is shown again: however many scrape, it is asked no oftener.
const FIGURES_FOR: TimeDelta = TimeDelta::seconds(3);
/// How long a scrape waits for the database.
const FIGURES_TIMEOUT: Duration = Duration::from_secs(2);
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the database said last, if it did, and when it was asked.
#[derive(Debug, Default)]
pub struct Kept(Mutex<Option<(DateTime<Utc>, Option<Figures>)>>);

impl Kept {
    /// `None` where the store does not answer in time.
    async fn figures(&self, app: &App) -> Option<Figures> {
        let now = app.now();
        // Who scrapes meanwhile waits for this answer instead of asking too.
        let mut kept = self.0.lock().await;
        if let Some((_, figures)) = kept.filter(|(asked_at, _)| *asked_at <= now && now - *asked_at < FIGURES_FOR) {
            return figures;
        }
        let ask = async { figures::figures(&mut app.store.reader().await?, now).await };
        let figures = tokio::time::timeout(FIGURES_TIMEOUT, ask).await.ok().and_then(|figures: Result<_, crate::store::StoreError>| {
            figures.inspect_err(|error| tracing::debug!(%error, "a scrape goes without what the store knows: {error}")).ok()
        });
        *kept = Some((now, figures));
        figures
    }
}

/// The doors of `METRICS_ADDR`, which need no key: who reaches them is for the network to say.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/metrics", get(async |State(app): State<Arc<App>>| page(&app).await))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .fallback(async || Problem::new(ErrorCode::NotFound, "here are /metrics, /healthz and /readyz only"))
        .with_state(app)
}

/// `GET /metrics`: what Prometheus reads. docs/METRICS.md describes each family.
#[utoipa::path(
    get, path = "/metrics", tag = "operation", operation_id = "metrics",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text")),
    security(("bearer" = ["check"])),
)]
pub async fn show(State(app): State<Arc<App>>, key: Bearer) -> Result<Response, Problem> {
    require(&app, &key, Scope::Check).await?;
    Ok(page(&app).await)
}

async fn page(app: &App) -> Response {
    let figures = app.figures.figures(app).await;
    let mut registry = Registry::with_prefix("spendgate");
    registry.register_collector(Box::new(Page(families(app, figures))));
    let mut text = String::new();
    // Writing to memory fails for nobody.
    let _ = text::encode(&mut text, &registry);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

type Labels = Vec<(&'static str, String)>;

enum Value {
    Count(i64),
    Time(TimeDelta),
}

enum Samples {
    Counts(Vec<(Labels, u64)>),
    Gauge(Vec<(Labels, Value)>),
    Sizes(Seen),
    /// In microseconds; shown in seconds.
    Times(Vec<(Labels, Seen)>),
    Info(Labels),
}

/// All samples of one name. The unit ends the name.
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    samples: Samples,
}

struct Page(Vec<Family>);

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page(…)")
    }
}

fn counts(name: &'static str, help: &'static str, samples: impl IntoIterator<Item = (Labels, u64)>) -> Family {
    Family { name, help, unit: None, samples: Samples::Counts(samples.into_iter().collect()) }
}

fn count(name: &'static str, help: &'static str, times: u64) -> Family {
    counts(name, help, [(Labels::new(), times)])
}

fn gauge(name: &'static str, help: &'static str, value: i64) -> Family {
    Family { name, help, unit: None, samples: Samples::Gauge(vec![(Labels::new(), Value::Count(value))]) }
}

/// No sample where there is no time.
fn seconds(name: &'static str, help: &'static str, time: Option<TimeDelta>) -> Family {
    let samples = time.map(|time| (Labels::new(), Value::Time(time))).into_iter().collect();
    Family { name, help, unit: Some(Unit::Seconds), samples: Samples::Gauge(samples) }
}

fn one(label: &'static str, value: &str) -> Labels {
    vec![(label, value.to_owned())]
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn families(app: &App, figures: Option<Figures>) -> Vec<Family> {
    let mut all = of_the_doors(app);
    all.extend(of_the_meter(app));
    all.extend(of_the_rest(app));
    all.push(gauge("store_up", "1 where the store answered this scrape", i64::from(figures.is_some())));
    if let Some(figures) = figures {
        all.extend(of_the_store(app, &figures));
    }
    all
}

fn of_the_doors(app: &App) -> Vec<Family> {
    let telemetry = &app.telemetry;
    let decided = telemetry.decisions.all().into_iter().map(|decided| {
        let labels = vec![("action", decided.action.name().to_owned()), ("tier", decided.tier), ("reason", decided.reason.to_owned())];
        (labels, decided.times)
    });
    let requests = telemetry.requests.all().map(|(class, status, seen)| {
        let labels = vec![("class", class.name().to_owned()), ("status", status.to_owned())];
        (labels, seen)
    });
    let errors: [(&str, u64); 4] = [
        ("check", telemetry.unreadable_checks.count()),
        ("request", telemetry.failed_requests.count()),
        ("batch", app.meter.writes().unconfirmed.count()),
        ("settle", app.meter.settle_failures()),
    ];
    vec![
        counts("decisions", "Decisions that were answered", decided),
        Family {
            name: "request_duration",
            help: "Requests by the kind of their door and the first digit of their status",
            unit: Some(Unit::Seconds),
            samples: Samples::Times(requests.collect()),
        },
        gauge("connections", "Connections that are open", telemetry.connections.now()),
        counts(
            "webhook_deliveries",
            "Deliveries to the webhook by what became of them",
            telemetry.deliveries.all().into_iter().map(|(outcome, times)| (one("outcome", outcome), times)),
        ),
        counts("store_errors", "Failures of the store, by who met them", errors.map(|(met_by, times)| (one("met_by", met_by), times))),
    ]
}

fn of_the_meter(app: &App) -> Vec<Family> {
    let (writes, (queued, bound)) = (app.meter.writes(), app.meter.queue());
    vec![
        Family {
            name: "meter_batch_records",
            help: "Records that were written in one commit",
            unit: None,
            samples: Samples::Sizes(writes.batch_records.seen()),
        },
        Family {
            name: "meter_commit",
            help: "How long a batch of writes took until it was confirmed, or failed",
            unit: Some(Unit::Seconds),
            samples: Samples::Times(vec![(Labels::new(), writes.batch_micros.seen())]),
        },
        count("meter_retried_batches", "Batches that were done again, since another node was in the way", app.meter.retries()),
        gauge("meter_queue_length", "Writes that wait for the writer", number(queued)),
        gauge("meter_queue_limit", "How many may wait before more are refused", number(bound)),
        count("meter_refused_busy", "Writes that were refused because too many waited", writes.busy.count()),
        gauge(
            "store_writable",
            "1 while writes are confirmed; at 0 users with hard limits are answered by their tier's on_store_down",
            i64::from(app.meter.is_writable(app.now())),
        ),
    ]
}

fn of_the_rest(app: &App) -> Vec<Family> {
    let reloads = app.reload.counts();
    let reloads = [("done", reloads.done.count()), ("refused", reloads.refused.count())];
    let asks = app.asker.as_ref().map(|asker| [("answered", asker.asks.answered.count()), ("failed", asker.asks.failed.count())]);
    let tally = |tally: &super::notices::Tally| tally.all().values().map(|seen| seen.times).fold(0, u64::saturating_add);
    vec![
        counts("reloads", "Times that tiers and prices were read again", reloads.map(|(outcome, times)| (one("outcome", outcome), times))),
        counts(
            "stripe_asks",
            "Questions to Stripe about customers",
            asks.into_iter().flatten().map(|(outcome, times)| (one("outcome", outcome), times)),
        ),
        count("unpriced_calls", "Calls of models that have no price, as far as they are told apart", tally(&app.notices.unpriced)),
        count("failed_rules", "Checks that a rule blocked because it failed", tally(&app.notices.failed_rules)),
        gauge("catalogue_tiers", "Tiers of the catalogue that holds", number(app.catalogue.load().tiers().len())),
        seconds("uptime", "How long the service has run", Some(app.now() - app.started_at)),
        Family {
            name: "build",
            help: "The version that runs",
            unit: None,
            samples: Samples::Info(one("version", env!("CARGO_PKG_VERSION"))),
        },
    ]
}

fn of_the_store(app: &App, figures: &Figures) -> Vec<Family> {
    let since = |at: Option<DateTime<Utc>>| at.map(|at| (app.now() - at).max(TimeDelta::zero()));
    let verified = app.telemetry.deliveries.verified_at().and_then(DateTime::from_timestamp_micros);
    let dead = [("parked", figures.events_parked), ("dead", figures.events_dead)];
    let dead = dead.map(|(state, count)| (one("state", state), Value::Count(count)));
    vec![
        gauge("holds_open", "Holds that are open", figures.holds_open),
        // Nothing queued is no lag.
        seconds(
            "inbox_lag",
            "How long the oldest event waits that was received and is not applied",
            Some(since(figures.queued_since).unwrap_or_default()),
        ),
        Family {
            name: "inbox_dead_letters",
            help: "Events that are not applied and will not be by themselves",
            unit: None,
            samples: Samples::Gauge(dead.into()),
        },
        seconds("last_event_age", "How long ago the last event came whose signature was right", since(verified.max(figures.last_event_at))),
        gauge("stripe_asks_waiting", "Customers about whom Stripe is to be asked", figures.asks_waiting),
        gauge("stripe_asks_given_up", "Customers about whom Stripe was asked in vain", figures.asks_given_up),
        gauge("reconciliation_drifted", "Customers whom the last comparison with Stripe found otherwise", figures.drifted),
        gauge("reconciliation_missed_events", "Events that the last comparison with Stripe found missing", figures.missed_events),
        seconds("reconciliation_age", "How long ago the last comparison with Stripe ended", since(figures.reconciled_at)),
        gauge("alerts_waiting", "Alerts that are to be sent", figures.alerts_waiting),
        gauge("alerts_parked", "Deliveries of alerts that were given up", figures.alerts_parked),
    ]
}

fn as_seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

/// The nearest one.
fn as_float(count: u64) -> f64 {
    Duration::from_secs(count).as_secs_f64()
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let kind = match &family.samples {
                Samples::Counts(_) => MetricType::Counter,
                Samples::Gauge(_) => MetricType::Gauge,
                Samples::Sizes(_) | Samples::Times(_) => MetricType::Histogram,
                Samples::Info(_) => MetricType::Info,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), kind)?;
            let histogram = |seen: &Seen, scale: fn(u64) -> f64| {
                let bounds = seen.bounds.iter().map(|bound| scale(*bound)).chain([f64::INFINITY]);
                (scale(seen.sum), seen.buckets.iter().sum::<u64>(), bounds.zip(seen.buckets.iter().copied()).collect::<Vec<_>>())
            };
            match &family.samples {
                Samples::Counts(samples) => {
                    for (labels, times) in samples {
                        metric.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(times, None)?;
                    }
                }
                Samples::Gauge(samples) => {
                    for (labels, value) in samples {
                        let mut sample = metric.encode_family(labels)?;
                        match value {
                            Value::Count(count) => sample.encode_gauge(count)?,
                            Value::Time(time) => sample.encode_gauge(&time.to_std().unwrap_or_default().as_secs_f64())?,
                        }
                    }
                }
                Samples::Sizes(seen) => {
                    let (sum, count, buckets) = histogram(seen, as_float);
                    metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
                }
                Samples::Times(samples) => {
                    for (labels, seen) in samples {
                        let (sum, count, buckets) = histogram(seen, as_seconds);
                        metric.encode_family(labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
                    }
                }
                Samples::Info(labels) => metric.encode_info(labels)?,
            }
        }
        Ok(())
    }
}
