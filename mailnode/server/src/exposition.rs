//! Writes numbers in the Prometheus text format, for what is sampled when it is asked for.

use std::fmt::{Display, Write as _};

/// Prefix of all names.
const PREFIX: &str = "quorumail_";

/// Text being written.
#[derive(Default)]
pub struct Exposition(String);

/// One metric with its samples.
pub struct Family<'a> {
    text: &'a mut String,
    name: String,
}

impl Exposition {
    /// Begins a counter; its name ends in `_total`.
    pub fn counter(&mut self, name: &str, help: &str) -> Family<'_> {
        assert!(name.ends_with("_total"), "the name of a counter ends in _total: {name}");
        self.family(name, help, "counter")
    }

    /// Begins a gauge.
    pub fn gauge(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, "gauge")
    }

    /// Writes a histogram from counts per bucket (not cumulative; the last one has no upper bound).
    pub fn histogram(&mut self, name: &str, help: &str, bounds: &[f64], counts: &[u64], sum: f64) {
        assert_eq!(counts.len(), bounds.len() + 1, "one bucket more than bounds");
        let family = self.family(name, help, "histogram");
        let mut total = 0;
        let bounds = bounds.iter().map(f64::to_string).chain(std::iter::once("+Inf".to_owned()));
        for (bound, count) in bounds.zip(counts) {
            total += count;
            let _ = writeln!(family.text, "{}_bucket{{le=\"{bound}\"}} {total}", family.name);
        }
        let _ = writeln!(family.text, "{0}_sum {sum}\n{0}_count {total}", family.name);
    }

    /// All that was written.
    pub fn into_text(self) -> String {
        self.0
    }

    fn family(&mut self, name: &str, help: &str, kind: &str) -> Family<'_> {
        let name = format!("{PREFIX}{name}");
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.0, name }
    }
}

impl Family<'_> {
    /// A sample without labels.
    pub fn value(self, value: impl Display) {
        let _ = writeln!(self.text, "{} {value}", self.name);
    }

    /// A sample with one label; its value is a word or a number.
    pub fn labelled(&mut self, label: &str, of: impl Display, value: impl Display) -> &mut Self {
        let _ = writeln!(self.text, "{}{{{label}=\"{of}\"}} {value}", self.name);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulative() {
        let mut text = Exposition::default();
        text.histogram("wait_seconds", "Waiting.", &[0.1, 1.0], &[3, 2, 1], 4.5);
        let text = text.into_text();
        for line in [
            "# TYPE quorumail_wait_seconds histogram",
            "quorumail_wait_seconds_bucket{le=\"0.1\"} 3",
            "quorumail_wait_seconds_bucket{le=\"1\"} 5",
            "quorumail_wait_seconds_bucket{le=\"+Inf\"} 6",
            "quorumail_wait_seconds_sum 4.5",
            "quorumail_wait_seconds_count 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
