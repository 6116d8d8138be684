//! Hivemind's protocol names, made acceptable to libp2p: a pure rewriter of the multistream-select messages of one substream.
//!
//! Hivemind uses names without a leading slash (`DHTProtocol.rpc_ping`) as libp2p protocol ids. Go accepts them;
//! rust-libp2p refuses any name that does not start with `/`, when it proposes and when it listens. So on our side of
//! the socket such a name is spelled `/hm/NAME`, and this rewriter turns one spelling into the other while a substream
//! negotiates. Once a name is agreed on, bytes pass untouched.
//!
//! This file knows no sockets; `muxer.rs` feeds it.

use bytes::{Buf, BufMut, BytesMut};

/// What a slash-less name starts with on our side.
const PREFIX: &str = "/hm/";
/// The first message of either side.
const HEADER: &[u8] = b"/multistream/1.0.0\n";
/// "I do not speak that one": the proposer may try another name.
const NOT_AVAILABLE: &[u8] = b"na\n";
/// "Which names do you speak?"
const LIST: &[u8] = b"ls\n";
/// Longest negotiation message, the limit of rust-libp2p's parser (two bytes of length). Anything longer is left to it to refuse.
const MAX_MESSAGE: usize = (1 << 14) - 1;

/// The name as rust-libp2p sees it, from the name on the wire.
///
/// A wire name that already starts with `/hm/` is prefixed too, so that the mapping can always be undone.
pub(crate) fn local_name(wire: &str) -> String {
    if is_bare(wire.as_bytes()) {
        format!("{PREFIX}{wire}")
    } else {
        wire.to_owned()
    }
}

/// The name on the wire, from the name as rust-libp2p sees it.
pub(crate) fn wire_name(local: &str) -> &str {
    local.strip_prefix(PREFIX).unwrap_or(local)
}

fn is_bare(name: &[u8]) -> bool {
    !name.starts_with(b"/") || name.starts_with(PREFIX.as_bytes())
}

/// Which side of a substream we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// We opened it and propose names.
    Dialer,
    /// The remote opened it; we answer proposals.
    Listener,
}

/// One direction of a substream: bytes that are not yet a whole message, and bytes ready to go on.
#[derive(Debug, Default)]
struct Half {
    partial: BytesMut,
    ready: BytesMut,
}

impl Half {
    /// Hands on everything as it is.
    fn release(&mut self) {
        let rest = self.partial.split();
        self.ready.unsplit(rest);
    }

    fn emit(&mut self, message: &[u8]) {
        put_length(&mut self.ready, message.len());
        self.ready.put_slice(message);
    }
}

/// How far the negotiation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The proposer's next message is a name (or the header, or a request for the list).
    Proposing,
    /// A name was proposed. What a dialer writes now is data sent in the hope of a yes (libp2p's `V1Lazy`).
    Awaiting,
    /// The list was asked for; the answer is a list of names.
    Listing,
    /// Agreed, or not understood: bytes pass as they are.
    Done,
}

/// Rewrites one substream. Feed it with [`Rewriter::sent`] and [`Rewriter::received`], drain the two outputs.
#[derive(Debug)]
pub(crate) struct Rewriter {
    role: Role,
    phase: Phase,
    proposer: Half,
    responder: Half,
}

impl Rewriter {
    pub(crate) fn new(role: Role) -> Self {
        Self {
            role,
            phase: Phase::Proposing,
            proposer: Half::default(),
            responder: Half::default(),
        }
    }

    /// Bytes that our side wrote; what they become is in [`Rewriter::wire_bytes`].
    pub(crate) fn sent(&mut self, bytes: &[u8]) {
        self.outward().partial.put_slice(bytes);
        self.advance();
    }

    /// Bytes that came from the wire; what they become is in [`Rewriter::local_bytes`].
    pub(crate) fn received(&mut self, bytes: &[u8]) {
        self.inward().partial.put_slice(bytes);
        self.advance();
    }

    /// The wire will send no more: whatever is held back is handed on as it is.
    pub(crate) fn ended(&mut self) {
        self.inward().release();
    }

    /// Bytes to be written to the wire.
    pub(crate) fn wire_bytes(&mut self) -> &mut BytesMut {
        &mut self.outward().ready
    }

    /// Bytes to be read by our side.
    pub(crate) fn local_bytes(&mut self) -> &mut BytesMut {
        &mut self.inward().ready
    }

    /// Whether bytes in both directions may bypass the rewriter once the outputs are drained.
    pub(crate) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Whether bytes from the wire are held back until we answer a proposal. A reader need not read more before that.
    pub(crate) fn holds_inbound(&self) -> bool {
        self.role == Role::Listener && matches!(self.phase, Phase::Awaiting | Phase::Listing)
    }

