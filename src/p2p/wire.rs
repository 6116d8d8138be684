//! Reading and writing whole frames on a libp2p stream, in a way that survives being cancelled between any two bytes.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures::{
    AsyncReadExt, AsyncWrite, AsyncWriteExt,
    io::{ReadHalf, WriteHalf},
};
use libp2p::Stream;

/// How much is read from a stream at once, bytes. A multiplexer frame carries at most 16 KiB.
const READ_CHUNK: usize = 16 * 1024;

/// Cuts the two directions of a stream apart. The stream is reset once both are dropped, unless closed before.
pub(crate) fn split(stream: Stream) -> (Input, Output) {
    let (read, write) = stream.split();
    (
        Input {
            half: read,
            chunk: vec![0; READ_CHUNK].into(),
        },
        Output {
            half: write,
            queue: VecDeque::new(),
        },
    )
}

/// The incoming direction.
#[derive(Debug)]
pub(crate) struct Input {
    half: ReadHalf<Stream>,
    chunk: Box<[u8]>,
}

impl Input {
    /// The next bytes that arrive; none at the end of the stream. Nothing is lost when the future is dropped.
    pub(crate) async fn read(&mut self) -> io::Result<&[u8]> {
        let n = self.half.read(&mut self.chunk).await?;
        Ok(&self.chunk[..n])
    }

    /// Waits until the remote closes, resets or sends anything at all.
    pub(crate) async fn any_event(&mut self) {
        let _ = self.half.read(&mut self.chunk[..1]).await;
    }
}

/// The outgoing direction. What was queued goes out in order, also when the future that was sending it is dropped: the next
/// call goes on where it stopped.
#[derive(Debug)]
pub(crate) struct Output {
    half: WriteHalf<Stream>,
    queue: VecDeque<Bytes>,
}

impl Output {
    /// Adds bytes to be sent by the next [`Output::flush`] or [`Output::close`].
    pub(crate) fn queue(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.queue.push_back(bytes);
        }
    }

    /// Sends everything queued.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_drain(cx)).await?;
        self.half.flush().await
    }

    /// Sends everything queued and closes this direction.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.half.close().await
    }

    /// Closes this direction without sending what is queued.
    pub(crate) async fn abandon(&mut self) -> io::Result<()> {
        self.queue.clear();
        self.half.close().await
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(front) = self.queue.front_mut() {
            match ready!(Pin::new(&mut self.half).poll_write(cx, front))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => front.advance(n),
            }
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}
