//! Signatures of server records: ours are signed with the node's key, and those of others are checked.
//!
//! Petals signs nothing, and takes whatever is stored under the id of a server for its word. The rule here is for the DHT of
//! our nodes: a record with a wrong signature is refused, and a signed one gives way only to a signed one while it lives
//! (see [`Verdict::Proven`]). Records without a signature, such as those of Python servers, stay what they are. Where the
//! signature stands and what it covers is in [`Seal`].

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use sepal_protocol::{
    record::{Seal, ServerInfo},
    value::Subkey,
};
use sha2::{Digest, Sha256};

use crate::{
    dht::validate::{RecordView, SignatureValidator, Validator, Validators, Verdict},
    p2p::{Identity, PeerId, is_signed_by},
    swarm::directory::server_of,
};

/// Within the one of Hivemind's RSA signatures (10), which is appended to the value and so covers ours.
const PRIORITY: i32 = 5;

/// Most verdicts that are remembered. Every replica of a record is read, again and again; to check a signature takes some
/// 50 µs, to look a verdict up two. Enough for 24 servers with 80 blocks and their next two announcements.
const MAX_REMEMBERED: usize = 8192;

/// What people are told of the signatures of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signature {
    /// Its records are not signed, as those of Python servers.
    None,
    /// There are records in its name with a wrong signature, and none with a right one.
    Forged,
    /// It signs its records.
    Valid,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Forged => "forged",
            Self::Valid => "valid",
        })
    }
}

/// What a node of a swarm checks of all records: Hivemind's signatures of owners and ours of servers. It signs the server
/// records of `identity`.
pub fn validators(identity: Identity) -> Validators {
    Validators::new(vec![
        Arc::new(SignatureValidator::checking()),
        Arc::new(ServerSignatures::new(identity)),
    ])
}

/// The rule for records of servers.
#[derive(Debug)]
pub struct ServerSignatures {
    identity: Identity,
    /// The subkey of our own records, as on the wire.
    own_tag: Vec<u8>,
    remembered: Mutex<Remembered>,
}

impl ServerSignatures {
    /// A rule that signs what is stored under the peer id of `identity`.
    pub fn new(identity: Identity) -> Self {
        let own_tag = Subkey::text(&identity.peer_id().to_string()).to_wire();
        Self {
            identity,
            own_tag,
            remembered: Mutex::default(),
        }
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Validator for ServerSignatures {
    fn priority(&self) -> i32 {
        PRIORITY
    }

    fn validate(&self, record: &RecordView<'_>) -> Verdict {
        let Some(peer) = peer_of(record.subkey) else {
            return Verdict::Allowed;
        };
        let (bare, seal) = match Seal::detach(record.value) {
            Ok(Some(parts)) => parts,
            Ok(None) => return Verdict::Allowed,
            Err(error) => {
                tracing::debug!(%peer, %error, "refused a record");
                return Verdict::Refused;
            }
        };
        let message = Seal::message(record.key, record.subkey, &bare, record.expiration);
        let fingerprint = fingerprint(&message, &seal);
        if let Some(verdict) = self.remembered().get(&fingerprint) {
            return verdict;
        }
        let verdict = if is_signed_by(&peer, seal.public_key.as_deref(), &message, &seal.signature) {
            Verdict::Proven
        } else {
            tracing::warn!(%peer, "refused a record that somebody else stored in the name of this server");
            Verdict::Refused
        };
        self.remembered().put(fingerprint, verdict);
        verdict
    }

    fn sign(&self, record: &RecordView<'_>) -> Vec<u8> {
        let is_own = record.subkey == self.own_tag && ServerInfo::decode(record.value).is_ok();
        let sealed = || {
            let message = Seal::message(record.key, record.subkey, record.value, record.expiration);
            let seal = Seal {
                signature: self.identity.sign(&message)?,
                public_key: self.identity.hashed_public_key(),
            };
            seal.attach(record.value)
        };
        is_own.then(sealed).flatten().unwrap_or_else(|| record.value.to_vec())
    }

    /// Readers ignore the signature as they ignore any field they do not know, so that it stays.
    fn strip<'a>(&self, record: &RecordView<'a>) -> &'a [u8] {
        record.value
    }
}

fn peer_of(tag: &[u8]) -> Option<PeerId> {
    match Subkey::from_wire(tag).ok()? {
        Subkey::Key(subkey) => server_of(&subkey),
        _ => None,
    }
}

type Fingerprint = [u8; 32];

/// Names a signed record: all that the verdict depends on. The signature is last, the length of the key before it.
fn fingerprint(message: &[u8], seal: &Seal) -> Fingerprint {
    let key = seal.public_key.as_deref().unwrap_or_default();
    let hash = Sha256::new()
        .chain_update(message.len().to_be_bytes())
        .chain_update(message)
        .chain_update(key.len().to_be_bytes())
        .chain_update(key)
        .chain_update(&seal.signature);
    hash.finalize().into()
}

/// The last verdicts.
#[derive(Debug, Default)]
struct Remembered {
    verdicts: HashMap<Fingerprint, Verdict>,
    /// Oldest first.
    order: VecDeque<Fingerprint>,
}

impl Remembered {
    fn get(&self, fingerprint: &Fingerprint) -> Option<Verdict> {
        self.verdicts.get(fingerprint).copied()
    }

    fn put(&mut self, fingerprint: Fingerprint, verdict: Verdict) {
        if self.verdicts.insert(fingerprint, verdict).is_none() {
            self.order.push_back(fingerprint);
        }
        if self.order.len() > MAX_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.verdicts.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests;
