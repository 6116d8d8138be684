//! Records of a stream call: a marker byte, the length in eight big-endian bytes, then a protobuf message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;

use crate::{error::WireError, proto};

const WHAT: &str = "stream record";

/// Bytes before the body of a record.
pub const RECORD_HEADER_LEN: usize = 9;

/// The record that ends the requests of a caller. Ending them by closing the stream would cancel the call instead.
pub const END: [u8; RECORD_HEADER_LEN] = [1, 0, 0, 0, 0, 0, 0, 0, 0];

/// What the body of a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// A message of the call.
    Message,
    /// An [`RpcError`](proto::RpcError).
    Error,
}

/// The beginning of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the body is.
    pub marker: Marker,
    /// Length of the body in bytes.
    pub len: u64,
}

impl RecordHeader {
    /// The bytes of the header. For a large body, which need not be copied behind them.
    pub fn encode(&self) -> [u8; RECORD_HEADER_LEN] {
        let mut bytes = [0; RECORD_HEADER_LEN];
        bytes[0] = match self.marker {
            Marker::Message => 0,
            Marker::Error => 1,
        };
        bytes[1..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Reads the bytes of a header.
    ///
    /// # Errors
    /// [`WireError::Malformed`] if the marker is neither 0 nor 1, [`WireError::TooLarge`] if the body is over `limit`.
    pub fn decode(bytes: &[u8; RECORD_HEADER_LEN], limit: usize) -> Result<Self, WireError> {
        let [marker, len @ ..] = bytes;
        let marker = match marker {
            0 => Marker::Message,
            1 => Marker::Error,
            _ => {
                return Err(WireError::Malformed {
                    what: WHAT,
                    problem: "the marker is neither 0 nor 1",
                });
            }
        };
        let len = u64::from_be_bytes(*len);
        if len > limit as u64 {
            return Err(WireError::TooLarge {
                what: WHAT,
                size: len,
                limit: limit as u64,
            });
        }
        Ok(Self { marker, len })
    }
}

/// One record of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A serialized message of the call.
    Message(Bytes),
    /// From the callee: the call failed, with this text (which may be empty). From the caller: no more requests,
    /// whatever the text.
    Error(String),
}

impl Record {
    /// The record from its parts. An error whose body does not parse is an error without a text.
    pub fn from_parts(marker: Marker, body: Bytes) -> Self {
        match marker {
            Marker::Message => Self::Message(body),
            Marker::Error => Self::Error(
                proto::RpcError::decode(body)
                    .unwrap_or_default()
                    .message
                    .unwrap_or_default(),
            ),
        }
    }

    /// The whole record.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Message(body) => with_header(Marker::Message, body),
            Self::Error(text) if text.is_empty() => Bytes::from_static(&END),
            Self::Error(text) => {
                let error = proto::RpcError {
                    message: Some(text.clone()),
                };
                with_header(Marker::Error, &error.encode_to_vec())
            }
        }
    }
}

fn with_header(marker: Marker, body: &[u8]) -> Bytes {
    let header = RecordHeader {
        marker,
        len: body.len() as u64,
    };
    let mut record = BytesMut::with_capacity(RECORD_HEADER_LEN + body.len());
    record.put_slice(&header.encode());
    record.put_slice(body);
    record.freeze()
}

/// Takes a stream of bytes apart into records.
#[derive(Debug)]
pub struct RecordReader {
    buffer: BytesMut,
    limit: usize,
}

