//! Reads the vectors that were recorded from Python nodes, for the tests of this crate.

use std::{fs, path::PathBuf};

use serde_json::Value as Json;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors"))
}

/// A vector file, such as `hivemind/msgpack.json`.
pub(crate) fn vectors(name: &str) -> Json {
    let text = fs::read_to_string(folder().join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The bytes of a hexadecimal string in a vector file.
pub(crate) fn bytes(json: &Json) -> Vec<u8> {
    hex::decode(json.as_str().unwrap()).unwrap()
}

/// Every event of every recorded Petals session, with the name of its file.
pub(crate) fn recorded_events() -> Vec<(String, Json)> {
    let mut names: Vec<String> = fs::read_dir(folder().join("petals"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect();
    names.sort();
    let mut events = Vec::new();
    for name in names {
        let file = vectors(&format!("petals/{name}"));
        for event in file["events"].as_array().into_iter().flatten() {
            events.push((name.clone(), event.clone()));
        }
    }
    events
}
