//! How the service is watched: its log, and its traces. Read before anything else, since everything else tells the log.

use super::{ConfigError, fault, url};
use crate::telemetry::traces::{Rooted, Sampling, Settings};

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

/// What the operator set.
#[derive(Clone, Debug, PartialEq)]
pub struct Watching {
    /// `None`: text for a terminal, JSON for everything else.
    pub log_format: Option<LogFormat>,
    /// `None`: no span is made, and nothing is sent.
    pub traces: Option<Settings>,
}

impl Watching {
    /// `lookup` is the environment. A variable that is set to nothing counts as not set.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let get = |name: &str| lookup(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let headers = headers(get("OTEL_EXPORTER_OTLP_HEADERS"))?;
        let sampling = sampling(get("OTEL_TRACES_SAMPLER"), get("OTEL_TRACES_SAMPLER_ARG"))?;
        let service_name = get("OTEL_SERVICE_NAME").unwrap_or_else(|| "spendgate".to_owned());
        let endpoint = url("OTEL_EXPORTER_OTLP_ENDPOINT", get("OTEL_EXPORTER_OTLP_ENDPOINT"))?;
        Ok(Self {
            log_format: log_format(get("LOG_FORMAT"))?,
            traces: endpoint.map(|endpoint| Settings { endpoint, service_name, headers, sampling }),
        })
    }
}

fn log_format(value: Option<String>) -> Result<Option<LogFormat>, ConfigError> {
    match value.as_deref() {
        None => Ok(None),
        Some("json") => Ok(Some(LogFormat::Json)),
        Some("text") => Ok(Some(LogFormat::Text)),
        Some(_) => Err(fault("LOG_FORMAT", "must be json or text; without it a terminal gets text and everything else JSON")),
    }
}

/// `name=value,name=value`, the values percent-encoded as the standard has them.
fn headers(value: Option<String>) -> Result<Vec<(String, String)>, ConfigError> {
    let wrong = || fault("OTEL_EXPORTER_OTLP_HEADERS", "must be name=value, several separated by commas; values are percent-encoded");
    let value = value.unwrap_or_default();
    let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
    let one = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().ok()?;
        let named = !name.trim().is_empty() && name.trim().chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        let good = named && value.chars().all(|c| c == ' ' || c.is_ascii_graphic());
        good.then(|| (name.trim().to_owned(), value.into_owned()))
    };
    parts.map(|part| one(part).ok_or_else(wrong)).collect()
}

fn sampling(name: Option<String>, argument: Option<String>) -> Result<Sampling, ConfigError> {
    let wrong = || fault("OTEL_TRACES_SAMPLER_ARG", "must be the part of traces that is kept, from 0 to 1, as in 0.1");
    let ratio = match argument {
        None => 1.0,
        Some(text) => text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).ok_or_else(wrong)?,
    };
    match name.as_deref() {
        None | Some("parentbased_always_on") => Ok(Sampling::Parent(Rooted::On)),
        Some("parentbased_always_off") => Ok(Sampling::Parent(Rooted::Off)),
        Some("parentbased_traceidratio") => Ok(Sampling::Parent(Rooted::Ratio(ratio))),
        Some("always_on") => Ok(Sampling::AlwaysOn),
        Some("always_off") => Ok(Sampling::AlwaysOff),
        Some("traceidratio") => Ok(Sampling::Ratio(ratio)),
        Some(_) => {
            let why = "must be always_on, always_off, traceidratio, or one of these with parentbased_ before it";
            Err(fault("OTEL_TRACES_SAMPLER", why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Watching, ConfigError> {
        Watching::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn nothing_set_is_no_traces() {
        assert_eq!(read(&[("OTEL_SERVICE_NAME", "x")]), Ok(Watching { log_format: None, traces: None }));
    }

    #[test]
    fn the_standard_variables_are_read_and_headers_are_not_shown() {
        let watching = read(&[
            ("LOG_FORMAT", "json"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20of-tests, x-a=b"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ]);
        let watching = watching.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(watching.log_format, Some(LogFormat::Json));
        assert!(!format!("{watching:?}").contains("of-tests"));
        let traces = watching.traces.unwrap_or_else(|| panic!("there are traces"));
        assert_eq!((traces.endpoint.as_str(), traces.service_name.as_str()), ("http://127.0.0.1:4318", "spendgate"));
        assert_eq!(traces.headers[0], ("authorization".to_owned(), "Bearer of-tests".to_owned()));
        assert_eq!((traces.headers.len(), traces.sampling), (2, Sampling::Parent(Rooted::Ratio(0.25))));
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_name_and_not_repeated() {
        let check = |name: &'static str, value: &str| {
            let error = read(&[(name, value)]).err();
            assert_eq!(error.as_ref().map(|error| error.name), Some(name), "{value}");
            assert!(!error.map(|error| error.to_string()).unwrap_or_default().contains(value));
        };
        check("LOG_FORMAT", "logfmt");
        check("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318");
        check("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:secret@collector");
        check("OTEL_EXPORTER_OTLP_HEADERS", "secret-without-a-name");
        check("OTEL_EXPORTER_OTLP_HEADERS", "a=b%0d%0ac");
        check("OTEL_TRACES_SAMPLER", "jaeger_remote");
        check("OTEL_TRACES_SAMPLER_ARG", "1.5");
        check("OTEL_TRACES_SAMPLER_ARG", "NaN");
    }
}
