//! What Stripe says. Stripe's JSON field names exist in this room only.

pub mod client;
pub mod event;
pub mod key;
mod read;
pub mod registration;
pub mod signature;
pub mod subscription;
