//! Who may store what: rules that nodes of one network agree on. Petals has none; hivemind's optimizer signs records.
//!
//! A validator is asked before a record is stored and after one is found. It may add a signature to what this node
//! stores, and takes signatures away again before the value is read. Several work like layers of an envelope: signed in
//! the order of increasing priority, checked and unwrapped in the opposite order (hivemind, `dht/validation.py`).

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use rsa::{
    BigUint, RsaPrivateKey, RsaPublicKey,
    pss::{BlindedSigningKey, Signature, VerifyingKey},
    rand_core::OsRng,
    sha2::Sha256,
    signature::{RandomizedSigner, SignatureEncoding, Verifier},
    traits::PublicKeyParts,
};
use sepal_protocol::value::signed_tuple;

const OWNER_START: &[u8] = b"[owner:";
const SIGNATURE_START: &[u8] = b"[signature:";
const MARK_END: u8 = b']';

/// Length of a SHA-256 hash, bytes.
const HASH_LEN: usize = 32;

/// Largest RSA key that is used for checking, bits: checking takes time with the square of it.
const MAX_KEY_BITS: usize = 8192;

/// A record as validators see it: the bytes of the wire.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    /// The 20 bytes of the key's id.
    pub key: &'a [u8],
    /// The subkey tag; see [`Subkey::to_wire`](sepal_protocol::value::Subkey::to_wire).
    pub subkey: &'a [u8],
    /// The value, signatures included.
    pub value: &'a [u8],
    /// DHT time after which the record is gone.
    pub expiration: f64,
}

/// What a rule says of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It is not stored, and not read.
    Refused,
    /// It may be stored and read. So may anything of which no rule knows better.
    Allowed,
    /// It is shown to be from the one whom its key or subkey names. While such a record lives, only another such record
    /// takes its place.
    Proven,
}

/// A rule for records.
pub trait Validator: Send + Sync + fmt::Debug {
    /// Larger ones wrap around smaller ones.
    fn priority(&self) -> i32;
    /// Whether the record may be stored and read.
    fn validate(&self, record: &RecordView<'_>) -> Verdict;
    /// The value with whatever this rule adds to it, for a record that this node stores.
    fn sign(&self, record: &RecordView<'_>) -> Vec<u8>;
    /// The value without what [`Validator::sign`] adds.
    fn strip<'a>(&self, record: &RecordView<'a>) -> &'a [u8];
}

/// Rules that all have to hold. Without any, everything is valid and nothing is signed.
#[derive(Clone, Debug, Default)]
pub struct Validators {
    /// By increasing priority.
    rules: Vec<Arc<dyn Validator>>,
}

impl Validators {
    /// These rules, in any order.
    pub fn new(mut rules: Vec<Arc<dyn Validator>>) -> Self {
        rules.sort_by_key(|rule| rule.priority());
        Self { rules }
    }

    /// What the rules say together: refused if one of them refuses, else proven if one of them has a proof.
    pub(crate) fn validate(&self, record: &RecordView<'_>) -> Verdict {
        let mut record = *record;
        let mut verdict = Verdict::Allowed;
        for rule in self.rules.iter().rev() {
            match rule.validate(&record) {
                Verdict::Refused => return Verdict::Refused,
                other => verdict = verdict.max(other),
            }
            record.value = rule.strip(&record);
        }
        verdict
    }

    pub(crate) fn sign(&self, record: &RecordView<'_>) -> Vec<u8> {
        let mut value = record.value.to_vec();
        for rule in &self.rules {
            value = rule.sign(&RecordView {
                value: &value,
                ..*record
            });
        }
        value
    }

    pub(crate) fn strip<'a>(&self, record: &RecordView<'a>) -> &'a [u8] {
        let mut record = *record;
        for rule in self.rules.iter().rev() {
            record.value = rule.strip(&record);
        }
        record.value
    }
}

/// Protects records that name their owner: their value must end with the owner's signature.
///
/// A record is protected if its key or subkey contains `[owner:ssh-rsa …]`, an RSA key as OpenSSH writes it. The signature is
/// RSA-PSS with SHA-256 over the MessagePack of (key, subkey, value, expiration), in base64 within `[signature:…]`
/// (hivemind, `dht/crypto.py`, `RSASignatureValidator`).
pub struct SignatureValidator {
    own: Option<Own>,
}

/// What a node needs to write records that belong to it.
struct Own {
    key: BlindedSigningKey<Sha256>,
    /// `[owner:ssh-rsa …]`.
    marker: Vec<u8>,
}

impl SignatureValidator {
    /// A validator that signs with this key what belongs to it.
    pub fn new(key: RsaPrivateKey) -> Self {
        let public = key.to_public_key();
        let marker = [OWNER_START, openssh_text(&public).as_bytes(), &[MARK_END]].concat();
        let salt_len = max_salt_len(&public);
        let key = BlindedSigningKey::new_with_salt_len(key, salt_len);
        Self {
            own: Some(Own { key, marker }),
        }
    }

    /// A validator for a node that owns no records: it checks those of others.
    pub fn checking() -> Self {
        Self { own: None }
    }

    /// What a subkey must contain so that only this node can store under it: `[owner:ssh-rsa …]`. `None` without a key.
    pub fn owner_marker(&self) -> Option<&[u8]> {
        self.own.as_ref().map(|own| own.marker.as_slice())
    }
}

