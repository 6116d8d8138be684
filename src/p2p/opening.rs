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
    match source.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            OpeningError::WrongKey.into()
        }
        _ => source,
    }
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
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        if self.seen == GREETING.len() || buf.is_empty() {
            return Poll::Ready(read);
        }
        let read = match read {
            Ok(n) => n,
            Err(error) if self.keyed && error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Poll::Ready(Err(error)),
        };
        Poll::Ready(self.check(&buf[..read]).map(|()| read))
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
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt, executor::block_on, io::Cursor};

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
    async fn two_ends_with_one_key_understand_each_other_and_nobody_else_reads_along() {
        let key = SwarmKey::generate();
        let (one, other) = tokio::io::duplex(1024);
        let compat = tokio_util::compat::TokioAsyncReadCompatExt::compat;
        let (one, other) = futures::join!(
            begin(compat(one), Some(key.clone())),
            begin(compat(other), Some(key.clone()))
        );
        let (mut one, mut other) = (one.unwrap(), other.unwrap());
        one.write_all(GREETING).await.unwrap();
        one.flush().await.unwrap();
        let mut got = [0; GREETING.len()];
        other.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, GREETING);
    }
}
