//! YAML for kubectl. It reads YAML 1.1, where `on` is no text and `1_000` a number, so whatever could be taken for something
//! else is quoted.

use serde_json::Value;

/// Words that are no text for readers of YAML 1.1.
const RESERVED: [&str; 9] = ["y", "yes", "n", "no", "on", "off", "true", "false", "null"];

/// Objects as documents, one after the other.
pub(super) fn documents(objects: &[Value]) -> String {
    let document = |object| {
        let mut text = String::new();
        write(&mut text, object, 0);
        text
    };
    objects.iter().map(document).collect::<Vec<_>>().join("---\n")
}

/// Lines that end with a line break.
fn write(out: &mut String, value: &Value, indent: usize) {
    let margin = " ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                *out += &format!("{margin}{}:", scalar(key));
                if is_nested(value) {
                    out.push('\n');
                    write(out, value, indent + 2);
                } else {
                    out.push(' ');
                    write(out, value, 0);
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut text = String::new();
                write(&mut text, item, if is_nested(item) { indent + 2 } else { 0 });
                *out += &format!("{margin}- {}", text.trim_start_matches(' '));
            }
        }
        Value::String(text) => *out += &format!("{margin}{}\n", scalar(text)),
        other => *out += &format!("{margin}{other}\n"),
    }
}

/// Whether it takes lines of its own.
fn is_nested(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// A text: as it is where nobody can take it for something else, else as in JSON, which YAML contains.
fn scalar(text: &str) -> String {
    let is_plain = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/@-".contains(&byte))
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str());
    if is_plain {
        return text.to_owned();
    }
    // What JSON leaves as it is and YAML does not take, or takes for the end of a line.
    let escape = |c: char| c.is_control() || ['\u{2028}', '\u{2029}', '\u{feff}'].contains(&c);
    let escaped = |c: char| if escape(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    Value::from(text).to_string().chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_documents_for_people_and_kubectl() {
        let objects = [
            json!({"kind": "Mailbox", "metadata": {"name": "a", "labels": {}}, "spec": {"displayName": "on", "bytes": 7, "none": null,
                "aliases": ["b@example.org", "1_000"], "rules": [{"a": 1, "b": [2, {"c": true}]}, [], ["x"]]}}),
            json!({"kind": "Secret"}),
        ];
        let expected = r#"kind: Mailbox
metadata:
  labels: {}
  name: a
spec:
  aliases:
    - b@example.org
    - "1_000"
  bytes: 7
  displayName: "on"
  none: null
  rules:
    - a: 1
      b:
        - 2
        - c: true
    - []
    - - x
---
kind: Secret
"#;
        assert_eq!(documents(&objects), expected);
    }

    #[test]
    fn every_text_is_read_back_as_it_was() {
        let words = [
            "on",
            "Yes",
            "No",
            "y",
            "null",
            "~",
            "12:30:00",
            "1_000",
            "0o17",
            "017",
            "1e3",
            ".inf",
            "2026-11-25",
            "0x1f",
            "",
            " a",
            "a: b",
            "a #b",
            "- a",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a",
            "{a}",
            "[a]",
            "'a'",
            "\"a\"",
            "a\nb\tc\\d\r",
            "ä\u{7f}\u{85}\u{2028}\u{feff}",
            "\u{0}\u{1b}",
            "plain.text/with-all_of@it",
        ];
        for word in words {
            let object = json!({word: word, "list": [word]});
            let read: Value = serde_yaml::from_str(&documents(std::slice::from_ref(&object))).unwrap();
            assert_eq!(read, object);
            let is_plain = scalar(word) == word;
            assert_eq!(is_plain, word == "plain.text/with-all_of@it", "{word:?}");
        }
    }
}
