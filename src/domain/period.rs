//! Periods and their half-open windows. All calendar windows are in UTC, so daylight saving time does not exist here.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, SecondsFormat, Timelike, Utc};
use serde::{Deserialize, Serialize};

/// How often a budget begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// From 00:00 UTC.
    Daily,
    /// From Monday 00:00 UTC.
    Weekly,
    /// From the 1st of the month, 00:00 UTC.
    Monthly,
    /// The Stripe subscription's current period; without one, as `Monthly`.
    Billing,
    /// Never resets.
    Total,
}

impl Period {
    pub const ALL: [Self; 5] = [Self::Daily, Self::Weekly, Self::Monthly, Self::Billing, Self::Total];

    pub fn name(self) -> &'static str {
        match self {
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Billing => "billing",
            Self::Total => "total",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|period| period.name() == name)
    }

    /// The one window of this period that holds `at`. `billing` is the period that the user's subscription is in, where
    /// there is one.
    pub fn window(self, at: DateTime<Utc>, billing: Option<BillingPeriod>) -> Window {
        let today = at.date_naive();
        match self {
            Self::Daily => between(today, today.checked_add_days(Days::new(1))),
            Self::Weekly => {
                let since_monday = Days::new(u64::from(today.weekday().num_days_from_monday()));
                let monday = today.checked_sub_days(since_monday).unwrap_or(today);
                between(monday, monday.checked_add_days(Days::new(7)))
            }
            Self::Monthly => {
                let first = today.with_day(1).unwrap_or(today);
                between(first, first.checked_add_months(Months::new(1)))
            }
            Self::Billing => match billing {
                Some(period) => period.window(at),
                None => Self::Monthly.window(at, None),
            },
            Self::Total => Window { start: DateTime::<Utc>::MIN_UTC, end: None },
        }
    }
}

/// One half-open stretch of a period: `start <= t && t < end`. Without an end it never resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub start: DateTime<Utc>,
    pub end: Option<DateTime<Utc>>,
}

impl Window {
    pub fn contains(&self, at: DateTime<Utc>) -> bool {
        self.start <= at && self.end.is_none_or(|end| at < end)
    }
}

/// The longest billing period that is believed: Stripe's own limit is three years. A longer one is a payload gone wrong,
/// and its budget would never reset.
const BILLING_SECONDS_MAX: i64 = 4 * 366 * 86_400;

/// The stretch that a subscription has been paid for. Private fields: `start < end`, and neither is absurd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillingPeriod {
    start: DateTime<Utc>,
    end: DateTime<Utc>,
}

impl BillingPeriod {
    /// `None` where the stretch is empty, reversed, or longer than four years.
    pub fn new(start: DateTime<Utc>, end: DateTime<Utc>) -> Option<Self> {
        let seconds = end.timestamp().checked_sub(start.timestamp())?;
        (0 < seconds && seconds <= BILLING_SECONDS_MAX).then_some(Self { start, end })
    }

    /// The paid stretch itself, or, while the event that announces the next one is late (or the clock was set back), a
    /// stretch of the same length before or after it.
    fn window(self, at: DateTime<Utc>) -> Window {
        let length = self.end.timestamp() - self.start.timestamp();
        let elapsed = at.timestamp() - self.start.timestamp();
        let offset = elapsed.div_euclid(length).saturating_mul(length);
        let shifted = |from: DateTime<Utc>| DateTime::from_timestamp(from.timestamp().saturating_add(offset), 0);
        Window { start: shifted(self.start).unwrap_or(self.start), end: shifted(self.end) }
    }
}

fn between(start: NaiveDate, end: Option<NaiveDate>) -> Window {
    let midnight = |day: NaiveDate| day.and_time(NaiveTime::MIN).and_utc();
    Window { start: midnight(start), end: end.map(midnight) }
}

/// RFC 3339, with whole seconds where there are no more, as in `2026-01-06T00:00:00Z`.
pub fn rfc3339(at: DateTime<Utc>) -> String {
    with_rfc3339(at, str::to_owned)
}

