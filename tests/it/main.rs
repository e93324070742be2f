//! What the service promises, proven through its doors.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed, which is what it is for")]
#![expect(clippy::disallowed_methods, reason = "commands run on the real clock, and CI is told by the environment")]

mod accounts;
mod app;
mod asking;
mod auth;
mod budget_alerts;
mod cancelled;
mod caps;
mod cli;
mod copy;
mod demo_routes;
mod disk_full;
mod durability;
mod enforcement;
mod events;
mod explain;
mod fake_stripe;
mod grants;
mod holds;
mod model;
mod nodes;
mod odd_input;
mod plan;
mod postgres;
mod pricing;
mod reconcile;
mod recorded_events;
mod reload;
mod retention;
mod rules;
mod schema;
mod schemas;
mod simulate;
mod stripe;
mod stripe_cli;
mod stripe_client;
mod stripe_setup;
mod tidy;
mod tiers_files;
mod upgrade;
mod upgrade_edges;
mod usage;
mod users;
mod webhook;
