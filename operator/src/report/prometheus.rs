//! As much of the HTTP API of Prometheus as a report needs: queries at an instant and over a time.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

/// For one query.
const WITHIN: Duration = Duration::from_secs(60);
/// Bytes of an answer that are taken.
const MAX_ANSWER: usize = 32 << 20;
/// Characters of a server's words that are told.
const MAX_WORDS: usize = 300;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PrometheusError {
    /// It was not reached, or broke off.
    #[error("Prometheus cannot be asked: {0}")]
    Http(#[from] reqwest::Error),
    /// It refused.
    #[error("Prometheus refused a query: {0}")]
    Refused(String),
    /// It is not what Prometheus says.
    #[error("the answer is not one of Prometheus: {0}")]
    Malformed(String),
}

/// A series: its labels, and its values with their time in Unix seconds. At an instant it has one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// By name.
    pub labels: BTreeMap<String, String>,
    /// In the order of time; none that is no number.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// A label; empty when there is none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// A client.
pub struct Prometheus {
    http: reqwest::Client,
    /// Without a slash at its end.
    base: String,
}

impl Prometheus {
    /// For a server at this URL; nothing is asked yet.
    pub fn new(url: &str) -> Result<Self, PrometheusError> {
        let http = reqwest::Client::builder().timeout(WITHIN).build()?;
        Ok(Self { http, base: url.trim_end_matches('/').to_owned() })
    }

    /// At an instant, in Unix seconds.
    pub async fn at(&self, query: &str, time: i64) -> Result<Vec<Series>, PrometheusError> {
        self.ask(&format!("query?time={time}&query={}", encoded(query))).await
    }

    /// From one instant to another, every `step` seconds.
    pub async fn over(
        &self,
        query: &str,
        from: i64,
        to: i64,
        step: i64,
    ) -> Result<Vec<Series>, PrometheusError> {
        let query = encoded(query);
        self.ask(&format!("query_range?start={from}&end={to}&step={step}&query={query}")).await
    }

    /// Whether it has a rule for an alert of this name. One that does not tell its rules has none that is known.
    pub async fn has_alert(&self, name: &str) -> Result<bool, PrometheusError> {
        let bytes = self.fetch("rules?type=alert").await?;
        let rules: Rules = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok(rules.data.groups.iter().flat_map(|group| &group.rules).any(|rule| rule.name == name))
    }

    async fn ask(&self, path: &str) -> Result<Vec<Series>, PrometheusError> {
        parse(&self.fetch(path).await?)
    }

    async fn fetch(&self, path: &str) -> Result<Vec<u8>, PrometheusError> {
        let mut answer = self.http.get(format!("{}/api/v1/{path}", self.base)).send().await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER {
                return Err(PrometheusError::Malformed("it is too long".to_owned()));
            }
        }
        Ok(bytes)
    }
}

/// RFC 3986 2.1: everything but what is unreserved.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    data: Data,
}

#[derive(Default, Deserialize)]
struct Data {
    #[serde(default)]
    result: Vec<One>,
}

#[derive(Deserialize)]
struct One {
    #[serde(default)]
    metric: BTreeMap<String, String>,
    value: Option<(f64, String)>,
    #[serde(default)]
    values: Vec<(f64, String)>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Rules {
    data: Groups,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Rule {
    name: String,
}

fn parse(bytes: &[u8]) -> Result<Vec<Series>, PrometheusError> {
    let shown = |text: &str| {
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WORDS).collect::<String>()
    };
    let answer: Answer = serde_json::from_slice(bytes)
        .map_err(|error| PrometheusError::Malformed(shown(&error.to_string())))?;
    if answer.status != "success" {
        return Err(PrometheusError::Refused(shown(&answer.error)));
    }
    let series = |one: One| {
        let points = one.value.into_iter().chain(one.values);
        let numbers = points.filter_map(|(at, value)| Some((at, value.parse::<f64>().ok()?)));
        Series { labels: one.metric, points: numbers.filter(|(_, value)| value.is_finite()).collect() }
    };
    Ok(answer.data.result.into_iter().map(series).filter(|series| !series.points.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_what_is_no_number_is_left_out() {
        let text = br#"{"status":"success","data":{"resultType":"matrix","result":[
            {"metric":{"class":"local"},"values":[[10,"1.5"],[20,"NaN"],[30,"2"]]},{"metric":{},"values":[[10,"+Inf"]]}]}}"#;
        let found = parse(text).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].label("class"), found[0].label("x")), ("local", ""));
        assert_eq!(found[0].points, [(10.0, 1.5), (30.0, 2.0)]);
        let instant = br#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1.5,"7"]}]}}"#;
        assert_eq!(parse(instant).unwrap()[0].points, [(1.5, 7.0)]);
    }

    #[test]
    fn refusals_and_nonsense_are_told() {
        let refused = parse(br#"{"status":"error","errorType":"bad_data","error":"parse\u0007 error"}"#);
        assert_eq!(refused.unwrap_err().to_string(), "Prometheus refused a query: parse  error");
        assert!(matches!(parse(b"<html>"), Err(PrometheusError::Malformed(_))));
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encoded("sum(a{b=\"c d\"})"), "sum%28a%7Bb%3D%22c%20d%22%7D%29");
    }
}
