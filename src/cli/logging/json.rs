//! Logs for programs: one JSON object a line, for collectors of logs that would otherwise have to guess what a line means.
//!
//! ```text
//!   {"timestamp":"2026-01-02T03:04:05.678901Z","level":"INFO","target":"sepal::server","message":"the blocks are loaded",
//!    "fields":{"blocks":4},"spans":[{"name":"request","id":"req_1"}]}
//! ```
//!
//! Timestamps are RFC 3339 in UTC, spans are the outermost first, errors come with their causes. What is logged at all is
//! decided elsewhere.

use std::{error::Error, fmt, io::Write};

use serde_json::{Map, Value};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    fmt::{
        MakeWriter,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::Context,
    registry::LookupSpan,
};

use super::chain;

/// Writes events to `W`.
#[derive(Debug)]
pub(super) struct Json<W>(pub(super) W);

/// What is known of a span, kept with it.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl<S, W> Layer<S> for Json<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.0.remove("message").unwrap_or_else(|| "".into());
        let metadata = event.metadata();
        let spans = context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root());
        let spans = spans.map(|span| {
            let mut object = Map::from_iter([("name".to_owned(), Value::from(span.name()))]);
            if let Some(fields) = span.extensions().get::<Fields>() {
                // A field that is called `name` as well does not take its place.
                for (key, value) in &fields.0 {
                    object.entry(key).or_insert_with(|| value.clone());
                }
            }
            Value::Object(object)
        });
        let object = object(metadata, message, fields.0, spans.collect());
        // If nobody can be told, nobody can be told that either.
        drop(self.0.make_writer_for(metadata).write_all(object.as_bytes()));
    }
}

/// What the program says beside its log, as a line of it.
pub(super) fn line(level: Level, message: &str, fields: Map<String, Value>) -> String {
    text(&level, "sepal::cli", message.into(), (fields, Vec::new()))
}

fn object(metadata: &Metadata<'_>, message: Value, fields: Map<String, Value>, spans: Vec<Value>) -> String {
    text(metadata.level(), metadata.target(), message, (fields, spans))
}

fn text(level: &Level, target: &str, message: Value, (fields, spans): (Map<String, Value>, Vec<Value>)) -> String {
    let mut now = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut now));
    let object = Map::from_iter([
        ("timestamp".to_owned(), Value::from(now)),
        ("level".to_owned(), level.as_str().into()),
        ("target".to_owned(), target.into()),
        ("message".to_owned(), message),
        ("fields".to_owned(), fields.into()),
        ("spans".to_owned(), spans.into()),
    ]);
    format!("{}\n", Value::Object(object))
}

impl Fields {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.set(field, chain(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use serde_json::json;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_with_its_fields_its_spans_and_the_causes_of_errors() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::registry().with(Json(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let outer = tracing::info_span!("request", id = "req_1", later = tracing::field::Empty);
            outer.record("later", true);
            let _entered = (
                outer.entered(),
                tracing::debug_span!("step", name = "another", blocks = ?(0..4)).entered(),
            );
            let error = anyhow::Error::new(io::Error::other("no\ndisk")).context("cannot write");
            let error: &(dyn Error + 'static) = error.as_ref();
            tracing::warn!(error, n = 3, share = 0.5, nothing = f64::NAN, "two\nlines \u{1b}[31m");
        });
        let bytes = written.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let mut line: Value = serde_json::from_str(&text).unwrap();
        let timestamp = line["timestamp"].take();
        let timestamp = timestamp.as_str().unwrap();
        let shape = timestamp.replace(|c: char| c.is_ascii_digit(), "0");
        assert_eq!(shape, "0000-00-00T00:00:00.000000Z");
        let expected = json!({
            "timestamp": null,
            "level": "WARN",
            "target": "sepal::cli::logging::json::tests",
            "message": "two\nlines \u{1b}[31m",
            "fields": {"error": "cannot write: no\ndisk", "n": 3, "share": 0.5, "nothing": null},
            "spans": [{"name": "request", "id": "req_1", "later": true}, {"name": "step", "blocks": "0..4"}],
        });
        assert_eq!(line, expected);
    }
}
