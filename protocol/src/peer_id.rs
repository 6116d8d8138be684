//! Peer ids as bytes and as text. They are hashes of public keys; keys themselves are handled elsewhere.

use sha2::{Digest, Sha256};

/// Longest public key message that is its own hash.
const MAX_INLINE_KEY: usize = 42;
/// Multihash code and length of the identity hash with the length still to follow.
const IDENTITY: u8 = 0x00;
/// Multihash code and length of SHA-256.
const SHA256: [u8; 2] = [0x12, 0x20];

/// The peer id of a serialized [`PublicKey`](crate::proto::PublicKey): the key itself if it is short (Ed25519), else
/// its SHA-256 (RSA), as a multihash.
pub fn of_public_key(message: &[u8]) -> Vec<u8> {
    match u8::try_from(message.len()) {
        Ok(len) if message.len() <= MAX_INLINE_KEY => [&[IDENTITY, len], message].concat(),
        _ => [&SHA256[..], &Sha256::digest(message)].concat(),
    }
}

/// Whether the bytes have the shape of a peer id.
pub fn is_peer_id(bytes: &[u8]) -> bool {
    match bytes {
        [IDENTITY, len, key @ ..] => key.len() == usize::from(*len) && key.len() <= MAX_INLINE_KEY,
        [code, len, hash @ ..] => [*code, *len] == SHA256 && hash.len() == 32,
        _ => false,
    }
}

/// The text of a peer id: base58, `Qm…` for RSA keys and `12D3KooW…` for Ed25519 keys.
pub fn to_text(bytes: &[u8]) -> String {
    bs58::encode(bytes).into_string()
}

/// The bytes of a peer id in text form; `None` if it is none.
pub fn from_text(text: &str) -> Option<Vec<u8>> {
    /// Characters of the longest peer id. Decoding takes time quadratic in the length, so longer text is not tried.
    const MAX_LEN: usize = 64;
    if text.len() > MAX_LEN {
        return None;
    }
    let bytes = bs58::decode(text).into_vec().ok()?;
    is_peer_id(&bytes).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{
        proto::{KeyType, PrivateKey, PublicKey},
        testing,
    };

    #[test]
    fn keys_hash_to_the_peer_ids_that_python_and_the_daemon_compute() {
        let file = testing::vectors("hivemind/identity.json");
        for case in file["cases"].as_array().unwrap() {
            let id = of_public_key(&testing::bytes(&case["public_key_pb"]));
            assert_eq!(id, testing::bytes(&case["peer_id_bytes"]));
            assert!(is_peer_id(&id));
            assert_eq!(to_text(&id), case["peer_id"].as_str().unwrap());
            assert_eq!(to_text(&id), case["p2pd_peer_id"].as_str().unwrap());
            assert_eq!(from_text(&to_text(&id)), Some(id));
        }
    }

    #[test]
    fn identity_files_are_key_messages() {
        let file = testing::vectors("hivemind/identity.json");
        let cases = file["cases"].as_array().unwrap();
        for (case, (kind, len)) in cases.iter().zip([(KeyType::Rsa, 1190), (KeyType::Ed25519, 64)]) {
            let bytes = testing::bytes(&case["identity_file"]);
            let private = PrivateKey::decode(&*bytes).unwrap();
            assert_eq!(private.encode_to_vec(), bytes);
            assert_eq!(private.r#type(), kind);
            assert_eq!(private.data.len(), len);

            let bytes = testing::bytes(&case["public_key_pb"]);
            let public = PublicKey::decode(&*bytes).unwrap();
            assert_eq!(public.encode_to_vec(), bytes);
            assert_eq!(public.r#type(), kind);
            if kind == KeyType::Ed25519 {
                assert_eq!(private.data[32..], public.data);
            }
        }
    }

    #[test]
    fn text_that_is_no_peer_id_is_refused() {
        for text in ["", "hello", "0OIl", "Qm", &"1".repeat(64), &"Q".repeat(100_000)] {
            assert_eq!(from_text(text), None, "{}", &text[..text.len().min(10)]);
        }
        assert!(!is_peer_id(&[]));
        assert!(!is_peer_id(&[0x12, 0x20, 1, 2, 3]));
        assert!(!is_peer_id(&[0x00, 0x24, 1]));
    }
}
