//! The frame of [`LEGACY_RPC`](crate::names::LEGACY_RPC): the length in eight big-endian bytes, a marker, a message.
//!
//! Unlike in a record the length comes first and counts the marker, and an error is bare text. This is what the map
//! monitor of KwaaiNet speaks (`kwaai-p2p/src/hivemind.rs` there); Python nodes know nothing of it. Its caller closes
//! its side after the request, which on every other stream would cancel the call.

use bytes::{BufMut, Bytes, BytesMut};

use super::Marker;
use crate::error::WireError;

const WHAT: &str = "legacy frame";

/// Bytes of the length before the frame's marker and body.
pub const PREFIX_LEN: usize = 8;

/// A frame that carries a serialized message.
pub fn message(body: &[u8]) -> Bytes {
    frame(0, body)
}

/// A frame that carries the text of an error.
pub fn error(text: &str) -> Bytes {
    frame(1, text.as_bytes())
}

fn frame(marker: u8, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX_LEN + 1 + body.len());
    frame.put_u64(body.len() as u64 + 1);
    frame.put_u8(marker);
    frame.put_slice(body);
    frame.freeze()
}

/// How many bytes follow the length: the marker and the body.
///
/// # Errors
/// [`WireError::TooLarge`] if they are over `limit`, [`WireError::Malformed`] if not even the marker is there.
pub fn decode_prefix(bytes: [u8; PREFIX_LEN], limit: usize) -> Result<usize, WireError> {
    let size = u64::from_be_bytes(bytes);
    if size > limit as u64 {
        return Err(WireError::TooLarge {
            what: WHAT,
            size,
            limit: limit as u64,
        });
    }
    if size == 0 {
        return Err(WireError::Malformed {
            what: WHAT,
            problem: "there is no marker",
        });
    }
    Ok(size as usize)
}

/// What follows the length: the marker, and the body behind it.
///
/// # Errors
/// [`WireError::Malformed`] if the marker is neither 0 nor 1, [`WireError::Truncated`] if there is none.
pub fn split(mut rest: Bytes) -> Result<(Marker, Bytes), WireError> {
    let marker = match rest.first() {
        Some(0) => Marker::Message,
        Some(1) => Marker::Error,
        Some(_) => {
            return Err(WireError::Malformed {
                what: WHAT,
                problem: "the marker is neither 0 nor 1",
            });
        }
        None => return Err(WireError::Truncated { what: WHAT }),
    };
    Ok((marker, rest.split_off(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        for (frame, marker, body) in [
            (message(b"body"), Marker::Message, &b"body"[..]),
            (message(b""), Marker::Message, b""),
            (error("text"), Marker::Error, b"text"),
        ] {
            let (prefix, rest) = frame.split_at(PREFIX_LEN);
            let len = decode_prefix(prefix.try_into().unwrap(), 100).unwrap();
            assert_eq!(len, rest.len());
            assert_eq!(
                split(frame.slice(PREFIX_LEN..)),
                Ok((marker, Bytes::copy_from_slice(body)))
            );
        }
        assert_eq!(message(b"ab"), [0, 0, 0, 0, 0, 0, 0, 3, 0, b'a', b'b'].as_slice());
    }

    #[test]
    fn what_is_not_a_frame_is_refused() {
        assert!(matches!(decode_prefix([0xff; 8], 100), Err(WireError::TooLarge { .. })));
        assert!(matches!(decode_prefix([0; 8], 100), Err(WireError::Malformed { .. })));
        assert!(matches!(split(Bytes::new()), Err(WireError::Truncated { .. })));
        assert!(matches!(
            split(Bytes::from_static(&[2])),
            Err(WireError::Malformed { .. })
        ));
    }
}
