//! Puts the name rewriter around every substream of a connection, whatever multiplexer is underneath.
//!
//! It is installed as the multiplexer upgrade ([`BareNames`]), or around a connection that brings its own multiplexer
//! (QUIC's, [`Muxer`]), so that nothing above it (swarm, identify, kad) knows of it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::Buf;
use futures::{
    AsyncRead, AsyncWrite, TryFutureExt,
    future::MapOk,
    io::{IoSlice, IoSliceMut},
};
use libp2p::core::{
    muxing::{StreamMuxer, StreamMuxerEvent},
    upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo},
};

use super::bare_names::{Rewriter, Role};

/// How much is read from the wire at once while names are negotiated, bytes. A negotiation is about a hundred.
const NEGOTIATION_READ: usize = 1024;

/// How much of one write is taken into the rewriter, bytes. Lazily sent data passes through it until the name is accepted.
const MAX_WRITE: usize = 64 * 1024;

/// A multiplexer upgrade whose substreams speak slash-less names.
#[derive(Clone, Debug)]
pub(crate) struct BareNames<U>(pub(crate) U);

impl<U: UpgradeInfo> UpgradeInfo for BareNames<U> {
    type Info = U::Info;
    type InfoIter = U::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.protocol_info()
    }
}

impl<C, U: InboundConnectionUpgrade<C>> InboundConnectionUpgrade<C> for BareNames<U> {
    type Output = Muxer<U::Output>;
    type Error = U::Error;
    type Future = MapOk<U::Future, fn(U::Output) -> Muxer<U::Output>>;

    fn upgrade_inbound(self, socket: C, info: Self::Info) -> Self::Future {
        self.0.upgrade_inbound(socket, info).map_ok(Muxer)
    }
}

impl<C, U: OutboundConnectionUpgrade<C>> OutboundConnectionUpgrade<C> for BareNames<U> {
    type Output = Muxer<U::Output>;
    type Error = U::Error;
    type Future = MapOk<U::Future, fn(U::Output) -> Muxer<U::Output>>;

    fn upgrade_outbound(self, socket: C, info: Self::Info) -> Self::Future {
        self.0.upgrade_outbound(socket, info).map_ok(Muxer)
    }
}

/// A multiplexed connection whose substreams are wrapped.
#[derive(Debug)]
pub(crate) struct Muxer<M>(pub(crate) M);

impl<M> StreamMuxer for Muxer<M>
where
    M: StreamMuxer + Unpin,
    M::Substream: Unpin,
{
    type Substream = Substream<M::Substream>;
    type Error = M::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.0).poll_inbound(cx))?;
        Poll::Ready(Ok(Substream::new(stream, Role::Listener)))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.0).poll_outbound(cx))?;
        Poll::Ready(Ok(Substream::new(stream, Role::Dialer)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.0).poll_close(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// A substream that rewrites names until one is agreed on, and then only passes bytes.
#[derive(Debug)]
pub(crate) struct Substream<S> {
    inner: S,
    /// `None` once the name is agreed on and nothing is left in the buffers.
    rewriter: Option<Rewriter>,
    /// A reader that waits for our own answer to a proposal.
    held_reader: Option<Waker>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Substream<S> {
    fn new(inner: S, role: Role) -> Self {
        Self {
            inner,
            rewriter: Some(Rewriter::new(role)),
            held_reader: None,
        }
    }

    /// Drops the rewriter when it has nothing left to do.
    fn retire(&mut self) {
        if let Some(rewriter) = &mut self.rewriter
            && rewriter.is_done()
            && rewriter.wire_bytes().is_empty()
            && rewriter.local_bytes().is_empty()
        {
            self.rewriter = None;
        }
    }

    /// Writes out everything that was rewritten.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(rewriter) = &mut self.rewriter {
            let out = rewriter.wire_bytes();
            while !out.is_empty() {
                let n = ready!(Pin::new(&mut self.inner).poll_write(cx, out))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                out.advance(n);
            }
        }
        self.retire();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Substream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            let Some(rewriter) = &mut this.rewriter else {
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            };
            let ready_bytes = rewriter.local_bytes();
            if !ready_bytes.is_empty() {
                let n = ready_bytes.len().min(buf.len());
                ready_bytes.copy_to_slice(&mut buf[..n]);
                this.retire();
                return Poll::Ready(Ok(n));
            }
            if rewriter.is_done() {
                // Only what we still have to write keeps the rewriter; reading no longer needs it.
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            if rewriter.holds_inbound() {
                this.held_reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let mut chunk = [0; NEGOTIATION_READ];
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut chunk))? {
                0 => {
                    rewriter.ended();
                    if rewriter.local_bytes().is_empty() {
                        return Poll::Ready(Ok(0));
                    }
                }
                n => rewriter.received(&chunk[..n]),
            }
        }
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.rewriter.is_none() {
            return Pin::new(&mut self.inner).poll_read_vectored(cx, bufs);
        }
        match bufs.iter_mut().find(|buf| !buf.is_empty()) {
            Some(buf) => self.poll_read(cx, buf),
            None => Poll::Ready(Ok(0)),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Substream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        let this = &mut *self;
        match &mut this.rewriter {
            Some(rewriter) if !rewriter.is_done() => {
                let taken = &buf[..buf.len().min(MAX_WRITE)];
                rewriter.sent(taken);
                if let Some(reader) = this.held_reader.take() {
                    reader.wake();
                }
                // Pending here is fine: the bytes are ours now and go out with the next write, flush or close.
                if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(Ok(taken.len()))
            }
            _ => Pin::new(&mut this.inner).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.rewriter.is_none() {
            return Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        }
        match bufs.iter().find(|buf| !buf.is_empty()) {
            Some(buf) => self.poll_write(cx, buf),
            None => Poll::Ready(Ok(0)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
