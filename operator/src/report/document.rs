//! A report as text: from sections of sentences, tables, charts and ticks to Markdown, and to HTML that needs nothing but itself.
//! Pure.

use std::fmt::Write as _;

/// Points of a chart in Markdown.
const SPARKS: usize = 42;
/// Size of a chart in HTML.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 120.0;

/// Whether something is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Tick {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// Nobody can tell: never shown as well.
    Unknown,
}

/// A chart of values from oldest to newest; a gap where nothing is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// What is shown, with its unit.
    pub title: String,
    /// So many in equal distance.
    pub values: Vec<Option<f64>>,
    /// The lowest and the highest value in words.
    pub range: (String, String),
}

/// A part of a section.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// A sentence.
    Text(String),
    /// A header and rows.
    Table(Vec<String>, Vec<Vec<String>>),
    /// A chart.
    Chart(Chart),
    /// What is checked, whether it is well, and what was found.
    Ticks(Vec<(Tick, String, String)>),
}

/// A heading and what stands under it.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// Heading.
    pub title: String,
    /// In this order.
    pub blocks: Vec<Block>,
}

/// A report.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Heading.
    pub title: String,
    /// Of which time, and of what.
    pub subtitle: String,
    /// In this order.
    pub sections: Vec<Section>,
}

/// As Markdown.
pub fn markdown(document: &Document) -> String {
    let plain = |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ").replace('<', "&lt;");
    let mut out = format!("# {}\n\n{}\n", plain(&document.title), plain(&document.subtitle));
    for section in &document.sections {
        let _ = write!(out, "\n## {}\n", plain(&section.title));
        for block in &section.blocks {
            out.push('\n');
            match block {
                Block::Text(text) => out += &format!("{}\n", plain(text)),
                Block::Table(header, rows) => {
                    let line = |cells: &[String]| {
                        let cells: Vec<_> = cells.iter().map(|cell| plain(cell)).collect();
                        format!("| {} |\n", cells.join(" | "))
                    };
                    out += &line(header);
                    out += &format!("|{}\n", "---|".repeat(header.len()));
                    rows.iter().for_each(|row| out += &line(row));
                }
                Block::Chart(chart) => {
                    let (low, high) = &chart.range;
                    let sparks = sparks(&chart.values);
                    out +=
                        &format!("{}: `{sparks}` {} to {}\n", plain(&chart.title), plain(low), plain(high));
                }
                Block::Ticks(ticks) => {
                    for (tick, what, found) in ticks {
                        let mark = match tick {
                            Tick::Yes => "[x]",
                            Tick::No => "[ ] **not well:**",
                            Tick::Unknown => "[ ] **not known:**",
                        };
                        out += &format!("- {mark} {}: {}\n", plain(what), plain(found));
                    }
                }
            }
        }
    }
    out
}

/// The lowest and the highest of the values that are known.
fn bounds(values: &[Option<f64>]) -> Option<(f64, f64)> {
    let known = || values.iter().flatten().copied();
    let (low, high) = (known().fold(f64::INFINITY, f64::min), known().fold(f64::NEG_INFINITY, f64::max));
    (low <= high).then_some((low, high))
}

fn sparks(values: &[Option<f64>]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let Some((low, high)) = bounds(values) else { return "not known".to_owned() };
    let wide = values.len().div_ceil(SPARKS).max(1);
    let one = |part: &[Option<f64>]| match bounds(part) {
        None => ' ',
        // The lowest of a part is what one wants to see of an uptime, the highest of a queue; both ends are in words beside it.
        Some((a, b)) => {
            let middle = (a + b) / 2.0;
            let share = if high > low { (middle - low) / (high - low) } else { 0.0 };
            BARS[((share * 7.0).round() as usize).min(7)]
        }
    };
    values.chunks(wide).map(one).collect()
}

/// As one HTML page: no script, nothing from elsewhere.
pub fn html(document: &Document) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<p>{}</p>\n",
        escaped(&document.subtitle),
        title = escaped(&document.title)
    );
    for section in &document.sections {
        let _ = writeln!(out, "<h2>{}</h2>", escaped(&section.title));
        for block in &section.blocks {
            match block {
                Block::Text(text) => out += &format!("<p>{}</p>\n", escaped(text)),
                Block::Table(header, rows) => {
                    let line = |tag: &str, cells: &[String]| {
                        let cells: String =
                            cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
                        format!("<tr>{cells}</tr>\n")
                    };
                    let body: String = rows.iter().map(|row| line("td", row)).collect();
                    out += &format!("<table>\n{}{body}</table>\n", line("th", header));
                }
                Block::Chart(chart) => out += &svg(chart),
                Block::Ticks(ticks) => {
                    out += "<ul class=\"ticks\">\n";
                    for (tick, what, found) in ticks {
                        let (class, mark) = match tick {
                            Tick::Yes => ("yes", "✓"),
                            Tick::No => ("no", "✗ not well:"),
                            Tick::Unknown => ("unknown", "? not known:"),
                        };
                        let (what, found) = (escaped(what), escaped(found));
                        out += &format!("<li class=\"{class}\">{mark} {what}: {found}</li>\n");
                    }
                    out += "</ul>\n";
                }
            }
        }
    }
    out + "</body></html>\n"
}

