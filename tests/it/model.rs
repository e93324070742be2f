//! The same random operations on a plain model and on the real thing, every answer compared; clock steps and restarts included.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::app::{Database, TestApp};

const TIERS: &str = "
default_tier: free
global: { budgets: { weekly: 0.00000015, total: 0.0000004 }, policy: strict }
tiers:
  free: { rank: 0, budgets: { daily: 0.00000005, monthly: 0.0000001 }, policy: graceful, degrade_to: { default: small } }
";

const USERS: [&str; 3] = ["u", "v", "w"];

#[derive(Clone, Debug)]
enum Step {
    Spend { id: u8, user: usize, nanos: u16, hours_ago: Option<u16> },
    Hold { id: u8, user: usize, nanos: u16, ttl: u16, reduce: bool },
    Capture { id: u8, nanos: u16 },
    Release { id: u8 },
    Extend { id: u8, ttl: u16 },
    Correct { id: u8, user: usize, nanos: u16, hours_ago: u16 },
    Clock { seconds: i32 },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let (id, user, nanos, ttl) = (0..12_u8, 0..USERS.len(), 0..60_u16, 1..4000_u16);
    prop_oneof![
        4 => (id.clone(), user.clone(), nanos.clone(), proptest::option::of(0..80_u16))
            .prop_map(|(id, user, nanos, hours_ago)| Step::Spend { id, user, nanos, hours_ago }),
        5 => (id.clone(), user.clone(), 1..60_u16, ttl.clone(), any::<bool>())
            .prop_map(|(id, user, nanos, ttl, reduce)| Step::Hold { id, user, nanos, ttl, reduce }),
        4 => (id.clone(), nanos).prop_map(|(id, nanos)| Step::Capture { id, nanos }),
        2 => id.clone().prop_map(|id| Step::Release { id }),
        2 => (id.clone(), ttl).prop_map(|(id, ttl)| Step::Extend { id, ttl }),
        2 => (id, user, 1..60_u16, 0..80_u16).prop_map(|(id, user, nanos, hours_ago)| Step::Correct { id, user, nanos, hours_ago }),
        2 => (-90_000..90_000_i32).prop_map(|seconds| Step::Clock { seconds }),
        3 => (-2_000..2_000_i32).prop_map(|seconds| Step::Clock { seconds }),
        1 => Just(Step::Restart),
    ]
}

/// A row of the plain ledger: whose, how much (a correction is below zero), when.
#[derive(Clone, Debug)]
struct Row {
    id: (char, u8),
    body: String,
    user: usize,
    nanos: i64,
    time: DateTime<Utc>,
    /// Booked on the cheaper model: a correction that names no model is not of it.
    degraded: bool,
}

#[derive(Clone, Debug)]
struct PlainHold {
    id: u8,
    body: String,
    user: usize,
    nanos: i64,
    expires_at: DateTime<Utc>,
    /// As it was answered.
    degraded: bool,
    /// What it was captured with; `None` is released.
    end: Option<Option<i64>>,
}

/// Everything by brute force: no counter, every sum over all rows.
#[derive(Default)]
struct Model {
    rows: Vec<Row>,
    holds: Vec<PlainHold>,
    /// What must be told: every mark that a step left reached.
    must: BTreeSet<String>,
    /// What may be told as well: budgets by which a call was refused.
    may: BTreeSet<String>,
}

const DAILY: i64 = 50;
const MONTHLY: i64 = 100;
const WEEKLY_OF_ALL: i64 = 150;
const TOTAL_OF_ALL: i64 = 400;

fn start_of(days_back: impl Fn(DateTime<Utc>) -> i64, now: DateTime<Utc>) -> i64 {
    now.timestamp().div_euclid(86_400) - days_back(now)
}

impl Model {
    fn spent(&self, user: Option<usize>, from_day: i64, to_day: i64) -> i64 {
        let within = |row: &&Row| {
            let day = row.time.timestamp().div_euclid(86_400);
            user.is_none_or(|user| row.user == user) && from_day <= day && day < to_day
        };
        self.rows.iter().filter(within).map(|row| row.nanos).sum()
    }

    /// What a correction that names no model may take back.
    fn spent_on_no_model(&self, user: usize, day: i64) -> i64 {
        let within = |row: &&Row| row.user == user && !row.degraded && row.time.timestamp().div_euclid(86_400) == day;
        self.rows.iter().filter(within).map(|row| row.nanos).sum()
    }

