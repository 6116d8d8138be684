//! What is said about jobs against its published schemas, and what is refused.

use serde_json::{Value, json};

use super::order;
use crate::{
    jobs::{
        check::{FalseDelivery, check, tokens_digest},
        message::{Announce, JobAssign, JobClaim, JobReceipt, MAX_BYTES, Message, VERSION},
        order::{Answer, Order, encode},
    },
    p2p::{Identity, PeerId},
    receipt::{Digest, schemas},
};

/// What is wrong with a receipt.
type Change = fn(&mut JobReceipt);

fn receipt(order: &Order, submitter: &PeerId, worker: &PeerId) -> JobReceipt {
    JobReceipt {
        version: VERSION,
        worker: worker.to_string(),
        submitter: submitter.to_string(),
        job: order.job.clone(),
        attempt: order.attempt,
        model: order.model.clone(),
        weights: "float32".to_owned(),
        settings: order.settings,
        prompt: Digest::of(order.prompt.as_bytes()),
        prompt_tokens: 3,
        new_tokens: 2,
        tokens: tokens_digest(&[7, 8]),
        text: Digest::of(b"text"),
        took_ms: 5,
    }
}

fn all(worker: &PeerId) -> Vec<Message> {
    let submitter = PeerId::random();
    let order = order("hello");
    vec![
        Message::Announce(Announce {
            version: VERSION,
            model: "M-hf".to_owned(),
            weights: "float32".to_owned(),
            jobs: 0,
            room: 16,
            max_new_tokens: 4096,
            number: 0,
        }),
        Message::WorkOffer(order.offer(0)),
        Message::JobClaim(JobClaim {
            version: VERSION,
            submitter: submitter.to_string(),
            job: order.job.clone(),
            number: 0,
            jobs: 1,
        }),
        Message::JobAssign(JobAssign {
            version: VERSION,
            job: order.job.clone(),
            attempt: 0,
            worker: worker.to_string(),
        }),
        Message::Receipt(receipt(&order, &submitter, worker)),
    ]
}

#[test]
fn every_message_is_as_its_schema_says_and_is_read_back() {
    let identity = Identity::ephemeral();
    for message in all(&identity.peer_id()) {
        let text = message.sign(&identity).unwrap();
        assert_eq!(Message::parse(text.as_bytes()).unwrap(), (identity.peer_id(), message));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(schemas::is_valid("signed", &value), "{text}");
        let body = &value["body"];
        assert!(schemas::is_valid("job_message", body), "{text}");
        for (name, wrong) in [
            ("version", json!(2)),
            ("more", json!(1)),
            ("job", json!(7)),
            ("model", json!("")),
        ] {
            let mut body = body.clone();
            let had = body.get(name).is_some();
            body[name] = wrong;
            if had || name == "more" {
                assert!(!schemas::is_valid("job_message", &body), "{body}");
            }
        }
    }
    let stream = serde_json::to_value(order("hello")).unwrap();
    assert!(schemas::is_valid("job_order", &stream));
    for answer in [
        Answer::Beat { tokens: 3 },
        Answer::Refused {
            why: "no room".to_owned(),
        },
        Answer::Result {
            text: "text".to_owned(),
            token_ids: vec![7, 8],
            receipt: "{}".to_owned(),
        },
    ] {
        let value: Value = serde_json::from_slice(&encode(&answer)).unwrap();
        assert!(schemas::is_valid("job_answer", &value), "{value}");
    }
}

#[test]
fn orders_whose_names_are_none_or_too_long_are_unfit_and_not_as_the_schema_says() {
    let named = |job: usize, model: usize| Order {
        job: "j".repeat(job),
        model: "m".repeat(model),
        ..order("hello")
    };
    for (order, fits) in [
        (named(1, 1), true),
        (named(64, 256), true),
        (named(0, 1), false),
        (named(65, 1), false),
        (named(1, 0), false),
        (named(1, 257), false),
    ] {
        assert_eq!(order.unfit().is_none(), fits, "{order:?}");
        let value = serde_json::to_value(&order).unwrap();
        assert_eq!(schemas::is_valid("job_order", &value), fits, "{value}");
    }
}

#[test]
fn changed_foreign_and_unknown_messages_are_refused() {
    let [identity, other] = [Identity::ephemeral(), Identity::ephemeral()];
    for message in all(&identity.peer_id()) {
        let text = message.sign(&identity).unwrap();
        let changed = text.replacen("\"version\":1", "\"version\":2", 1);
        let foreign = text.replace(
            &format!("\"signer\":\"{}\"", identity.peer_id()),
            &format!("\"signer\":\"{}\"", other.peer_id()),
        );
        for wrong in [changed, foreign, text[1..].to_owned(), format!("{text} x")] {
            assert!(Message::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let long = format!("{text}{}", " ".repeat(MAX_BYTES));
        assert!(Message::parse(long.as_bytes()).is_err());
    }
    let unnamed = Message::JobAssign(JobAssign {
        version: VERSION,
        job: String::new(),
        attempt: 0,
        worker: String::new(),
    });
    let later = Message::JobAssign(JobAssign {
        version: 2,
        job: "a".to_owned(),
        attempt: 0,
        worker: String::new(),
    });
    let of_another = Message::Receipt(receipt(&order("hello"), &other.peer_id(), &other.peer_id()));
    for message in [unnamed, later, of_another] {
        let text = message.sign(&identity).unwrap();
        assert!(Message::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn a_result_is_taken_only_if_the_receipt_is_about_it() {
    let [worker, other] = [Identity::ephemeral(), Identity::ephemeral()];
    let submitter = PeerId::random();
    let order = order("hello");
    let right = receipt(&order, &submitter, &worker.peer_id());
    let result = |receipt: &JobReceipt, identity: &Identity, ids: &[u32]| {
        let signed = Message::Receipt(receipt.clone()).sign(identity).unwrap();
        let parties = (&submitter, worker.peer_id());
        check(&order, parties, ("text".to_owned(), ids.to_vec()), signed)
    };
    let delivery = result(&right, &worker, &[7, 8]).unwrap();
    assert_eq!((delivery.text.as_str(), delivery.attempts), ("text", 1));
    assert_eq!(
        result(&right, &worker, &[7, 9]),
        Err(FalseDelivery::Wrong("hash of the tokens"))
    );
    assert_eq!(
        result(&right, &worker, &[7]),
        Err(FalseDelivery::Wrong("number of tokens"))
    );
    assert_eq!(result(&right, &other, &[7, 8]), Err(FalseDelivery::Signature));
    let changes: [(&str, Change); 6] = [
        ("job", |it| it.job.push('x')),
        ("attempt", |it| it.attempt += 1),
        ("model", |it| it.model.push('x')),
        ("setting", |it| it.settings.seed += 1),
        ("prompt", |it| it.prompt = Digest::of(b"another")),
        ("hash of the text", |it| it.text = Digest::of(b"another")),
    ];
    for (what, change) in changes {
        let mut wrong = right.clone();
        change(&mut wrong);
        assert_eq!(result(&wrong, &worker, &[7, 8]), Err(FalseDelivery::Wrong(what)));
    }
}
