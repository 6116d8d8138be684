//! Streams of messages in both directions, as Hivemind's streaming calls use them.
//!
//! The wire has one rule that surprises: neither side may close its direction while it still wants something from the
//! other. A caller ends its requests with a record (END) and keeps the stream open, because its FIN means "cancelled";
//! a callee ends its answers with FIN and sends no END, because a Python caller takes any error record for a failure.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p::Stream;
use sepal_protocol::{
    WireError,
    frame::{END, Marker, Record, RecordHeader, RecordReader},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    error::{HandlerError, StreamError, is_refused_name},
    transfer::{Progress, Transfer},
    usage::InUse,
    wire::{self, Input, Output},
};

/// Requests that are read ahead of a handler, as in Hivemind's Python. While so many wait unread, reading pauses; the
/// caller's leaving then shows only after the next of them is taken.
const PREFETCH: usize = 5;

/// The same in bytes, so that large requests are read ahead one at a time: hundreds of streams may wait. A part of a tensor
/// that Petals sends is so large.
const READ_AHEAD: usize = 4 << 20;

/// Messages up to this size are copied behind their header, which saves a multiplexer frame; larger ones are not.
const COPY_LIMIT: usize = 32 * 1024;

/// How long the last records of a handler may take to be taken by the caller.
const FINISH_TIMEOUT: Duration = Duration::from_secs(60);

/// The outgoing direction of a stream of messages.
///
/// Dropping both directions without [`StreamSender::close`] resets the stream, which cancels the call.
#[derive(Debug)]
pub struct StreamSender {
    /// Present until dropped or closed.
    output: Option<Output>,
    max_message: usize,
    ended: bool,
    last: Option<Transfer>,
    /// Where a handler's output goes when the handler drops its sender: the router says goodbye in its name.
    home: Option<oneshot::Sender<Output>>,
    /// Marks the peer as one that is being called, as long as this exists.
    _in_use: Option<InUse>,
}

impl StreamSender {
    /// Sends one message.
    ///
    /// # Errors
    ///
    /// If the message is over the limit of this call, or the stream is broken or ended.
    ///
    /// # Cancel safety
    ///
    /// A message whose sending was begun still goes out whole, with the next call of any method.
    pub async fn send(&mut self, message: Bytes) -> Result<(), StreamError> {
        if message.len() > self.max_message {
            return Err(StreamError::TooLarge {
                size: message.len(),
                limit: self.max_message,
            });
        }
        let bytes = message.len();
        let output = self.open_output()?;
        if bytes <= COPY_LIMIT {
            output.queue(Record::Message(message).encode());
        } else {
            let header = RecordHeader {
                marker: Marker::Message,
                len: bytes as u64,
            };
            output.queue(Bytes::copy_from_slice(&header.encode()));
            output.queue(message);
        }
        let started = Instant::now();
        output.flush().await.map_err(io_error)?;
        let time = started.elapsed();
        self.last = Some(Transfer { bytes, time });
        Ok(())
    }

    /// Sends one message in pieces of so many bytes, with a pause after each: what a line does that hardly carries anything,
    /// or a peer that wants others to wait.
    #[cfg(test)]
    pub(crate) async fn drip(&mut self, message: Bytes, bytes: usize, pause: Duration) -> Result<(), StreamError> {
        let record = Record::Message(message).encode();
        for piece in record.chunks(bytes) {
            let output = self.open_output()?;
            output.queue(Bytes::copy_from_slice(piece));
            output.flush().await.map_err(io_error)?;
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// The last message that was sent: how long it took until the line had taken all of it but what its buffers hold.
    pub fn last_transfer(&self) -> Option<Transfer> {
        self.last
    }

    /// Caller's side: says that no more messages follow, and keeps the stream open for the answers.
    ///
    /// # Errors
    ///
    /// If the stream is broken or already ended.
    pub async fn finish(&mut self) -> Result<(), StreamError> {
        let output = self.open_output()?;
        output.queue(Bytes::from_static(&END));
        self.ended = true;
        match &mut self.output {
            Some(output) => output.flush().await.map_err(io_error),
            None => Err(StreamError::Ended),
        }
    }

    /// Handler's side: ends the stream with an error that the caller will raise. Returning a [`HandlerError`] from the
    /// handler does the same.
    ///
    /// # Errors
    ///
    /// If the stream is broken or already ended.
    pub async fn error(mut self, text: impl Into<String>) -> Result<(), StreamError> {
        let output = self.open_output()?;
        output.queue(Record::Error(text.into()).encode());
        output.close().await.map_err(io_error)
    }

    /// Closes this direction. For a caller that is "I am done", also with the answers that have not come.
    ///
    /// # Errors
    ///
    /// If the stream is broken.
    pub async fn close(mut self) -> Result<(), StreamError> {
        match &mut self.output {
            Some(output) => output.close().await.map_err(io_error),
            None => Ok(()),
        }
    }

    fn open_output(&mut self) -> Result<&mut Output, StreamError> {
        match &mut self.output {
            Some(output) if !self.ended => Ok(output),
            _ => Err(StreamError::Ended),
        }
    }
}

impl Drop for StreamSender {
    fn drop(&mut self) {
        if let (Some(output), Some(home)) = (self.output.take(), self.home.take()) {
            // The router is gone when the call was cancelled; then the stream is reset.
            let _ = home.send(output);
        }
    }
}

/// The incoming direction of a stream of messages.
#[derive(Debug)]
pub struct StreamReceiver {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// A caller reads the wire itself.
    Wire { records: Records, done: bool },
    /// A handler gets what the router reads, because the router has to see the caller leave.
    Router(mpsc::Receiver<Result<Unread, StreamError>>),
}

/// A request that waits for its handler, and its part of what may be read ahead.
#[derive(Debug)]
struct Unread {
    message: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

/// What may be read ahead of a handler.
#[derive(Debug)]
struct Ahead {
    bytes: Arc<Semaphore>,
}

impl Ahead {
    fn new() -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(READ_AHEAD)),
        }
    }

