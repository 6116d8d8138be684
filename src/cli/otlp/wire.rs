//! Messages of protocol buffers, written field by field, and the parts that all requests of OTLP have. Field numbers are
//! those of opentelemetry-proto 1.x, which are fixed for ever.

use std::{
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use uuid::Uuid;

/// Wire types of protocol buffers.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;

/// A message that is being written. What has its default is written as well, where it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn raw_varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn tag(&mut self, field: u64, kind: u64) {
        self.raw_varint(field << 3 | kind);
    }

    /// An integer, an enum or a truth value.
    pub(super) fn varint(mut self, field: u64, number: u64) -> Self {
        self.tag(field, VARINT);
        self.raw_varint(number);
        self
    }

    pub(super) fn fixed64(mut self, field: u64, number: u64) -> Self {
        self.tag(field, FIXED64);
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(super) fn double(self, field: u64, number: f64) -> Self {
        self.fixed64(field, number.to_bits())
    }

    /// Several numbers of eight bytes.
    pub(super) fn packed(self, field: u64, numbers: impl IntoIterator<Item = u64>) -> Self {
        let bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        self.data(field, &bytes)
    }

    /// Bytes or text.
    pub(super) fn data(mut self, field: u64, bytes: &[u8]) -> Self {
        self.tag(field, BYTES);
        self.raw_varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    pub(super) fn text(self, field: u64, text: &str) -> Self {
        self.data(field, text.as_bytes())
    }

    pub(super) fn message(self, field: u64, message: &Self) -> Self {
        self.data(field, &message.0)
    }

    pub(super) fn messages(self, field: u64, messages: impl IntoIterator<Item = Self>) -> Self {
        messages
            .into_iter()
            .fold(self, |whole, message| whole.message(field, &message))
    }
}

/// A `KeyValue` with a text.
pub(super) fn attribute(key: &str, text: &str) -> Message {
    Message::default()
        .text(1, key)
        .message(2, &Message::default().text(1, text))
}

/// A whole request: `ExportTraceServiceRequest` with spans, `ExportMetricsServiceRequest` with metrics, which have the same
/// shape around these.
pub(super) fn request(what: impl IntoIterator<Item = Message>) -> Message {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    let (version, instance) = (
        env!("CARGO_PKG_VERSION"),
        INSTANCE.get_or_init(|| Uuid::new_v4().to_string()),
    );
    let about = [
        ("service.name", "sepal"),
        ("service.version", version),
        ("service.instance.id", instance),
    ];
    let resource = Message::default().messages(1, about.map(|(key, text)| attribute(key, text)));
    let scope = Message::default().text(1, "sepal").text(2, version);
    let of_scope = Message::default().message(1, &scope).messages(2, what);
    let of_resource = Message::default().message(1, &resource).message(2, &of_scope);
    Message::default().message(1, &of_resource)
}

pub(super) fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_written_as_protocol_buffers_have_them() {
        let inner = Message::default().text(2, "testing");
        let message = Message::default()
            .varint(1, 150)
            .message(3, &inner)
            .fixed64(4, 1)
            .packed(20, [2]);
        // The first two fields are examples of the documentation of protocol buffers.
        assert_eq!(hex::encode(&message.bytes()[..3]), "089601");
        assert_eq!(hex::encode(inner.bytes()), "120774657374696e67");
        let rest = "1a09120774657374696e67210100000000000000a201080200000000000000";
        assert_eq!(hex::encode(&message.bytes()[3..]), rest);
    }
}
