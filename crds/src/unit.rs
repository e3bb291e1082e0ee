//! Sizes and durations as people write them in resources: `10Gi`, `25Mi`, `1h30m`, `5d`.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Sizes: a whole number of bytes with an optional binary or decimal suffix, a subset of the Kubernetes quantity.
pub const SIZE_PATTERN: &str = "^([0-9]{1,18}|[0-9]{1,9}(Ki|Mi|Gi|k|M|G)|[0-9]{1,6}(Ti|T)|[0-9]{1,3}(Pi|P))$";
/// Durations: days, hours, minutes, seconds, each at most once and in this order.
pub const SPAN_PATTERN: &str = "^([0-9]{1,5}d)?([0-9]{1,7}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?$";
/// Longest text of either.
const MAX_TEXT: usize = 32;

macro_rules! size_form {
    () => {
        "a size such as 500M or 10Gi"
    };
}

macro_rules! span_form {
    () => {
        "a duration such as 90s, 1h30m or 5d"
    };
}

/// A text that is no size or duration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitError {
    text: String,
    form: &'static str,
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not {}", self.text, self.form)
    }
}

impl std::error::Error for UnitError {}

/// A number of bytes, written as `10Gi`. Keeps the text it was written as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    text: String,
    bytes: u64,
}

impl Size {
    /// The number of bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { text: text.to_owned(), form: size_form!() };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| error())?;
        let factor: u64 = match &text[digits..] {
            "" => 1,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            "Pi" => 1 << 50,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "P" => 1_000_000_000_000_000,
            _ => return Err(error()),
        };
        let bytes = number.checked_mul(factor).ok_or_else(error)?;
        Ok(Self { text: text.to_owned(), bytes })
    }
}

/// A length of time, written as `1h30m`. Keeps the text it was written as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    text: String,
    duration: Duration,
}

impl Span {
    /// The length of time.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { text: text.to_owned(), form: span_form!() };
        let units = [('d', 86_400u64), ('h', 3_600), ('m', 60), ('s', 1)];
        let (mut rest, mut next_unit, mut seconds) = (text, 0, 0u64);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
            let number: u64 = rest[..digits].parse().map_err(|_| error())?;
            let letter = rest[digits..].chars().next().ok_or_else(error)?;
            let found = units[next_unit..].iter().position(|(unit, _)| *unit == letter).ok_or_else(error)?;
            let part = number.checked_mul(units[next_unit + found].1).ok_or_else(error)?;
            seconds = seconds.checked_add(part).ok_or_else(error)?;
            next_unit += found + 1;
            rest = &rest[digits + letter.len_utf8()..];
        }
        if text.is_empty() {
            return Err(error());
        }
        Ok(Self { text: text.to_owned(), duration: Duration::from_secs(seconds) })
    }
}

macro_rules! text_unit {
    ($unit:ident, $pattern:expr, $form:expr) => {
        impl TryFrom<String> for $unit {
            type Error = UnitError;
            fn try_from(text: String) -> Result<Self, UnitError> {
                text.parse()
            }
        }

        impl From<$unit> for String {
            fn from(unit: $unit) -> Self {
                unit.text
            }
        }

        impl fmt::Display for $unit {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }

        impl JsonSchema for $unit {
            fn schema_name() -> Cow<'static, str> {
                stringify!($unit).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let rule = format!("self.matches('{}')", $pattern);
                let rules = serde_json::json!([{"rule": rule, "message": concat!("must be ", $form)}]);
                json_schema!({
                    "type": "string", "minLength": 1, "maxLength": MAX_TEXT, "x-kubernetes-validations": rules
                })
            }
        }
    };
}

text_unit!(Size, SIZE_PATTERN, size_form!());
text_unit!(Span, SPAN_PATTERN, span_form!());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in
            [("0", 0), ("25Mi", 25 << 20), ("10Gi", 10 << 30), ("500M", 500_000_000), ("1Ki", 1024)]
        {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
        for text in ["", "Gi", "1.5Gi", "-1", "10 Gi", "10GiB", "99999999999Pi"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in
            [("90s", 90), ("1h30m", 5_400), ("5d", 432_000), ("720h", 2_592_000), ("0s", 0)]
        {
            assert_eq!(text.parse::<Span>().unwrap().duration().as_secs(), seconds, "{text}");
        }
        for text in ["", "5", "1m1h", "1h1h", "1w", "h", "-1s", "99999999999999999999d", "1é"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn whatever_the_patterns_let_through_is_a_value() {
        let nines = |count: usize| "9".repeat(count);
        for (digits, units) in
            [(18, &[""][..]), (9, &["Ki", "Mi", "Gi", "k", "M", "G"]), (6, &["Ti", "T"]), (3, &["Pi", "P"])]
        {
            for unit in units {
                assert!(format!("{}{unit}", nines(digits)).parse::<Size>().is_ok(), "{digits} {unit}");
            }
        }
        let longest = format!("{}d{}h{}m{}s", nines(5), nines(7), nines(9), nines(9));
        assert!(longest.parse::<Span>().is_ok());
    }
}
