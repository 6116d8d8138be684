//! Unary calls: one request, one answer, one stream. Both sides of it, next to each other.
//!
//! Rules of Hivemind's daemon that shape this file: the caller must not close its side before it has the answer, because
//! a FIN (or a reset, or any surplus byte) means "cancelled"; a request over 4 MiB makes the callee stop reading without
//! a word; a request it cannot read is answered by closing the stream.

use std::{future::Future, io, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use libp2p::{PeerId, Stream};
use sepal_protocol::{
    WireError,
    frame::{DelimitedReader, Marker, legacy, uvarint},
    unary::{MAX_UNARY_BODY, UnaryReply, UnaryRequest},
};

use super::{
    error::{CallError, HandlerError, OpenError, is_refused_name},
    usage::InUse,
    wire::{self, Input, Output},
};

/// How long a caller may take to get its request across, and to take the answer. A 4 MiB message at 0.5 Mbit/s.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a caller that is refused may take: it holds one of few places.
pub(crate) const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of the envelope around an answer: call id, and three tags with lengths.
const ENVELOPE_RESERVE: usize = 64;

/// Sends one request over a fresh stream. Dropping the future, or what it returns, resets the stream, which cancels the call
/// at the callee. The peer counts as used for so long.
pub(crate) async fn ask(
    stream: Stream,
    (peer, in_use): (PeerId, InUse),
    name: &str,
    data: Bytes,
) -> Result<Asked, CallError> {
    let size = data.len();
    let request = UnaryRequest {
        call_id: *uuid::Uuid::new_v4().as_bytes(),
        peer: peer.to_bytes(),
        proto: name.to_owned(),
        data,
    };
    let call_id = request.call_id;
    let frame = request.encode();
    if frame.len() > MAX_UNARY_BODY {
        return Err(too_large(size));
    }
    let (input, mut output) = wire::split(stream);
    output.queue(uvarint(frame.len() as u64));
    output.queue(frame);
    let mut asked = Asked {
        call_id,
        input,
        output,
        reader: DelimitedReader::new(MAX_UNARY_BODY),
        early: None,
        _in_use: in_use,
    };
    asked.send().await;
    Ok(asked)
}

/// A call whose request is out: the connection has taken all of it, or the answer came before.
pub(crate) struct Asked {
    call_id: [u8; 16],
    input: Input,
    output: Output,
    reader: DelimitedReader,
    /// What was read while the request was sent.
    early: Option<Result<Option<Frame>, ReadError>>,
    _in_use: InUse,
}

impl Asked {
    /// Sends what is queued while reading one frame. Reading goes on while writing: a callee that refuses a request stops
    /// reading it, and then only its FIN tells.
    async fn send(&mut self) {
        let mut sent = std::pin::pin!(self.output.flush());
        tokio::select! {
            biased;
            read = read_frame(&mut self.input, &mut self.reader) => self.early = Some(read),
            // Even after a failed write an answer may have arrived before.
            _ = &mut sent => {}
        }
    }

    /// Waits for the answer.
    pub(crate) async fn answer(mut self) -> Result<Bytes, CallError> {
        let read = match self.early.take() {
            Some(read) => read,
            None => read_frame(&mut self.input, &mut self.reader).await,
        };
        let reply = reply_of(read)?;
        // The answer is here; whether the goodbye arrives does not matter.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.output.close()).await;
        let reply = UnaryReply::decode(reply).map_err(CallError::Malformed)?;
        if reply.call_id != self.call_id {
            return Err(CallError::Malformed(WireError::OutOfRange {
                what: "unary reply",
                field: "the call id",
                expected: "that of the request",
            }));
        }
        reply.result.map_err(|text| CallError::Remote { text })
    }
}

/// Whether a request of `size` bytes is refused without sending it.
pub(crate) fn check_size(size: usize) -> Result<(), CallError> {
    if size > MAX_UNARY_BODY {
        Err(too_large(size))
    } else {
        Ok(())
    }
}

fn too_large(size: usize) -> CallError {
    CallError::TooLarge {
        size,
        limit: MAX_UNARY_BODY,
    }
}

fn reply_of(read: Result<Option<Frame>, ReadError>) -> Result<Bytes, CallError> {
    match read {
        Ok(Some(frame)) => Ok(frame.body),
        Ok(None) => Err(CallError::NoAnswer),
        Err(ReadError::Wire(error)) => Err(CallError::Malformed(error)),
        Err(ReadError::Io(error)) if is_refused_name(&error) => Err(CallError::Open(OpenError::UnknownName)),
        Err(ReadError::Io(error)) => Err(CallError::Io(error)),
    }
}

enum ReadError {
    Wire(WireError),
    Io(io::Error),
}

/// The only frame of a direction.
struct Frame {
    body: Bytes,
    /// Whether more bytes came along behind it.
    surplus: bool,
}

/// One delimited frame, or `None` if the stream ends before it does. Nothing is lost when the future is dropped.
async fn read_frame(input: &mut Input, reader: &mut DelimitedReader) -> Result<Option<Frame>, ReadError> {
    loop {
        let bytes = input.read().await.map_err(ReadError::Io)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        reader.extend(bytes);
        if let Some(body) = reader.next_frame().map_err(ReadError::Wire)? {
            let surplus = !reader.is_empty();
            return Ok(Some(Frame { body, surplus }));
        }
    }
}

/// What became of a call that was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// An answer or an error text was sent.
    Answered,
    /// The caller closed, reset or sent a surplus byte; the handler was dropped.
    Cancelled,
    /// The request was none, or did not arrive in time; the stream was closed without an answer.
    Unreadable,
}

