//! A stream, and a multiplexer of streams, whose bytes wait for their time on the line of the host (`bandwidth.rs`). It
//! buffers nothing: whoever reads or writes is told to come back.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Instant,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use tokio::time::Sleep;

use super::bandwidth::{Bandwidth, Turns, Way, YIELD};

/// A stream that keeps to the line.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    inner: S,
    up: Pace,
    down: Pace,
}

/// The turns of a connection, up and down, as far as these are limited.
type BothTurns = [Option<Arc<Mutex<Turns>>>; 2];

fn turns(bandwidth: &Bandwidth) -> BothTurns {
    [Way::Up, Way::Down].map(|way| bandwidth.turns(way).map(Mutex::new).map(Arc::new))
}

/// One way of a stream.
#[derive(Debug)]
struct Pace {
    way: Way,
    bandwidth: Bandwidth,
    /// Those of its connection.
    turns: Option<Arc<Mutex<Turns>>>,
    /// Until when nothing is moved.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// How much may be moved, once it may.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let Some(turns) = &self.turns else {
            return Poll::Ready(usize::MAX);
        };
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            // Meanwhile another stream of the connection may have had the turn.
            let room = lock(turns).room(Instant::now());
            match room {
                Ok(room) => return Poll::Ready(room),
                Err(begin) => self.pause = Some(pause_until(begin)),
            }
        }
    }

    fn moved(&mut self, bytes: usize) {
        self.bandwidth.count(self.way, bytes);
        let Some(turns) = &self.turns else { return };
        let next = lock(turns).moved(bytes, Instant::now());
        let is_shared = Arc::strong_count(turns) > 1;
        self.pause = next.map(|next| pause_until(if is_shared { next + YIELD } else { next }));
    }
}

fn lock(turns: &Mutex<Turns>) -> MutexGuard<'_, Turns> {
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pause_until(at: Instant) -> Pin<Box<Sleep>> {
    Box::pin(tokio::time::sleep_until(at.into()))
}

impl<S> Paced<S> {
    /// All there is of a connection.
    pub(crate) fn new(inner: S, bandwidth: &Bandwidth) -> Self {
        Self::one_of_many(inner, bandwidth, &turns(bandwidth))
    }

    /// A stream of the connection that has these turns.
    fn one_of_many(inner: S, bandwidth: &Bandwidth, turns: &BothTurns) -> Self {
        let pace = |way: Way| Pace {
            way,
            bandwidth: bandwidth.clone(),
            turns: turns[way as usize].clone(),
            pause: None,
        };
        Self {
            inner,
            up: pace(Way::Up),
            down: pace(Way::Down),
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

/// A multiplexed connection over something that cannot be paced itself, such as the datagrams of QUIC: its streams are, all of
/// them together.
#[derive(Debug)]
pub(crate) struct PacedMuxer<M> {
    inner: M,
    bandwidth: Bandwidth,
    turns: BothTurns,
}

impl<M> PacedMuxer<M> {
    pub(crate) fn new(inner: M, bandwidth: Bandwidth) -> Self {
        let turns = turns(&bandwidth);
        Self {
            inner,
            bandwidth,
            turns,
        }
    }

    fn paced<S>(&self, stream: S) -> Paced<S> {
        Paced::one_of_many(stream, &self.bandwidth, &self.turns)
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
        Poll::Ready(Ok(self.paced(stream)))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_outbound(cx))?;
        Poll::Ready(Ok(self.paced(stream)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures::io::{Sink, sink};

    use super::*;

    /// What comes of writing to a stream whose other end takes everything.
    fn write(stream: &mut Paced<Sink>) -> Poll<io::Result<usize>> {
        Pin::new(stream).poll_write(&mut Context::from_waker(Waker::noop()), &[0; 4096])
    }

    #[tokio::test]
    async fn streams_of_a_connection_pause_together_and_those_of_others_do_not() {
        let bandwidth = Bandwidth::new(Some(Bandwidth::LEAST), None);
        // The line has enough to carry for as long as this takes on any machine.
        for _ in 0..500 {
            assert!(write(&mut Paced::new(sink(), &bandwidth)).is_ready());
        }
        let connection = PacedMuxer::new((), bandwidth.clone());
        let (mut one, mut other) = (connection.paced(sink()), connection.paced(sink()));
        assert!(write(&mut one).is_ready());
        assert!(write(&mut one).is_pending() && write(&mut other).is_pending());
        assert!(write(&mut connection.paced(sink())).is_pending());
        assert!(write(&mut Paced::new(sink(), &bandwidth)).is_ready());
    }
}
