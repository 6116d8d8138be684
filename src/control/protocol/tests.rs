//! The lines of the protocol as its documentation says them, and back.

use super::*;

#[test]
fn lines_read_as_the_documentation_says() {
    for (text, request) in [
        (r#"{"v":1,"ask":"status"}"#, Request::Status),
        (
            r#"{"v":1,"ask":"drain","timeout_s":60.0}"#,
            Request::Drain { timeout_s: Some(60.0) },
        ),
        (
            r#"{"v":1,"ask":"watch","period_s":1.0}"#,
            Request::Watch { period_s: 1.0 },
        ),
        (
            r#"{"v":1,"ask":"disconnect","swarm":"friends","timeout_s":null}"#,
            Request::Disconnect {
                swarm: "friends".to_owned(),
                timeout_s: None,
            },
        ),
    ] {
        assert_eq!(Request::read(text.as_bytes()).unwrap(), request);
        assert_eq!(String::from_utf8(request.line()).unwrap(), format!("{text}\n"));
    }
    // What a client may leave out, and fields of later versions.
    let asked = br#"{"v":1,"ask":"connect","addresses":["ADDR"]}"#;
    let connect = Connect {
        addresses: vec!["ADDR".to_owned()],
        ..Connect::default()
    };
    assert_eq!(Request::read(asked).unwrap(), Request::Connect(connect));
    let asked = br#"{"v":0,"ask":"drain","urgent":true}"#;
    assert_eq!(Request::read(asked).unwrap(), Request::Drain { timeout_s: None });
    let change = Change {
        before: State::Online,
        now: State::Draining,
        sessions: 2,
        announced: true,
    };
    let line = String::from_utf8(Answer::State(change).line()).unwrap();
    assert_eq!(
        line.trim_end(),
        r#"{"v":1,"answer":"state","before":"online","now":"draining","sessions":2,"announced":true}"#
    );
}

#[test]
fn what_is_not_understood_is_answered_with_the_reason() {
    let code = |line: &[u8]| match *Request::read(line).unwrap_err() {
        Answer::Failed { code, message } => (code, message),
        other => panic!("{other:?}"),
    };
    let (wrong, text) = code(br#"{"v":1,"ask":"dance"}"#);
    assert_eq!(wrong, FailureCode::BadRequest);
    assert!(text.contains("dance") && text.contains("status"), "{text}");
    assert_eq!(code(b"hello").0, FailureCode::BadRequest);
    assert_eq!(code(br#"{"ask":"status"}"#).0, FailureCode::BadRequest);
    let (later, text) = code(br#"{"v":2,"ask":"dance"}"#);
    assert_eq!(later, FailureCode::Version);
    assert!(text.contains("version 1"), "{text}");
}

#[test]
fn answers_come_back_as_they_were() {
    let status = Status {
        models: vec![ModelRow::default()],
        errors: vec![LogRow::default()],
        ..Status::default()
    };
    for answer in [
        Answer::Status(Box::new(status)),
        Answer::Peers {
            peers: vec![PeerRow::default()],
        },
        Answer::Swarms {
            swarms: vec![SwarmRow::default()],
        },
        Answer::Swarm(Box::default()),
        Answer::failed(FailureCode::Busy, "later"),
    ] {
        let read: Answered = serde_json::from_slice(&answer.line()).unwrap();
        assert_eq!(read, Answered { v: VERSION, answer });
    }
}

#[test]
fn answers_of_a_node_that_runs_an_older_program_are_read() {
    // As they were before a node could be in several swarms.
    let tokens = r#"{"total":0,"per_second":0.0,"per_second_mean":0.0}"#;
    let session = format!(
        r#"{{"prefix":"demo-hf","number":1,"id":null,"peer_id":"b","blocks":"0:4","batch":1,"position":3,"max_length":64,
        "age_s":1.0,"idle_s":0.0,"tokens":{tokens}}}"#
    );
    let peer = r#"{"peer_id":"b","address":"/ip4/192.0.2.1/tcp/1","relayed":false,"dialed":true,"connected_s":1.0,
        "rtt_s":null,"serves":[],"agent":null}"#;
    let status = format!(
        r#""node":{{"name":"a","peer_id":"a","command":"serve","pid":7,"version":"0.1.0","state":"online","models":[]}},
        "state":"online","uptime_s":1.0,"addresses":[],"reachable":null,"models":[],"sessions":1,"queued":0,
        "tokens":{tokens},"peers":1,"peers_relayed":0,"log":"info","errors":[]"#
    );
    let read = |answer: &str, fields: &str| {
        let line = format!(r#"{{"v":1,"answer":"{answer}",{fields}}}"#);
        let read: Answered = serde_json::from_str(&line).unwrap();
        read.answer
    };
    let Answer::Status(alone) = read("status", &status) else {
        panic!("no status");
    };
    assert_eq!((alone.sessions, alone.swarms.len()), (1, 0));
    let rows = format!(r#""sessions":[{session}],"peers":[{peer}]"#);
    for (answer, fields) in [
        ("sessions", rows.clone()),
        ("peers", rows.clone()),
        ("picture", format!(r#""status":{{{status}}},{rows}"#)),
    ] {
        let swarms: Vec<u32> = match read(answer, &fields) {
            Answer::Sessions { sessions } => sessions.iter().map(|row| row.swarm).collect(),
            Answer::Peers { peers } => peers.iter().map(|row| row.swarm).collect(),
            Answer::Picture(picture) => {
                let sessions = picture.sessions.iter().map(|row| row.swarm);
                sessions.chain(picture.peers.iter().map(|row| row.swarm)).collect()
            }
            other => panic!("{other:?}"),
        };
        assert!(
            !swarms.is_empty() && swarms.iter().all(|swarm| *swarm == HOME),
            "{answer}: {swarms:?}"
        );
    }
}
