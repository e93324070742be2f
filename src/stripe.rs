//! What Stripe says. Stripe's JSON field names exist in this room only.

pub mod event;
pub mod signature;
