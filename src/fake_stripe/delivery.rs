//! Events on their way to webhook endpoints: in order and again until they are taken, or as roughly as a test likes.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::FakeStripe;
use super::answer::{ApiError, pretty};
use super::objects::{Endpoint, Metadata, SigningSecret};
use super::world::{World, missing};
use crate::stripe::signature::Secret;

/// How long an endpoint may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How often a look is taken for deliveries that have become due.
const IDLE: Duration = Duration::from_millis(500);
/// Seconds before the next try; Stripe's own are longer, but nobody waits for hours here.
const PAUSES: [i64; 8] = [1, 2, 5, 10, 30, 60, 300, 900];

/// An event that an endpoint has not taken yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub event: String,
    pub endpoint: String,
    pub attempts: usize,
    pub due: DateTime<Utc>,
}

/// One POST, signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub event: String,
    pub kind: String,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Delivery {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// How deliveries come. Percentages are of deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    pub shuffle: bool,
    /// Each may come so many times more, signed anew each time.
    pub repeats_max: u32,
    /// Those that stay away until deliveries are asked for again.
    pub delayed_percent: u32,
    /// Those that never come.
    pub dropped_percent: u32,
    /// The `t` of a signature is up to so many seconds ago.
    pub age_seconds_max: u32,
}

impl Weather {
    /// In order, each once.
    pub const CALM: Self = Self { shuffle: false, repeats_max: 0, delayed_percent: 0, dropped_percent: 0, age_seconds_max: 0 };
    /// Everything that Stripe allows itself.
    pub const ROUGH: Self = Self { shuffle: true, repeats_max: 2, delayed_percent: 30, dropped_percent: 0, age_seconds_max: 200 };
}

impl World {
    /// Somebody who gets every event without being registered, as `stripe listen` does.
    pub fn listen(&mut self, url: &str, secret: &str, api_version: Option<&str>) -> String {
        let endpoint = Endpoint {
            id: self.id("we_listener", 8),
            created: self.seconds(),
            url: url.to_owned(),
            enabled_events: vec!["*".to_owned()],
            api_version: api_version.map(str::to_owned),
            description: None,
            metadata: Metadata::new(),
            enabled: true,
            deleted: false,
            listed: false,
            secrets: vec![SigningSecret { text: secret.to_owned(), ends_at: None }],
        };
        let id = endpoint.id.clone();
        self.objects.endpoints.add(endpoint);
        id
    }

    /// Makes a new secret; the ones before go on signing for `overlap`. Gives the new one.
    pub fn roll_secret(&mut self, endpoint: &str, overlap: TimeDelta) -> Result<String, ApiError> {
        let ends_at = (self.now() + overlap).timestamp();
        let text = self.id("whsec_", 32);
        let known = self.objects.endpoints.get_mut(endpoint).ok_or_else(|| missing::<Endpoint>(endpoint))?;
        for secret in &mut known.secrets {
            secret.ends_at = Some(secret.ends_at.map_or(ends_at, |ends| ends.min(ends_at)));
        }
        known.secrets.push(SigningSecret { text: text.clone(), ends_at: None });
        Ok(text)
    }

    /// What is posted for `pending` with a signature of `at`. `None` where the endpoint is gone.
    fn delivery(&self, pending: &Pending, at: DateTime<Utc>) -> Option<Delivery> {
        let endpoint = self.objects.endpoints.get(&pending.endpoint).filter(|endpoint| endpoint.enabled && !endpoint.deleted)?;
        let event = self.events.get(&pending.event)?;
        let version = endpoint.api_version.as_deref().unwrap_or(self.options.generation.version());
        let base = self.base();
        let waiting = self.pending.iter().filter(|other| other.event == pending.event).count();
        let view = self.view(self.options.generation, &base);
        let body = pretty(&view.event(event, version, waiting.max(1))).into_bytes();
        let headers = [
            ("content-type", "application/json; charset=utf-8".to_owned()),
            ("user-agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)".to_owned()),
            ("stripe-signature", signed(endpoint, &body, at)),
        ];
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Some(Delivery { event: event.id.clone(), kind: event.kind.clone(), url: endpoint.url.clone(), headers, body })
    }