impl RecordReader {
    /// A reader that refuses bodies over `limit` bytes, before they arrive.
    ///
    /// The wire itself has no limit; Python sends 4 MiB of tensor plus metadata in stream variants, and one whole
    /// tensor per message in `rpc_inference`.
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            limit,
        }
    }

    /// Takes in bytes that arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole record, its body not copied; `None` while it is incomplete.
    ///
    /// # Errors
    /// Those of [`RecordHeader::decode`]. The stream has lost its records then and must be closed.
    pub fn next_record(&mut self) -> Result<Option<Record>, WireError> {
        let Some(header) = self.buffer.first_chunk() else {
            return Ok(None);
        };
        let header = RecordHeader::decode(header, self.limit)?;
        let len = header.len as usize;
        if self.buffer.len() - RECORD_HEADER_LEN < len {
            return Ok(None);
        }
        self.buffer.advance(RECORD_HEADER_LEN);
        let body = self.buffer.split_to(len).freeze();
        Ok(Some(Record::from_parts(header.marker, body)))
    }

    /// Whether no bytes are left over: if not at the end of a stream, its last record was cut off.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    /// All records of these bytes, and what ended them.
    fn read_all(bytes: &[u8]) -> (Vec<Record>, Result<bool, WireError>) {
        let mut reader = RecordReader::new(1 << 20);
        reader.extend(bytes);
        let mut records = Vec::new();
        loop {
            match reader.next_record() {
                Ok(Some(record)) => records.push(record),
                Ok(None) => return (records, Ok(reader.is_empty())),
                Err(error) => return (records, Err(error)),
            }
        }
    }

    #[test]
    fn every_recorded_stream_is_read_and_written_back_the_same() {
        let file = testing::vectors("hivemind/cap_streams.json");
        let mut n_records = 0;
        for event in file.as_array().unwrap() {
            for side in ["sent", "received", "raw"] {
                let what = event["what"].as_str().unwrap();
                if event[side].is_null() || (side == "sent" && what == "ss: invalid marker") {
                    continue;
                }
                let bytes = testing::bytes(&event[side]);
                let (records, end) = read_all(&bytes);
                assert_eq!(end, Ok(true), "{what}");
                let again: Vec<u8> = records.iter().flat_map(Record::encode).collect();
                assert_eq!(again, bytes, "{what}");
                n_records += records.len();
            }
        }
        assert_eq!(n_records, 70);
    }

    #[test]
    fn an_invalid_marker_ends_the_records() {
        let file = testing::vectors("hivemind/cap_streams.json");
        let events = file.as_array().unwrap();
        let event = events
            .iter()
            .find(|event| event["what"] == "ss: invalid marker")
            .unwrap();
        let (records, end) = read_all(&testing::bytes(&event["sent"]));
        assert_eq!(records.len(), 1);
        assert!(matches!(end, Err(WireError::Malformed { .. })));
    }

    #[test]
    fn the_records_python_writes_are_those_we_write() {
        let file = testing::vectors("hivemind/protobuf.json");
        let frames: Vec<Vec<u8>> = file["stream_frames"]
            .as_array()
            .unwrap()
            .iter()
            .map(|case| testing::bytes(&case["frame"]))
            .collect();
        let uid = proto::ExpertUid {
            uid: "bloom-petals.3".into(),
        };
        let ours = [
            Record::Message(uid.encode_to_vec().into()),
            Record::Message(Bytes::new()),
            Record::Error(String::new()),
            Record::Error("boom".into()),
        ];
        for (ours, theirs) in ours.iter().zip(&frames) {
            assert_eq!(ours.encode(), theirs);
            assert_eq!(read_all(theirs).0, std::slice::from_ref(ours));
        }
        assert_eq!(frames.len(), ours.len());
    }

    #[test]
    fn a_huge_length_is_refused_from_its_header_alone() {
        for len in [1 << 63, u64::MAX, 1 << 32] {
            let header = RecordHeader {
                marker: Marker::Message,
                len,
            };
            let (_, end) = read_all(&header.encode());
            assert!(matches!(end, Err(WireError::TooLarge { size, .. }) if size == len));
        }
    }

    #[test]
    fn a_cut_off_record_is_told_from_an_end() {
        let record = Record::Message(Bytes::from_static(b"body")).encode();
        for len in 1..record.len() {
            assert_eq!(read_all(&record[..len]), (vec![], Ok(false)));
        }
        assert_eq!(read_all(&[]), (vec![], Ok(true)));
    }

    #[test]
    fn an_error_that_does_not_parse_is_still_an_error() {
        let mut bytes = vec![1, 0, 0, 0, 0, 0, 0, 0, 2];
        bytes.extend([0x0a, 0xff]);
        assert_eq!(read_all(&bytes).0, [Record::Error(String::new())]);
    }

    fn any_record() -> impl Strategy<Value = Record> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300).prop_map(|body| Record::Message(body.into())),
            ".{0,40}".prop_map(Record::Error),
        ]
    }

    proptest! {
        #[test]
        fn records_come_out_however_the_bytes_are_cut(
            records in prop::collection::vec(any_record(), 0..8),
            piece in 1_usize..50,
        ) {
            let stream: Vec<u8> = records.iter().flat_map(Record::encode).collect();
            let mut reader = RecordReader::new(300);
            let mut found = Vec::new();
            for piece in stream.chunks(piece) {
                reader.extend(piece);
                while let Some(record) = reader.next_record().unwrap() {
                    found.push(record);
                }
            }
            prop_assert_eq!(found, records);
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_all(&bytes);
        }
    }
}
