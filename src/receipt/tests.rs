//! Receipts by themselves: what is signed, what is found false, what a file shows.

use std::fs;

use bytes::Bytes;
use sepal_protocol::{compress::Compression, proto, tensor::WireTensor};

use super::*;
use crate::{p2p::Identity, task::Tasks};

fn tensor(seed: u8) -> proto::Tensor {
    let data = Bytes::from(vec![seed; 8]);
    let tensor = WireTensor::new(sepal_protocol::tensor::DType::F32, [1, 1, 2], data).unwrap();
    tensor.encode(Compression::None).unwrap()
}

/// A server with one session for `blocks`.
struct Server {
    identity: Identity,
    blocks: std::ops::Range<u32>,
    chain: Chain,
    position: usize,
}

impl Server {
    fn new(blocks: std::ops::Range<u32>) -> Self {
        Self {
            identity: Identity::ephemeral(),
            blocks,
            chain: Chain::default(),
            position: 0,
        }
    }

    fn step(&mut self, input: u8, output: u8) -> String {
        let (input, output) = (tensor(input), tensor(output));
        let step = Computed {
            model: "M-hf",
            weights: "float32",
            session: "s",
            blocks: self.blocks.clone(),
            position: self.position,
            size: (1, 1),
            input: &input,
            output: &output,
            time_ms: 1,
        };
        self.position += 1;
        self.chain.next(&step, &self.identity).unwrap()
    }

    fn expectation(&self) -> Expectation {
        Expectation::new(self.identity.peer_id(), "M-hf", "s", &self.blocks)
    }
}

fn line(step: &str, receipt: &str) -> String {
    format!(r#"{{"step":"{step}","receipt":{receipt}}}"#)
}

/// What is wrong with a file of these lines.
fn wrong(lines: &[String]) -> (usize, String) {
    let mut audit = Audit::default();
    let found = lines.iter().find_map(|line| audit.line(line).err()).unwrap();
    (found.line, found.why)
}

#[test]
fn a_client_takes_the_receipts_of_what_it_sent_and_got_and_no_others() {
    let asked = |position, input, output: &TensorDigest| -> (usize, TensorDigest, TensorDigest) {
        (position, TensorDigest::of(&tensor(input)), output.clone())
    };
    let check =
        |expected: &mut Expectation, text: &str, (position, input, output): (usize, TensorDigest, TensorDigest)| {
            let asked = Asked {
                position,
                size: (1, 1),
                input,
                pushed: None,
                output: &output,
            };
            expected
                .check(text, &asked)
                .map(drop)
                .map_err(|error| error.to_string())
        };
    let output = TensorDigest::of(&tensor(2));
    let mut server = Server::new(0..2);
    let (first, second) = (server.step(1, 2), server.step(3, 2));
    let mut expected = server.expectation();
    assert!(expected.is_first());
    let why = |what: &str| Err(format!("the receipt gives a wrong {what}"));
    let another = |what: &str| Err(format!("the receipt is that of a step with another {what}"));
    assert_eq!(check(&mut expected, &first, asked(0, 9, &output)), another("input"));
    assert_eq!(check(&mut expected, &first, asked(1, 1, &output)), another("position"));
    let other = TensorDigest::of(&tensor(7));
    assert_eq!(check(&mut expected, &first, asked(0, 1, &other)), why("output"));
    assert_eq!(check(&mut expected, &second, asked(1, 3, &output)), why("number"));
    assert_eq!(check(&mut expected, &first, asked(0, 1, &output)), Ok(()));
    assert_eq!(check(&mut expected, &first, asked(0, 1, &output)), why("number"));
    assert_eq!(check(&mut expected, &second, asked(1, 3, &output)), Ok(()));
    let stranger = Server::new(0..2).step(1, 2);
    let mut expected = server.expectation();
    let error = check(&mut expected, &stranger, asked(0, 1, &output)).unwrap_err();
    assert!(error.starts_with("the receipt is that of "), "{error}");
    let changed = first.replace("float32", "float64");
    let error = check(&mut expected, &changed, asked(0, 1, &output)).unwrap_err();
    assert!(error.starts_with("the signature is not that of "), "{error}");
    for text in ["", "{}", "null", &"x".repeat(70_000), &first[1..]] {
        assert!(check(&mut expected, text, asked(0, 1, &output)).is_err());
    }
}

#[test]
fn what_a_server_pushed_is_as_good_an_input_as_what_the_client_sent() {
    let mut server = Server::new(2..4);
    let receipt = server.step(5, 6);
    let (pushed, output) = (TensorDigest::of(&tensor(5)), TensorDigest::of(&tensor(6)));
    let asked = Asked {
        position: 0,
        size: (1, 1),
        input: TensorDigest::of(&tensor(1)),
        pushed: Some(&pushed),
        output: &output,
    };
    server.expectation().check(&receipt, &asked).unwrap();
}

#[test]
fn a_signature_for_one_thing_is_none_for_another() {
    let identity = Identity::ephemeral();
    let signed = Signed::new("one thing", &[1, 2], &identity).unwrap();
    assert_eq!(signed.open::<Vec<u8>>("one thing").unwrap().1, [1, 2]);
    assert!(matches!(
        signed.open::<Vec<u8>>("another thing"),
        Err(SignedError::Forged(_))
    ));
    assert!(matches!(
        signed.open::<String>("one thing"),
        Err(SignedError::WrongBody { .. })
    ));
}

#[test]
fn a_file_of_two_servers_is_summed_up_and_their_route_is_seen() {
    let (mut first, mut second) = (Server::new(0..2), Server::new(2..4));
    let mut audit = Audit::default();
    for step in ["a", "b"] {
        audit.line(&line(step, &first.step(1, 2))).unwrap();
        audit.line(&line(step, &second.step(2, 3))).unwrap();
    }
    assert_eq!((audit.lines(), audit.links()), (4, 2));
    let summary = &audit.peers()[&second.identity.peer_id().to_string()];
    assert_eq!((summary.sessions, summary.steps, summary.tokens), (1, 2, 2));
    assert_eq!(summary.blocks.iter().next(), Some(&("M-hf".to_owned(), 2, 4)));
}

#[test]
fn the_first_wrong_line_of_a_file_is_named() {
    let (mut first, mut second) = (Server::new(0..2), Server::new(2..4));
    let chain: Vec<String> = (0..3).map(|i| line(&i.to_string(), &first.step(i, i + 1))).collect();
    let gap = [chain[0].clone(), chain[2].clone()];
    let (at, why) = wrong(&gap);
    assert_eq!(at, 2);
    assert_eq!(why, "receipt 2 of session s where 1 should be: some are missing");
    assert!(wrong(&chain[1..]).1.contains("some are missing"));
    let doubled = [chain[0].clone(), chain[1].clone(), chain[1].clone()];
    assert_eq!(wrong(&doubled), (3, "receipt 1 of session s is there twice".to_owned()));
    let forged = chain[1].replace("\"tokens\":1", "\"tokens\":9");
    let (at, why) = wrong(&[chain[0].clone(), forged]);
    assert_eq!(at, 2);
    assert!(why.starts_with("the signature is not that of"), "{why}");
    let torn = chain[1][..chain[1].len() / 2].to_owned();
    let (at, why) = wrong(&[chain[0].clone(), torn]);
    assert_eq!((at, &why[..13]), (2, "not a receipt"));
    let other = line("0", &second.step(9, 9));
    let (at, why) = wrong(&[chain[0].clone(), other]);
    assert_eq!(at, 2);
    assert_eq!(why, "what went into blocks 2:4 is not what came out of 0:2 (line 1)");
}

#[tokio::test]
async fn receipts_are_in_the_file_when_the_tasks_have_stopped_and_a_torn_line_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("receipts");
    let mut server = Server::new(0..2);
    for torn in ["", "{\"step\":\"to"] {
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, before + torn).unwrap();
        let tasks = Tasks::new();
        let keeper = Keeper::open(&path, &tasks).unwrap();
        for step in 0..300 {
            let receipt = Signed::parse(server.step(1, 2).as_bytes()).unwrap();
            keeper.keep(&step.to_string(), &receipt).await;
        }
        assert!(tasks.shutdown().await);
    }
    let text = fs::read_to_string(&path).unwrap();
    let mut audit = Audit::default();
    text.lines().for_each(|line| audit.line(line).unwrap());
    assert_eq!(audit.lines(), 600);
}

