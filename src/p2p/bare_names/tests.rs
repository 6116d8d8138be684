//! Tests of the name rewriter on the bytes of real negotiations.

use super::*;

fn message(text: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_length(&mut out, text.len() + 1);
    out.put_slice(text.as_bytes());
    out.put_u8(b'\n');
    out.to_vec()
}

fn messages(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(|text| message(text)).collect()
}

fn drain(buffer: &mut BytesMut) -> Vec<u8> {
    buffer.split().to_vec()
}

const MULTISTREAM: &str = "/multistream/1.0.0";

#[test]
fn a_dialer_proposes_the_bare_name_and_reads_its_own_spelling_back() {
    let mut rewriter = Rewriter::new(Role::Dialer);
    rewriter.sent(&messages(&[MULTISTREAM, "/hm/DHTProtocol.rpc_ping"]));
    assert_eq!(
        drain(rewriter.wire_bytes()),
        messages(&[MULTISTREAM, "DHTProtocol.rpc_ping"])
    );
    assert!(!rewriter.is_done());

    rewriter.received(&messages(&[MULTISTREAM, "DHTProtocol.rpc_ping"]));
    assert_eq!(
        drain(rewriter.local_bytes()),
        messages(&[MULTISTREAM, "/hm/DHTProtocol.rpc_ping"])
    );
    assert!(rewriter.is_done());
}

#[test]
fn data_that_a_dialer_sends_along_with_its_proposal_is_not_touched() {
    let mut rewriter = Rewriter::new(Role::Dialer);
    let mut written = messages(&[MULTISTREAM, "/hm/A.b"]);
    written.extend_from_slice(b"/hm/ is data here\n");
    rewriter.sent(&written);
    rewriter.sent(&message("/hm/still data"));

    let mut expected = messages(&[MULTISTREAM, "A.b"]);
    expected.extend_from_slice(b"/hm/ is data here\n");
    expected.extend(message("/hm/still data"));
    assert_eq!(drain(rewriter.wire_bytes()), expected);
}

#[test]
fn a_listener_holds_lazy_data_back_until_it_has_answered() {
    let mut rewriter = Rewriter::new(Role::Listener);
    let mut wire = messages(&[MULTISTREAM, "A.b"]);
    wire.extend_from_slice(b"\x05hello");
    rewriter.received(&wire);
    assert_eq!(drain(rewriter.local_bytes()), messages(&[MULTISTREAM, "/hm/A.b"]));

    rewriter.sent(&messages(&[MULTISTREAM, "/hm/A.b"]));
    assert_eq!(drain(rewriter.wire_bytes()), messages(&[MULTISTREAM, "A.b"]));
    assert_eq!(drain(rewriter.local_bytes()), b"\x05hello");
    assert!(rewriter.is_done());
}

#[test]
fn every_split_of_the_bytes_gives_the_same_result() {
    let mut wire = messages(&[MULTISTREAM, "TransformerConnectionHandler.rpc_inference"]);
    wire.extend_from_slice(b"payload");
    let answer = messages(&[MULTISTREAM, "/hm/TransformerConnectionHandler.rpc_inference"]);
    for split in 0..wire.len() {
        let mut rewriter = Rewriter::new(Role::Listener);
        rewriter.received(&wire[..split]);
        rewriter.received(&wire[split..]);
        let mut read = drain(rewriter.local_bytes());
        for byte in &answer {
            rewriter.sent(&[*byte]);
        }
        read.extend(drain(rewriter.local_bytes()));
        let mut expected = answer.clone();
        expected.extend_from_slice(b"payload");
        assert_eq!(read, expected, "split at {split}");
        assert!(rewriter.is_done());
    }
}

