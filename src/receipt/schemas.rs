//! Messages against the published JSON Schemas: as much of the language as those use, and a failure for anything else, so
//! that no schema can say what is not checked. For tests.

use serde_json::Value;

/// A schema of `protocol/schemas`.
pub(crate) fn schema(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/schemas");
    serde_json::from_str(&std::fs::read_to_string(format!("{folder}/{name}.json")).unwrap()).unwrap()
}

/// Whether `value` is what the schema `name` describes.
pub(crate) fn is_valid(name: &str, value: &Value) -> bool {
    let root = schema(name);
    fits(&root, &root, value)
}

fn fits(root: &Value, schema: &Value, value: &Value) -> bool {
    schema
        .as_object()
        .unwrap()
        .iter()
        .all(|(keyword, rule)| match keyword.as_str() {
            "$schema" | "title" | "description" | "$defs" => true,
            "$ref" => fits(
                root,
                root.pointer(rule.as_str().unwrap().strip_prefix('#').unwrap()).unwrap(),
                value,
            ),
            "type" => match rule {
                Value::Array(types) => types.iter().any(|one| is_of_type(one, value)),
                one => is_of_type(one, value),
            },
            "const" => rule == value,
            "oneOf" => {
                rule.as_array()
                    .unwrap()
                    .iter()
                    .filter(|one| fits(root, one, value))
                    .count()
                    == 1
            }
            "properties" => entries(value).all(|(key, value)| rule.get(key).is_none_or(|one| fits(root, one, value))),
            "required" => rule
                .as_array()
                .unwrap()
                .iter()
                .all(|key| value.get(key.as_str().unwrap()).is_some()),
            "additionalProperties" => {
                assert_eq!(rule, false);
                entries(value).all(|(key, _)| schema["properties"].get(key).is_some())
            }
            "items" => value
                .as_array()
                .is_none_or(|all| all.iter().all(|value| fits(root, rule, value))),
            "minItems" => value
                .as_array()
                .is_none_or(|all| all.len() as u64 >= rule.as_u64().unwrap()),
            "maxItems" => value
                .as_array()
                .is_none_or(|all| all.len() as u64 <= rule.as_u64().unwrap()),
            "minLength" => value
                .as_str()
                .is_none_or(|text| text.chars().count() as u64 >= rule.as_u64().unwrap()),
            "maxLength" => value
                .as_str()
                .is_none_or(|text| text.chars().count() as u64 <= rule.as_u64().unwrap()),
            "minimum" => !value.is_number() || whole(value) >= whole(rule),
            "maximum" => !value.is_number() || whole(value) <= whole(rule),
            other => panic!("{other} is not checked"),
        })
}

fn whole(value: &Value) -> Option<i128> {
    value
        .as_i64()
        .map(i128::from)
        .or_else(|| value.as_u64().map(i128::from))
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn is_of_type(name: &Value, value: &Value) -> bool {
    match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "null" => value.is_null(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("type {other} is not checked"),
    }
}