    fn held(&self, user: Option<usize>, now: DateTime<Utc>) -> i64 {
        let open = |hold: &&PlainHold| user.is_none_or(|user| hold.user == user) && hold.end.is_none() && now < hold.expires_at;
        self.holds.iter().filter(open).map(|hold| hold.nanos).sum()
    }

    /// (limit, spent, held) of each budget, and the thresholds of its policy.
    fn budgets(&self, user: usize, now: DateTime<Utc>) -> Vec<(i64, i64, i64)> {
        use chrono::Datelike;
        let today = start_of(|_| 0, now);
        let week = start_of(|now| i64::from(now.weekday().num_days_from_monday()), now);
        let month = start_of(|now| i64::from(now.day0()), now);
        let next_month = month + i64::from(now.date_naive().num_days_in_month());
        vec![
            (DAILY, self.spent(Some(user), today, today + 1), self.held(Some(user), now)),
            (MONTHLY, self.spent(Some(user), month, next_month), self.held(Some(user), now)),
            (WEEKLY_OF_ALL, self.spent(None, week, week + 7), self.held(None, now)),
            (TOTAL_OF_ALL, self.spent(None, i64::MIN, i64::MAX), self.held(None, now)),
        ]
    }

    /// The beginnings and ends of the keys of [`Model::budgets`].
    fn keys(user: usize, now: DateTime<Utc>) -> [(String, &'static str); 4] {
        use chrono::Datelike;
        let start = |day: i64| spendgate::domain::period::rfc3339(DateTime::from_timestamp(day * 86_400, 0).unwrap());
        let today = start_of(|_| 0, now);
        let week = start_of(|now| i64::from(now.weekday().num_days_from_monday()), now);
        let month = start_of(|now| i64::from(now.day0()), now);
        [
            (format!("user tier daily {}", start(today)), USERS[user]),
            (format!("user tier monthly {}", start(month)), USERS[user]),
            (format!("all global weekly {}", start(week)), ""),
            ("all global total ever".to_owned(), ""),
        ]
    }

    /// Notes which marks are reached of `user`, where something of his was added, and of all together.
    fn note(&mut self, user: Option<usize>, now: DateTime<Utc>) {
        let reached = self.reached(user, now);
        self.must.extend(reached);
    }

    /// The marks that are reached, those of all together and, of a user, his own.
    fn reached(&self, user: Option<usize>, now: DateTime<Utc>) -> BTreeSet<String> {
        let mut reached = BTreeSet::new();
        let budgets = self.budgets(user.unwrap_or_default(), now);
        for (index, ((limit, spent, held), (begin, name))) in budgets.iter().zip(Self::keys(user.unwrap_or_default(), now)).enumerate() {
            // The user's own budgets are graceful, those of all together strict.
            let marks: &[_] = if index < 2 { &[("warn", 80), ("degrade", 90), ("block", 100)] } else { &[("warn", 80), ("block", 100)] };
            let used = (spent + held) * 100;
            for (mark, percent) in marks.iter().filter(|_| 2 <= index || user.is_some()) {
                if 0 < used && limit * percent <= used {
                    reached.insert(format!("{begin} {mark} {name}").trim_end().to_owned());
                }
            }
        }
        reached
    }

    /// Notes that a call was refused; by which budget is not asked.
    fn note_refusal(&mut self, user: usize, now: DateTime<Utc>) {
        let keys = Self::keys(user, now).map(|(begin, name)| format!("{begin} block {name}").trim_end().to_owned());
        self.may.extend(keys);
        // Where it is noted, all together are looked at: their marks may have been reached by the clock alone, which opens a window, or a
        // hold that had expired, again.
        let reached = self.reached(None, now);
        self.may.extend(reached);
    }

    fn blocks(&self, user: usize, nanos: i64, now: DateTime<Utc>) -> bool {
        self.budgets(user, now).iter().any(|(limit, spent, held)| *limit <= spent + held || *limit < spent + held + nanos)
    }

    fn room(&self, user: usize, now: DateTime<Utc>) -> i64 {
        self.budgets(user, now).iter().map(|(limit, spent, held)| (limit - spent - held).max(0)).min().unwrap_or(0)
    }

    fn action(&self, user: usize, now: DateTime<Utc>) -> &'static str {
        let budgets = self.budgets(user, now);
        let of = |(index, (limit, spent, held)): (usize, &(i64, i64, i64))| {
            let used = (spent + held) * 100;
            // The user's own budgets are graceful, those of all together strict.
            match used {
                _ if limit * 100 <= used => 3,
                _ if index < 2 && limit * 90 <= used => 2,
                _ if limit * 80 <= used => 1,
                _ => 0,
            }
        };
        ["ALLOW", "WARN", "DEGRADE", "BLOCK"][budgets.iter().enumerate().map(of).max().unwrap_or(0)]
    }

