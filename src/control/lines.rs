//! Lines of bounded length, read and written within a time. What is on them is not known here.

use std::{io, time::Duration};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The next line without its end; `None` at the end of the stream. An end in the middle of a line is an error.
///
/// # Errors
/// `InvalidData` for a line of more than `max` bytes; what the stream says otherwise.
pub(super) async fn read(reader: &mut (impl AsyncBufRead + Unpin), max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let n = reader.take(max + 1).read_until(b'\n', &mut line).await?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if n as u64 > max => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a line is longer than {max} bytes"),
        )),
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Writes a line that is ended already.
///
/// # Errors
/// `TimedOut` if nobody takes it in `patience`; what the stream says otherwise.
pub(super) async fn write(writer: &mut (impl AsyncWrite + Unpin), line: &[u8], patience: Duration) -> io::Result<()> {
    let written = async {
        writer.write_all(line).await?;
        writer.flush().await
    };
    tokio::time::timeout(patience, written).await?
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_have_an_end() {
        let mut reader = BufReader::new(&b"one\n\nthree"[..]);
        assert_eq!(read(&mut reader, 3).await.unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(read(&mut reader, 3).await.unwrap().as_deref(), Some(&b""[..]));
        let long = read(&mut reader, 3).await.unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidData);
        let mut reader = BufReader::new(&b"cut"[..]);
        let cut = read(&mut reader, 3).await.unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        assert!(read(&mut BufReader::new(&b""[..]), 3).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn who_does_not_read_is_not_waited_for() {
        let (mut here, _there) = tokio::io::duplex(16);
        let slow = write(&mut here, &[b'x'; 100], Duration::from_millis(10)).await;
        assert_eq!(slow.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
