//! The three forms of dates that IMAP knows: INTERNALDATE (RFC 9051 9, date-time), the days of SEARCH (date) and
//! the `Date` field of messages (RFC 5322 3.3), of which SEARCH only takes the day.

use jiff::{Timestamp, civil, tz::TimeZone};

use crate::{Millis, command::Day};

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const MILLIS_PER_DAY: i64 = 86_400_000;

/// `" 7-Feb-1994 21:52:25 +0000"` without the quotes; always UTC.
pub(crate) fn internal_date(at: Millis) -> String {
    let at = Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
    at.to_zoned(TimeZone::UTC).strftime("%e-%b-%Y %H:%M:%S +0000").to_string()
}

/// Reads `dd-Mon-yyyy hh:mm:ss +zzzz`, the day with a space or a zero or nothing before a single digit.
pub(crate) fn parse_internal_date(text: &str) -> Option<Millis> {
    let mut words = text.trim_start_matches(' ').split(' ');
    let (day, time, zone) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let date = civil_date(day)?;
    let mut clock = time.split(':').map(two_digits);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if clock.next().is_some() {
        return None;
    }
    // RFC 5322 3.3 knows the leap second 60, jiff does not.
    let time = civil::Time::new(hour, minute, second.min(59), 0).ok()?;
    let (sign, digits) = zone.split_at_checked(1)?;
    if digits.len() != 4 {
        return None;
    }
    let offset = i64::from(two_digits(digits.get(..2)?)?) * 60 + i64::from(two_digits(digits.get(2..)?)?);
    let offset = match sign {
        "+" => offset,
        "-" => -offset,
        _ => return None,
    };
    let utc = date.to_datetime(time).to_zoned(TimeZone::UTC).ok()?;
    utc.timestamp().as_millisecond().checked_sub(offset * 60_000)
}

/// Reads `d-Mon-yyyy`.
pub(crate) fn parse_day(text: &str) -> Option<Day> {
    Some(day_number(civil_date(text)?))
}

/// The day of an INTERNALDATE, disregarding the time zone as RFC 9051 6.4.4 says.
pub(crate) fn day_of(at: Millis) -> Day {
    at.div_euclid(MILLIS_PER_DAY)
}

/// The day in a `Date` field, disregarding time and zone (RFC 9051 6.4.4, SENTON).
pub(crate) fn day_of_field(value: &str) -> Option<Day> {
    let value = match value.split_once(',') {
        Some((_, rest)) => rest,
        None => value,
    };
    let mut words = value.split_ascii_whitespace();
    let (day, month, year) = (words.next()?, words.next()?, words.next()?);
    let mut year: i16 = year.parse().ok()?;
    // RFC 5322 4.3: years of two and three digits.
    if (0..50).contains(&year) {
        year += 2000;
    } else if (50..1000).contains(&year) {
        year += 1900;
    }
    Some(day_number(civil::Date::new(year, month_number(month)?, two_digits(day)?).ok()?))
}

fn civil_date(text: &str) -> Option<civil::Date> {
    let mut parts = text.split('-');
    let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || year.len() != 4 || !year.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    civil::Date::new(year.parse().ok()?, month_number(month)?, two_digits(day)?).ok()
}

fn month_number(name: &str) -> Option<i8> {
    let at = MONTHS.iter().position(|month| name.eq_ignore_ascii_case(month))?;
    i8::try_from(at + 1).ok()
}

fn two_digits(text: &str) -> Option<i8> {
    let ok = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if ok { text.parse().ok() } else { None }
}

fn day_number(date: civil::Date) -> Day {
    let epoch = civil::date(1970, 1, 1);
    i64::from((date - epoch).get_days())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_dates_survive_the_round_trip() {
        let at = parse_internal_date("17-Jul-1996 02:44:25 -0700").unwrap();
        assert_eq!(internal_date(at), "17-Jul-1996 09:44:25 +0000");
        assert_eq!(
            internal_date(parse_internal_date(" 7-Feb-1994 21:52:25 +0000").unwrap()),
            " 7-Feb-1994 21:52:25 +0000"
        );
        assert_eq!(parse_internal_date(&internal_date(0)), Some(0));
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "1-Jan-2020",
            "32-Jan-2020 00:00:00 +0000",
            "1-Jan-2020 25:00:00 +0000",
            "1-Foo-2020 00:00:00 +0000",
            "1-Jan-2020 00:00:00 0000",
            "1-Jan-2020 00:00:00 +000",
            "1-Jan-2020 00:00 +0000",
            "1-Jan-99999 00:00:00 +0000",
            "é",
        ] {
            assert_eq!(parse_internal_date(text), None, "{text:?}");
        }
    }

    #[test]
    fn days_compare_as_days() {
        assert_eq!(parse_day("1-Jan-1970"), Some(0));
        assert_eq!(parse_day("2-Feb-1970"), Some(32));
        assert_eq!(day_of(-1), -1);
        assert_eq!(day_of_field("Mon, 2 Feb 1970 23:59:59 -1100 (x)"), Some(32));
        assert_eq!(day_of_field("2 Feb 70 23:59"), Some(32));
        assert_eq!(day_of_field("yesterday"), None);
    }
}
