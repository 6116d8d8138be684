//! A stream, and a multiplexer of streams, whose bytes wait for their time on the line of the host (`bandwidth.rs`). It
//! buffers nothing: whoever reads or writes is told to come back.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use tokio::time::Sleep;

use super::bandwidth::{Bandwidth, Line, Way};

/// A stream that keeps to the line.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    inner: S,
    up: Turn,
    down: Turn,
}

/// One way of a stream.
#[derive(Debug)]
struct Turn {
    way: Way,
    bandwidth: Bandwidth,
    line: Option<Arc<Line>>,
    /// Until when nothing is moved.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Turn {
    fn new(way: Way, bandwidth: &Bandwidth) -> Self {
        Self {
            way,
            bandwidth: bandwidth.clone(),
            line: bandwidth.line(way),
            pause: None,
        }
    }

    /// How much may be moved, once it may.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(self.line.as_ref().map_or(usize::MAX, |line| line.piece()))
    }

    fn moved(&mut self, bytes: usize) {
        self.bandwidth.count(self.way, bytes);
        let wait = self.line.as_ref().and_then(|line| line.moved(bytes, Instant::now()));
        self.pause = wait.map(|wait| Box::pin(tokio::time::sleep(wait)));
    }
}

impl<S> Paced<S> {
    pub(crate) fn new(inner: S, bandwidth: &Bandwidth) -> Self {
        Self {
            inner,
            up: Turn::new(Way::Up, bandwidth),
            down: Turn::new(Way::Down, bandwidth),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let most = ready!(self.down.poll(cx)).min(buf.len());
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf[..most]))?;
        self.down.moved(read);
        Poll::Ready(Ok(read))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let most = ready!(self.up.poll(cx)).min(buf.len());
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &buf[..most]))?;
        self.up.moved(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// A multiplexed connection over something that cannot be paced itself, such as the datagrams of QUIC: its streams are.
#[derive(Debug)]
pub(crate) struct PacedMuxer<M> {
    inner: M,
    bandwidth: Bandwidth,
}

impl<M> PacedMuxer<M> {
    pub(crate) fn new(inner: M, bandwidth: Bandwidth) -> Self {
        Self { inner, bandwidth }
    }
}

impl<M: StreamMuxer + Unpin> StreamMuxer for PacedMuxer<M>
where
    M::Substream: Unpin,
{
    type Substream = Paced<M::Substream>;
    type Error = M::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_inbound(cx))?;
        Poll::Ready(Ok(Paced::new(stream, &self.bandwidth)))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_outbound(cx))?;
        Poll::Ready(Ok(Paced::new(stream, &self.bandwidth)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}
