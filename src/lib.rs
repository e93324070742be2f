//! Spendgate keeps an AI product's users inside the spending limits that their Stripe plan buys.

pub mod alerts;
pub mod cli;
pub mod config;
pub mod current;
pub mod domain;
pub mod explain;
pub mod fake_stripe;
pub mod http;
pub mod meter;
pub mod simulate;
pub mod store;
pub mod stripe;
pub mod sync;
pub mod telemetry;
pub mod upgrade;
