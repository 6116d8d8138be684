//! A reading of metrics: names, units, labels, what they mean and what they are now. Whoever counts something gives families;
//! `exposition` writes them for Prometheus, and what else exports them reads the same.
//!
//! Names follow Prometheus: base units at their end (`_seconds`, `_bytes`), counters get `_total` when they are written.
//! Labels have few values: models, routes, states; never peers, sessions or anything that strangers choose. Nothing is
//! measured and nobody is asked here.

mod instruments;
#[cfg(test)]
pub(crate) mod testing;
mod text;

pub(crate) use self::{
    instruments::{Counters, Histograms},
    text::{CONTENT_TYPE, exposition},
};

/// All that is known under one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Without `_total`.
    pub name: &'static str,
    /// What it is, in a sentence without an end.
    pub help: &'static str,
    /// How its points are to be read.
    pub kind: Kind,
    /// One for each combination of labels.
    pub points: Vec<Point>,
}

/// How points are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Counted since the node started: it only grows.
    Counter,
    /// What it is now.
    Gauge,
    /// How often something took how long.
    Histogram,
}

/// A number, or several that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Names and values.
    pub labels: Vec<(&'static str, String)>,
    /// What it is.
    pub value: Value,
}

/// What a point says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge.
    Number(f64),
    /// Of a histogram.
    Distribution(Distribution),
}

/// How often something had which size.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Upper bounds of all buckets but the last, ascending.
    pub bounds: Vec<f64>,
    /// How many were in each bucket, and one more for those above all bounds.
    pub counts: Vec<u64>,
    /// All sizes together.
    pub sum: f64,
}

impl Distribution {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Family {
    /// Something that is counted.
    pub fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, Kind::Counter)
    }

    /// Something that is as it is now.
    pub fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, Kind::Gauge)
    }

    fn new(name: &'static str, help: &'static str, kind: Kind) -> Self {
        Self {
            name,
            help,
            kind,
            points: Vec::new(),
        }
    }

    /// With the only number that there is.
    #[must_use]
    pub fn is(self, number: impl Into<Number>) -> Self {
        self.of(&[], number)
    }

    /// With a number of those with these labels. What is said twice of the same is added up.
    #[must_use]
    pub fn of(mut self, labels: &[(&'static str, &str)], number: impl Into<Number>) -> Self {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let Number(number) = number.into();
        self.add(Point {
            labels: labels.collect(),
            value: Value::Number(number),
        });
        self
    }

    /// With what another part of the process says under this name: of the same labels, both together.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        other.points.into_iter().for_each(|point| self.add(point));
        self
    }

    fn add(&mut self, point: Point) {
        let known = self.points.iter_mut().find(|known| known.labels == point.labels);
        match (known.map(|known| &mut known.value), &point.value) {
            (Some(Value::Number(sum)), Value::Number(number)) => *sum += number,
            _ => self.points.push(point),
        }
    }
}

/// A number as metrics have it: counts beyond 2^53 lose their last digits, as in Prometheus.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Number(f64);

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self(number)
    }
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self(number as f64)
    }
}

impl From<usize> for Number {
    fn from(number: usize) -> Self {
        Self(number as f64)
    }
}

impl From<u32> for Number {
    fn from(number: u32) -> Self {
        Self(f64::from(number))
    }
}

impl From<bool> for Number {
    fn from(is: bool) -> Self {
        Self(f64::from(u8::from(is)))
    }
}