impl Validator for SignatureValidator {
    fn priority(&self) -> i32 {
        10
    }

    fn validate(&self, record: &RecordView<'_>) -> Verdict {
        let mut owners = marks(record.key, OWNER_START);
        owners.extend(marks(record.subkey, OWNER_START));
        let Some(owner) = owners.first() else {
            return Verdict::Allowed;
        };
        if owners.iter().any(|other| other != owner) {
            return Verdict::Refused;
        }
        let signatures = marks(record.value, SIGNATURE_START);
        let ([signature], Some(owner)) = (signatures.as_slice(), parse_openssh(owner)) else {
            return Verdict::Refused;
        };
        let payload = payload(&RecordView {
            value: self.strip(record),
            ..*record
        });
        if verify(&owner, &payload, signature) {
            Verdict::Proven
        } else {
            Verdict::Refused
        }
    }

    fn sign(&self, record: &RecordView<'_>) -> Vec<u8> {
        let is_own = |own: &&Own| contains(record.key, &own.marker) || contains(record.subkey, &own.marker);
        let Some(own) = self.own.as_ref().filter(is_own) else {
            return record.value.to_vec();
        };
        let signature = own.key.sign_with_rng(&mut OsRng, &payload(record)).to_vec();
        [
            record.value,
            SIGNATURE_START,
            BASE64.encode(signature).as_bytes(),
            &[MARK_END],
        ]
        .concat()
    }

    /// Only protected records carry a signature; in others the same bytes are part of the value.
    fn strip<'a>(&self, record: &RecordView<'a>) -> &'a [u8] {
        let is_protected = contains(record.key, OWNER_START) || contains(record.subkey, OWNER_START);
        let start = record
            .value
            .windows(SIGNATURE_START.len())
            .rposition(|window| window == SIGNATURE_START);
        match start {
            Some(start) if is_protected && record.value.ends_with(&[MARK_END]) => &record.value[..start],
            _ => record.value,
        }
    }
}

impl fmt::Debug for SignatureValidator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let marker = self.owner_marker().map(String::from_utf8_lossy);
        f.debug_struct("SignatureValidator")
            .field("marker", &marker)
            .finish_non_exhaustive()
    }
}

/// What is signed.
fn payload(record: &RecordView<'_>) -> Vec<u8> {
    signed_tuple(record.key, record.subkey, record.value, record.expiration)
}

/// Python signs with the longest salt, and takes a salt as long as the hash as well; we do the same.
fn verify(owner: &RsaPublicKey, payload: &[u8], signature: &[u8]) -> bool {
    let Some(signature) = BASE64
        .decode(signature)
        .ok()
        .and_then(|bytes| Signature::try_from(bytes.as_slice()).ok())
    else {
        return false;
    };
    [max_salt_len(owner), HASH_LEN].into_iter().any(|salt_len| {
        VerifyingKey::<Sha256>::new_with_salt_len(owner.clone(), salt_len)
            .verify(payload, &signature)
            .is_ok()
    })
}

/// The longest salt that fits beside the hash: 222 bytes for a key of 2048 bits (RFC 8017, section 9.1.1).
fn max_salt_len(key: &RsaPublicKey) -> usize {
    (key.n().bits() - 1).div_ceil(8).saturating_sub(HASH_LEN + 2)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// What stands between `start` and the next `]`, for each `start`. Something does, and it is on one line.
fn marks<'a>(bytes: &'a [u8], start: &[u8]) -> Vec<&'a [u8]> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(start.len()).position(|window| window == start) {
        rest = &rest[at + start.len()..];
        match rest.iter().skip(1).position(|byte| *byte == MARK_END) {
            Some(end) if !rest[..=end].contains(&b'\n') => {
                found.push(&rest[..=end]);
                rest = &rest[end + 2..];
            }
            _ => {}
        }
    }
    found
}

/// The public key as OpenSSH writes it: name, exponent and modulus, each after its length, in base64 (RFC 4253, 6.6).
fn openssh_text(key: &RsaPublicKey) -> String {
    let mut blob = Vec::new();
    for part in [b"ssh-rsa".to_vec(), signed_bytes(key.e()), signed_bytes(key.n())] {
        let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
        blob.extend(len.to_be_bytes());
        blob.extend(part);
    }
    format!("ssh-rsa {}", BASE64.encode(blob))
}

/// A positive number as RFC 4251 writes it: with a leading zero if its first bit is set.
fn signed_bytes(number: &BigUint) -> Vec<u8> {
    let mut bytes = number.to_bytes_be();
    if bytes.first().is_some_and(|first| first & 0x80 != 0) {
        bytes.insert(0, 0);
    }
    bytes
}

fn parse_openssh(text: &[u8]) -> Option<RsaPublicKey> {
    let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    (words.next()? == "ssh-rsa").then_some(())?;
    let blob = BASE64.decode(words.next()?).ok()?;
    let mut rest = blob.as_slice();
    let mut part = || {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let (part, after) = after.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
        rest = after;
        Some(part)
    };
    (part()? == b"ssh-rsa").then_some(())?;
    let (e, n) = (part()?, part()?);
    RsaPublicKey::new_with_max_size(BigUint::from_bytes_be(n), BigUint::from_bytes_be(e), MAX_KEY_BITS).ok()
}

#[cfg(test)]
mod tests;
