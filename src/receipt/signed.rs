//! JSON with a signature over its exact text: `{"body": {…}, "signer": PEER, "signature": BASE64}`.
//!
//! Signed are the bytes of `body` as they stand, after a line that says what they are for, so that a signature made for one
//! purpose is none for another. Nothing is brought into a canonical form: a reader checks what it got, then parses it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use thiserror::Error;

use super::digest::Digest;
use crate::p2p::{Identity, PeerId, is_signed_by};

/// Longest signed text that is read, bytes. A receipt has some 800, with an RSA key 1500.
const MAX_BYTES: usize = 64 * 1024;

/// A body of some kind, its signer, and the signature.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    body: Box<RawValue>,
    /// Peer id.
    signer: String,
    /// The serialized public key, base64, if the peer id is only a hash of it (RSA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    /// Base64.
    signature: String,
}

/// Why a text is not what somebody signed.
#[derive(Debug, Error)]
pub enum SignedError {
    /// Longer than anything of ours.
    #[error("{0} bytes are too many")]
    TooLong(usize),
    /// No JSON, or not of this form.
    #[error("not a signed text")]
    Malformed(#[source] serde_json::Error),
    /// The signer is no peer, or key or signature are no base64.
    #[error("not a signed text: {0} cannot be read")]
    Unreadable(&'static str),
    /// Somebody else wrote it, or it was changed.
    #[error("the signature is not that of {0}")]
    Forged(PeerId),
    /// What was signed is not what it should be.
    #[error("what {signer} signed is not a {what} of a version that is known here")]
    WrongBody {
        /// Who signed it.
        signer: PeerId,
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

impl Signed {
    /// Signs `body`, a `what`. `None` if the key cannot sign.
    pub fn new<T: Serialize>(what: &str, body: &T, identity: &Identity) -> Option<Self> {
        let body = serde_json::value::to_raw_value(body).ok()?;
        let signature = identity.sign(&message(what, body.get()))?;
        Some(Self {
            body,
            signer: identity.peer_id().to_string(),
            public_key: identity.hashed_public_key().map(|key| STANDARD.encode(key)),
            signature: STANDARD.encode(signature),
        })
    }

    /// Reads the form of it; who signed what is not looked at.
    ///
    /// # Errors
    /// A text that is too long or of another form.
    pub fn parse(text: &[u8]) -> Result<Self, SignedError> {
        if text.len() > MAX_BYTES {
            return Err(SignedError::TooLong(text.len()));
        }
        serde_json::from_slice(text).map_err(SignedError::Malformed)
    }

    /// Checks the signature, and reads the body. Returns who signed.
    ///
    /// # Errors
    /// A signature of somebody else or for something else, a body of another form.
    pub fn open<T: DeserializeOwned>(&self, what: &'static str) -> Result<(PeerId, T), SignedError> {
        let signer: PeerId = self.signer.parse().map_err(|_| SignedError::Unreadable("the signer"))?;
        let bytes = |text: &str, name| STANDARD.decode(text).map_err(|_| SignedError::Unreadable(name));
        let key = self.public_key.as_deref().map(|key| bytes(key, "the public key"));
        let (key, signature) = (key.transpose()?, bytes(&self.signature, "the signature")?);
        if !is_signed_by(&signer, key.as_deref(), &message(what, self.body.get()), &signature) {
            return Err(SignedError::Forged(signer));
        }
        match serde_json::from_str(self.body.get()) {
            Ok(body) => Ok((signer, body)),
            Err(source) => Err(SignedError::WrongBody { signer, what, source }),
        }
    }

    /// Names the body.
    pub fn digest(&self) -> Digest {
        Digest::of(self.body.get().as_bytes())
    }

    /// One line of JSON, unless the signer wrote the body in several: then nothing.
    pub fn to_line(&self) -> Option<String> {
        let text = serde_json::to_string(self).ok()?;
        (!text.contains(['\n', '\r'])).then_some(text)
    }
}

fn message(what: &str, body: &str) -> Vec<u8> {
    format!("sepal {what}\n{body}").into_bytes()
}
