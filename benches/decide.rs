//! What the pure core costs: a decision, a signature, a step of the ledger.
#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::collections::{BTreeSet, HashMap};
use std::hint::black_box;

use chrono::{DateTime, Utc};
use criterion::{Criterion, criterion_group, criterion_main};
use spendgate::domain::book::{Book, SpentByDay};
use spendgate::domain::catalogue::Policy;
use spendgate::domain::changes::{sums, sums_of_all};
use spendgate::domain::decide::{Action, Budget, Reason, Scope, Source, decide};
use spendgate::domain::ledger::{Ledger, Payer};
use spendgate::domain::money::Money;
use spendgate::domain::operation::{Operation, Usage, Used};
use spendgate::domain::period::Period;
use spendgate::domain::user::{Profile, UserId};
use spendgate::stripe::event::Event;
use spendgate::stripe::signature::{Secret, verify};
use spendgate::telemetry::{Class, Telemetry};

fn benches(criterion: &mut Criterion) {
    let now: DateTime<Utc> = "2026-01-12T12:00:00Z".parse().unwrap();
    let budget = |period: Period| Budget {
        scope: Scope::User,
        period,
        source: Source::Tier,
        limit: Money::parse("20").unwrap(),
        granted: Money::ZERO,
        fresh_limit: Money::parse("20").unwrap(),
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

    let telemetry = Telemetry::default();
    for tier in ["free", "pro", "enterprise"] {
        telemetry.decisions.saw(tier, Action::Allow, Reason::WithinBudget);
    }
    criterion.bench_function("telemetry/a decision counted", |bencher| {
        bencher.iter(|| telemetry.decisions.saw(black_box("enterprise"), black_box(Action::Warn), black_box(Reason::WarnThreshold)));
    });
    criterion.bench_function("telemetry/a request timed", |bencher| {
        bencher.iter(|| {
            let begun = tokio::time::Instant::now();
            telemetry.requests.saw(black_box(Class::Check), 200, begun.elapsed());
        });
    });

    let text = include_str!("../tiers.yaml");
    let prices = spendgate::domain::prices_file::read(include_str!("../prices.yaml")).unwrap();
    let catalogue = spendgate::domain::tiers_file::read(text, prices).unwrap();
    let user = |number: u32| UserId::parse(&format!("user-{}", number % 16)).unwrap();
    let record = |number: u32| {
        let used = Used { cost: Money::parse("0.000001").ok(), model: Some("gpt-4o".to_owned()), ..Used::default() };
        Operation::Record(vec![Usage { id: format!("id-{number}"), user_id: user(number), time: None, used }])
    };
    let batch: Vec<Operation> = (0..64).map(record).collect();
    let book = || Book::new(now, &SpentByDay::new(), Money::ZERO, []);
    let payers: HashMap<UserId, Payer> = (0..16)
        .map(|number| (user(number), Payer { profile: Profile::default().shared(), exists: true, entries: 0, book: book(), grants: None }))
        .collect();
    criterion.bench_function("ledger/64 steps and their sums", |bencher| {
        bencher.iter(|| {
            let mut ledger = Ledger {
                booked: HashMap::new(),
                holds: HashMap::new(),
                payers: payers.clone(),
                accounts: HashMap::new(),
                all: book(),
                days: HashMap::new(),
                entries: Vec::new(),
                touched_holds: BTreeSet::new(),
                corrections: Vec::new(),
                draws: Vec::new(),
                alerts: Vec::new(),
            };
            let done = batch.iter().filter(|operation| ledger.step(black_box(operation), &catalogue, now).is_ok()).count();
            (done, sums(&ledger.entries).len(), sums_of_all(&ledger.entries).len())
        });
    });
}

criterion_group!(group, benches);
criterion_main!(group);
