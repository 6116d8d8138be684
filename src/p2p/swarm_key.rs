//! The key of a private swarm, libp2p's pre-shared key, and the file it is kept in. What is done with it is in
//! `opening.rs`.
//!
//! The file is the one that IPFS and go-libp2p read: `/key/swarm/psk/1.0.0/`, then `/base16/`, `/base64/` or `/bin/`, then
//! 32 bytes in that encoding. New files are base16.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use libp2p::pnet::PreSharedKey;

use super::identity::write_new;

const HEADER: &[u8] = b"/key/swarm/psk/1.0.0/";

/// Bytes of a key.
const KEY_SIZE: usize = 32;

/// A key. Its `Debug` shows the fingerprint only.
#[derive(Clone)]
pub struct SwarmKey {
    psk: PreSharedKey,
}

/// Why there is no usable swarm key.
#[derive(Debug, thiserror::Error)]
pub enum SwarmKeyError {
    /// There is no such file.
    #[error("there is no swarm key in {}: copy the file that the other nodes of the swarm use, or make the first one with `sepal swarm-key FILE`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read the swarm key {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a swarm key: {wrong}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong; never a part of the key.
        wrong: &'static str,
    },
    /// There is a file already, which is not touched.
    #[error("{} exists already and was not changed", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be made.
    #[error("cannot write the swarm key {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl SwarmKey {
    /// A new random key that nothing keeps.
    pub fn generate() -> Self {
        Self::from_bytes(rand::random())
    }

    /// Reads the key in `path`.
    ///
    /// # Errors
    ///
    /// If there is no file, or no key in it.
    pub fn load(path: &Path) -> Result<Self, SwarmKeyError> {
        let bytes = fs::read(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SwarmKeyError::Missing { path: path.to_owned() },
            _ => SwarmKeyError::Read {
                path: path.to_owned(),
                source,
            },
        })?;
        Self::parse(&bytes).map_err(|wrong| SwarmKeyError::Malformed {
            path: path.to_owned(),
            wrong,
        })
    }

    /// Makes a new key and keeps it in `path` (mode 0600), which must not exist.
    ///
    /// # Errors
    ///
    /// If the file exists, or cannot be made.
    pub fn create(path: &Path) -> Result<Self, SwarmKeyError> {
        let key = Self::generate();
        match write_new(path, key.psk.to_key_file().as_bytes()) {
            Ok(()) => Ok(key),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(SwarmKeyError::Exists { path: path.to_owned() })
            }
            Err(source) => Err(SwarmKeyError::Write {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// What tells this key from others without giving it away; go-libp2p computes the same.
    pub fn fingerprint(&self) -> String {
        self.psk.fingerprint().to_string()
    }

    pub(crate) fn psk(&self) -> PreSharedKey {
        self.psk
    }

    fn from_bytes(bytes: [u8; KEY_SIZE]) -> Self {
        Self {
            psk: PreSharedKey::new(bytes),
        }
    }

    fn parse(file: &[u8]) -> Result<Self, &'static str> {
        let mut lines = file.splitn(3, |byte| *byte == b'\n');
        let mut line = || lines.next().unwrap_or_default();
        if line().trim_ascii() != HEADER {
            return Err("it does not begin with /key/swarm/psk/1.0.0/");
        }
        let (encoding, data) = (line().trim_ascii(), line());
        let key = match encoding {
            b"/base16/" => base16(data.trim_ascii()),
            b"/base64/" => BASE64.decode(data.trim_ascii()).ok(),
            b"/bin/" => Some(data.to_vec()),
            _ => return Err("its second line is not /base16/, /base64/ or /bin/"),
        };
        let key = key.ok_or("the key is not in the encoding that its second line names")?;
        let key = <[u8; KEY_SIZE]>::try_from(key).map_err(|_| "the key is not 32 bytes long")?;
        Ok(Self::from_bytes(key))
    }
}

impl fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SwarmKey").field(&self.fingerprint()).finish()
    }
}

fn base16(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    text.chunks_exact(2)
        .map(|pair| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1F";

    fn parse(text: &str) -> Result<SwarmKey, &'static str> {
        SwarmKey::parse(text.as_bytes())
    }

    #[test]
    fn every_encoding_of_the_file_gives_the_same_key() {
        let key: [u8; KEY_SIZE] = std::array::from_fn(|i| i as u8);
        let want = SwarmKey::from_bytes(key).fingerprint();
        let hex = parse(&format!("/key/swarm/psk/1.0.0/\r\n/base16/\r\n{DIGITS}\r\n")).unwrap();
        let base64 = parse(&format!("/key/swarm/psk/1.0.0/\n/base64/\n{}", BASE64.encode(key))).unwrap();
        let mut raw = b"/key/swarm/psk/1.0.0/\n/bin/\n".to_vec();
        raw.extend(key);
        for parsed in [hex, base64, SwarmKey::parse(&raw).unwrap()] {
            assert_eq!(parsed.fingerprint(), want);
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        for (text, wrong) in [
            ("", "/key/swarm/psk/1.0.0/"),
            ("/key/swarm/psk/2.0.0/\n/base16/\n00", "/key/swarm/psk/1.0.0/"),
            ("/key/swarm/psk/1.0.0/\n/base58/\n00", "second line"),
            ("/key/swarm/psk/1.0.0/\n/base16/\n0g", "encoding"),
            ("/key/swarm/psk/1.0.0/\n/base16/\n000", "encoding"),
            ("/key/swarm/psk/1.0.0/\n/base16/\n00", "32 bytes"),
            ("/key/swarm/psk/1.0.0/", "second line"),
        ] {
            assert!(parse(text).unwrap_err().contains(wrong), "{text:?}");
        }
    }

    #[test]
    fn a_new_file_is_read_back_is_private_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swarm.key");
        assert!(matches!(SwarmKey::load(&path), Err(SwarmKeyError::Missing { .. })));
        let made = SwarmKey::create(&path).unwrap();
        assert_eq!(SwarmKey::load(&path).unwrap().fingerprint(), made.fingerprint());
        #[cfg(unix)]
        {
            let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(matches!(SwarmKey::create(&path), Err(SwarmKeyError::Exists { .. })));
        assert_eq!(SwarmKey::load(&path).unwrap().fingerprint(), made.fingerprint());
    }

    #[test]
    fn the_key_is_not_in_its_debug_text() {
        let text = format!(
            "{:?}",
            parse(&format!("/key/swarm/psk/1.0.0/\n/base16/\n{DIGITS}")).unwrap()
        );
        assert!(!text.to_lowercase().contains("0a0b0c"), "{text}");
    }
}
