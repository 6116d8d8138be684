//! What the machine has, as the system says. Everything is asked once; nothing is changed.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, Disks, Networks, System};

use crate::{
    cli::{
        environment,
        gpus::{self, Gpu},
    },
    model::{self, Engine, MachineLimits, WeightFormat},
};

/// A machine that might serve blocks. Sizes are bytes.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) version: &'static str,
    pub(super) system: Option<String>,
    /// What runs this program in a container, if something does.
    pub(super) container: Option<&'static str>,
    /// What can run containers here.
    pub(super) container_runtimes: Vec<Runtime>,
    pub(super) cpu: Cpu,
    pub(super) kernels: Kernels,
    pub(super) limits: Option<Limits>,
    pub(super) memory: Memory,
    pub(super) formats: Vec<Format>,
    /// Where models are kept.
    pub(super) disk: Disk,
    pub(super) gpu_driver: Option<String>,
    /// The driver's complaint.
    pub(super) gpu_error: Option<String>,
    pub(super) gpus: Vec<Gpu>,
    /// Addresses that others might reach this machine at, by interface.
    pub(super) network: BTreeMap<String, Vec<IpAddr>>,
}

/// A program that runs containers.
#[derive(Debug, Serialize)]
pub(super) struct Runtime {
    pub(super) name: &'static str,
    /// Where its service listens, if it has one and that is there.
    pub(super) socket: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
pub(super) struct Cpu {
    pub(super) name: String,
    pub(super) physical_cores: Option<usize>,
    /// Those this process may run on.
    pub(super) logical_cores: usize,
    pub(super) architecture: &'static str,
    /// Of those that there are kernels for.
    pub(super) features: Vec<&'static str>,
}

/// What blocks are computed with.
#[derive(Debug, Serialize)]
pub(super) struct Kernels {
    pub(super) dense: &'static str,
    pub(super) quantised: &'static str,
    pub(super) threads: usize,
}

/// What all threads reach together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::cli) struct Limits {
    pub(in crate::cli) read_bytes_per_second: f64,
    pub(in crate::cli) flops_per_second: f64,
}

