//! What was measured as lines for people.

use super::{Report, network::Network};

const MIB: f64 = (1_u64 << 20) as f64;

/// All of them.
pub(super) fn lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |topic: &str, text: String| lines.push(format!("{topic:<10} {text}"));
    if cfg!(debug_assertions) {
        add("sepal", "built without optimisation: everything is slow".to_owned());
    }
    add("kernels", format!("{}, {} threads", report.kernels, report.threads));
    add(
        "memory",
        format!("reads {:.1} GB/s", report.limits.read_bytes_per_second / 1e9),
    );
    let products: Vec<String> = report
        .products
        .iter()
        .map(|(format, flops)| format!("{:.0} with weights in {format}", flops / 1e9))
        .collect();
    add(
        "compute",
        format!(
            "{:.0} GFLOP/s in float32 at best, products of many tokens: {}",
            report.limits.flops_per_second / 1e9,
            products.join(", ")
        ),
    );
    for text in network(report.network.as_ref()) {
        add("network", text);
    }
    add(
        "model",
        format!("{}: a block of its shape, weights are noise", report.model),
    );
    lines.push(String::new());
    lines.extend(formats(report));
    for announced in &report.announced {
        lines.push(String::new());
        let mut explained = announced.explained.iter();
        let first = explained.next().map_or("", String::as_str);
        lines.push(format!("announced in {}: {first}", announced.format));
        lines.extend(explained.cloned());
    }
    lines
}

fn network(network: Option<&Network>) -> Vec<String> {
    let Some(network) = network else {
        return vec!["not measured: --initial-peers names the swarm to measure it with".to_owned()];
    };
    let mut lines: Vec<String> = network
        .peers
        .iter()
        .map(|(peer, rtt)| match rtt {
            Some(rtt) => format!("{peer}: {:.1} ms there and back", rtt * 1e3),
            None => format!("{peer}: no answer"),
        })
        .collect();
    lines.push(match network.line {
        Some(line) => format!(
            "{:.1} Mbit/s came back in an echo with {} peer(s)",
            line.bits_per_second / 1e6,
            line.peers
        ),
        None => "no node took part in an echo".to_owned(),
    });
    lines
}

fn formats(report: &Report) -> Vec<String> {
    let head = format!(
        "{:<10} {:>11} {:>12} {:>12} {:>14} {:>12}",
        "weights", "MiB a block", "ms a token", "at best", "tokens/s, many", "blocks fit"
    );
    let row = |format: &super::Format| {
        let best = format
            .step_seconds_at_best
            .map_or(String::new(), |seconds| format!("{:.3}", seconds * 1e3));
        format!(
            "{:<10} {:>11.1} {:>12.3} {best:>12} {:>14.1} {:>12}",
            format.format,
            format.block_bytes as f64 / MIB,
            format.step_seconds * 1e3,
            format.tokens_per_second,
            format!("{} of {}", format.fit, format.of_blocks)
        )
    };
    std::iter::once(head).chain(report.formats.iter().map(row)).collect()
}
