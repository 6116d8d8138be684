//! The first bytes of a TCP connection: the swarm key's handshake, if there is a key, and a look at what the peer says
//! first, so that a peer of another swarm is told from a broken line. It encrypts nothing itself and waits for nobody.
//!
//! Two ends without the same key understand nothing of each other, and each could wait for the rest of a message that
//! the other never sent. But every libp2p conversation begins with the same twenty bytes, so the first wrong one is enough.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{
    AsyncRead, AsyncWrite,
    future::Either,
    io::{IoSlice, IoSliceMut},
};
use libp2p::pnet::{PnetConfig, PnetError, PnetOutput};

use super::SwarmKey;

/// What every libp2p peer says first, on either side (multistream-select, <https://github.com/multiformats/multistream-select>).
const GREETING: &[u8; 20] = b"\x13/multistream/1.0.0\n";

/// Why a connection ended before it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpeningError {
    /// We have a key, the other end has another one or none.
    #[error("the peer does not have the swarm key of this node (--swarm-key)")]
    WrongKey,
    /// We have no key.
    #[error("not a libp2p peer, or one of a private swarm: such a swarm can only be joined with its --swarm-key")]
    NoGreeting,
    /// We have no key, and it closed the connection. One that has a key does that to what we say, and then what it said
    /// before may be lost on the way.
    #[error(
        "it hung up before it said anything: it may have too many connections, or belong to a private swarm, which can only be \
         joined with its --swarm-key"
    )]
    HungUp,
}

impl From<OpeningError> for io::Error {
    fn from(error: OpeningError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// A connection, encrypted if there is a key.
pub(crate) type Opened<S> = Greeted<Either<PnetOutput<S>, S>>;

/// Begins a conversation over `socket`.
///
/// # Errors
///
/// If the connection breaks in the handshake.
pub(crate) async fn begin<S>(socket: S, key: Option<SwarmKey>) -> io::Result<Opened<S>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let keyed = key.is_some();
    let inner = match key {
        Some(key) => Either::Left(PnetConfig::new(key.psk()).handshake(socket).await.map_err(refused)?),
        None => Either::Right(socket),
    };
    Ok(Greeted { inner, seen: 0, keyed })
}

/// A peer that does not know what to do with our part of the handshake closes the connection.
fn refused(error: PnetError) -> io::Error {
    let (PnetError::HandshakeError(source) | PnetError::IoError(source)) = error;
    match source.kind() == io::ErrorKind::UnexpectedEof || is_broken(&source) {
        true => OpeningError::WrongKey.into(),
        false => source,
    }
}

/// Whether the other end closed the connection.
fn is_broken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// A connection whose first bytes must be the greeting.
#[derive(Debug)]
pub(crate) struct Greeted<S> {
    inner: S,
    /// Bytes of the greeting that were read.
    seen: usize,
    keyed: bool,
}

impl<S> Greeted<S> {
    /// Checks bytes that were just read; none means the end.
    fn check(&mut self, read: &[u8]) -> io::Result<()> {
        let rest = &GREETING[self.seen..];
        let n = rest.len().min(read.len());
        if rest[..n] != read[..n] {
            let wrong = if self.keyed {
                OpeningError::WrongKey
            } else {
                OpeningError::NoGreeting
            };
            return Err(wrong.into());
        }
        if read.is_empty() && self.keyed {
            // The other end did not understand us, and was first to notice.
            return Err(OpeningError::WrongKey.into());
        }
        self.seen += n;
        Ok(())
    }

    /// What an error means, which is more than it says before the greeting was read.
    fn explained(&self, error: io::Error) -> io::Error {
        match (self.seen < GREETING.len() && is_broken(&error), self.keyed) {
            (false, _) => error,
            (true, true) => OpeningError::WrongKey.into(),
            (true, false) => OpeningError::HungUp.into(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf)).map_err(|error| self.explained(error))?;
        if self.seen < GREETING.len() && !buf.is_empty() {
            self.check(&buf[..read])?;
        }
        Poll::Ready(Ok(read))
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.seen == GREETING.len() {
            return Pin::new(&mut self.inner).poll_read_vectored(cx, bufs);
        }
        match bufs.iter_mut().find(|buf| !buf.is_empty()) {
            Some(buf) => self.poll_read(cx, buf),
            None => Poll::Ready(Ok(0)),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write(cx, buf);
        wrote.map_err(|error| self.explained(error))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        wrote.map_err(|error| self.explained(error))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        flushed.map_err(|error| self.explained(error))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt, executor::block_on, io::Cursor};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    async fn first_read(said: &[u8], keyed: bool) -> io::Result<Vec<u8>> {
        let inner = Cursor::new(said.to_vec());
        let mut peer = Greeted { inner, seen: 0, keyed };
        let mut all = Vec::new();
        peer.read_to_end(&mut all).await.map(|_| all)
    }

    fn reason(outcome: io::Result<Vec<u8>>) -> OpeningError {
        let error = outcome.unwrap_err().into_inner().unwrap();
        *error.downcast::<OpeningError>().unwrap()
    }

    #[test]
    fn a_peer_that_greets_is_heard_and_any_other_first_word_ends_the_connection() {
        block_on(async {
            let said = [GREETING.as_slice(), b"and more"].concat();
            assert_eq!(first_read(&said, false).await.unwrap(), said);
            assert_eq!(reason(first_read(b"\x13/multis", true).await), OpeningError::WrongKey);
            assert_eq!(
                reason(first_read(b"HTTP/1.1 400", false).await),
                OpeningError::NoGreeting
            );
            assert_eq!(
                reason(first_read(b"\x13/multistream/2.0.0\n", true).await),
                OpeningError::WrongKey
            );
            // Without a key, silence means nothing in particular.
            assert!(first_read(b"", false).await.unwrap().is_empty());
        });
    }

    #[tokio::test]
    async fn a_peer_that_hangs_up_before_it_greets_may_be_one_with_another_key() {
        for (keyed, expected) in [(false, OpeningError::HungUp), (true, OpeningError::WrongKey)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (other, _) = listener.accept().await.unwrap();
            // The end is a reset then, as where something was said that nobody reads.
            other.set_zero_linger().unwrap();
            drop(other);
            let inner = socket.compat();
            let mut peer = Greeted { inner, seen: 0, keyed };
            let mut all = Vec::new();
            assert_eq!(reason(peer.read_to_end(&mut all).await.map(|_| all)), expected);
        }
    }

    #[tokio::test]
    async fn two_ends_with_one_key_understand_each_other_and_nobody_else_reads_along() {
        let key = SwarmKey::generate();
        let (one, other) = tokio::io::duplex(1024);
        let (one, other) = futures::join!(
            begin(one.compat(), Some(key.clone())),
            begin(other.compat(), Some(key.clone()))
        );
        let (mut one, mut other) = (one.unwrap(), other.unwrap());
        one.write_all(GREETING).await.unwrap();
        one.flush().await.unwrap();
        let mut got = [0; GREETING.len()];
        other.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, GREETING);
    }
}
