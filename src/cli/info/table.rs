//! A machine as lines for people: a topic, then what there is.

use super::machine::{Disk, Format, Machine, Runtime};
use crate::cli::gpus::Gpu;

const GIB: f64 = (1_u64 << 30) as f64;

/// All lines of it.
pub(super) fn lines(machine: &Machine) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |topic: &str, text: String| lines.push(format!("{topic:<10} {text}"));
    let cpu = &machine.cpu;
    let cores = match cpu.physical_cores {
        Some(physical) => format!("{physical} cores, {} usable threads", cpu.logical_cores),
        None => format!("{} usable threads", cpu.logical_cores),
    };
    let build = if cfg!(debug_assertions) {
        ", built without optimisation: everything is slow"
    } else {
        ""
    };
    add("sepal", format!("{}{build}", machine.version));
    add("system", system(machine));
    add("cpu", format!("{}, {cores}", cpu.name));
    add(
        "",
        format!("{}: {}", cpu.architecture, or_none(&cpu.features.join(" "))),
    );
    let kernels = &machine.kernels;
    add(
        "kernels",
        format!(
            "{}, quantised {}, on {} threads",
            kernels.dense, kernels.quantised, kernels.threads
        ),
    );
    if let Some(limits) = &machine.limits {
        let (read, flops) = (limits.read_bytes_per_second / 1e9, limits.flops_per_second / 1e9);
        add(
            "at best",
            format!("reads {read:.1} GB/s, computes {flops:.0} GFLOP/s in float32"),
        );
    }
    let memory = &machine.memory;
    let usable = memory.usable.map_or("an unknown part".into(), gib);
    let (available, total) = (gib(memory.available), gib(memory.total));
    let limit = memory.limit.map_or(String::new(), |limit| {
        format!(", control groups leave this process {} in all", gib(limit))
    });
    add(
        "memory",
        format!("{available} of {total} free{limit}, a server would plan with {usable}"),
    );
    add("disk", disk(&machine.disk));
    for text in gpus(machine) {
        add("gpu", text);
    }
    if machine.network.is_empty() {
        add("network", "no address that others could reach".into());
    }
    for (interface, addrs) in &machine.network {
        let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        add("network", format!("{interface}: {}", addrs.join(", ")));
    }
    lines.push(String::new());
    lines.extend(formats(&machine.formats));
    lines
}

fn system(machine: &Machine) -> String {
    let system = machine.system.clone().unwrap_or_else(|| "unknown".into());
    let container = machine
        .container
        .map(|container| format!("in a container ({container})"));
    let runtimes: Vec<String> = machine.container_runtimes.iter().map(runtime).collect();
    let runtimes = (!runtimes.is_empty()).then(|| format!("has {}", runtimes.join(", ")));
    let parts = std::iter::once(system).chain(container).chain(runtimes);
    parts.collect::<Vec<_>>().join(", ")
}

fn runtime(runtime: &Runtime) -> String {
    match (&runtime.socket, runtime.name) {
        (Some(socket), name) => format!("{name} (listens on {})", socket.display()),
        (None, name @ ("docker" | "nerdctl")) => format!("{name} (its service does not run)"),
        (None, name) => name.to_owned(),
    }
}

fn disk(disk: &Disk) -> String {
    let folder = disk.folder.display();
    match (&disk.mount, disk.free, disk.total) {
        (Some(mount), Some(free), Some(total)) => {
            let kind = [disk.kind.as_deref(), disk.file_system.as_deref()];
            let kind: Vec<&str> = kind.into_iter().flatten().collect();
            // Nothing more is known of a network share.
            let kind = match kind.is_empty() {
                true => String::new(),
                false => format!(" ({})", kind.join(", ")),
            };
            let (free, total, mount) = (gib(free), gib(total), mount.display());
            format!("{free} of {total} free on {mount}{kind}, where {folder} is")
        }
        _ => format!("cannot tell how much is free under {folder}"),
    }
}

fn gpus(machine: &Machine) -> Vec<String> {
    let mut lines: Vec<String> = machine.gpus.iter().map(gpu).collect();
    match (&machine.gpu_driver, &machine.gpu_error) {
        (_, Some(error)) => lines.push(format!("the NVIDIA driver does not work: {error}")),
        (Some(driver), None) => lines.push(format!("NVIDIA driver {driver}")),
        (None, None) if lines.is_empty() => lines.push("none that a driver knows".into()),
        (None, None) => {}
    }
    lines
}

fn gpu(gpu: &Gpu) -> String {
    let capability = gpu.compute_capability.as_ref();
    let capability = capability.map_or_else(String::new, |version| format!(", compute capability {version}"));
    let (free, memory) = (gib(gpu.free_memory), gib(gpu.memory));
    format!("{} {}, {free} of {memory} free{capability}", gpu.maker, gpu.name)
}

/// The table of weight formats, with a line below for those that take less than is planned; what is not known is left empty.
fn formats(formats: &[Format]) -> impl Iterator<Item = String> {
    let title = format!(
        "{:<10} {:>11} {:>14} {:>26}",
        "weights", "bits each", "10⁹ that fit", "tokens/s through 10⁹"
    );
    let rows = formats.iter().map(|format| {
        let fit = format
            .weights_that_fit
            .map_or(String::new(), |weights| format!("{:.1}", weights as f64 / 1e9));
        let speed = format.tokens_per_second_of_a_billion;
        let speed = speed.map_or(String::new(), |speed| format!("at most {speed:.1}"));
        let row = format!(
            "{:<10} {:>11.2} {fit:>14} {speed:>26}",
            format.name, format.bits_per_weight
        );
        row.trim_end().to_owned()
    });
    let notes = formats
        .iter()
        .filter(|format| format.planned_bits_per_weight > format.bits_per_weight)
        .map(|format| {
            format!(
                "{}: what fits is counted with {:.0} bits each, since not all weights pack into {:.0}",
                format.name, format.planned_bits_per_weight, format.bits_per_weight
            )
        });
    let lines: Vec<String> = rows.chain(notes).collect();
    std::iter::once(title).chain(lines)
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / GIB)
}

fn or_none(text: &str) -> &str {
    if text.is_empty() {
        "nothing there are kernels for"
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_that_takes_less_than_is_planned_says_what_was_counted() {
        let format = |planned_bits_per_weight| Format {
            name: "bfloat16",
            bits_per_weight: 12.0,
            planned_bits_per_weight,
            weights_that_fit: None,
            tokens_per_second_of_a_billion: None,
        };
        let lines: Vec<String> = formats(&[format(16.0)]).collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(
            lines[2].starts_with("bfloat16: ") && lines[2].contains("with 16 bits"),
            "{lines:?}"
        );
        assert_eq!(formats(&[format(12.0)]).count(), 2);
    }
}
