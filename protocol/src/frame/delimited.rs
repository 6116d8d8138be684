//! Frames of a unary stream: the length as an unsigned varint, then the body.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::WireError;

const WHAT: &str = "delimited frame";

/// A length of 64 bits takes at most this many bytes.
const MAX_UVARINT_LEN: usize = 10;

/// A length as an unsigned varint: seven bits per byte, lowest first, the top bit set in all but the last.
pub fn uvarint(value: u64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(MAX_UVARINT_LEN);
    put_uvarint(&mut bytes, value);
    bytes.freeze()
}

fn put_uvarint(bytes: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        bytes.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.put_u8(value as u8);
}

/// The value of a varint and the bytes it takes; `None` if it is not complete yet.
fn read_uvarint(bytes: &[u8]) -> Result<Option<(u64, usize)>, WireError> {
    let mut value = 0_u64;
    for (idx, byte) in bytes.iter().take(MAX_UVARINT_LEN).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if idx == MAX_UVARINT_LEN - 1 && *byte > 1 {
            break;
        }
        value |= bits << (7 * idx);
        if byte & 0x80 == 0 {
            return Ok(Some((value, idx + 1)));
        }
    }
    if bytes.len() < MAX_UVARINT_LEN {
        return Ok(None);
    }
    Err(WireError::Malformed {
        what: WHAT,
        problem: "the length is over 64 bits",
    })
}

/// A body with its length before it.
pub fn delimited(body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(MAX_UVARINT_LEN + body.len());
    put_uvarint(&mut frame, body.len() as u64);
    frame.put_slice(body);
    frame.freeze()
}

/// Takes a stream of bytes apart into the bodies of delimited frames.
#[derive(Debug)]
pub struct DelimitedReader {
    buffer: BytesMut,
    limit: u64,
}

impl DelimitedReader {
    /// A reader that refuses bodies over `limit` bytes, before they arrive.
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            limit: limit as u64,
        }
    }

    /// Takes in bytes that arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole body, without copying it; `None` while it is incomplete.
    ///
    /// # Errors
    /// [`WireError::TooLarge`] for a body over the limit, [`WireError::Malformed`] for a length that is none. The
    /// stream has lost its frames then and must be closed.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, WireError> {
        let Some((size, prefix)) = read_uvarint(&self.buffer)? else {
            return Ok(None);
        };
        if size > self.limit {
            return Err(WireError::TooLarge {
                what: WHAT,
                size,
                limit: self.limit,
            });
        }
        let len = size as usize;
        if self.buffer.len() - prefix < len {
            return Ok(None);
        }
        self.buffer.advance(prefix);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// Whether no bytes are left over: true between frames. Any byte after a unary request cancels it.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_length_over_the_limit_is_refused_from_its_prefix_alone() {
        for (prefix, size) in [("81808002", 4_194_305_u64), ("ffffffffffffffffff01", u64::MAX)] {
            let mut reader = DelimitedReader::new(4_194_304);
            reader.extend(&hex::decode(prefix).unwrap());
            let refused = reader.next_frame();
            assert!(matches!(refused, Err(WireError::TooLarge { size: found, .. }) if found == size));
        }
        let mut reader = DelimitedReader::new(4_194_304);
        reader.extend(&uvarint(4_194_304));
        assert_eq!(reader.next_frame(), Ok(None));
    }

    #[test]
    fn a_length_that_never_ends_is_refused() {
        for bad in [
            [0xff; 10],
            [0x80; 10],
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
        ] {
            let mut reader = DelimitedReader::new(usize::MAX);
            reader.extend(&bad);
            assert!(matches!(reader.next_frame(), Err(WireError::Malformed { .. })));
        }
    }

    #[test]
    fn an_empty_body_is_a_frame() {
        let mut reader = DelimitedReader::new(0);
        reader.extend(&delimited(&[]));
        assert_eq!(reader.next_frame(), Ok(Some(Bytes::new())));
        assert!(reader.is_empty());
    }

    proptest! {
        #[test]
        fn lengths_survive_the_wire(value: u64) {
            let bytes = uvarint(value);
            prop_assert_eq!(read_uvarint(&bytes), Ok(Some((value, bytes.len()))));
            prop_assert_eq!(read_uvarint(&bytes[..bytes.len() - 1]), Ok(None));
        }

        #[test]
        fn frames_come_out_however_the_bytes_are_cut(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            piece in 1_usize..50,
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|body| delimited(body)).collect();
            let mut reader = DelimitedReader::new(300);
            let mut found = Vec::new();
            for piece in stream.chunks(piece) {
                reader.extend(piece);
                while let Some(body) = reader.next_frame().unwrap() {
                    found.push(body.to_vec());
                }
            }
            prop_assert_eq!(found, bodies);
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = DelimitedReader::new(100);
            reader.extend(&bytes);
            while let Ok(Some(_)) = reader.next_frame() {}
        }
    }
}