    /// Waits until less is unread than may be.
    async fn may_read(&self) {
        // It never fails: nobody closes it.
        drop(self.bytes.acquire().await);
    }

    /// Waits until there is room for a message beside those that are unread; one that is too large for any room waits for
    /// all of it.
    async fn read(&self, message: Bytes) -> Unread {
        let bytes = message.len().min(READ_AHEAD) as u32;
        let _room = self.bytes.clone().acquire_many_owned(bytes).await.ok();
        Unread { message, _room }
    }
}

impl StreamReceiver {
    /// The next message, or `None` after the last one.
    ///
    /// For a caller the stream ends when the callee closes it. For a handler it ends with the caller's END record; if
    /// the caller leaves instead, this is [`StreamError::Cancelled`] and the handler is dropped soon.
    ///
    /// # Errors
    ///
    /// [`StreamError::Remote`] for an error record, also with an empty text (caller's side only: from a caller any such
    /// record means END); or the stream is broken, malformed, over the size limit, or the call is not served.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, StreamError> {
        match &mut self.source {
            Source::Router(queue) => {
                let unread = queue.recv().await.transpose()?;
                Ok(unread.map(|unread| unread.message))
            }
            Source::Wire { done: true, .. } => Ok(None),
            Source::Wire { records, done } => {
                let outcome = match records.next().await {
                    Ok(Some(Record::Message(message))) => return Ok(Some(message)),
                    Ok(Some(Record::Error(text))) => Err(StreamError::Remote { text }),
                    Ok(None) => Ok(None),
                    Err(error) => Err(error),
                };
                *done = true;
                outcome
            }
        }
    }

    /// Caller's side: how the last message came in; `None` if it was too small to tell.
    pub fn last_transfer(&self) -> Option<Transfer> {
        match &self.source {
            Source::Wire { records, .. } => records.last,
            Source::Router(_) => None,
        }
    }
}

/// Records cut out of the incoming bytes.
#[derive(Debug)]
struct Records {
    input: Input,
    reader: RecordReader,
    progress: Progress,
    last: Option<Transfer>,
}

impl Records {
    fn new(input: Input, max_message: usize) -> Self {
        Self {
            input,
            reader: RecordReader::new(max_message),
            progress: Progress::default(),
            last: None,
        }
    }

    /// The next record, or `None` if the stream ends between two.
    async fn next(&mut self) -> Result<Option<Record>, StreamError> {
        loop {
            if let Some(record) = self.reader.next_record().map_err(StreamError::Malformed)? {
                self.last = self.progress.end();
                return Ok(Some(record));
            }
            let bytes = self.input.read().await.map_err(io_error)?;
            if bytes.is_empty() {
                if self.reader.is_empty() {
                    return Ok(None);
                }
                return Err(StreamError::Malformed(WireError::Truncated { what: "stream record" }));
            }
            self.progress.add(bytes.len());
            self.reader.extend(bytes);
        }
    }
}

fn io_error(error: std::io::Error) -> StreamError {
    if is_refused_name(&error) {
        StreamError::UnknownName
    } else {
        StreamError::Io(error)
    }
}

