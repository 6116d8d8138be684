//! Whether a downloaded file is the one that the hub means, by the hash that its name is on the hub: SHA-256 for large
//! files (Git LFS), the hash of a Git blob for others.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::http::Fault;

/// Compares the content of the file at `path` with `etag`. Mirrors may give tags that are no hashes; then nothing is known.
///
/// # Errors
/// [`Fault::Changed`] if it is another content; [`Fault::Disk`].
pub(super) fn check(path: &Path, etag: &str) -> Result<(), Fault> {
    let is_hash = etag.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    let found = match etag.len() {
        64 if is_hash => digest(path, Sha256::new()),
        40 if is_hash => {
            let len = std::fs::metadata(path).map_err(Fault::Disk)?.len();
            digest(path, Sha1::new_with_prefix(format!("blob {len}\0")))
        }
        _ => return Ok(()),
    };
    let found = found.map_err(Fault::Disk)?;
    if found != etag {
        return Err(Fault::Changed {
            said: format!("said that the file has the hash {etag}"),
            sent: format!("sent one with {found}"),
        });
    }
    Ok(())
}

fn digest(path: &Path, mut hash: impl Digest) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
