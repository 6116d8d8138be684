//! The key that gives a node its peer id: made for one run, or kept in a file that Python nodes can read too.
//!
//! The file is a serialized libp2p `PrivateKey` message, as p2pd's `-id` flag and Hivemind's `identity_path` use it. RSA
//! files written by Python and Ed25519 files are read; new files are Ed25519.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use libp2p::{
    PeerId,
    identity::{Keypair, PublicKey},
};

/// Longest serialized public key that is looked at, bytes: RSA of 8192 bits has a little over a thousand.
const MAX_PUBLIC_KEY_BYTES: usize = 2048;

/// What a peer id is.
type Multihash = libp2p::multihash::Multihash<64>;

/// A private key and the peer id that follows from it. Its `Debug` shows the peer id only.
#[derive(Clone)]
pub struct Identity {
    keypair: Keypair,
}

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file exists but cannot be read.
    #[error("cannot read the identity file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not a private key of a kind that is understood.
    #[error("{} is not a libp2p private key (RSA of 2048 bits or more, or Ed25519); nothing was changed in it", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// What is wrong with the bytes.
        #[source]
        source: libp2p::identity::DecodingError,
    },
    /// The file did not exist and cannot be made.
    #[error("cannot write the identity file {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Identity {
    /// A new Ed25519 key that nothing keeps.
    pub fn ephemeral() -> Self {
        Self {
            keypair: Keypair::generate_ed25519(),
        }
    }

    /// Reads the key in `path`, or makes a new Ed25519 key there (mode 0600) when the file does not exist. An existing
    /// file is never changed.
    ///
    /// # Errors
    ///
    /// If the file exists but is unreadable or no private key, or cannot be created.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match fs::read(path) {
            Ok(bytes) => Self::decode(&bytes).map_err(|source| IdentityError::Decode {
                path: path.to_owned(),
                source,
            }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Self::create(path),
            Err(source) => Err(IdentityError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The peer id of this key.
    pub fn peer_id(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }

    /// A signature of `message`, which must begin with words that say what it is for. `None` if the key cannot sign.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let signed = self.keypair.sign(message);
        signed
            .inspect_err(|error| tracing::warn!(%error, "cannot sign with this identity"))
            .ok()
    }

    /// The serialized public key, if the peer id is only a hash of it (RSA). Whoever checks a signature needs it then.
    pub fn hashed_public_key(&self) -> Option<Vec<u8>> {
        let public = self.keypair.public();
        inline_key(&public.to_peer_id())
            .is_none()
            .then(|| public.encode_protobuf())
    }

    pub(crate) fn keypair(&self) -> &Keypair {
        &self.keypair
    }

    fn decode(bytes: &[u8]) -> Result<Self, libp2p::identity::DecodingError> {
        let keypair = Keypair::from_protobuf_encoding(bytes)?;
        Ok(Self { keypair })
    }

    fn create(path: &Path) -> Result<Self, IdentityError> {
        let identity = Self::ephemeral();
        let written = identity
            .keypair
            .to_protobuf_encoding()
            .map_err(io::Error::other)
            .and_then(|bytes| write_new(path, &bytes));
        match written {
            Ok(()) => Ok(identity),
            // Another process was faster: its key is the one to use.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load_or_create(path),
            Err(source) => Err(IdentityError::Write {
                path: path.to_owned(),
                source,
            }),
        }
    }
}

/// Whether `signature` is that of `peer` over `message`. `public_key` is needed, and looked at, for those peer ids only
/// that do not contain it.
pub fn is_signed_by(peer: &PeerId, public_key: Option<&[u8]>, message: &[u8], signature: &[u8]) -> bool {
    let key = match (inline_key(peer), public_key) {
        (Some(inline), None) => inline,
        (None, Some(key)) if key.len() <= MAX_PUBLIC_KEY_BYTES => key,
        _ => return false,
    };
    PublicKey::try_decode_protobuf(key).is_ok_and(|key| key.to_peer_id() == *peer && key.verify(message, signature))
}

