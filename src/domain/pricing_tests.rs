use proptest::prelude::*;

use super::*;
use crate::domain::prices_file;

const STARTER: &str = include_str!("../../prices.yaml");
/// Worked out by hand from what vendors publish, each with its working.
const PUBLISHED: &str = include_str!("../../fixtures/published_prices.txt");

fn book(text: &str) -> PriceBook {
    prices_file::read(text).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn dollars(text: &str) -> Money {
    Money::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn the_starter_book_costs_what_vendors_publish() {
    let (book, mut models) = (book(STARTER), std::collections::BTreeSet::new());
    for row in PUBLISHED.lines().filter(|row| !row.is_empty() && !row.starts_with('#')) {
        let fields: Vec<&str> = row.split('|').map(str::trim).collect();
        let [model, provider, time, input, cached_input, cache_write, audio_input, output, audio_output, expected, working] = fields[..]
        else {
            panic!("{row}")
        };
        let count = |text: &str| text.parse::<i64>().unwrap_or_else(|error| panic!("{row}: {error}"));
        let parts = Parts {
            cached_input: count(cached_input),
            cache_write: count(cache_write),
            audio_input: count(audio_input),
            audio_output: count(audio_output),
            ..Parts::NONE
        };
        let tokens = Tokens { input: count(input), output: count(output), parts };
        let time = if time == "-" { at("2026-11-24T12:00:00Z") } else { at(time) };
        let price = book.price(model, Some(provider).filter(|provider| *provider != "-"), time);
        let price = price.unwrap_or_else(|| panic!("{model} of {provider} has no price"));
        assert_eq!(price.cost(&tokens, Percent(0)), dollars(expected), "{model}: {working}");
        models.insert(price.model.name.clone());
    }
    assert!(40 <= models.len(), "only {} models are worked out", models.len());
}

#[test]
fn prices_are_found_by_name_alias_pattern_provider_and_date() {
    let book = book(
        "providers: { two: [cloud.two] }\nmodels:\n  a: { provider: one, aliases: [a-latest, a-2024-*], input: 1, output: 2 }\n  \
         a-2024-05-*: { provider: one, input: 5, output: 5 }\n  two/a: { provider: two, input: 3, output: 3 }\n  \
         dated: { prices: [{ valid_from: 2024-10-02, input: 2 }, { valid_from: 2024-05-13, input: 5 }] }\n",
    );
    let million = Tokens { input: 1_000_000, ..Tokens::default() };
    let check = |model: &str, provider: Option<&str>, time: &str, expected: Option<&str>| {
        let cost = book.price(model, provider, at(time)).map(|price| price.cost(&million, Percent(0)));
        assert_eq!(cost, expected.map(dollars), "{model} {provider:?} {time}");
    };
    let now = "2026-01-12T12:00:00Z";
    check("a", None, now, Some("1"));
    check("a-latest", Some("one"), now, Some("1"));
    check("a", Some("ONE"), now, Some("1"));
    check("a-2024-08-06", None, now, Some("1"));
    check("a-2024-05-13", None, now, Some("5"));
    check("a", Some("two"), now, Some("3"));
    check("two/a", None, now, Some("3"));
    check("a", Some("Cloud.Two"), now, Some("3"));
    check("cloud.two/a", None, now, Some("3"));
    check("one/a", None, now, Some("1"));
    check("a", Some("three"), now, None);
    check("b", None, now, None);
    check("A", None, now, None);
    check("dated", None, "2024-10-01T23:59:59.999999Z", Some("5"));
    check("dated", None, "2024-10-02T00:00:00Z", Some("2"));
    check("dated", None, "2020-01-01T00:00:00Z", Some("5"));
}

#[test]
fn a_markup_is_added_before_the_one_rounding() {
    let book = book("models: { m: { input: 0.000001, output: 1, request: 0.01 } }");
    let price = book.price("m", None, at("2026-01-12T12:00:00Z")).unwrap_or_else(|| panic!("m has a price"));
    let check = |input: i64, markup: u32, expected: &str| {
        let tokens = Tokens { input, ..Tokens::default() };
        assert_eq!(price.cost(&tokens, Percent(markup)), dollars(expected), "{input} at {markup}");
    };
    check(0, 0, "0.01");
    // A thousandth of a nano-dollar is not nothing.
    check(1, 0, "0.010000001");
    check(1_000_000, 2000, "0.0120012");
    check(1000, 0, "0.010000001");
    check(1001, 0, "0.010000002");
    check(0, 25, "0.010025");
}

fn counts() -> impl Strategy<Value = Tokens> {
    let count = || 0_i64..5_000_000;
    (count(), count(), count(), count(), count(), count(), count(), count()).prop_map(|counts| {
        let (plain_in, plain_out, cached_input, cache_write, audio_input, reasoning, audio_output, images) = counts;
        let parts = Parts { cached_input, cache_write, audio_input, reasoning, audio_output, images };
        Tokens { input: plain_in + parts.of_input(), output: plain_out + parts.of_output(), parts }
    })
}

fn rates() -> impl Strategy<Value = Rates> {
    proptest::array::uniform9(0_i64..100_000_000_000).prop_map(|nanos| {
        let [input, cached_input, cache_write, audio_input, output, reasoning, audio_output, image, _] =
            nanos.map(|nanos| Money::from_nanos(nanos).unwrap_or_default());
        Rates { input, cached_input, cache_write, audio_input, output, reasoning, audio_output, image, request: Money::ZERO }
    })
}

fn sum(one: &Tokens, other: &Tokens) -> Tokens {
    let parts = Parts {
        cached_input: one.parts.cached_input + other.parts.cached_input,
        cache_write: one.parts.cache_write + other.parts.cache_write,
        audio_input: one.parts.audio_input + other.parts.audio_input,
        reasoning: one.parts.reasoning + other.parts.reasoning,
        audio_output: one.parts.audio_output + other.parts.audio_output,
        images: one.parts.images + other.parts.images,
    };
    Tokens { input: one.input + other.input, output: one.output + other.output, parts }
}

proptest! {
    #[test]
    fn cost_is_additive_over_what_was_used(one in counts(), other in counts(), rates in rates(), markup in 0_u32..50_000) {
        prop_assert_eq!(rates.exact(&one) + rates.exact(&other), rates.exact(&sum(&one, &other)));
        let model = Model { name: "m".to_owned(), provider: None, prices: vec![Prices { valid_from: None, base: rates, above: Vec::new() }] };
        let price = Price { model: &model, prices: &model.prices[0] };
        let cost = |tokens: &Tokens| price.cost(tokens, Percent(markup)).nanos();
        let parts = cost(&one) + cost(&other) - cost(&sum(&one, &other));
        prop_assert!((0..=1).contains(&parts), "two roundings instead of one make at most a nano-dollar: {}", parts);
    }

    #[test]
    fn the_most_output_fits_and_one_token_more_does_not(tokens in counts(), rates in rates(), budget in 0_i64..1_000_000_000_000, markup in 0_u32..10_000) {
        let model = Model { name: "m".to_owned(), provider: None, prices: vec![Prices { valid_from: None, base: rates, above: Vec::new() }] };
        let (price, markup) = (Price { model: &model, prices: &model.prices[0] }, Percent(markup));
        let budget = Money::from_nanos(budget).unwrap_or_default();
        // Whatever of it is text, reasoning or sound: where all of it is of the dearest kind that was asked about.
        let with = |output: i64| {
            let kinds = [(output, 0, 0), (0, output, 0), (0, 0, output)];
            let asked = [true, 0 < tokens.parts.reasoning, 0 < tokens.parts.audio_output];
            let costs = kinds.iter().zip(asked).filter(|(_, asked)| *asked).map(|((_, reasoning, audio_output), _)| {
                let parts = Parts { reasoning: *reasoning, audio_output: *audio_output, ..tokens.parts };
                price.cost(&Tokens { output, parts, ..tokens }, markup)
            });
            costs.max().unwrap()
        };
        if let Some(most) = price.most_output(&tokens, budget, markup) {
            prop_assert!(most == 0 || with(most) <= budget);
            prop_assert!(budget < with(most + 1));
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC*") {
        let _ = prices_file::read(&text);
    }
}
