//! How messages follow each other on a stream: delimited frames (unary calls), records (stream calls), the legacy frame.
//!
//! The writers return bytes; the readers are fed bytes as they come and give out whole messages. Nothing here reads
//! from anywhere. A reader holds what it was fed and no more: an announced length reserves nothing.

mod delimited;
pub mod legacy;
mod record;

pub use delimited::{DelimitedReader, delimited, uvarint};
pub use record::{END, Marker, RECORD_HEADER_LEN, Record, RecordHeader, RecordReader};