    /// Takes what waits, as the weather lets it through.
    fn take_deliveries(&mut self, rng: &mut fastrand::Rng, weather: Weather) -> Vec<Delivery> {
        let now = self.now();
        let mut sent = Vec::new();
        let waiting: Vec<Pending> = self.pending.drain(..).collect();
        for pending in waiting {
            if rng.u32(0..100) < weather.dropped_percent {
                continue;
            }
            if rng.u32(0..100) < weather.delayed_percent {
                self.pending.push_back(pending);
                continue;
            }
            for _ in 0..=rng.u32(0..=weather.repeats_max) {
                let age = TimeDelta::seconds(i64::from(rng.u32(0..=weather.age_seconds_max)));
                sent.extend(self.delivery(&pending, now - age));
            }
        }
        if weather.shuffle {
            rng.shuffle(&mut sent);
        }
        sent
    }

    /// The next delivery that is due. Of one endpoint's events only the first that it has not taken.
    fn next_due(&self) -> Option<(Pending, Option<Delivery>)> {
        let now = self.true_now();
        let mut asked = HashSet::new();
        let firsts = self.pending.iter().filter(|pending| asked.insert(pending.endpoint.as_str()));
        let mut due = firsts.filter(|pending| pending.due <= now);
        due.next().map(|pending| (pending.clone(), self.delivery(pending, self.now())))
    }

    /// Forgets a delivery that was taken, or has been tried often enough; puts off any other.
    fn tried(&mut self, tried: &Pending, taken: bool) {
        let pause = PAUSES.get(tried.attempts).filter(|_| !taken);
        let due = pause.map(|seconds| self.true_now() + TimeDelta::seconds(*seconds));
        let Some(place) = self.pending.iter().position(|pending| pending == tried) else { return };
        let Some(due) = due else {
            self.pending.remove(place);
            return;
        };
        if let Some(pending) = self.pending.get_mut(place) {
            pending.due = due;
            pending.attempts = pending.attempts.saturating_add(1);
        }
    }
}

impl FakeStripe {
    /// Sends every event from now on to `url`, signed with `secret`, as `stripe listen` does. Gives the listener's id.
    pub fn listen(&self, url: &str, secret: &str) -> String {
        self.change(|world| world.listen(url, secret, None))
    }

    /// Takes the deliveries that wait, as the weather lets them through. The same seed and weather give the same.
    pub fn deliveries(&self, seed: u64, weather: Weather) -> Vec<Delivery> {
        self.lock().take_deliveries(&mut fastrand::Rng::with_seed(seed), weather)
    }

    /// Those that wait, in order, each once.
    pub fn calm_deliveries(&self) -> Vec<Delivery> {
        self.deliveries(0, Weather::CALM)
    }

    /// Posts events as they happen, to each endpoint in order, and again until they are taken. Never ends.
    pub async fn deliver_forever(self, client: reqwest::Client) {
        loop {
            let next = self.lock().next_due();
            let Some((pending, delivery)) = next else {
                // News between the look and the wait is not lost: a permit is kept.
                let _ = tokio::time::timeout(IDLE, self.news.notified()).await;
                continue;
            };
            let taken = match delivery {
                Some(delivery) => post(&client, &delivery).await,
                // The endpoint is gone, and what waits for it goes too.
                None => true,
            };
            self.lock().tried(&pending, taken);
        }
    }
}

/// Whether it was taken.
async fn post(client: &reqwest::Client, delivery: &Delivery) -> bool {
    let mut request = client.post(&delivery.url).timeout(TIMEOUT).body(delivery.body.clone());
    for (name, value) in &delivery.headers {
        request = request.header(name.as_str(), value.as_str());
    }
    let (kind, url) = (&delivery.kind, &delivery.url);
    match request.send().await {
        Ok(response) if response.status().is_success() => {
            tracing::debug!(%kind, %url, "{kind} was taken by {url}");
            true
        }
        Ok(response) => {
            let status = response.status();
            tracing::warn!(%kind, %url, %status, "{kind} was answered {status} by {url}; it will come again");
            false
        }
        Err(error) => {
            tracing::warn!(%kind, %url, %error, "{kind} did not reach {url}; it will come again: {error}");
            false
        }
    }
}