/// The caller's ends of a fresh stream.
pub(crate) fn caller(stream: Stream, max_message: usize, in_use: InUse) -> (StreamSender, StreamReceiver) {
    let (input, output) = wire::split(stream);
    let sender = StreamSender {
        output: Some(output),
        max_message,
        ended: false,
        last: None,
        home: None,
        _in_use: Some(in_use),
    };
    let source = Source::Wire {
        records: Records::new(input, max_message),
        done: false,
    };
    (sender, StreamReceiver { source })
}

/// How a served stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// The handler returned, with or without an error, and the caller took everything.
    Finished,
    /// The caller left or sent garbage; the handler was dropped.
    Cancelled,
}

/// Serves one call: runs `handler` while reading requests for it, and drops it when the caller leaves.
pub(crate) async fn serve<F, Fut>(stream: Stream, max_message: usize, handler: F) -> Served
where
    F: FnOnce(StreamReceiver, StreamSender) -> Fut,
    Fut: Future<Output = Result<(), HandlerError>>,
{
    let (input, output) = wire::split(stream);
    let (requests, queue) = mpsc::channel(PREFETCH);
    let (home, mut returned) = oneshot::channel();
    let receiver = StreamReceiver {
        source: Source::Router(queue),
    };
    let sender = StreamSender {
        output: Some(output),
        max_message,
        ended: false,
        last: None,
        home: Some(home),
        _in_use: None,
    };
    let mut records = Records::new(input, max_message);
    let ended = {
        let run = async {
            let result = handler(receiver, sender).await;
            // The output comes back when the last owner of the sender is done with it.
            (result, (&mut returned).await.ok())
        };
        tokio::select! {
            biased;
            left = feed(&mut records, requests) => Err(left),
            ended = run => Ok(ended),
        }
    };
    let (result, mut output) = match ended {
        Ok(ended) => ended,
        Err(Left::Gone) => return Served::Cancelled,
        Err(Left::Garbage) => {
            // A daemon closes its side then, without an error record.
            if let Ok(mut output) = returned.try_recv() {
                let _ = tokio::time::timeout(FINISH_TIMEOUT, output.abandon()).await;
            }
            return Served::Cancelled;
        }
    };
    let Some(output) = &mut output else {
        return Served::Finished;
    };
    if let Err(HandlerError(text)) = result {
        output.queue(Record::Error(text).encode());
    }
    match tokio::time::timeout(FINISH_TIMEOUT, output.close()).await {
        Ok(Ok(())) => Served::Finished,
        _ => Served::Cancelled,
    }
}

/// Refuses a call with a reason, without reading it.
pub(crate) async fn refuse(stream: Stream, reason: &str) {
    let (_input, mut output) = wire::split(stream);
    output.queue(Record::Error(reason.to_owned()).encode());
    let _ = tokio::time::timeout(super::unary::REFUSAL_TIMEOUT, output.close()).await;
}

/// Why there are no more requests.
enum Left {
    /// The caller closed or reset the stream, or sent something after END.
    Gone,
    /// What came is no record.
    Garbage,
}

/// Hands requests to a handler until the caller is gone: its FIN, its reset, garbage, or anything after END.
async fn feed(records: &mut Records, requests: mpsc::Sender<Result<Unread, StreamError>>) -> Left {
    let ahead = Ahead::new();
    loop {
        ahead.may_read().await;
        let (error, left) = match records.next().await {
            Ok(Some(Record::Message(message))) => {
                // A handler that dropped its receiver reads no more; go on watching for the caller to leave.
                let _ = requests.send(Ok(ahead.read(message).await)).await;
                continue;
            }
            Ok(Some(Record::Error(_))) => break,
            Ok(None) | Err(StreamError::Io(_)) => (StreamError::Cancelled, Left::Gone),
            Err(error) => (error, Left::Garbage),
        };
        let _ = requests.try_send(Err(error));
        return left;
    }
    drop(requests);
    records.input.any_event().await;
    Left::Gone
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn small_requests_are_read_ahead_and_large_ones_one_at_a_time() {
        let (ahead, mut unread) = (Ahead::new(), Vec::new());
        let read = |bytes: usize| {
            let may_read = ahead.may_read().now_or_never().is_some();
            may_read.then(|| ahead.read(vec![0; bytes].into()).now_or_never())
        };
        for _ in 0..PREFETCH {
            unread.extend(read(64 << 10).flatten());
        }
        assert_eq!(unread.len(), PREFETCH);
        assert!(
            read(READ_AHEAD).is_some_and(|unread| unread.is_none()),
            "it waits for them"
        );
        unread.clear();
        unread.extend(read(2 * READ_AHEAD).flatten());
        assert_eq!(unread.len(), 1, "nothing is too large");
        assert!(read(0).is_none(), "not even looked at");
        unread.clear();
        assert!(read(0).flatten().is_some());
    }
}