/// Serves one call: reads the request, runs `handler` while watching for the caller to leave, sends the answer.
pub(crate) async fn serve<F, Fut>(stream: Stream, name: &str, handler: F) -> Served
where
    F: FnOnce(Bytes) -> Fut,
    Fut: Future<Output = Result<Bytes, HandlerError>>,
{
    let (mut input, mut output) = wire::split(stream);
    let Some(request) = read_request(&mut input, name, TRANSFER_TIMEOUT).await else {
        let _ = tokio::time::timeout(REFUSAL_TIMEOUT, output.close()).await;
        return Served::Unreadable;
    };
    let result = tokio::select! {
        biased;
        () = input.any_event() => {
            let _ = tokio::time::timeout(REFUSAL_TIMEOUT, output.close()).await;
            return Served::Cancelled;
        }
        result = handler(request.data) => result,
    };
    answer(&mut input, &mut output, request.call_id, result).await
}

/// Reads a request only to answer it with the reason why it is not served.
pub(crate) async fn refuse(stream: Stream, name: &str, reason: &str) {
    let (mut input, mut output) = wire::split(stream);
    if let Some(request) = read_request(&mut input, name, REFUSAL_TIMEOUT).await {
        let refusal = Err(HandlerError::new(reason));
        answer(&mut input, &mut output, request.call_id, refusal).await;
    }
}

async fn read_request(input: &mut Input, name: &str, timeout: Duration) -> Option<UnaryRequest> {
    let mut reader = DelimitedReader::new(MAX_UNARY_BODY);
    let frame = tokio::time::timeout(timeout, read_frame(input, &mut reader))
        .await
        .ok()?
        .ok()??;
    if frame.surplus {
        return None;
    }
    // A daemon never answers a request whose name is not the negotiated one; closing says so sooner.
    UnaryRequest::decode(frame.body)
        .ok()
        .filter(|request| request.proto == name)
}

async fn answer(
    input: &mut Input,
    output: &mut Output,
    call_id: [u8; 16],
    result: Result<Bytes, HandlerError>,
) -> Served {
    let result = match result {
        Ok(response) if response.len() > MAX_UNARY_BODY - ENVELOPE_RESERVE => Err(format!(
            "the answer of {} bytes is over the limit of {MAX_UNARY_BODY} bytes",
            response.len()
        )),
        Ok(response) => Ok(response),
        Err(HandlerError(text)) => Err(text),
    };
    output.queue(UnaryReply { call_id, result }.encode_frame());
    let sent = tokio::time::timeout(TRANSFER_TIMEOUT, output.close());
    tokio::select! {
        biased;
        sent = sent => match sent {
            Ok(Ok(())) => Served::Answered,
            _ => Served::Cancelled,
        },
        () = input.any_event() => Served::Cancelled,
    }
}

/// Serves one call in the legacy framing: the length comes first, the marker second.
pub(crate) async fn serve_legacy<F, Fut>(stream: Stream, limit: usize, handler: F) -> Served
where
    F: FnOnce(Bytes) -> Fut,
    Fut: Future<Output = Result<Bytes, HandlerError>>,
{
    let (mut input, mut output) = wire::split(stream);
    let read = tokio::time::timeout(TRANSFER_TIMEOUT, read_legacy(&mut input, limit)).await;
    let Ok(Some(request)) = read else {
        let _ = tokio::time::timeout(REFUSAL_TIMEOUT, output.close()).await;
        return Served::Unreadable;
    };
    // Askers of this protocol close their side after the request, so that is no sign of having left.
    let reply = match handler(request).await {
        Ok(body) => legacy::message(&body),
        Err(HandlerError(text)) => legacy::error(&text),
    };
    output.queue(reply);
    match tokio::time::timeout(TRANSFER_TIMEOUT, output.close()).await {
        Ok(Ok(())) => Served::Answered,
        _ => Served::Cancelled,
    }
}

/// The body of one legacy frame that carries a message.
async fn read_legacy(input: &mut Input, limit: usize) -> Option<Bytes> {
    let mut received = BytesMut::new();
    loop {
        let bytes = input.read().await.ok()?;
        if bytes.is_empty() {
            return None;
        }
        received.extend_from_slice(bytes);
        let Some(prefix) = received.first_chunk() else { continue };
        let size = legacy::decode_prefix(*prefix, limit).ok()?;
        if received.len() >= legacy::PREFIX_LEN + size {
            received.advance(legacy::PREFIX_LEN);
            let (marker, body) = legacy::split(received.split_to(size).freeze()).ok()?;
            return (marker == Marker::Message).then_some(body);
        }
    }
}