/// The `Stripe-Signature` header: a `v1` for each secret that has not ended, the newest last.
fn signed(endpoint: &Endpoint, body: &[u8], at: DateTime<Utc>) -> String {
    let active = endpoint.secrets.iter().filter(|secret| secret.ends_at.is_none_or(|ends_at| at.timestamp() < ends_at));
    let headers = active.filter_map(|secret| Some(Secret::new(&secret.text)?.sign(body, at)));
    let signatures = headers.filter_map(|header| header.split_once(",v1=").map(|(_, hex)| format!(",v1={hex}")));
    format!("t={}{}", at.timestamp(), signatures.collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fake_stripe::Options;
    use crate::stripe::signature::verify;

    fn at() -> DateTime<Utc> {
        DateTime::from_timestamp(1_768_219_200, 0).unwrap_or_default()
    }

    fn fake() -> FakeStripe {
        FakeStripe::new(Options::default(), Arc::new(at), 1)
    }

    fn secret(text: &str) -> [Secret; 1] {
        [Secret::new(text).unwrap_or_else(|| panic!("a secret"))]
    }

    #[test]
    fn calm_weather_brings_each_event_once_in_order_signed() {
        let fake = fake();
        fake.listen("http://localhost/hook", "whsec_1");
        let customer = fake.create_customer(&[("user_id", "u_1")]);
        fake.delete_customer(&customer);
        let deliveries = fake.calm_deliveries();
        let kinds: Vec<&str> = deliveries.iter().map(|delivery| delivery.kind.as_str()).collect();
        assert_eq!(kinds, ["customer.created", "customer.deleted"]);
        for delivery in &deliveries {
            let header = delivery.header("stripe-signature").unwrap_or_default();
            assert_eq!(verify(header, &delivery.body, &secret("whsec_1"), at()), Ok(()));
        }
        assert!(fake.calm_deliveries().is_empty());
    }

    #[test]
    fn rough_weather_loses_nothing_for_good() {
        for seed in 0..20 {
            let fake = fake();
            fake.listen("http://localhost/hook", "whsec_1");
            for _ in 0..20 {
                fake.create_customer(&[]);
            }
            let mut seen = HashSet::new();
            for round in 0..100 {
                seen.extend(fake.deliveries(seed + round, Weather::ROUGH).into_iter().map(|delivery| delivery.event));
            }
            assert_eq!(seen.len(), 20, "{seed}");
        }
    }

    #[test]
    fn while_a_secret_is_rolled_both_sign() {
        let fake = fake();
        let endpoint = fake.listen("http://localhost/hook", "whsec_old");
        let new = fake.roll_secret(&endpoint, TimeDelta::hours(1));
        fake.create_customer(&[]);
        let deliveries = fake.calm_deliveries();
        let header = deliveries[0].header("stripe-signature").unwrap_or_default();
        for text in ["whsec_old", &new] {
            assert_eq!(verify(header, &deliveries[0].body, &secret(text), at()), Ok(()), "{text}");
        }
        let last = fake.roll_secret(&endpoint, TimeDelta::zero());
        fake.create_customer(&[]);
        let deliveries = fake.calm_deliveries();
        let header = deliveries[0].header("stripe-signature").unwrap_or_default();
        assert!(verify(header, &deliveries[0].body, &secret("whsec_old"), at()).is_err());
        assert_eq!(verify(header, &deliveries[0].body, &secret(&last), at()), Ok(()));
    }

    #[test]
    fn what_an_endpoint_does_not_take_holds_up_what_comes_after() {
        let fake = fake();
        fake.listen("http://localhost/hook", "whsec_1");
        fake.create_customer(&[]);
        fake.create_customer(&[]);
        let first = fake.lock().next_due().map(|(pending, _)| pending).unwrap_or_else(|| panic!("something is due"));
        fake.lock().tried(&first, false);
        assert!(fake.lock().next_due().is_none(), "the clock stands still, so the first is not due again");
    }
}
