//! The envelope of a unary call: one message each way, both of the same outer type, told apart by what they carry.
//!
//! Source: `p2pd.proto` of hivemind's daemon, whose remote side forwards these messages between two daemons. On the
//! stream each is one [`delimited`] frame of at most [`MAX_UNARY_BODY`] bytes.

use bytes::Bytes;
use prost::Message as _;

use crate::{
    error::WireError,
    frame::delimited,
    proto::{
        CallUnaryRequest, CallUnaryResponse, PersistentConnectionRequest, call_unary_response,
        persistent_connection_request,
    },
};

/// Largest envelope in bytes, its length prefix not counted (`persistentConnMaxMsgSize`, which hivemind passes to its
/// daemon). A daemon that gets a larger one closes the stream and reads no more of it.
pub const MAX_UNARY_BODY: usize = 4 * 1024 * 1024;

/// Length of a call id in bytes. It must be unique among the running calls of the callee: take random ones.
pub const CALL_ID_LEN: usize = 16;

const REQUEST: &str = "unary request";
const REPLY: &str = "unary reply";

/// What the caller sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnaryRequest {
    /// Random; repeated by the reply.
    pub call_id: [u8; CALL_ID_LEN],
    /// Raw peer id of the callee; any bytes are accepted.
    pub peer: Vec<u8>,
    /// Name of the call. A daemon never answers if it is not the negotiated name of the stream.
    pub proto: String,
    /// The serialized request message.
    pub data: Bytes,
}

impl UnaryRequest {
    /// The body of the frame.
    pub fn encode(self) -> Bytes {
        envelope(
            self.call_id,
            persistent_connection_request::Message::CallUnary(CallUnaryRequest {
                peer: self.peer,
                proto: self.proto,
                data: self.data,
            }),
        )
    }

    /// The whole frame.
    pub fn encode_frame(self) -> Bytes {
        delimited(&self.encode())
    }

    /// Reads the body of a frame.
    ///
    /// # Errors
    /// [`WireError`] if it is not a request, or lacks a field. A daemon closes the stream without an answer then.
    pub fn decode(body: Bytes) -> Result<Self, WireError> {
        match open(REQUEST, body)? {
            (call_id, persistent_connection_request::Message::CallUnary(call)) => {
                // The parser does not tell an absent field from an empty one; no call has an empty name.
                if call.proto.is_empty() {
                    return Err(WireError::Missing {
                        what: REQUEST,
                        field: "name",
                    });
                }
                Ok(Self {
                    call_id,
                    peer: call.peer,
                    proto: call.proto,
                    data: call.data,
                })
            }
            _ => Err(WireError::Missing {
                what: REQUEST,
                field: "call",
            }),
        }
    }
}

/// What the callee sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnaryReply {
    /// That of the request.
    pub call_id: [u8; CALL_ID_LEN],
    /// The serialized response message, or the text of an error.
    pub result: Result<Bytes, String>,
}

impl UnaryReply {
    /// The body of the frame.
    pub fn encode(self) -> Bytes {
        let result = match self.result {
            Ok(response) => call_unary_response::Result::Response(response),
            Err(text) => call_unary_response::Result::Error(text.into_bytes()),
        };
        envelope(
            self.call_id,
            persistent_connection_request::Message::UnaryResponse(CallUnaryResponse { result: Some(result) }),
        )
    }

    /// The whole frame.
    pub fn encode_frame(self) -> Bytes {
        delimited(&self.encode())
    }

    /// Reads the body of a frame. The text of an error is taken as it is, with what is not UTF-8 replaced.
    ///
    /// # Errors
    /// [`WireError`] if it is not a reply.
    pub fn decode(body: Bytes) -> Result<Self, WireError> {
        let missing = WireError::Missing {
            what: REPLY,
            field: "result",
        };
        let (call_id, persistent_connection_request::Message::UnaryResponse(response)) = open(REPLY, body)? else {
            return Err(missing);
        };
        let result = match response.result.ok_or(missing)? {
            call_unary_response::Result::Response(response) => Ok(response),
            call_unary_response::Result::Error(text) => Err(String::from_utf8_lossy(&text).into_owned()),
        };
        Ok(Self { call_id, result })
    }
}

fn envelope(call_id: [u8; CALL_ID_LEN], message: persistent_connection_request::Message) -> Bytes {
    PersistentConnectionRequest {
        call_id: call_id.to_vec(),
        message: Some(message),
    }
    .encode_to_vec()
    .into()
}

fn open(
    what: &'static str,
    body: Bytes,
) -> Result<([u8; CALL_ID_LEN], persistent_connection_request::Message), WireError> {
    let envelope = PersistentConnectionRequest::decode(body).map_err(|source| WireError::Protobuf { what, source })?;
    let call_id = envelope.call_id.try_into().map_err(|_| WireError::OutOfRange {
        what,
        field: "the call id",
        expected: "16 bytes long",
    })?;
    let message = envelope.message.ok_or(WireError::Missing { what, field: "content" })?;
    Ok((call_id, message))
}

#[cfg(test)]
mod tests;
