//! Reading a protobuf message from a peer, with a bound on how many parts it may have.
//!
//! An empty part takes two bytes on the wire and a hundred in memory, so that a message of a few megabytes could fill
//! gigabytes. Whatever comes from a peer is read with [`decode`] instead of [`Message::decode`].

use bytes::{Buf, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, decode_key, skip_field},
};

use crate::error::WireError;

/// How many fields a message may have at its top level, each repetition counted. Requests to store records come nearest:
/// three per record, of which a node that hands over all it has sends thousands.
pub const MAX_FIELDS: usize = 32_768;

/// The message of type `M` in these bytes; large `bytes` fields share their memory.
///
/// # Errors
/// [`WireError::Protobuf`] if the bytes are no such message, [`WireError::TooManyFields`] if it has more than
/// [`MAX_FIELDS`] fields.
pub fn decode<M: Message + Default>(what: &'static str, bytes: impl Into<Bytes>) -> Result<M, WireError> {
    let bytes = bytes.into();
    let protobuf = |source| WireError::Protobuf { what, source };
    let n_fields = count_fields(bytes.clone()).map_err(protobuf)?;
    if n_fields > MAX_FIELDS {
        return Err(WireError::TooManyFields {
            what,
            limit: MAX_FIELDS,
        });
    }
    M::decode(bytes).map_err(protobuf)
}

/// Number of fields at the top level; counting stops above the limit.
fn count_fields(mut bytes: Bytes) -> Result<usize, DecodeError> {
    let mut n_fields = 0;
    while bytes.has_remaining() && n_fields <= MAX_FIELDS {
        let (tag, wire_type) = decode_key(&mut bytes)?;
        skip_field(wire_type, tag, &mut bytes, DecodeContext::default())?;
        n_fields += 1;
    }
    Ok(n_fields)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        proto::{ExpertRequest, FindResponse},
        testing,
    };

    #[test]
    fn recorded_requests_are_read_as_by_the_plain_reader() {
        for (_, event) in testing::recorded_events() {
            if event["decoded"]["type"] == "ExpertRequest" && !event["raw_hex"].is_null() {
                let bytes = testing::bytes(&event["raw_hex"]);
                let plain = ExpertRequest::decode(&*bytes).unwrap();
                assert_eq!(decode::<ExpertRequest>("request", bytes).unwrap(), plain);
            }
        }
    }

    #[test]
    fn a_message_of_countless_empty_parts_is_refused() {
        let parts = |n_parts: usize| Bytes::from([0x12, 0x00].repeat(n_parts));
        let most: FindResponse = decode("answer", parts(MAX_FIELDS)).unwrap();
        assert_eq!(most.results.len(), MAX_FIELDS);
        assert_eq!(
            decode::<FindResponse>("answer", parts(MAX_FIELDS + 1)),
            Err(WireError::TooManyFields {
                what: "answer",
                limit: MAX_FIELDS
            })
        );
    }

    #[test]
    fn groups_inside_groups_do_no_harm() {
        let bytes = Bytes::from(vec![0x0b; 100_000]);
        assert!(matches!(
            decode::<ExpertRequest>("request", bytes),
            Err(WireError::Protobuf { .. })
        ));
    }

    proptest! {
        #[test]
        fn the_same_bytes_are_refused_as_by_the_plain_reader(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let plain = ExpertRequest::decode(&*bytes);
            prop_assert_eq!(decode::<ExpertRequest>("request", bytes).ok(), plain.ok());
        }
    }
}
