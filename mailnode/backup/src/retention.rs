//! Which backups stay. Pure.

use jiff::tz::TimeZone;
use quorumail_store::Timestamp;
use serde::{Deserialize, Serialize};

/// How many backups stay. All zero: all stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of so many days that have one.
    pub daily: u32,
    /// The newest of each of so many weeks (ISO 8601: from Monday on) that have one.
    pub weekly: u32,
    /// The newest of each of so many months that have one.
    pub monthly: u32,
    /// The newest of each of so many years that have one.
    pub yearly: u32,
}

/// Why a backup stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// No rule is given, or none that concerns it.
    Unlimited,
    /// Among the newest.
    Last,
    /// The newest of a day.
    Daily,
    /// The newest of a week.
    Weekly,
    /// The newest of a month.
    Monthly,
    /// The newest of a year.
    Yearly,
}

/// A part of the calendar; equal for instants in the same one.
type Period = (i16, i8, i8);

/// Why each of the backups stays, in the order of `instants`; nothing for those that go. Days, weeks, months and years are
/// those of the time zone. Of backups of the same instant, the last one is the newest.
pub fn keep(instants: &[Timestamp], retention: &Retention, zone: &TimeZone) -> Vec<Vec<Reason>> {
    if *retention == Retention::default() {
        return vec![vec![Reason::Unlimited]; instants.len()];
    }
    let mut newest_first: Vec<usize> = (0..instants.len()).collect();
    newest_first.sort_by_key(|backup| std::cmp::Reverse((instants[*backup], *backup)));
    let mut reasons = vec![Vec::new(); instants.len()];
    for backup in newest_first.iter().take(retention.last as usize) {
        reasons[*backup].push(Reason::Last);
    }
    let rules: [(u32, Reason, fn(&jiff::Zoned) -> Period); 4] = [
        (retention.daily, Reason::Daily, |at| (at.year(), at.month(), at.day())),
        (retention.weekly, Reason::Weekly, |at| {
            let week = at.date().iso_week_date();
            (week.year(), week.week(), 0)
        }),
        (retention.monthly, Reason::Monthly, |at| (at.year(), at.month(), 0)),
        (retention.yearly, Reason::Yearly, |at| (at.year(), 0, 0)),
    ];
    for (count, reason, period_of) in rules {
        let (mut left, mut current) = (count, None);
        for backup in &newest_first {
            let at =
                jiff::Timestamp::from_millisecond(instants[*backup].0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
            let period = Some(period_of(&at.to_zoned(zone.clone())));
            if period == current {
                continue;
            }
            if left == 0 {
                break;
            }
            left -= 1;
            current = period;
            reasons[*backup].push(reason);
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn kept(zone_name: &str, retention: Retention, instants: &[&str]) -> Vec<usize> {
        let instants: Vec<_> = instants.iter().map(|text| at(text)).collect();
        let kept = keep(&instants, &retention, &zone(zone_name));
        (0..instants.len()).filter(|backup| !kept[*backup].is_empty()).collect()
    }

    #[test]
    fn the_table_of_cases_holds() {
        let none = Retention::default();
        let cases: &[(&str, Retention, &[&str], &[usize])] = &[
            ("UTC", none, &["2026-01-01T00:00:00Z", "2020-01-01T00:00:00Z"], &[0, 1]),
            ("UTC", Retention { last: 1, ..none }, &["2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"], &[1]),
            ("UTC", Retention { last: 5, ..none }, &["2026-01-01T00:00:00Z"], &[0]),
            // The newest of a day, and days without a backup do not count.
            (
                "UTC",
                Retention { daily: 2, ..none },
                &[
                    "2026-03-01T05:00:00Z",
                    "2026-03-01T22:00:00Z",
                    "2026-03-09T01:00:00Z",
                    "2026-03-09T02:00:00Z",
                ],
                &[1, 3],
            ),
            // 23:30 UTC is the next day in Berlin, also on the day of 23 hours.
            (
                "Europe/Berlin",
                Retention { daily: 9, ..none },
                &["2026-03-28T23:30:00Z", "2026-03-29T21:30:00Z"],
                &[1],
            ),
            (
                "UTC",
                Retention { daily: 9, ..none },
                &["2026-03-28T23:30:00Z", "2026-03-29T21:30:00Z"],
                &[0, 1],
            ),
            // Of the day of 25 hours, 00:30 and 23:30 local are one day.
            (
                "Europe/Berlin",
                Retention { daily: 9, ..none },
                &["2026-10-24T22:30:00Z", "2026-10-25T22:30:00Z"],
                &[1],
            ),
            // 2027-01-01 is in week 53 of 2026, with 2026-12-28.
            ("UTC", Retention { weekly: 9, ..none }, &["2026-12-28T01:00:00Z", "2027-01-01T01:00:00Z"], &[1]),
            (
                "UTC",
                Retention { yearly: 9, ..none },
                &["2026-12-28T01:00:00Z", "2027-01-01T01:00:00Z"],
                &[0, 1],
            ),
            (
                "UTC",
                Retention { weekly: 9, ..none },
                &["2026-03-01T23:59:59Z", "2026-03-02T00:00:00Z"],
                &[0, 1],
            ),
            (
                "UTC",
                Retention { last: 1, monthly: 2, ..none },
                &[
                    "2025-11-30T00:00:00Z",
                    "2026-01-31T00:00:00Z",
                    "2026-02-01T00:00:00Z",
                    "2026-02-02T00:00:00Z",
                ],
                &[1, 3],
            ),
        ];
        for (zone, retention, instants, expected) in cases {
            assert_eq!(kept(zone, *retention, instants), *expected, "{zone} {retention:?} {instants:?}");
        }
    }

    /// Rule by rule as the manual words it: group by period, take the newest of each, keep the newest periods.
    fn model(instants: &[Timestamp], retention: &Retention, zone: &TimeZone) -> Vec<bool> {
        if *retention == Retention::default() {
            return vec![true; instants.len()];
        }
        let mut stays = vec![false; instants.len()];
        let formats = [
            (retention.daily, "%Y-%m-%d"),
            (retention.weekly, "%G-%V"),
            (retention.monthly, "%Y-%m"),
            (retention.yearly, "%Y"),
        ];
        for (count, format) in formats {
            let mut newest = BTreeMap::<String, (Timestamp, usize)>::new();
            for (backup, instant) in instants.iter().enumerate() {
                let zoned = jiff::Timestamp::from_millisecond(instant.0).unwrap().to_zoned(zone.clone());
                let entry = newest.entry(zoned.strftime(format).to_string()).or_insert((*instant, backup));
                *entry = (*entry).max((*instant, backup));
            }
            for (_, backup) in newest.values().rev().take(count as usize) {
                stays[*backup] = true;
            }
        }
        let mut order: Vec<_> = instants.iter().copied().zip(0..).collect();
        order.sort();
        for (_, backup) in order.iter().rev().take(retention.last as usize) {
            stays[*backup] = true;
        }
        stays
    }

    proptest! {
        #[test]
        fn it_keeps_what_the_model_keeps(
            hours in prop::collection::vec(0i64..40_000, 0..60),
            (last, daily, weekly, monthly, yearly) in (0u32..4, 0u32..9, 0u32..6, 0u32..14, 0u32..4),
            zone_name in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Pacific/Kiritimati"]),
        ) {
            let instants: Vec<_> = hours.iter().map(|hour| Timestamp(1_700_000_000_000 + hour * 3_600_000)).collect();
            let retention = Retention { last, daily, weekly, monthly, yearly };
            let kept = keep(&instants, &retention, &zone(zone_name));
            let stays: Vec<bool> = kept.iter().map(|reasons| !reasons.is_empty()).collect();
            prop_assert_eq!(&stays, &model(&instants, &retention, &zone(zone_name)));
            if !instants.is_empty() && last + daily + weekly + monthly + yearly > 0 {
                let newest = (0..instants.len()).max_by_key(|backup| (instants[*backup], *backup)).unwrap();
                prop_assert!(stays[newest], "the newest always stays");
            }
        }
    }
}
