//! Spans as traces: each gets an id when it begins, and is handed on when it ends, with the ids of its trace and of the span
//! that it is in.

use std::{fmt, time::SystemTime};

use rand::Rng;
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

use super::wire::{Message, attribute, nanoseconds, request as whole};

/// `SPAN_KIND_INTERNAL`.
const INTERNAL: u64 = 1;

/// A span that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    name: &'static str,
    begun: Begun,
    ended: SystemTime,
}

/// What is known of a span while it goes on, kept with it.
#[derive(Clone, Debug)]
struct Begun {
    trace: [u8; 16],
    span: [u8; 8],
    parent: Option<[u8; 8]>,
    at: SystemTime,
    fields: Fields,
}

#[derive(Clone, Debug, Default)]
struct Fields(Vec<(&'static str, String)>);

/// Hands spans that have ended to `F`.
pub(super) struct Spans<F>(F);

impl<F: Fn(Ended)> Spans<F> {
    pub(super) fn new(take: F) -> Self {
        Self(take)
    }
}

impl<S, F> Layer<S> for Spans<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    F: Fn(Ended) + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let parent = span.parent().and_then(|parent| {
            let extensions = parent.extensions();
            extensions.get::<Begun>().map(|parent| (parent.trace, parent.span))
        });
        let mut random = rand::rng();
        let begun = Begun {
            trace: parent.map_or_else(|| random.random(), |(trace, _)| trace),
            span: random.random(),
            parent: parent.map(|(_, span)| span),
            at: SystemTime::now(),
            fields,
        };
        span.extensions_mut().insert(begun);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(begun) = span.extensions_mut().get_mut::<Begun>() {
            values.record(&mut begun.fields);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let begun = span.extensions_mut().remove::<Begun>();
        if let Some(begun) = begun {
            (self.0)(Ended {
                name: span.name(),
                begun,
                ended: SystemTime::now(),
            });
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }
}

/// An `ExportTraceServiceRequest`.
pub(super) fn request(spans: &[Ended]) -> Message {
    whole(spans.iter().map(message))
}

fn message(Ended { name, begun, ended }: &Ended) -> Message {
    let span = Message::default().data(1, &begun.trace).data(2, &begun.span);
    let span = match &begun.parent {
        Some(parent) => span.data(4, parent),
        None => span,
    };
    span.text(5, name)
        .varint(6, INTERNAL)
        .fixed64(7, nanoseconds(begun.at))
        .fixed64(8, nanoseconds(*ended))
        .messages(9, begun.fields.0.iter().map(|(key, value)| attribute(key, value)))
}
