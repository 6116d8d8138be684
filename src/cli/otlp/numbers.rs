//! Families of metrics in the words of OTLP. Names stay those of `/metrics`, without `_total`, so that the same dashboards
//! fit; units are said beside them.

use std::time::SystemTime;

use super::wire::{Message, attribute, nanoseconds, request as whole};
use crate::metrics::{Family, Kind, Point, Value};

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u64 = 2;

/// An `ExportMetricsServiceRequest` with what was counted from `began` to now.
pub(super) fn request(families: &[Family], began: SystemTime) -> Message {
    let times = [began, SystemTime::now()].map(nanoseconds);
    whole(families.iter().map(|family| metric(family, times)))
}

fn metric(family: &Family, times: [u64; 2]) -> Message {
    let points = family.points.iter().map(|point| point_of(point, times));
    let data = Message::default().messages(1, points);
    let unit = match family.name.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        _ => "1",
    };
    let metric = Message::default()
        .text(1, family.name)
        .text(2, family.help)
        .text(3, unit);
    match family.kind {
        Kind::Gauge => metric.message(5, &data),
        Kind::Counter => metric.message(7, &data.varint(2, CUMULATIVE).varint(3, true.into())),
        Kind::Histogram => metric.message(9, &data.varint(2, CUMULATIVE)),
    }
}

fn point_of(Point { labels, value }: &Point, [began, now]: [u64; 2]) -> Message {
    let attributes = labels.iter().map(|(name, value)| attribute(name, value));
    let point = Message::default().fixed64(2, began).fixed64(3, now);
    match value {
        Value::Number(number) => point.double(4, *number).messages(7, attributes),
        Value::Distribution(distribution) => point
            .fixed64(4, distribution.counts.iter().sum())
            .double(5, distribution.sum)
            .packed(6, distribution.counts.iter().copied())
            .packed(7, distribution.bounds.iter().map(|bound| bound.to_bits()))
            .messages(9, attributes),
    }
}