/// The serialized public key that short peer ids are made of (Ed25519).
fn inline_key(peer: &PeerId) -> Option<&[u8]> {
    const IDENTITY_HASH: u64 = 0;
    let hash: &Multihash = peer.as_ref();
    (hash.code() == IDENTITY_HASH).then(|| hash.digest())
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.peer_id()).finish()
    }
}

/// Writes a secret into a file (mode 0600) that did not exist, whole or not at all: into a temporary file beside it, which is then linked to its
/// name (a link, unlike a rename, fails when the name is taken).
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    let linked = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&temporary, path));
    fs::remove_file(&temporary)?;
    linked
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Vector {
        kind: String,
        file: Vec<u8>,
        peer_id: String,
    }

    fn vectors() -> Vec<Vector> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors/hivemind/identity.json");
        let json: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        json["cases"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|case| case["identity_file"].is_string())
            .map(|case| Vector {
                kind: case["kind"].as_str().unwrap().to_owned(),
                file: hex::decode(case["identity_file"].as_str().unwrap()).unwrap(),
                peer_id: case["peer_id"].as_str().unwrap().to_owned(),
            })
            .collect()
    }

    #[test]
    fn identity_files_of_python_nodes_give_the_peer_ids_that_p2pd_gives_them() {
        let vectors = vectors();
        assert!(vectors.len() >= 2, "an RSA and an Ed25519 file at least");
        let folder = tempfile::tempdir().unwrap();
        for (n, vector) in vectors.iter().enumerate() {
            let path = folder.path().join(format!("{n}.key"));
            fs::write(&path, &vector.file).unwrap();
            let identity = Identity::load_or_create(&path).unwrap();
            assert_eq!(identity.peer_id().to_string(), vector.peer_id, "{}", vector.kind);
            assert_eq!(fs::read(&path).unwrap(), vector.file, "{} was changed", vector.kind);
        }
    }

    #[test]
    fn a_new_file_is_private_and_gives_the_same_peer_id_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        let created = Identity::load_or_create(&path).unwrap();
        let loaded = Identity::load_or_create(&path).unwrap();
        assert_eq!(created.peer_id(), loaded.peer_id());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        fs::write(&path, b"not a key").unwrap();
        assert!(matches!(
            Identity::load_or_create(&path),
            Err(IdentityError::Decode { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"not a key");
    }

    #[test]
    fn signatures_of_both_kinds_of_keys_hold_for_their_peer_and_message_only() {
        let stranger = Identity::ephemeral();
        for vector in vectors() {
            let identity = Identity::decode(&vector.file).unwrap();
            let (peer, key) = (identity.peer_id(), identity.hashed_public_key());
            assert_eq!(key.is_some(), vector.kind.starts_with("RSA"), "{}", vector.kind);
            let key = key.as_deref();
            let signature = identity.sign(b"message").unwrap();
            assert!(is_signed_by(&peer, key, b"message", &signature), "{}", vector.kind);
            assert!(!is_signed_by(&peer, key, b"massage", &signature));
            assert!(!is_signed_by(&peer, key, b"message", &signature[1..]));
            assert!(!is_signed_by(&peer, key, b"message", &[]));
            assert!(!is_signed_by(&peer, Some(b"no key"), b"message", &signature));
            assert!(!is_signed_by(&stranger.peer_id(), key, b"message", &signature));
            let other = stranger.keypair.public().encode_protobuf();
            let forged = stranger.sign(b"message").unwrap();
            assert!(
                !is_signed_by(&peer, Some(&other), b"message", &forged),
                "a key of another peer"
            );
        }
        let rsa = vectors()
            .into_iter()
            .find(|vector| vector.kind.starts_with("RSA"))
            .unwrap();
        let rsa = Identity::decode(&rsa.file).unwrap();
        let signature = rsa.sign(b"message").unwrap();
        assert!(
            !is_signed_by(&rsa.peer_id(), None, b"message", &signature),
            "the key is missing"
        );
    }

    #[test]
    fn debug_does_not_show_the_private_key() {
        let identity = Identity::ephemeral();
        let shown = format!("{identity:?}");
        assert!(shown.contains(&identity.peer_id().to_string()));
        assert!(shown.len() < 100, "{shown}");
    }
}
