//! Growth as a picture: one panel for each quantity, the size of the swarm on a logarithmic axis, the fit going on as dashes.

use std::fmt::Write;

use super::{Growth, Report};

const PANEL: (f64, f64) = (300.0, 200.0);
const MARGIN: f64 = 50.0;
const SMALLEST: f64 = 100.0;

type Quantity = fn(&Report) -> f64;

/// A quantity and how to show it.
struct Panel {
    title: &'static str,
    of: Quantity,
    /// A second quantity on the same axis, without a fit.
    also: Option<(&'static str, Quantity)>,
}

const PANELS: [Panel; 3] = [
    Panel {
        title: "hops of a read: mean",
        of: |report| report.hops.mean,
        also: Some(("p99", |report| report.hops.p99)),
    },
    Panel {
        title: "messages sent by a node per minute",
        of: |report| report.messages,
        also: None,
    },
    Panel {
        title: "KiB sent by a node per minute",
        of: |report| report.bytes / 1024.0,
        also: None,
    },
];

/// The whole picture. The axes end at `largest` nodes.
pub(super) fn svg(growth: &Growth, largest: f64) -> String {
    let width = PANELS.len() as f64 * (PANEL.0 + MARGIN) + MARGIN;
    let height = PANEL.1 + 2.0 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (at, panel) in PANELS.iter().enumerate() {
        let left = MARGIN + at as f64 * (PANEL.0 + MARGIN);
        draw(&mut svg, growth, panel, (left, largest));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Where things are in a panel.
struct Frame {
    left: f64,
    largest: f64,
    top_value: f64,
}

impl Frame {
    fn x(&self, nodes: f64) -> f64 {
        self.left + PANEL.0 * (nodes / SMALLEST).ln() / (self.largest / SMALLEST).ln()
    }

    fn y(&self, value: f64) -> f64 {
        MARGIN + PANEL.1 * (1.0 - value / self.top_value)
    }
}

// Writing to a string does not fail, so its results are left alone.
fn draw(svg: &mut String, growth: &Growth, panel: &Panel, (left, largest): (f64, f64)) {
    let fit = growth.fit(panel.of);
    let also = |report: &Report| panel.also.map_or(0.0, |(_, of)| of(report));
    let highest = |report: &Report| (panel.of)(report).max(also(report));
    let highest = growth.reports.iter().map(highest).fold(fit.at(largest), f64::max);
    let step = nice(highest / 4.0);
    let frame = Frame {
        left,
        largest,
        top_value: (highest / step).ceil().max(1.0) * step,
    };
    let bottom = MARGIN + PANEL.1;
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"{}\" font-size=\"13\" fill=\"#222\">{}</text>",
        MARGIN - 18.0,
        panel.title
    );
    for line in 0..=(frame.top_value / step).round() as usize {
        let value = line as f64 * step;
        let (y, right) = (frame.y(value), left + PANEL.0);
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{value}</text>",
            left - 5.0,
            y + 4.0
        );
    }
    for (nodes, label) in [
        (1e2, "100"),
        (1e3, "1 000"),
        (1e4, "10 000"),
        (1e5, "100 000"),
        (1e6, "1 000 000"),
    ] {
        let (x, y) = (frame.x(nodes), bottom + 16.0);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\" fill=\"#555\">{label}</text>"
        );
    }
    let _ = writeln!(
        svg,
        "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#1769aa\" stroke-width=\"1.5\" stroke-dasharray=\"4 4\"/>",
        frame.x(SMALLEST),
        frame.y(fit.at(SMALLEST)),
        frame.x(largest),
        frame.y(fit.at(largest))
    );
    points(svg, growth, &frame, (panel.of, "#1769aa"));
    if let Some((name, of)) = panel.also {
        points(svg, growth, &frame, (of, "#c2571a"));
        if let Some(last) = growth.reports.last() {
            let (x, y) = (frame.x(last.nodes as f64) + 8.0, frame.y(of(last)) + 4.0);
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"#c2571a\">{name}</text>");
        }
    }
}

fn points(svg: &mut String, growth: &Growth, frame: &Frame, (of, color): (Quantity, &str)) {
    for report in &growth.reports {
        let (x, y) = (frame.x(report.nodes as f64), frame.y(of(report)));
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{color}\"/>");
    }
}

/// The next larger one of 1, 2, 5, 10, 20 …
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.max(1e-3).log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    factors
        .iter()
        .map(|factor| factor * power)
        .find(|nice| *nice >= step)
        .unwrap_or(step)
}