const STYLE: &str = "body{font:16px/1.5 sans-serif;max-width:760px;margin:2em auto;padding:0 1em}table{border-collapse:collapse}\
th,td{border:1px solid #ccc;padding:.2em .6em;text-align:left}figure{margin:1em 0}figcaption{font-size:.9em}\
.ticks{list-style:none;padding:0}.yes{color:#060}.no{color:#b00}.unknown{color:#850}";

/// For text and attributes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A line from left to right; it breaks where nothing is known.
fn svg(chart: &Chart) -> String {
    let (title, low, high) = (escaped(&chart.title), escaped(&chart.range.0), escaped(&chart.range.1));
    let Some((bottom, top)) = bounds(&chart.values) else {
        return format!("<p>{title}: not known</p>\n");
    };
    let across = WIDTH / (chart.values.len().saturating_sub(1).max(1)) as f64;
    let span = if top > bottom { top - bottom } else { 1.0 };
    let mut path = String::new();
    let mut pen_is_down = false;
    for (index, value) in chart.values.iter().enumerate() {
        let Some(value) = value else {
            pen_is_down = false;
            continue;
        };
        let (x, y) = (index as f64 * across, HEIGHT - (value - bottom) / span * HEIGHT);
        // A dot of no length, with round ends, for a value between two gaps.
        let _ = match pen_is_down {
            true => write!(path, "L{x:.1} {y:.1}"),
            false => write!(path, "M{x:.1} {y:.1}h0"),
        };
        pen_is_down = true;
    }
    format!(
        "<figure><svg viewBox=\"-4 -4 {} {}\" width=\"100%\" role=\"img\" aria-label=\"{title}\"><path d=\"{path}\" fill=\"none\" stroke=\"#06c\" \
         stroke-width=\"2\" stroke-linecap=\"round\"/></svg><figcaption>{title}: {low} to {high}</figcaption></figure>\n",
        WIDTH + 8.0,
        HEIGHT + 8.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Document {
        let chart = Chart {
            title: "Uptime".to_owned(),
            values: vec![Some(1.0), None, Some(0.5), Some(1.0)],
            range: ("50 %".to_owned(), "100 %".to_owned()),
        };
        let blocks = vec![
            Block::Text("All is <b>well</b> & good".to_owned()),
            Block::Table(vec!["A".to_owned(), "B|C".to_owned()], vec![vec!["1".to_owned(), "2".to_owned()]]),
            Block::Chart(chart),
            Block::Ticks(vec![
                (Tick::Yes, "local queue".to_owned(), "empty".to_owned()),
                (Tick::No, "bad queue".to_owned(), "3 wait".to_owned()),
                (Tick::Unknown, "log".to_owned(), "not read".to_owned()),
            ]),
        ];
        Document {
            title: "Mail \"service\"".to_owned(),
            subtitle: "one week".to_owned(),
            sections: vec![Section { title: "Uptime".to_owned(), blocks }],
        }
    }

    #[test]
    fn markdown_is_as_it_should_be() {
        let expected = "# Mail \"service\"\n\none week\n\n## Uptime\n\nAll is &lt;b>well&lt;/b> & good\n\n| A | B\\|C |\n|---|---|\n| 1 | 2 |\n\n\
            Uptime: `█ ▁█` 50 % to 100 %\n\n- [x] local queue: empty\n- [ ] **not well:** bad queue: 3 wait\n- [ ] **not known:** log: not read\n";
        assert_eq!(markdown(&document()), expected);
    }

    #[test]
    fn html_is_escaped_and_needs_nothing_else() {
        let page = html(&document());
        for expected in [
            "<title>Mail &quot;service&quot;</title>",
            "<p>All is &lt;b&gt;well&lt;/b&gt; &amp; good</p>",
            "<tr><th>A</th><th>B|C</th></tr>\n<tr><td>1</td><td>2</td></tr>",
            "<path d=\"M0.0 0.0h0M480.0 120.0h0L720.0 0.0\"",
            "<li class=\"yes\">✓ local queue: empty</li>",
            "<li class=\"no\">✗ not well: bad queue: 3 wait</li>",
            "<li class=\"unknown\">? not known: log: not read</li>",
        ] {
            assert!(page.contains(expected), "{expected} is not in\n{page}");
        }
        assert!(!page.contains("<script") && !page.contains("http:"), "{page}");
        assert_eq!(escaped("a'b\u{7}<>"), "a&#39;b &lt;&gt;");
    }

    #[test]
    fn what_is_not_known_is_never_shown_as_a_value() {
        let chart =
            Chart { title: "Uptime".to_owned(), values: vec![None, None], range: ("-".into(), "-".into()) };
        assert_eq!(svg(&chart), "<p>Uptime: not known</p>\n");
        assert_eq!(sparks(&chart.values), "not known");
        assert_eq!(sparks(&[Some(1.0), Some(1.0)]), "▁▁");
    }
}
