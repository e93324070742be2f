//! What the pure core costs: a decision, a signature, a step of the ledger.
#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::hint::black_box;

use chrono::{DateTime, Utc};
use criterion::{Criterion, criterion_group, criterion_main};
use spendgate::domain::catalogue::Policy;
use spendgate::domain::decide::{Budget, Scope, decide};
use spendgate::domain::ledger::{Ledger, Usage};
use spendgate::domain::money::Money;
use spendgate::domain::period::Period;
use spendgate::domain::user::UserId;
use spendgate::stripe::event::Event;
use spendgate::stripe::signature::{Secret, verify};

fn benches(criterion: &mut Criterion) {
    let now: DateTime<Utc> = "2026-01-12T12:00:00Z".parse().unwrap();
    let budget = |period: Period| Budget {
        scope: Scope::User,
        period,
        limit: Money::parse("20").unwrap(),
        spent: Money::parse("7.5").unwrap(),
        held: Money::ZERO,
        window: period.window(now, None),
        thresholds: Policy::Soft.thresholds(),
    };
    let budgets = [Period::Daily, Period::Weekly, Period::Monthly].map(budget);
    let estimate = Money::parse("0.03").unwrap();
    criterion.bench_function("decide/three budgets", |bencher| bencher.iter(|| decide(black_box(&budgets), black_box(estimate))));

    let body = include_bytes!("../fixtures/demo/03_subscription_created_pro.json");
    let secrets = [Secret::new("whsec_bench").unwrap()];
    let header = secrets[0].sign(body, now);
    criterion
        .bench_function("signature/verify", |bencher| bencher.iter(|| verify(black_box(&header), black_box(body), &secrets, now).is_ok()));
    criterion.bench_function("event/read", |bencher| bencher.iter(|| Event::from_json(black_box(body), now).is_ok()));

    let record = |number: u32| Usage {
        id: format!("id-{number}"),
        user_id: UserId::parse(&format!("user-{}", number % 16)).unwrap(),
        cost: estimate,
        model: Some("gpt-4o".to_owned()),
        provider: None,
        input_tokens: Some(100),
        output_tokens: Some(20),
        time: None,
        metadata: None,
    };
    let batch: Vec<Usage> = (0..64).map(record).collect();
    criterion.bench_function("ledger/step of 64 and its sums", |bencher| {
        bencher.iter(|| {
            let mut ledger = Ledger::default();
            let done = ledger.step(black_box(&batch), now).is_ok();
            (done, ledger.sums().len(), ledger.sums_of_all().len())
        });
    });
}

criterion_group!(group, benches);
criterion_main!(group);