/// [`rfc3339`] without a place of its own in memory: a check writes one for each budget.
pub fn with_rfc3339<T>(at: DateTime<Utc>, take: impl FnOnce(&str) -> T) -> T {
    let (date, time) = (at.date_naive(), at.time());
    let four_digits = u32::try_from(date.year()).ok().filter(|year| *year <= 9999);
    let Some(year) = four_digits.filter(|_| time.nanosecond() == 0) else {
        return take(&at.to_rfc3339_opts(SecondsFormat::AutoSi, true));
    };
    let mut text = *b"0000-00-00T00:00:00Z";
    let parts = [(0, year / 100), (2, year % 100), (5, date.month()), (8, date.day())];
    let parts = parts.into_iter().chain([(11, time.hour()), (14, time.minute()), (17, time.second())]);
    for (place, number) in parts {
        for (place, digit) in [(place, number / 10), (place + 1, number % 10)] {
            text[place] = b"0123456789"[usize::try_from(digit).unwrap_or_default()];
        }
    }
    take(str::from_utf8(&text).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap_or_else(|_| panic!("{text} is a time"))
    }

    #[test]
    fn windows_begin_where_the_product_says() {
        let check = |period: Period, at: &str, start: &str, end: &str| {
            let window = period.window(time(at), None);
            assert_eq!((window.start, window.end), (time(start), Some(time(end))), "{period:?} at {at}");
        };
        check(Period::Daily, "2026-01-05T00:00:00Z", "2026-01-05T00:00:00Z", "2026-01-06T00:00:00Z");
        check(Period::Daily, "2026-01-05T23:59:59.999Z", "2026-01-05T00:00:00Z", "2026-01-06T00:00:00Z");
        check(Period::Weekly, "2026-01-04T12:00:00Z", "2025-12-29T00:00:00Z", "2026-01-05T00:00:00Z");
        check(Period::Weekly, "2026-01-05T00:00:00Z", "2026-01-05T00:00:00Z", "2026-01-12T00:00:00Z");
        check(Period::Monthly, "2024-02-29T12:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z");
        check(Period::Billing, "2024-12-31T12:00:00Z", "2024-12-01T00:00:00Z", "2025-01-01T00:00:00Z");
    }

    #[test]
    fn a_billing_window_goes_on_while_the_renewal_is_late() {
        let paid = BillingPeriod::new(time("2026-01-10T08:00:00Z"), time("2026-02-10T08:00:00Z"));
        let start_at = |at: &str| Period::Billing.window(time(at), paid).start;
        assert_eq!(start_at("2026-01-10T08:00:00Z"), time("2026-01-10T08:00:00Z"));
        assert_eq!(start_at("2026-02-10T07:59:59Z"), time("2026-01-10T08:00:00Z"));
        assert_eq!(start_at("2026-02-10T08:00:00Z"), time("2026-02-10T08:00:00Z"));
        assert_eq!(start_at("2026-01-10T07:59:59Z"), time("2025-12-10T08:00:00Z"));
    }

    #[test]
    fn an_absurd_billing_period_is_not_believed() {
        let start = time("2026-01-10T08:00:00Z");
        assert_eq!(BillingPeriod::new(start, start), None);
        assert_eq!(BillingPeriod::new(start, time("2026-01-01T00:00:00Z")), None);
        assert_eq!(BillingPeriod::new(start, time("9999-12-31T23:59:59Z")), None);
    }

    proptest! {
        #[test]
        fn a_moment_is_written_as_chrono_writes_it(at in -70_000_000_000_000_i64..260_000_000_000_000, whole in proptest::bool::ANY) {
            let at = DateTime::from_timestamp_millis(if whole { at / 1000 * 1000 } else { at }).unwrap_or_default();
            prop_assert_eq!(rfc3339(at), at.to_rfc3339_opts(SecondsFormat::AutoSi, true));
        }
    }

    fn moments() -> impl Strategy<Value = DateTime<Utc>> {
        // The years 1970 to 2199, to the millisecond.
        (0_i64..7_258_118_400_000).prop_map(|millis| DateTime::from_timestamp_millis(millis).unwrap_or_default())
    }

    proptest! {
        #[test]
        fn windows_tile_time(at in moments(), step in 0_i64..90 * 86_400_000, paid_from in moments(), days in 1_i64..1100) {
            let billing = BillingPeriod::new(paid_from, paid_from + TimeDelta::days(days));
            for period in Period::ALL {
                let window = period.window(at, billing);
                prop_assert!(window.contains(at), "{:?}", period);
                if let Some(end) = window.end {
                    // No gap and no overlap: the next window begins where this one ends, and the one before ends here.
                    prop_assert_eq!(period.window(end, billing).start, end);
                    prop_assert_eq!(period.window(end - TimeDelta::milliseconds(1), billing), window);
                    prop_assert_eq!(period.window(window.start - TimeDelta::milliseconds(1), billing).end, Some(window.start));
                }
                // Two moments share a window exactly where the first one's window holds the second.
                let later = at + TimeDelta::milliseconds(step);
                prop_assert_eq!(period.window(later, billing) == window, window.contains(later));
            }
        }
    }
}
