//! Spendgate keeps an AI product's users inside the spending limits that their Stripe plan buys.

pub mod domain;