#[cfg(unix)]
#[tokio::test]
async fn the_file_is_for_its_owner_only_and_one_that_cannot_be_opened_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (path, tasks) = (folder.path().join("receipts"), Tasks::new());
    drop(Keeper::open(&path, &tasks).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(folder.path().join("letter"), "Dear all").unwrap();
    assert!(Keeper::open(&folder.path().join("letter"), &tasks).is_err());
    assert_eq!(fs::read_to_string(folder.path().join("letter")).unwrap(), "Dear all");
    let error = Keeper::open(folder.path(), &tasks).unwrap_err().to_string();
    assert!(error.contains(&folder.path().display().to_string()), "{error}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_holds_nobody_up() {
    let tasks = Tasks::new();
    let keeper = Keeper::open(std::path::Path::new("/dev/full"), &tasks).unwrap();
    let receipt = Signed::parse(Server::new(0..2).step(1, 2).as_bytes()).unwrap();
    for step in 0..3000 {
        keeper.keep(&step.to_string(), &receipt).await;
    }
    assert!(tasks.shutdown().await);
}

#[test]
fn receipts_are_as_their_schema_says() {
    let mut server = Server::new(0..2);
    for receipt in [server.step(1, 2), server.step(3, 4)] {
        let value: serde_json::Value = serde_json::from_str(&receipt).unwrap();
        assert!(schemas::is_valid("signed", &value), "{receipt}");
        assert!(schemas::is_valid("step_receipt", &value["body"]), "{receipt}");
        let mut longer = value["body"].clone();
        longer["more"] = 1.into();
        assert!(!schemas::is_valid("step_receipt", &longer));
    }
}