    /// `Some(true)` is a repeat, `Some(false)` another body.
    fn seen(&self, id: (char, u8), body: &str) -> Option<bool> {
        self.rows.iter().find(|row| row.id == id).map(|row| row.body == body)
    }
}

fn dollars(nanos: i64) -> String {
    format!("0.{nanos:09}")
}

/// Does a step on both; what each answers, in the same words.
async fn both(step: &Step, model: &mut Model, app: &mut TestApp) -> (String, String) {
    let now = app.now();
    match step {
        Step::Clock { seconds } => {
            app.advance(TimeDelta::seconds(i64::from(*seconds)));
            Default::default()
        }
        Step::Restart => {
            app.restart().await;
            Default::default()
        }
        Step::Spend { id, user, nanos, hours_ago } => {
            let mut body = json!({"id": format!("s{id}"), "user_id": USERS[*user], "cost": dollars(i64::from(*nanos))});
            let time = hours_ago.map(|hours| now - TimeDelta::hours(i64::from(hours)));
            if let Some(time) = time {
                body["time"] = json!(time.to_rfc3339());
            }
            let real = said(&app.post("/v1/usage", &body).await);
            let plain = match model.seen(('s', *id), &body.to_string()) {
                Some(true) => "repeated",
                Some(false) => "id_reused",
                None => {
                    let (id, body, nanos) = (('s', *id), body.to_string(), i64::from(*nanos));
                    model.rows.push(Row { id, body, user: *user, nanos, time: time.unwrap_or(now), degraded: false });
                    "done"
                }
            };
            (plain.to_owned(), real)
        }
        Step::Correct { id, user, nanos, hours_ago } => {
            let time = now - TimeDelta::hours(i64::from(*hours_ago));
            let body = json!({"id": format!("c{id}"), "user_id": USERS[*user], "amount": dollars(i64::from(*nanos)), "reason": "model",
                "time": time.to_rfc3339()});
            let real = said(&app.post("/v1/corrections", &body).await);
            let day = time.timestamp().div_euclid(86_400);
            let plain = match model.seen(('c', *id), &body.to_string()) {
                Some(true) => "repeated",
                Some(false) => "id_reused",
                None if model.spent_on_no_model(*user, day) < i64::from(*nanos) => "invalid_field",
                None => {
                    let (body, nanos) = (body.to_string(), -i64::from(*nanos));
                    model.rows.push(Row { id: ('c', *id), body, user: *user, nanos, time, degraded: false });
                    "done"
                }
            };
            (plain.to_owned(), real)
        }
        Step::Hold { id, user, nanos, ttl, reduce } => {
            let if_short = if *reduce { "reduce" } else { "refuse" };
            let body = json!({"id": format!("h{id}"), "user_id": USERS[*user], "estimated_cost": dollars(i64::from(*nanos)),
                "ttl_seconds": ttl, "if_short": if_short});
            let (answer, text) = (app.post("/v1/holds", &body).await, body.to_string());
            let amount = |answer: &crate::app::Answer| answer.json()["hold"]["amount"].to_string();
            let real = if answer.status == 200 { format!("{} {}", said(&answer), amount(&answer)) } else { said(&answer) };
            let degraded = answer.json()["hold"]["model"] == "small";
            let number = |nanos: i64| serde_json::from_str::<Value>(&dollars(nanos)).unwrap().to_string();
            let plain = match model.holds.iter().find(|hold| hold.id == *id) {
                Some(hold) if hold.body == text => format!("repeated {}", number(hold.nanos)),
                Some(_) => "id_reused".to_owned(),
                None => {
                    let wanted = i64::from(*nanos);
                    let most = if *reduce && model.blocks(*user, wanted, now) { model.room(*user, now) } else { wanted };
                    if most == 0 || model.blocks(*user, most, now) {
                        "done null".to_owned()
                    } else {
                        let expires_at = now + TimeDelta::seconds(i64::from(*ttl));
                        model.holds.push(PlainHold { id: *id, body: text, user: *user, nanos: most, expires_at, degraded, end: None });
                        format!("done {}", number(most))
                    }
                }
            };
            (plain, real)
        }
        Step::Capture { id, nanos } => {
            let nanos = i64::from(*nanos);
            let real = said(&app.post(&format!("/v1/holds/h{id}/capture"), json!({"cost": dollars(nanos)})).await);
            let plain = match model.holds.iter_mut().find(|hold| hold.id == *id) {
                None => "hold_not_found",
                Some(hold) => match hold.end {
                    Some(Some(first)) if first == nanos => "repeated",
                    Some(_) => "hold_ended",
                    None => {
                        hold.end = Some(Some(nanos));
                        let (user, degraded) = (hold.user, hold.degraded);
                        model.rows.push(Row { id: ('h', *id), body: String::new(), user, nanos, time: now, degraded });
                        "done"
                    }
                },
            };
            (plain.to_owned(), real)
        }
        Step::Release { id } => {
            let real = said(&app.post(&format!("/v1/holds/h{id}/release"), "").await);
            let plain = match model.holds.iter_mut().find(|hold| hold.id == *id) {
                None => "hold_not_found",
                Some(hold) => match hold.end {
                    Some(None) => "repeated",
                    None if now < hold.expires_at => {
                        hold.end = Some(None);
                        "done"
                    }
                    Some(Some(_)) | None => "hold_ended",
                },
            };
            (plain.to_owned(), real)
        }
        Step::Extend { id, ttl } => {
            let real = said(&app.post(&format!("/v1/holds/h{id}/extend"), json!({"ttl_seconds": ttl})).await);
            let plain = match model.holds.iter_mut().find(|hold| hold.id == *id) {
                None => "hold_not_found",
                Some(hold) if hold.end.is_none() && now < hold.expires_at => {
                    hold.expires_at = hold.expires_at.max(now + TimeDelta::seconds(i64::from(*ttl)));
                    "done"
                }
                Some(_) => "hold_ended",
            };
            (plain.to_owned(), real)
        }
    }
}

