//! The index of the vectors tells of every file what it is and where it came from.

use std::{collections::BTreeSet, error::Error, fs, path::Path};

const FOLDERS: [&str; 4] = ["families", "hivemind", "petals", "sepal"];

/// Files and folders next to the index, named as in it; a folder (a model with its reference outputs) ends in a slash.
fn present(root: &Path) -> Result<BTreeSet<String>, Box<dyn Error>> {
    let mut names = BTreeSet::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(root.join(folder))? {
            let entry = entry?;
            let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
            names.insert(format!("{folder}/{}{slash}", entry.file_name().to_string_lossy()));
        }
    }
    Ok(names)
}

#[test]
fn every_vector_file_is_in_the_index() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
    let text = fs::read_to_string(root.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&text).unwrap();
    let index = index.as_object().unwrap();
    let listed: BTreeSet<String> = index.keys().cloned().collect();
    assert_eq!(
        listed,
        present(&root).unwrap(),
        "protocol/vectors/index.json is not up to date"
    );
    for (name, entry) in index {
        for field in ["source", "how", "meaning"] {
            assert!(
                entry[field].as_str().is_some_and(|text| !text.is_empty()),
                "{name} has no {field}"
            );
        }
    }
}
