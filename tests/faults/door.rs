//! Requests of somebody who is sure to be answered.

use serde_json::Value;

use crate::service::{ADMIN_KEY, Service};

pub fn client() -> reqwest::ClientBuilder {
    // Once in a process is enough; a second time finds it done.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}

/// The door of one service, which answers 200 to whatever is asked here.
#[derive(Clone)]
pub struct Door {
    client: reqwest::Client,
    url: String,
}

impl Door {
    pub fn of(service: &Service) -> Self {
        Self { client: client().build().unwrap(), url: service.url.clone() }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Value {
        let response = request.bearer_auth(ADMIN_KEY).send().await.unwrap();
        let (status, from) = (response.status(), response.url().clone());
        let body = response.text().await.unwrap();
        assert_eq!(status.as_u16(), 200, "{from}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub async fn get(&self, path: &str) -> Value {
        self.answer(self.client.get(format!("{}{path}", self.url))).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Value {
        self.answer(self.client.post(format!("{}{path}", self.url)).body(body.to_string())).await
    }

    async fn is_done(&self, request: reqwest::RequestBuilder, body: &Value) -> bool {
        request.body(body.to_string()).bearer_auth(ADMIN_KEY).send().await.unwrap().status().is_success()
    }

    /// What may be refused; whether it was done.
    pub async fn puts(&self, path: &str, body: &Value) -> bool {
        self.is_done(self.client.put(format!("{}{path}", self.url)), body).await
    }

    /// The same with POST.
    pub async fn posts(&self, path: &str, body: &Value) -> bool {
        self.is_done(self.client.post(format!("{}{path}", self.url)), body).await
    }

    /// All items of a list, page by page.
    pub async fn list(&self, path: &str, name: &str) -> Vec<Value> {
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let mut page = self.get(&format!("{path}{separator}limit=1000{cursor}")).await;
            items.append(page[name].as_array_mut().unwrap());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return items,
            }
        }
    }
}

/// An amount of whole cents, as answers have it.
pub fn cents(amount: &Value) -> u64 {
    let text = amount.to_string();
    let (dollars, cents) = text.split_once('.').unwrap_or((&text, ""));
    assert!(cents.len() <= 2, "{amount} is not in cents");
    format!("{dollars}{cents:0<2}").parse().unwrap_or_else(|_| panic!("{amount}"))
}
