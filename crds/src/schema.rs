//! Schemas of Kubernetes' own types that appear inside ours.

use schemars::{Schema, SchemaGenerator, json_schema};

/// `status.conditions`: a map by type, so that server-side apply merges by type.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "What was observed, one entry per condition type.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {"type": "string", "description": "Which condition."},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
                "reason": {"type": "string", "description": "Why, in one word for programs."},
                "message": {"type": "string", "description": "Why, and what to do, for people."},
                "observedGeneration": {"type": "integer", "format": "int64",
                    "description": "The metadata.generation that this was observed for."},
                "lastTransitionTime": {"type": "string", "format": "date-time",
                    "description": "When the status last changed."},
            },
        },
    })
}

/// Objects by their labels.
pub(crate) fn label_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "type": "object",
                "description": "Labels that an object must have, with these values.",
                "additionalProperties": {"type": "string"},
            },
            "matchExpressions": {
                "type": "array",
                "maxItems": 32,
                "description": "Further requirements; an object must meet all.",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"type": "string", "description": "Name of the label."},
                        "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                            "description": "How its value is compared."},
                        "values": {"type": "array", "maxItems": 256, "items": {"type": "string"},
                            "description": "For In and NotIn."},
                    },
                },
            },
        },
    })
}

/// An instant.
pub(crate) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}

/// CPU and memory of a container.
pub(crate) fn resources(_: &mut SchemaGenerator) -> Schema {
    let quantities = |what: &str| {
        serde_json::json!({
            "type": "object",
            "description": what,
            "additionalProperties": {
                "x-kubernetes-int-or-string": true,
                "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            },
        })
    };
    json_schema!({
        "type": "object",
        "properties": {
            "requests": quantities("What a pod is promised, as `cpu: 500m`, `memory: 512Mi`."),
            "limits": quantities("What a pod may at most use."),
        },
    })
}

/// Tolerations of pods.
pub(crate) fn tolerations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "items": {
            "type": "object",
            "properties": {
                "key": {"type": "string", "description": "Taint key; empty with operator Exists means all."},
                "operator": {"type": "string", "enum": ["Exists", "Equal"], "description": "How value is compared."},
                "value": {"type": "string", "description": "Taint value."},
                "effect": {"type": "string", "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"],
                    "description": "Taint effect; empty means all."},
                "tolerationSeconds": {"type": "integer", "format": "int64",
                    "description": "How long NoExecute is tolerated."},
            },
        },
    })
}
