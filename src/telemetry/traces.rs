//! Spans for a collector that speaks OTLP over HTTP, where one is set. Nothing is sent, and no span is made, where none is.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{self, Sampler, SdkTracer, SdkTracerProvider, SpanData};
use tokio::runtime::Handle;
use tracing::{Span, info, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// How long a collector may take for one batch of spans.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of the process waits for the last spans.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Which traces are kept, as `OTEL_TRACES_SAMPLER` names it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    AlwaysOn,
    AlwaysOff,
    Ratio(f64),
    /// As the caller's trace is; his own decision for those that begin here.
    Parent(Rooted),
}

/// What holds for traces that begin here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rooted {
    On,
    Off,
    Ratio(f64),
}

impl Sampling {
    fn sampler(self) -> Sampler {
        let parent = |root: Sampler| Sampler::ParentBased(Box::new(root));
        match self {
            Self::AlwaysOn => Sampler::AlwaysOn,
            Self::AlwaysOff => Sampler::AlwaysOff,
            Self::Ratio(ratio) => Sampler::TraceIdRatioBased(ratio),
            Self::Parent(Rooted::On) => parent(Sampler::AlwaysOn),
            Self::Parent(Rooted::Off) => parent(Sampler::AlwaysOff),
            Self::Parent(Rooted::Ratio(ratio)) => parent(Sampler::TraceIdRatioBased(ratio)),
        }
    }
}

/// Where spans go.
#[derive(Clone, PartialEq)]
pub struct Settings {
    /// Without a slash at its end.
    pub endpoint: String,
    pub service_name: String,
    /// Name and value; a value may be a secret.
    pub headers: Vec<(String, String)>,
    pub sampling: Sampling,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("endpoint", &self.endpoint).field("sampling", &self.sampling).finish_non_exhaustive()
    }
}

/// Sends what is left when it is stopped.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// The exporter works on this runtime, which must run until [`Traces::stop`].
    pub fn start(settings: &Settings, runtime: Handle) -> Result<Self, String> {
        // Somebody else in the process may have installed it before; that is all the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let _inside = runtime.enter();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(format!("{}/v1/traces", settings.endpoint))
            .with_timeout(EXPORT_TIMEOUT)
            .with_headers(settings.headers.iter().cloned().collect())
            .build()
            .map_err(|error| error.to_string())?;
        let exporter = OnRuntime { exporter: Arc::new(exporter), runtime: runtime.clone(), is_away: Arc::default() };
        let resource = Resource::builder().with_service_name(settings.service_name.clone()).build();
        let provider = SdkTracerProvider::builder();
        let provider = provider.with_batch_exporter(exporter).with_sampler(settings.sampling.sampler()).with_resource(resource);
        Ok(Self(provider.build()))
    }

    pub fn tracer(&self) -> SdkTracer {
        self.0.tracer("spendgate")
    }

    /// Waits for the last spans, for a bounded time. Not to be called on the runtime.
    pub fn stop(self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH_TIMEOUT) {
            warn!(%error, "the last spans were not sent: {error}");
        }
    }
}

/// Sends on our runtime what a thread of the library's own gathers; tells the log once when the collector goes away, and when it is back.
#[derive(Debug)]
struct OnRuntime {
    exporter: Arc<SpanExporter>,
    runtime: Handle,
    is_away: Arc<AtomicBool>,
}

impl trace::SpanExporter for OnRuntime {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exporter = self.exporter.clone();
        let sent = self.runtime.spawn(async move { trace::SpanExporter::export(&*exporter, batch).await }).await;
        let sent = sent.unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())));
        let was_away = self.is_away.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(error) if !was_away => warn!(%error, "spans cannot be sent, and are dropped until they can: {error}"),
            Ok(()) if was_away => info!("spans are sent again"),
            Ok(()) | Err(_) => {}
        }
        sent
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            trace::SpanExporter::set_resource(exporter, resource);
        }
    }
}

/// What a request says of the trace that it belongs to.
struct Headers<'h> {
    traceparent: Option<&'h str>,
    tracestate: Option<&'h str>,
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.traceparent,
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// Makes `span`, which nobody has entered yet, a part of the trace that a request's headers name.
pub fn follow<'h>(span: &Span, header: impl Fn(&str) -> Option<&'h str>) {
    if !span.is_disabled() {
        let headers = Headers { traceparent: header("traceparent"), tracestate: header("tracestate") };
        // A layer that is not there has nothing to be told.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&headers));
    }
}
