//! Signatures against a record that Python signed, and the rules around them.

use rsa::pkcs1::DecodeRsaPrivateKey;
use serde_json::Value as Json;

use super::*;
use crate::dht::testing::{bytes, vectors};

struct Case {
    file: Json,
    key: Vec<u8>,
    subkey: Vec<u8>,
    value: Vec<u8>,
    signed: Vec<u8>,
    expiration: f64,
}

impl Case {
    fn read() -> Self {
        let file = vectors("hivemind/rsa_record.json");
        let record = &file["record"];
        Self {
            key: bytes(&record["key"]),
            subkey: bytes(&record["subkey"]),
            value: bytes(&record["value"]),
            signed: bytes(&file["signed_value"]),
            expiration: record["expiration_time"].as_f64().unwrap(),
            file,
        }
    }

    fn private_key(&self) -> RsaPrivateKey {
        RsaPrivateKey::from_pkcs1_der(&bytes(&self.file["private_key_der_pkcs1"])).unwrap()
    }

    fn view<'a>(&'a self, value: &'a [u8]) -> RecordView<'a> {
        RecordView {
            key: &self.key,
            subkey: &self.subkey,
            value,
            expiration: self.expiration,
        }
    }
}

fn other_key() -> RsaPrivateKey {
    RsaPrivateKey::new(&mut OsRng, 1024).unwrap()
}

#[test]
fn keys_are_written_and_read_as_openssh_does() {
    let case = Case::read();
    let validator = SignatureValidator::new(case.private_key());
    assert_eq!(
        validator.owner_marker(),
        Some(case.file["owner_marker"].as_str().unwrap().as_bytes())
    );
    let public = openssh_text(&case.private_key().to_public_key());
    assert_eq!(public, case.file["public_key_openssh"].as_str().unwrap());
    assert_eq!(
        parse_openssh(public.as_bytes()),
        Some(case.private_key().to_public_key())
    );
    for broken in [
        "",
        "ssh-rsa",
        "ssh-rsa AAAA",
        "ssh-ed25519 AAAA",
        "ssh-rsa AAAAB3NzaC1yc2E=",
        "ssh-rsa !",
    ] {
        assert_eq!(parse_openssh(broken.as_bytes()), None, "{broken}");
    }
}

#[test]
fn a_record_that_python_signed_is_valid_and_any_change_makes_it_invalid() {
    let case = Case::read();
    let validator = SignatureValidator::checking();
    let record = case.view(&case.signed);
    assert_eq!(payload(&case.view(&case.value)), bytes(&case.file["signed_payload"]));
    assert_eq!(validator.validate(&record), Verdict::Proven);
    assert_eq!(validator.strip(&record), bytes(&case.file["stripped_value"]));

    let late = RecordView {
        expiration: case.expiration + 1.0,
        ..record
    };
    assert_eq!(validator.validate(&late), Verdict::Refused);
    assert_eq!(
        validator.validate(&case.view(&case.value)),
        Verdict::Refused,
        "unsigned"
    );
    let changed = [&[0x07], &case.signed[1..]].concat();
    assert_eq!(validator.validate(&case.view(&changed)), Verdict::Refused);
    let twice = [&case.signed[..], &case.signed[4..]].concat();
    assert_eq!(
        validator.validate(&case.view(&twice)),
        Verdict::Refused,
        "two signatures"
    );
    let more = [&case.signed[..], b"x"].concat();
    assert_eq!(
        validator.validate(&case.view(&more)),
        Verdict::Refused,
        "something after the signature"
    );
    let elsewhere = RecordView {
        key: &[7; 20],
        ..record
    };
    assert_eq!(validator.validate(&elsewhere), Verdict::Refused);
}

#[test]
fn our_signatures_have_the_longest_salt_and_verify() {
    let case = Case::read();
    let validator = SignatureValidator::new(case.private_key());
    let signed = validator.sign(&case.view(&case.value));
    assert_eq!(signed.len(), case.signed.len());
    assert_eq!(validator.validate(&case.view(&signed)), Verdict::Proven);
    let signature = marks(&signed, SIGNATURE_START)[0];
    let signature = Signature::try_from(BASE64.decode(signature).unwrap().as_slice()).unwrap();
    let owner = case.private_key().to_public_key();
    assert_eq!(max_salt_len(&owner), 222);
    let strict = VerifyingKey::<Sha256>::new_with_salt_len(owner, 222);
    strict.verify(&payload(&case.view(&case.value)), &signature).unwrap();
}

#[test]
fn a_salt_as_long_as_the_hash_is_accepted() {
    let case = Case::read();
    let payload = payload(&case.view(&case.value));
    let short = BlindedSigningKey::<Sha256>::new_with_salt_len(case.private_key(), HASH_LEN);
    let signature = BASE64.encode(short.sign_with_rng(&mut OsRng, &payload).to_vec());
    assert!(verify(
        &case.private_key().to_public_key(),
        &payload,
        signature.as_bytes()
    ));
}

#[test]
fn records_of_others_are_not_signed_and_unprotected_ones_are_left_alone() {
    let case = Case::read();
    let validator = SignatureValidator::new(other_key());
    assert_eq!(validator.sign(&case.view(&case.value)), case.value);
    let plain = RecordView {
        subkey: b"\xa1a",
        ..case.view(b"text with [signature:x]")
    };
    assert_eq!(validator.validate(&plain), Verdict::Allowed);
    assert_eq!(validator.strip(&plain), plain.value);
    let two_owners = [
        &case.subkey[..],
        SignatureValidator::new(other_key()).owner_marker().unwrap(),
    ]
    .concat();
    assert_eq!(
        validator.validate(&RecordView {
            subkey: &two_owners,
            ..case.view(&case.signed)
        }),
        Verdict::Refused
    );
}

/// Wraps values between two bytes, to see in which order rules apply.
#[derive(Debug)]
struct Wrap(i32, u8, Verdict);

impl Validator for Wrap {
    fn priority(&self) -> i32 {
        self.0
    }

    fn validate(&self, record: &RecordView<'_>) -> Verdict {
        if record.value.last() == Some(&self.1) {
            self.2
        } else {
            Verdict::Refused
        }
    }

    fn sign(&self, record: &RecordView<'_>) -> Vec<u8> {
        [record.value, &[self.1]].concat()
    }

    fn strip<'a>(&self, record: &RecordView<'a>) -> &'a [u8] {
        record.value.strip_suffix(&[self.1]).unwrap_or(record.value)
    }
}

#[test]
fn several_rules_wrap_by_priority_and_unwrap_in_the_opposite_order() {
    let rules = Validators::new(vec![
        Arc::new(Wrap(10, b'B', Verdict::Proven)),
        Arc::new(Wrap(0, b'A', Verdict::Allowed)),
    ]);
    let plain = RecordView {
        key: b"",
        subkey: b"",
        value: b"v",
        expiration: 0.0,
    };
    let signed = rules.sign(&plain);
    assert_eq!(signed, b"vAB");
    let record = RecordView {
        value: &signed,
        ..plain
    };
    assert_eq!(rules.validate(&record), Verdict::Proven, "the best of the verdicts");
    assert_eq!(rules.strip(&record), b"v");
    assert_eq!(rules.validate(&RecordView { value: b"vBA", ..plain }), Verdict::Refused);
    assert_eq!(rules.validate(&RecordView { value: b"vB", ..plain }), Verdict::Refused);
}
