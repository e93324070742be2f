//! Each file of fixtures/tiers is refused, where it is wrong and with what would be right.

use std::fs;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use spendgate::domain::catalogue::{Catalogue, Policy};
use spendgate::domain::decide::{Action, Budget, Scope, Source};
use spendgate::domain::money::Money;
use spendgate::domain::period::Period;
use spendgate::domain::rules::Facts;
use spendgate::domain::tiers_file;
use spendgate::domain::user::UserId;

use crate::app::{TIERS, prices};

/// File, where (line:column), what is said.
const FAULTS: [(&str, &str, &str); 39] = [
    ("alerts_not_a_mark", "4:64", "`alerts: 0.5` must be warn, degrade, block, or a percentage of the limit from 1 to 1000"),
    ("alerts_twice", "4:70", "`alerts: warn` is there twice"),
    ("anchor", "12:16", "write the value out"),
    ("default_missing", "1:1", "`default_tier` is missing; name the tier of users who pay for nothing"),
    ("default_unknown", "2:15", "`default_tier: fere` is not a tier; use one of free, pro"),
    ("degrade_in_a_circle", "15:17", "leads from `gpt-4o` back to itself"),
    ("degrade_without_model", "9:3", "`degrade_to` needs a `default`"),
    ("float_trap", "7:23", "`daily: 0.1000000000000000055` has more than nine decimals"),
    ("global_billing", "3:9", "use monthly"),
    ("key_twice", "11:5", "`rank` is given twice, first in line 10"),
    ("negative_limit", "13:23", "`daily: -1.00` is negative"),
    ("no_tiers", "3:8", "describe at least one tier"),
    ("not_a_list", "12:13", "must be a list"),
    ("not_a_mapping", "2:1", "must be a mapping"),
    ("not_yaml", "12:11", "this is not YAML"),
    ("on_store_down_misspelt", "11:20", "`on_store_down: alow` must be block (nothing may be spent while the store is away) or allow"),
    ("per_seat_number", "11:15", "`per_seat: 5` must be `true` or `false`"),
    ("period_misspelt", "13:29", "`weakly` is not a period; did you mean `weekly`?"),
    ("policy_misspelt", "8:13", "`policy: strickt` is not a policy; did you mean `strict`?"),
    ("price_claimed_twice", "12:25", "price `price_free` is claimed by tier `free` in line 6 already"),
    ("rank_missing", "9:3", "tier `pro` has no `rank`"),
    ("rank_shared", "9:3", "has the rank 0 of tier `free`"),
    ("rule_action_misspelt", "6:13", "`action: BLOK` is not an action of rules; did you mean `BLOCK`?"),
    ("rule_degrades_without_model", "8:3", "rule `cheaper` degrades, so tier `free` needs `degrade_to` with a `default`"),
    ("rule_key_misspelt", "7:5", "a rule has no key `mesage`; did you mean `message`?"),
    ("rule_name_twice", "13:15", "rule `costly` is there already, in line 4; names are unique within the file"),
    ("rule_not_a_condition", "5:11", "`when`: is a number (double); a condition must be true or false"),
    ("rule_not_cel", "5:11", "`when`: is not CEL: "),
    ("rule_not_named", "4:5", "a rule has no `name`; give it a name of its own"),
    ("rule_too_much_work", "4:3", "steps at worst; at most 20000 may be, and `everything` takes the most"),
    ("rule_unknown_name", "14:15", "`when`: `teir` is not known; "),
    ("scope_misspelt", "11:12", "`scope: acount` must be `user` (each user has the budgets) or `account`"),
    ("second_document", "9:1", "a second document begins here"),
    ("thresholds_descend", "15:17", "thresholds descend: `warn` at 90 % comes after `degrade` at 80 %"),
    ("thresholds_empty", "4:3", "tier `free` has no `policy`"),
    ("unknown_key", "11:5", "tier `pro` has no key `bugdets`; did you mean `budgets`?"),
    ("upgrade_url_nowhere", "3:14", "or be /upgrade, the page below PUBLIC_URL"),
    ("upgrade_url_placeholder", "3:14", "{tier}, {to} and {user_id} are filled in"),
    ("upgrade_url_script", "3:14", "must begin with https:// or http:// and a host"),
];

#[test]
fn every_faulty_file_is_refused_once_with_its_place_and_what_would_be_right() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiers");
    for (name, place, message) in FAULTS {
        let text = fs::read_to_string(folder.join(format!("{name}.yaml"))).unwrap();
        let problems = tiers_file::read(&text, prices()).expect_err(name);
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 1, "{name}: {told:?}");
        assert!(told[0].starts_with(&format!("{place}: ")) && told[0].contains(message), "{name}: {told:?}");
    }
    let files = fs::read_dir(folder).unwrap().count();
    assert_eq!(files, FAULTS.len(), "a file of fixtures/tiers is not in the table");
}

#[test]
fn all_faults_of_a_file_are_told_at_once() {
    let text = "default_tier: free\ntiers:\n  free: { rank: x, budgets: { daily: -1, dayly: 2 }, policy: strict, prise: [a] }\n";
    let told: Vec<String> = tiers_file::read(text, prices()).expect_err("faulty").iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 4, "{told:?}");
}