fn said(answer: &crate::app::Answer) -> String {
    let json = answer.json();
    match answer.status {
        200 if json["repeated"] == true => "repeated".to_owned(),
        200 => "done".to_owned(),
        _ => json["code"].as_str().unwrap_or_default().to_owned(),
    }
}

async fn compare(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut app = TestApp::start(Database::Sqlite, TIERS, |config| config).await;
    let mut model = Model::default();
    for (index, step) in steps.iter().enumerate() {
        let (plain, real) = both(step, &mut model, &mut app).await;
        prop_assert_eq!(&plain, &real, "step {}: {:?}", index, step);
        let adds = match step {
            Step::Spend { user, .. } if plain == "done" => Some(*user),
            Step::Hold { user, .. } if plain == "done null" => {
                model.note_refusal(*user, app.now());
                None
            }
            Step::Hold { user, .. } if plain.starts_with("done") => Some(*user),
            Step::Capture { id, .. } if plain == "done" => model.holds.iter().find(|hold| hold.id == *id).map(|hold| hold.user),
            Step::Spend { .. }
            | Step::Hold { .. }
            | Step::Capture { .. }
            | Step::Release { .. }
            | Step::Extend { .. }
            | Step::Correct { .. }
            | Step::Clock { .. }
            | Step::Restart => None,
        };
        if !matches!(step, Step::Clock { .. } | Step::Restart) {
            model.note(adds, app.now());
        }
        if matches!(step, Step::Clock { .. }) {
            // A check would bring memory up to date; the next write is to find it old.
            continue;
        }
        for (number, user) in USERS.iter().enumerate() {
            let answer = app.check(user).await;
            let number_of = |nanos: i64| serde_json::from_str::<Value>(&dollars(nanos)).unwrap();
            for (budget, (_, spent, held)) in answer["budgets"].as_array().unwrap().iter().zip(model.budgets(number, app.now())) {
                prop_assert_eq!(budget["spent"].as_f64(), number_of(spent).as_f64(), "spent of {} after step {}: {:?}", user, index, step);
                prop_assert_eq!(budget["held"].as_f64(), number_of(held).as_f64(), "held of {} after step {}: {:?}", user, index, step);
            }
            prop_assert_eq!(&answer["action"], model.action(number, app.now()), "{} after step {}: {:?}", user, index, step);
            if answer["action"] == "BLOCK" {
                model.note_refusal(number, app.now());
            }
        }
    }
    app.stop().await;
    let told: BTreeSet<String> = app.column("SELECT alert_key FROM outbox").await.into_iter().collect();
    let missing: Vec<_> = model.must.difference(&told).collect();
    prop_assert!(missing.is_empty(), "not told: {:?}", missing);
    let wrong: Vec<_> = told.iter().filter(|key| !model.must.contains(*key) && !model.may.contains(*key)).collect();
    prop_assert!(wrong.is_empty(), "told without a reason: {:?}", wrong);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_service_answers_as_a_plain_model_does(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(compare(&steps))?;
    }
}
