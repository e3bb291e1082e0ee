//! Reference pages made from a CustomResourceDefinition: what `kubectl explain` tells, as Markdown.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};

/// The page of one kind.
pub fn page(crd: &CustomResourceDefinition) -> String {
    let names = &crd.spec.names;
    let mut out = String::new();
    let version = crd.spec.versions.first();
    let schema = version.and_then(|v| v.schema.as_ref()).and_then(|s| s.open_api_v3_schema.as_ref());
    let _ = writeln!(out, "<!-- Made by crdgen from crds/src. Do not edit. -->\n# {}\n", names.kind);
    if let Some(text) = schema.and_then(|s| s.description.as_deref()) {
        let _ = writeln!(out, "{text}\n");
    }
    let _ = writeln!(
        out,
        "`apiVersion: {}/{}`, `kind: {}`, namespaced. Short name: `{}`.\n",
        crd.spec.group,
        version.map_or("", |v| v.name.as_str()),
        names.kind,
        names.short_names.as_deref().unwrap_or_default().join("`, `"),
    );
    for part in ["spec", "status"] {
        let Some(section) = schema.and_then(|s| s.properties.as_ref()).and_then(|p| p.get(part)) else {
            continue;
        };
        let _ = writeln!(out, "## {part}\n\n| Field | Type | Default | Meaning |\n|---|---|---|---|");
        fields(&mut out, "", section);
        out.push('\n');
        let mut all = Vec::new();
        rules(&mut all, part, section);
        if !all.is_empty() {
            let _ = writeln!(out, "Rules:\n");
            for (path, message) in all {
                let _ = writeln!(out, "- `{path}`: {message}");
            }
            out.push('\n');
        }
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// Rows for the properties of `schema`, deepest last; `prefix` ends with a dot unless it is empty.
fn fields(out: &mut String, prefix: &str, schema: &JSONSchemaProps) {
    let required = schema.required.as_deref().unwrap_or_default();
    for (name, field) in schema.properties.iter().flatten() {
        let default = match &field.default {
            Some(value) => format!("`{}`", value.0),
            None if required.contains(name) => "required".to_owned(),
            None => String::new(),
        };
        let text = field.description.as_deref().unwrap_or_default().replace('\n', " ").replace('|', "\\|");
        let _ = writeln!(out, "| `{prefix}{name}` | {} | {default} | {text} |", type_name(field));
        let (inner, mark) = match items(field) {
            Some(item) => (item, "[]"),
            None => (field, ""),
        };
        fields(out, &format!("{prefix}{name}{mark}."), inner);
    }
}

fn items(field: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match field.items.as_ref()? {
        JSONSchemaPropsOrArray::Schema(item) => Some(item),
        JSONSchemaPropsOrArray::Schemas(list) => list.first(),
    }
}

fn type_name(field: &JSONSchemaProps) -> String {
    if let Some(values) = &field.enum_ {
        let names: Vec<_> = values.iter().filter_map(|v| v.0.as_str()).collect();
        return names.join(" \\| ");
    }
    match (field.type_.as_deref(), items(field)) {
        (Some("array"), Some(item)) => format!("list of {}", type_name(item)),
        (Some("object"), _) if field.additional_properties.is_some() => "map".to_owned(),
        (Some(name), _) => name.to_owned(),
        (None, _) => "integer or string".to_owned(),
    }
}

fn rules(out: &mut Vec<(String, String)>, path: &str, schema: &JSONSchemaProps) {
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        out.push((path.to_owned(), rule.message.clone().unwrap_or_else(|| rule.rule.clone())));
    }
    for (name, field) in schema.properties.iter().flatten() {
        rules(out, &format!("{path}.{name}"), field);
    }
}
