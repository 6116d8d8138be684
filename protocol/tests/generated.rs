//! The committed Rust code of the messages is what the `.proto` files say. Set `SEPAL_REGENERATE=1` to rewrite it.

use std::{error::Error, fs, path::Path};

use sha2::{Digest, Sha256};

/// Fields whose bytes may be large and are handed on without a copy.
const SHARED_BYTES: &[&str] = &[
    ".Tensor.buffer",
    ".CallUnaryRequest.data",
    ".CallUnaryResponse.response",
];

const FILES: &[&str] = &[
    "auth.proto",
    "dht.proto",
    "runtime.proto",
    "averaging.proto",
    "p2pd.proto",
    "crypto.proto",
    "kad.proto",
];

fn generate() -> Result<String, Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let descriptors = protox::compile(FILES, [&folder])?;
    let out = tempfile::tempdir()?;
    prost_build::Config::new()
        .out_dir(out.path())
        .bytes(SHARED_BYTES)
        .default_package_filename("wire")
        .compile_fds(descriptors)?;
    Ok(fs::read_to_string(out.path().join("wire.rs"))?)
}

#[test]
fn generated_code_matches_the_proto_files() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated/wire.rs");
    let fresh = generate().unwrap();
    if std::env::var_os("SEPAL_REGENERATE").is_some() {
        fs::write(&committed, &fresh).unwrap();
    }
    assert!(
        fs::read_to_string(&committed).unwrap() == fresh,
        "{} is stale: run scripts/gen-proto.sh",
        committed.display()
    );
}

#[test]
fn every_proto_file_is_compiled() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut found: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let mut listed: Vec<String> = FILES.iter().map(ToString::to_string).collect();
    listed.sort();
    assert_eq!(found, listed);
}

#[test]
fn the_readme_is_about_these_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = FILES.to_vec();
    names.sort_unstable();
    let mut hash = Sha256::new();
    for name in names {
        hash.update(fs::read(root.join("proto").join(name)).unwrap());
    }
    let hash = hex::encode(hash.finalize());
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    assert!(
        readme.contains(&hash),
        "the messages changed: bring protocol/README.md up to date, then its hash to {hash}"
    );
}
