//! Where the log and the spans go.

use serde_json::json;
use tokio::runtime::Handle;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt, FilterFn};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

use crate::config::watching::{LogFormat, Watching};
use crate::http::request_id;
use crate::telemetry::traces::Traces;

/// Starts both, for the whole process. Spans are made for the collector alone. Gives what is to be stopped at the end.
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
        LogFormat::Json => {
            let line = fmt::format().json().flatten_event(true).with_current_span(false).with_span_list(false);
            lines.event_format(Named(line)).fmt_fields(JsonFields::new()).boxed()
        }
        LogFormat::Text => lines.with_ansi(is_terminal).with_timer(Named(SystemTime)).boxed(),
    };
    let events = FilterFn::new(|metadata: &Metadata<'_>| metadata.is_event()).with_max_level_hint(LevelFilter::TRACE);
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
    registry().with(lines.with_filter(filter.and(events))).with(spans).init();
    Ok(traces)
}

/// What is written, and of which request it is.
struct Named<F>(F);

/// A line of text says it behind the time.
impl<T: FormatTime> FormatTime for Named<T> {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        self.0.format_time(writer)?;
        match request_id::current() {
            Some(id) => write!(writer, " request{{request_id={id:?}}}"),
            None => Ok(()),
        }
    }
}

/// A line of JSON says it in a field of its own.
impl<S, N, F> FormatEvent<S, N> for Named<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let Some(id) = request_id::current() else { return self.0.format_event(context, writer, event) };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        match line.strip_suffix("}\n") {
            Some(fields) => writeln!(writer, "{fields},\"span\":{}}}", json!({"name": "request", "request_id": id})),
            None => writer.write_str(&line),
        }
    }
}