impl From<MachineLimits> for Limits {
    fn from(limits: MachineLimits) -> Self {
        Self {
            read_bytes_per_second: limits.read_bytes_per_second,
            flops_per_second: limits.flops_per_second,
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) total: u64,
    pub(super) available: u64,
    /// What control groups let this process take in all, where that is less.
    pub(super) limit: Option<u64>,
    /// What a server would plan with: limits of control groups and a reserve are taken off.
    pub(super) usable: Option<u64>,
}

/// What a format of weights means here.
#[derive(Debug, Serialize)]
pub(super) struct Format {
    pub(super) name: &'static str,
    pub(super) bits_per_weight: f64,
    /// What a server plans with: of bfloat16 all 16 bits, because some models' weights take them.
    pub(super) planned_bits_per_weight: f64,
    /// Weights that a server plans the usable memory for, with nothing left for caches.
    pub(super) weights_that_fit: Option<u64>,
    /// Tokens that go through a thousand million weights in a second, one at a time: every one reads all of them.
    pub(super) tokens_per_second_of_a_billion: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Disk {
    pub(super) folder: PathBuf,
    pub(super) mount: Option<PathBuf>,
    /// SSD or HDD, where the system knows.
    pub(super) kind: Option<String>,
    pub(super) file_system: Option<String>,
    pub(super) free: Option<u64>,
    pub(super) total: Option<u64>,
}

impl Machine {
    /// Asks the system.
    pub(super) fn look(engine: &Engine, limits: Option<MachineLimits>) -> Self {
        let memory = memory();
        let (gpu_driver, gpus, gpu_error) = match gpus::nvidia() {
            Ok(Some((driver, gpus))) => (Some(driver), gpus, None),
            Ok(None) => (None, Vec::new(), None),
            Err(error) => (None, Vec::new(), Some(error.to_string())),
        };
        let formats = WeightFormat::ALL
            .into_iter()
            .map(|format| what_it_means((format, engine.bits_per_weight(format)), memory.usable, limits));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            system: System::long_os_version(),
            container: environment::container(),
            container_runtimes: runtimes(),
            cpu: cpu(),
            kernels: Kernels {
                dense: engine.instructions(),
                quantised: engine.quant_instructions(),
                threads: engine.threads(),
            },
            limits: limits.map(Limits::from),
            formats: formats.collect(),
            memory,
            disk: disk(environment::hub_options(None, None).cache),
            gpu_driver,
            gpu_error,
            gpus: gpus.into_iter().chain(gpus::amd()).collect(),
            network: network(),
        }
    }
}

fn what_it_means(
    (format, bits_per_weight): (WeightFormat, f64),
    usable: Option<u64>,
    limits: Option<MachineLimits>,
) -> Format {
    let planned_bits_per_weight = format.bits_per_weight();
    let (bytes_per_weight, planned) = (bits_per_weight / 8.0, planned_bits_per_weight / 8.0);
    Format {
        name: format.as_str(),
        bits_per_weight,
        planned_bits_per_weight,
        weights_that_fit: usable.map(|bytes| (bytes as f64 / planned) as u64),
        tokens_per_second_of_a_billion: limits.map(|limits| limits.read_bytes_per_second / bytes_per_weight / 1e9),
    }
}

/// The processor.
pub(super) fn cpu() -> Cpu {
    let mut system = System::new();
    system.refresh_cpu_list(CpuRefreshKind::nothing());
    let name = system.cpus().first().map(|cpu| cpu.brand().trim().to_owned());
    Cpu {
        name: name.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".into()),
        physical_cores: System::physical_core_count(),
        logical_cores: std::thread::available_parallelism().map_or(1, usize::from),
        architecture: std::env::consts::ARCH,
        features: model::cpu_features(),
    }
}

fn runtimes() -> Vec<Runtime> {
    let names = ["docker", "podman", "nerdctl", "apptainer", "singularity"];
    let runtime = |name| Runtime {
        name,
        socket: environment::container_socket(name),
    };
    environment::on_path(&names).into_iter().map(runtime).collect()
}

fn memory() -> Memory {
    let mut system = System::new();
    system.refresh_memory();
    Memory {
        total: system.total_memory(),
        available: system.available_memory(),
        limit: model::memory_limit(),
        usable: model::free_memory(),
    }
}

fn disk(folder: PathBuf) -> Disk {
    let space = model::disk_space(&folder);
    let disks = Disks::new_with_refreshed_list();
    let holds = |disk: &&sysinfo::Disk| space.as_ref().is_some_and(|space| space.mount == disk.mount_point());
    let listed = disks.iter().find(holds);
    let kind = listed.map(|disk| disk.kind().to_string());
    Disk {
        folder,
        kind: kind.filter(|kind| !kind.starts_with("Unknown")),
        file_system: listed.map(|disk| disk.file_system().to_string_lossy().into_owned()),
        free: space.as_ref().map(|space| space.free),
        total: space.as_ref().map(|space| space.total),
        mount: space.map(|space| space.mount),
    }
}

fn network() -> BTreeMap<String, Vec<IpAddr>> {
    let networks = Networks::new_with_refreshed_list();
    let interfaces = networks.iter().map(|(name, data)| {
        let addrs = data.ip_networks().iter().map(|network| network.addr);
        (name.clone(), addrs.filter(|addr| !is_local(addr)).collect::<Vec<_>>())
    });
    interfaces.filter(|(_, addrs)| !addrs.is_empty()).collect()
}

/// Whether it only means something on this machine or this line.
fn is_local(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_loopback() || addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_loopback() || addr.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_of_half_the_bits_fits_twice_the_weights_at_twice_the_speed() {
        let limits = MachineLimits {
            read_bytes_per_second: 40e9,
            flops_per_second: 1e12,
        };
        let formats = [WeightFormat::F32, WeightFormat::Bf16];
        let [whole, half] =
            formats.map(|format| what_it_means((format, format.bits_per_weight()), Some(8_000), Some(limits)));
        assert_eq!(
            (whole.weights_that_fit, half.weights_that_fit),
            (Some(2_000), Some(4_000))
        );
        assert_eq!(whole.tokens_per_second_of_a_billion, Some(10.0));
        assert_eq!(half.tokens_per_second_of_a_billion, Some(20.0));
    }

    #[test]
    fn fewer_bits_make_a_format_quicker_but_nobody_plans_with_them() {
        let limits = MachineLimits {
            read_bytes_per_second: 20e9,
            flops_per_second: 1e12,
        };
        let format = what_it_means((WeightFormat::Bf16, 12.0), Some(8_000), Some(limits));
        assert_eq!(
            (format.weights_that_fit, format.tokens_per_second_of_a_billion),
            (Some(4_000), Some(limits.read_bytes_per_second / 1.5e9))
        );
    }

    #[test]
    fn what_nobody_measured_is_not_told() {
        let format = what_it_means((WeightFormat::Nf4, 4.25), None, None);
        assert_eq!(
            (format.weights_that_fit, format.tokens_per_second_of_a_billion),
            (None, None)
        );
    }

    #[test]
    fn this_machine_can_be_described() {
        let engine = Engine::new(None).unwrap();
        let machine = Machine::look(&engine, None);
        assert!(machine.cpu.logical_cores > 0 && machine.memory.total > 0);
        assert_eq!(machine.formats.len(), WeightFormat::ALL.len());
    }
}
