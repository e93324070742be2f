//! Where the log and the spans go.

use tokio::runtime::Handle;
use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt, FilterFn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

use crate::config::watching::{LogFormat, Watching};
use crate::http::request_id::REQUEST_NAMED;
use crate::telemetry::traces::Traces;

/// Starts both, for the whole process. Spans are made for the collector alone, but for the name of the request that a line of the log is about. Gives what is to be
/// stopped at the end.
pub fn start(
    watching: &Watching,
    filter: EnvFilter,
    is_service: bool,
    is_terminal: bool,
    runtime: Handle,
) -> Result<Option<Traces>, String> {
    // People read what a command tells.
    let by_default = if is_service && !is_terminal { LogFormat::Json } else { LogFormat::Text };
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match watching.log_format.unwrap_or(by_default) {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
        LogFormat::Text => lines.with_ansi(is_terminal).boxed(),
    };
    let events = FilterFn::new(|metadata: &Metadata<'_>| metadata.is_event()).with_max_level_hint(LevelFilter::TRACE);
    // Whatever is logged, it says of which request it is.
    let named = FilterFn::new(|metadata: &Metadata<'_>| metadata.target() == REQUEST_NAMED).with_max_level_hint(LevelFilter::ERROR);
    let traces = match watching.traces.as_ref().filter(|_| is_service) {
        Some(settings) => Some(Traces::start(settings, runtime).map_err(|why| format!("OTEL_EXPORTER_OTLP_ENDPOINT: {why}"))?),
        None => None,
    };
    let spans = traces.as_ref().map(|traces| {
        let layer = tracing_opentelemetry::layer().with_tracer(traces.tracer());
        let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false).with_target(false);
        // Ours alone: what the exporter does to send them would make more of them, for ever. Events may name people, so they stay here.
        let ours = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target().starts_with("spendgate");
        layer.with_filter(FilterFn::new(ours).with_max_level_hint(LevelFilter::INFO))
    });
    registry().with(lines.with_filter(filter.and(events).or(named))).with(spans).init();
    Ok(traces)
}