#[test]
fn after_a_refusal_the_second_proposal_is_rewritten_too() {
    let mut listener = Rewriter::new(Role::Listener);
    listener.received(&messages(&[MULTISTREAM, "No.such"]));
    listener.sent(&messages(&[MULTISTREAM, "na"]));
    assert_eq!(drain(listener.wire_bytes()), messages(&[MULTISTREAM, "na"]));
    listener.received(&message("A.b"));
    assert_eq!(
        drain(listener.local_bytes()),
        messages(&[MULTISTREAM, "/hm/No.such", "/hm/A.b"])
    );
    listener.sent(&message("/hm/A.b"));
    assert_eq!(drain(listener.wire_bytes()), message("A.b"));
    assert!(listener.is_done());

    let mut dialer = Rewriter::new(Role::Dialer);
    dialer.sent(&messages(&[MULTISTREAM, "/hm/No.such"]));
    dialer.received(&messages(&[MULTISTREAM, "na"]));
    dialer.sent(&message("/hm/A.b"));
    assert_eq!(drain(dialer.wire_bytes()), messages(&[MULTISTREAM, "No.such", "A.b"]));
    dialer.received(&message("A.b"));
    assert_eq!(drain(dialer.local_bytes()), messages(&[MULTISTREAM, "na", "/hm/A.b"]));
    assert!(dialer.is_done());
}

#[test]
fn names_with_a_slash_pass_unchanged() {
    let mut rewriter = Rewriter::new(Role::Listener);
    rewriter.received(&messages(&[MULTISTREAM, "/ipfs/id/1.0.0"]));
    assert_eq!(
        drain(rewriter.local_bytes()),
        messages(&[MULTISTREAM, "/ipfs/id/1.0.0"])
    );
    rewriter.sent(&messages(&[MULTISTREAM, "/ipfs/id/1.0.0"]));
    assert_eq!(drain(rewriter.wire_bytes()), messages(&[MULTISTREAM, "/ipfs/id/1.0.0"]));
}

#[test]
fn a_list_of_names_is_rewritten_entry_by_entry() {
    let mut rewriter = Rewriter::new(Role::Listener);
    rewriter.received(&messages(&[MULTISTREAM, "ls"]));
    assert_eq!(drain(rewriter.local_bytes()), messages(&[MULTISTREAM, "ls"]));

    let list = |names: &[&str]| {
        let mut body = messages(names);
        body.push(b'\n');
        let mut out = BytesMut::new();
        put_length(&mut out, body.len());
        out.put_slice(&body);
        out.to_vec()
    };
    rewriter.sent(&message(MULTISTREAM));
    rewriter.sent(&list(&["/ipfs/ping/1.0.0", "/hm/A.b"]));
    let mut expected = message(MULTISTREAM);
    expected.extend(list(&["/ipfs/ping/1.0.0", "A.b"]));
    assert_eq!(drain(rewriter.wire_bytes()), expected);

    rewriter.received(&message("A.b"));
    assert_eq!(drain(rewriter.local_bytes()), message("/hm/A.b"));
}

#[test]
fn bytes_that_are_no_negotiation_are_handed_on_as_they_are() {
    for garbage in [&b"\x00\x00"[..], &b"\xff\xff\xff\xff\xff"[..], &b"\x80\x80\x01/x"[..]] {
        let mut rewriter = Rewriter::new(Role::Listener);
        rewriter.received(garbage);
        assert_eq!(drain(rewriter.local_bytes()), garbage);
        assert!(rewriter.is_done());
    }
}

#[test]
fn a_message_cut_short_by_the_end_is_handed_on() {
    let mut rewriter = Rewriter::new(Role::Listener);
    rewriter.received(b"\x13/multi");
    assert!(rewriter.local_bytes().is_empty());
    rewriter.ended();
    assert_eq!(drain(rewriter.local_bytes()), b"\x13/multi");
}

#[test]
fn the_mapping_of_names_can_be_undone() {
    for wire in ["DHTProtocol.rpc_ping", "/ipfs/kad/1.0.0", "/hm/odd", "ns::Ex.rpc_ss"] {
        assert_eq!(wire_name(&local_name(wire)), wire);
    }
    assert_eq!(local_name("/ipfs/kad/1.0.0"), "/ipfs/kad/1.0.0");
}