#[test]
fn the_catalogue_of_the_repository_says_what_the_product_says() {
    let catalogue = tiers_file::read(TIERS, prices()).unwrap();
    let limit = |tier: &str, period: Period| catalogue.tier(tier).unwrap().budgets.limits.get(&period).map(|limit| limit.nanos());
    assert_eq!(limit("free", Period::Daily), Some(100_000_000));
    assert_eq!((limit("pro", Period::Daily), limit("pro", Period::Weekly)), (Some(1_000_000_000), Some(5_000_000_000)));
    assert_eq!((limit("pro", Period::Monthly), limit("enterprise", Period::Daily)), (Some(20_000_000_000), Some(50_000_000_000)));
    assert_eq!((limit("enterprise", Period::Monthly), limit("enterprise", Period::Weekly)), (Some(1_000_000_000_000), None));
    let price = |tier: &str| catalogue.tier(tier).unwrap().monthly_price;
    assert_eq!(["free", "pro", "enterprise"].map(price).map(Money::decimal), ["0", "29", "499"]);
}

#[test]
fn rules_of_the_file_are_judged_before_those_of_a_tier_and_in_no_other_tier() {
    let text = r#"
default_tier: free
rules:
  - { name: top, when: estimate > 1, action: WARN }
tiers:
  free:
    rank: 0
    budgets: {}
    policy: strict
    rules:
      - name: own
        when: |
          "agent" in metadata && now.getHours() < 6
        action: BLOCK
        message: Agents sleep at night.
  pro: { rank: 1, budgets: {}, policy: strict }
"#;
    let catalogue = tiers_file::read(text, prices()).unwrap();
    let names = |tier: &str| catalogue.tier(tier).unwrap().rules.iter().map(|rule| rule.name().to_owned()).collect::<Vec<_>>();
    assert_eq!(names("free"), ["top", "own"]);
    assert_eq!(names("pro"), ["top"]);
    assert!(tiers_file::read(TIERS, prices()).unwrap().tiers().iter().all(|tier| tier.rules.is_empty()));
}

/// The first block of `docs/RULES.md`, and what `tiers.yaml` shows in comments.
fn rules_shown() -> [String; 2] {
    let docs = fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/RULES.md")).unwrap();
    let block = docs.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap().to_owned();
    let shown = TIERS.lines().skip_while(|line| *line != "# rules:").take_while(|line| line.starts_with('#'));
    [block, shown.map(|line| format!("{}\n", line.trim_start_matches("# "))).collect()]
}

#[test]
fn the_rules_that_the_documentation_shows_do_what_they_say() {
    let tier = "default_tier: free\ntiers:\n  free: { rank: 0, budgets: {}, policy: strict, degrade_to: { default: tiny } }\n";
    let [docs, comments] = rules_shown().map(|rules| tiers_file::read(&format!("{rules}{tier}"), prices()).unwrap());
    let user = UserId::parse("u_42").unwrap();
    let night: DateTime<Utc> = "2026-01-06T23:30:00Z".parse().unwrap();
    let noon: DateTime<Utc> = "2026-01-06T12:00:00Z".parse().unwrap();
    let agent = serde_json::json!({ "agent": "crawler" }).as_object().unwrap().clone();
    let spent = |spent: &str| Budget {
        scope: Scope::Global,
        period: Period::Daily,
        source: Source::Global,
        limit: Money::parse("100").unwrap(),
        granted: Money::ZERO,
        fresh_limit: Money::parse("100").unwrap(),
        spent: Money::parse(spent).unwrap(),
        held: Money::ZERO,
        window: Period::Daily.window(noon, None),
        thresholds: Policy::Strict.thresholds(),
    };
    let check = |catalogue: &Catalogue, estimate: &str, metadata: Option<_>, global: &str, now, expected: Option<(Action, &str)>| {
        let facts = Facts {
            user: &user,
            account: None,
            tier: catalogue.default_tier(),
            model: None,
            provider: None,
            estimate: Money::parse(estimate).unwrap(),
            input_tokens: 0,
            output_tokens: 0,
            budgets: &[spent(global)],
            metadata,
            now,
        };
        let verdict = catalogue.default_tier().rules.judge(&facts);
        assert_eq!(verdict.as_ref().map(|verdict| (verdict.action, &*verdict.message)), expected);
    };
    let dear = Some((Action::Block, "Free users may not make calls over $0.05."));
    check(&docs, "0.05", Some(&agent), "89", noon, None);
    check(&docs, "0.050000001", None, "89", noon, dear);
    check(&docs, "0.05", None, "90", noon, Some((Action::Degrade, "Demand is high today; the cheaper model answers.")));
    check(&docs, "0.05", Some(&agent), "90", night, Some((Action::Block, "Agents sleep from 22 to 6.")));
    check(&comments, "0.06", None, "0", noon, dear);
    let early = "2026-01-06T05:59:59Z".parse().unwrap();
    check(&comments, "0.01", Some(&agent), "0", early, Some((Action::Block, "The rule `no_agents_at_night` applies.")));
    check(&comments, "0.01", Some(&agent), "0", noon, None);
}
