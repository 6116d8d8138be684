//! Swarms of several sizes side by side: a table, and how cost grows. The plot of it is in `plot.rs`.

use std::fmt::Write;

use super::{Report, plot};

/// A size of swarm that is too large to simulate.
const EXTRAPOLATED: f64 = 1e6;

/// Reports of swarms that differ in size only, smallest first.
#[derive(Clone, Debug)]
pub struct Growth {
    /// At least two of them, for a fit.
    pub reports: Vec<Report>,
}

/// A quantity that grows by `slope` with each doubling of the swarm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Value for a swarm of one node.
    pub base: f64,
    /// Growth for each doubling.
    pub slope: f64,
}

impl Fit {
    /// The line with the least squared error through points of (nodes, value).
    pub fn through(points: impl Iterator<Item = (f64, f64)>) -> Self {
        let points: Vec<(f64, f64)> = points.map(|(nodes, value)| (nodes.log2(), value)).collect();
        let n = points.len() as f64;
        let mean_x = points.iter().map(|point| point.0).sum::<f64>() / n;
        let mean_y = points.iter().map(|point| point.1).sum::<f64>() / n;
        let covariance: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        let variance: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        let slope = if variance > 0.0 { covariance / variance } else { 0.0 };
        Self {
            base: mean_y - slope * mean_x,
            slope,
        }
    }

    /// The value for a swarm of so many nodes.
    pub fn at(&self, nodes: f64) -> f64 {
        self.base + self.slope * nodes.log2()
    }
}

impl Growth {
    /// How a quantity grows.
    pub fn fit(&self, of: impl Fn(&Report) -> f64) -> Fit {
        Fit::through(self.reports.iter().map(|report| (report.nodes as f64, of(report))))
    }

    /// What was measured as a Markdown table, one line for each swarm.
    pub fn table(&self) -> String {
        let mut table = String::from(
            "| nodes | reads | found | hops, mean | hops, p99 | questions | seconds, mean | seconds, p99 | messages/min | KiB/min | time-outs/min | table |\n\
             |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        for report in &self.reports {
            // Writing to a string does not fail.
            let _ = writeln!(
                table,
                "| {} | {} | {:.3} % | {:.2} | {:.0} | {:.1} | {:.2} | {:.2} | {:.0} | {:.0} | {:.2} | {:.0} |",
                report.nodes,
                report.reads,
                100.0 * report.found,
                report.hops.mean,
                report.hops.p99,
                report.calls.mean,
                report.seconds.mean,
                report.seconds.p99,
                report.messages,
                report.bytes / 1024.0,
                report.timed_out,
                report.table,
            );
        }
        table
    }

    /// What a swarm of a million nodes would cost a node, if growth goes on as it was measured.
    pub fn extrapolation(&self) -> String {
        let largest = self.reports.last().map_or(0, |report| report.nodes);
        let (hops, calls) = (
            self.fit(|report| report.hops.mean),
            self.fit(|report| report.calls.mean),
        );
        let (messages, bytes) = (self.fit(|report| report.messages), self.fit(|report| report.bytes));
        let kib_per_s = bytes.at(EXTRAPOLATED) / 1024.0 / 60.0;
        format!(
            "Extrapolated, not measured: with a million nodes, a node sends {:.0} messages and {:.0} KiB a minute ({kib_per_s:.1} KiB/s) \
             and gets as much; a read takes {:.1} hops and {:.1} questions. These are lines fitted to what was measured up to {largest} \
             nodes: {:+.1} messages, {:+.1} KiB, {:+.2} hops for each doubling.",
            messages.at(EXTRAPOLATED),
            bytes.at(EXTRAPOLATED) / 1024.0,
            hops.at(EXTRAPOLATED),
            calls.at(EXTRAPOLATED),
            messages.slope,
            bytes.slope / 1024.0,
            hops.slope,
        )
    }

    /// What was measured and how it goes on, as an SVG picture.
    pub fn svg(&self) -> String {
        plot::svg(self, EXTRAPOLATED)
    }
}
