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
