//! What the business says: values in, values out. Nothing here waits, reads a clock, a file or the environment, or knows
//! of HTTP, SQL or Stripe's field names.

pub mod alert;
pub mod alerts;
pub mod book;
pub mod caps;
pub mod catalogue;
pub mod changes;
pub mod cost;
pub mod decide;
pub mod difference;
pub mod explanation;
pub mod glob;
pub mod grants;
pub mod judge;
pub mod ledger;
pub mod litellm;
pub mod models;
pub mod money;
pub mod operation;
pub mod period;
pub mod prices_file;
pub mod pricing;
pub mod rules;
pub mod simulation;
pub mod subscription;
pub mod tiers_file;
pub mod user;
pub mod yaml;
