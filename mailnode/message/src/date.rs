//! Dates as messages write them. RFC 5322 3.3.

/// The instant in UTC, for example `Thu, 01 Jan 1970 00:00:00 +0000`. What lies outside the years 1970 to 9999 is
/// moved to the first or the last instant in them.
pub fn rfc5322_date(milliseconds: i64) -> String {
    let seconds = milliseconds.div_euclid(1000).clamp(0, jiff::Timestamp::MAX.as_second());
    let instant = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    instant.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_in_utc() {
        assert_eq!(rfc5322_date(1_700_000_000_999), "Tue, 14 Nov 2023 22:13:20 +0000");
        assert_eq!(rfc5322_date(951_782_400_000), "Tue, 29 Feb 2000 00:00:00 +0000");
    }

    #[test]
    fn instants_that_no_message_can_name_are_moved_to_the_nearest_one() {
        assert_eq!(rfc5322_date(i64::MIN), "Thu, 01 Jan 1970 00:00:00 +0000");
        assert_eq!(rfc5322_date(i64::MAX), "Thu, 30 Dec 9999 22:00:00 +0000");
    }
}