    fn outward(&mut self) -> &mut Half {
        match self.role {
            Role::Dialer => &mut self.proposer,
            Role::Listener => &mut self.responder,
        }
    }

    fn inward(&mut self) -> &mut Half {
        match self.role {
            Role::Dialer => &mut self.responder,
            Role::Listener => &mut self.proposer,
        }
    }

    fn advance(&mut self) {
        while self.advance_proposer() || self.advance_responder() {}
        if self.phase == Phase::Done {
            self.proposer.release();
            self.responder.release();
        }
    }

    /// Handles one message of the proposer. Returns whether there was one.
    fn advance_proposer(&mut self) -> bool {
        match self.phase {
            Phase::Done => return false,
            Phase::Awaiting | Phase::Listing => {
                // A listener decides on one proposal before it reads on, so what follows waits here; see `Phase`.
                if self.role == Role::Dialer {
                    self.proposer.release();
                }
                return false;
            }
            Phase::Proposing => {}
        }
        match take_message(&mut self.proposer.partial) {
            Taken::Incomplete => false,
            Taken::Garbage => self.give_up(),
            Taken::Message(message) => {
                if message != HEADER {
                    self.phase = if message == LIST {
                        Phase::Listing
                    } else {
                        Phase::Awaiting
                    };
                }
                let rewritten = translate(self.role == Role::Listener, &message);
                self.proposer.emit(&rewritten);
                true
            }
        }
    }

    /// Handles one message of the responder. Returns whether there was one.
    fn advance_responder(&mut self) -> bool {
        if self.phase == Phase::Done {
            return false;
        }
        let message = match take_message(&mut self.responder.partial) {
            Taken::Incomplete => return false,
            Taken::Garbage => return self.give_up(),
            Taken::Message(message) => message,
        };
        let inbound = self.role == Role::Dialer;
        if message == HEADER || message == NOT_AVAILABLE {
            self.responder.emit(&message);
            if message == NOT_AVAILABLE {
                self.phase = Phase::Proposing;
            }
        } else if self.phase == Phase::Listing {
            self.responder.emit(&translate_list(inbound, &message));
            self.phase = Phase::Proposing;
        } else {
            self.responder.emit(&translate(inbound, &message));
            self.phase = Phase::Done;
        }
        true
    }

    /// Not multistream-select: libp2p's own parser sees the bytes as they are and refuses them.
    fn give_up(&mut self) -> bool {
        self.phase = Phase::Done;
        false
    }
}

/// One name message (with its final newline) in the other spelling.
fn translate(inbound: bool, message: &[u8]) -> BytesMut {
    let mut out = BytesMut::with_capacity(message.len() + PREFIX.len());
    if !inbound {
        out.put_slice(message.strip_prefix(PREFIX.as_bytes()).unwrap_or(message));
        return out;
    }
    let is_word = message == HEADER || message == NOT_AVAILABLE || message == LIST;
    if !is_word && is_bare(message) {
        out.put_slice(PREFIX.as_bytes());
    }
    out.put_slice(message);
    out
}

/// The answer to `ls`: length-prefixed names, then a newline. Left as it is when it is not that.
fn translate_list(inbound: bool, message: &[u8]) -> BytesMut {
    let mut names = BytesMut::from(message);
    let mut out = BytesMut::new();
    while names != b"\n"[..] {
        let Taken::Message(name) = take_message(&mut names) else {
            return BytesMut::from(message);
        };
        let name = translate(inbound, &name);
        put_length(&mut out, name.len());
        out.put_slice(&name);
    }
    out.put_u8(b'\n');
    out
}

enum Taken {
    /// More bytes are needed.
    Incomplete,
    /// No negotiation message starts like this.
    Garbage,
    Message(BytesMut),
}

/// Cuts one length-prefixed message off the front of `bytes`.
fn take_message(bytes: &mut BytesMut) -> Taken {
    let (length, prefix) = match bytes.as_ref() {
        [] => return Taken::Incomplete,
        [low, ..] if low & 0x80 == 0 => (usize::from(*low), 1),
        [_] => return Taken::Incomplete,
        [low, high, ..] if high & 0x80 == 0 => (usize::from(low & 0x7f) | usize::from(*high) << 7, 2),
        _ => return Taken::Garbage,
    };
    if length == 0 {
        return Taken::Garbage;
    }
    if bytes.len() < prefix + length {
        return Taken::Incomplete;
    }
    bytes.advance(prefix);
    Taken::Message(bytes.split_to(length))
}

/// Writes a length as an unsigned varint.
fn put_length(out: &mut BytesMut, mut length: usize) {
    debug_assert!(length <= MAX_MESSAGE + PREFIX.len(), "negotiation messages are short");
    while length >= 0x80 {
        out.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
}

#[cfg(test)]
mod tests;
