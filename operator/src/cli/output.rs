//! How commands print: a table for people, JSON or YAML for programs. All three are made from the same rows.

use std::io::{self, Write as _};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use super::Failure;

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
    Yaml,
}

/// Prints `facts`, or as a table what `table` makes of them.
pub(super) fn print<T: Serialize>(
    format: Format,
    facts: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let text = match format {
        Format::Table => table(facts),
        Format::Json => serde_json::to_string_pretty(facts).map_err(|e| Failure::Failed(e.to_string()))?,
        Format::Yaml => serde_yaml::to_string(facts).map_err(|e| Failure::Failed(e.to_string()))?,
    };
    line(text.trim_end())
}

/// Prints a line. A reader that went away, as `head` does, is no failure.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("failed to print: {error}")))
        }
        _ => Ok(()),
    }
}

/// A table with a header.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for row in rows {
        table.add_row(row);
    }
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// How long ago, or how long until, in the largest unit that fits.
pub(super) fn span(seconds: i64) -> String {
    let seconds = seconds.unsigned_abs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A point in time for programs; `None` for zero, which means never.
pub(super) fn instant(millis: i64) -> Option<Timestamp> {
    (millis != 0).then(|| Timestamp::from_millisecond(millis).ok()).flatten()
}

/// Bytes for people.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = "B";
    // Tenths, so that no floating point is needed.
    let mut tenths = u128::from(bytes) * 10;
    for next in UNITS {
        if tenths < 10_240 {
            break;
        }
        (unit, tenths) = (next, tenths / 1024);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{}.{} {unit}", tenths / 10, tenths % 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_for_people() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
        for (seconds, text) in [(5, "5s"), (-90, "90s"), (3_600, "60m"), (7_200, "2h"), (864_000, "10d")] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn tables_are_aligned_and_have_no_trailing_blanks() {
        let text = table(["ID", "STATE"], [["1".into(), "a long word".into()], ["22".into(), "b".into()]]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("ID"));
        assert_eq!(lines[0].find("STATE"), lines[1].find("a long"));
        assert!(lines.iter().all(|line| line.trim_end() == *line));
    }
}
