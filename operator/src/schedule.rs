//! Cron expressions in a time zone. Pure: every instant is passed in.
//!
//! A time of day that the clocks jump over happens right after the jump; one that they pass twice happens the first time.
//! Expressions that say "every so often" (`*/30 * * * *`) follow the time that passes instead.

use std::time::Duration;

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, tz::TimeZone};

/// Spans in which missed instants are looked for, one after the other: each has few, whatever the expression says.
const LOOK_BACK: [Duration; 4] = [
    Duration::from_secs(3_600),
    Duration::from_secs(86_400),
    Duration::from_secs(40 * 86_400),
    Duration::from_secs(10 * 366 * 86_400),
];

/// Why there is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The expression cannot be read.
    #[error(
        "schedule {0:?} is no cron expression ({1}); write minute, hour, day of month, month, day of week, as in \"0 3 * * *\""
    )]
    Expression(String, String),
    /// It never happens, as `0 0 30 2 *`.
    #[error("schedule {0:?} never happens; correct its days and months")]
    Never(String),
    /// The time zone is not known.
    #[error("time zone {0:?} is not known; write a name of the time zone database, as in Europe/Berlin")]
    Zone(String),
}

/// When something is due.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

impl Schedule {
    /// Reads a cron expression of five fields, or `@daily` and the like, and the name of a time zone. `now`: only an
    /// expression that happens again after it is taken.
    pub fn parse(expression: &str, zone: &str, now: Timestamp) -> Result<Self, ScheduleError> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser
            .parse(expression)
            .map_err(|error| ScheduleError::Expression(expression.to_owned(), error.to_string()))?;
        let zone = TimeZone::get(zone).map_err(|_| ScheduleError::Zone(zone.to_owned()))?;
        let schedule = Self { cron, zone };
        match schedule.next_after(now) {
            Some(_) => Ok(schedule),
            None => Err(ScheduleError::Never(expression.to_owned())),
        }
    }

    /// The time zone.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first instant after `instant`; `None`: never, within the years that the calendar is searched.
    pub fn next_after(&self, instant: Timestamp) -> Option<Timestamp> {
        let from = instant.to_zoned(self.zone.clone());
        let found = self.cron.find_next_occurrence(&from, false).ok()?.timestamp();
        (found > instant).then_some(found)
    }

    /// The last instant after `after` and not after `until`.
    pub fn last_between(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        for span in LOOK_BACK {
            let begin = until.checked_sub(span).unwrap_or(Timestamp::MIN).max(after);
            let first = self.next_after(begin).filter(|found| *found <= until);
            let all =
                std::iter::successors(first, |last| self.next_after(*last).filter(|next| *next <= until));
            let last = all.last();
            if last.is_some() || begin == after {
                return last;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn berlin(expression: &str) -> Schedule {
        Schedule::parse(expression, "Europe/Berlin", at("2026-01-01T00:00:00Z")).unwrap()
    }

    #[test]
    fn the_time_of_day_is_that_of_the_zone() {
        let cases = [
            // In winter and in summer.
            ("0 3 * * *", "2026-01-10T12:00:00Z", "2026-01-11T02:00:00Z"),
            ("0 3 * * *", "2026-07-10T12:00:00Z", "2026-07-11T01:00:00Z"),
            ("@daily", "2026-07-10T12:00:00Z", "2026-07-10T22:00:00Z"),
            ("@hourly", "2026-07-10T12:00:00Z", "2026-07-10T13:00:00Z"),
            ("@weekly", "2026-11-25T12:00:00Z", "2026-11-28T23:00:00Z"),
            ("30 4 1 * *", "2026-11-25T12:00:00Z", "2026-12-01T03:30:00Z"),
            ("0 0 * * MON", "2026-11-25T12:00:00Z", "2026-11-29T23:00:00Z"),
            ("0 0 29 2 *", "2026-11-25T12:00:00Z", "2028-02-28T23:00:00Z"),
        ];
        for (expression, after, expected) in cases {
            assert_eq!(
                berlin(expression).next_after(at(after)),
                Some(at(expected)),
                "{expression} after {after}"
            );
        }
    }

    #[test]
    fn what_the_clocks_jump_over_happens_after_the_jump() {
        // At 02:00 of 29 March 2026 it becomes 03:00.
        let daily = berlin("30 2 * * *");
        let gap = daily.next_after(at("2026-03-28T12:00:00Z")).unwrap();
        assert_eq!(gap, at("2026-03-29T01:00:00Z"));
        assert_eq!(daily.next_after(gap), Some(at("2026-03-30T00:30:00Z")), "once a day");
        let often = berlin("*/30 * * * *");
        assert_eq!(often.next_after(at("2026-03-29T00:30:00Z")), Some(at("2026-03-29T01:00:00Z")));
    }

    #[test]
    fn what_the_clocks_pass_twice_happens_once() {
        // At 03:00 of 25 October 2026 it becomes 02:00 again.
        let daily = berlin("30 2 * * *");
        let first = daily.next_after(at("2026-10-24T12:00:00Z")).unwrap();
        assert_eq!(first, at("2026-10-25T00:30:00Z"));
        assert_eq!(daily.next_after(first), Some(at("2026-10-26T01:30:00Z")));
        let often = berlin("*/30 * * * *");
        assert_eq!(often.next_after(at("2026-10-25T00:30:00Z")), Some(at("2026-10-25T01:00:00Z")));
    }

    #[test]
    fn only_the_last_missed_instant_counts() {
        let cases = [
            // Nothing was missed.
            ("0 3 * * *", "2026-11-25T02:00:00Z", "2026-11-25T12:00:00Z", None),
            ("0 3 * * *", "2026-11-20T02:00:00Z", "2026-11-25T12:00:00Z", Some("2026-11-25T02:00:00Z")),
            // The bound itself counts at its end and not at its beginning.
            ("0 3 * * *", "2026-11-24T02:00:00Z", "2026-11-25T02:00:00Z", Some("2026-11-25T02:00:00Z")),
            ("* * * * *", "2020-01-01T00:00:00Z", "2026-11-25T12:00:30Z", Some("2026-11-25T12:00:00Z")),
            ("0 0 1 1 *", "2020-01-01T00:00:00Z", "2026-11-25T12:00:00Z", Some("2025-12-31T23:00:00Z")),
            ("0 0 29 2 *", "2020-01-01T00:00:00Z", "2026-11-25T12:00:00Z", Some("2024-02-28T23:00:00Z")),
            ("0 3 * * *", "2026-11-26T00:00:00Z", "2026-11-25T12:00:00Z", None),
        ];
        for (expression, after, until, expected) in cases {
            let found = berlin(expression).last_between(at(after), at(until));
            assert_eq!(found, expected.map(at), "{expression} from {after} to {until}");
        }
    }

    #[test]
    fn what_cannot_be_a_schedule_is_refused_with_what_to_do() {
        let parse = |expression: &str, zone: &str| {
            Schedule::parse(expression, zone, at("2026-01-01T00:00:00Z")).map(drop).unwrap_err().to_string()
        };
        assert!(parse("0 3 * *", "UTC").contains("cron expression"));
        assert!(parse("61 3 * * *", "UTC").contains("cron expression"));
        assert!(parse("0 0 3 * * *", "UTC").contains("cron expression"), "no seconds");
        assert!(parse("0 0 30 2 *", "UTC").contains("never happens"));
        assert!(parse("0 3 * * *", "Europe/Nowhere").contains("Europe/Berlin"));
    }
}
