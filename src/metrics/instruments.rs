//! What is counted as it happens, by labels. Clones of what is counted are made when somebody reads.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Distribution, Family, Kind, Point, Value};

/// Labels and the values that were met, each with what was counted.
type Known<const N: usize, T> = Mutex<BTreeMap<[String; N], T>>;

/// Counts by `N` labels.
#[derive(Debug)]
pub(crate) struct Counters<const N: usize> {
    labels: [&'static str; N],
    known: Known<N, u64>,
}

/// Sizes by `N` labels.
#[derive(Debug)]
pub(crate) struct Histograms<const N: usize> {
    labels: [&'static str; N],
    bounds: Vec<f64>,
    known: Known<N, Distribution>,
}

impl<const N: usize> Counters<N> {
    pub(crate) fn new(labels: [&'static str; N]) -> Self {
        Self {
            labels,
            known: Mutex::default(),
        }
    }

    pub(crate) fn add(&self, values: [&str; N], n: u64) {
        *lock(&self.known).entry(values.map(str::to_owned)).or_default() += n;
    }

    /// Of all labels together.
    pub(crate) fn total(&self) -> u64 {
        lock(&self.known).values().sum()
    }

    /// Of those whose labels are so.
    pub(crate) fn total_of(&self, is_meant: impl Fn(&[String; N]) -> bool) -> u64 {
        let known = lock(&self.known);
        let meant = known.iter().filter(|(values, _)| is_meant(values));
        meant.map(|(_, count)| count).sum()
    }

    pub(crate) fn family(&self, name: &'static str, help: &'static str) -> Family {
        let known = lock(&self.known);
        let points = known
            .iter()
            .map(|(values, count)| (values, Value::Number(*count as f64)));
        Family {
            points: points_of(&self.labels, points),
            ..Family::counter(name, help)
        }
    }
}

impl<const N: usize> Histograms<N> {
    /// With `n` buckets, the first up to `first` and each of the others twice as wide as the one before, and one for all above.
    pub(crate) fn doubling(labels: [&'static str; N], first: f64, n: usize) -> Self {
        let bounds = std::iter::successors(Some(first), |bound| Some(bound * 2.0));
        Self {
            labels,
            bounds: bounds.take(n).collect(),
            known: Mutex::default(),
        }
    }

    pub(crate) fn observe(&self, values: [&str; N], size: f64) {
        let mut known = lock(&self.known);
        let distribution = known.entry(values.map(str::to_owned)).or_insert_with(|| Distribution {
            bounds: self.bounds.clone(),
            counts: vec![0; self.bounds.len() + 1],
            sum: 0.0,
        });
        distribution.counts[self.bounds.partition_point(|bound| *bound < size)] += 1;
        distribution.sum += size;
    }

    pub(crate) fn family(&self, name: &'static str, help: &'static str) -> Family {
        let known = lock(&self.known);
        let points = known.iter();
        let points = points.map(|(values, distribution)| (values, Value::Distribution(distribution.clone())));
        Family {
            name,
            help,
            kind: Kind::Histogram,
            points: points_of(&self.labels, points),
        }
    }
}

fn points_of<'a, const N: usize>(
    labels: &[&'static str; N],
    points: impl Iterator<Item = (&'a [String; N], Value)>,
) -> Vec<Point> {
    let point = |(values, value): (&[String; N], Value)| Point {
        labels: labels.iter().copied().zip(values.iter().cloned()).collect(),
        value,
    };
    points.map(point).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_counted_in_the_bucket_whose_bound_they_reach() {
        let times = Histograms::doubling(["model"], 0.5, 3);
        for size in [0.1, 0.5, 0.6, 2.0, 2.1] {
            times.observe(["a"], size);
        }
        let family = times.family("sepal_wait_seconds", "Waits");
        let Value::Distribution(distribution) = &family.points[0].value else {
            panic!("{family:?}");
        };
        assert_eq!(distribution.bounds, [0.5, 1.0, 2.0]);
        assert_eq!(distribution.counts, [2, 1, 1, 1]);
        assert_eq!(distribution.count(), 5);
        assert!((distribution.sum - 5.3).abs() < 1e-9);
    }

    #[test]
    fn counts_are_kept_apart_by_their_labels() {
        let counts = Counters::new(["route", "status"]);
        counts.add(["/", "200"], 2);
        counts.add(["/", "500"], 1);
        counts.add(["/", "200"], 3);
        assert_eq!(counts.total(), 6);
        assert_eq!(counts.total_of(|[_, status]| status == "200"), 5);
        let family = counts.family("sepal_requests", "Requests");
        assert_eq!(family.points.len(), 2);
        assert_eq!(family.points[0].labels[1], ("status", "200".to_owned()));
    }
}
