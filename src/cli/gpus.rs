//! The GPUs of this machine as its drivers describe them: NVIDIA's by NVML, AMD's by what the kernel's driver says.
//! Whether anything is computed on them is not known here.

use std::{fs, path::Path};

use nvml_wrapper::{Nvml, error::NvmlError};
use serde::Serialize;

/// Where Linux lists graphics devices.
const DEVICES: &str = "/sys/class/drm";

/// AMD's number among makers of PCI devices.
const AMD: &str = "0x1002";

/// One card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Gpu {
    pub(super) maker: &'static str,
    pub(super) name: String,
    /// Bytes of its own memory.
    pub(super) memory: u64,
    pub(super) free_memory: u64,
    /// Such as 9.0; NVIDIA's only.
    pub(super) compute_capability: Option<String>,
}

/// Those that NVIDIA's driver knows, and the driver's version; `None` if there is no driver.
///
/// # Errors
/// There is a driver, and it does not work.
pub(super) fn nvidia() -> Result<Option<(String, Vec<Gpu>)>, NvmlError> {
    let nvml = match Nvml::init() {
        Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound) => return Ok(None),
        nvml => nvml?,
    };
    let gpus = (0..nvml.device_count()?).map(|index| {
        let device = nvml.device_by_index(index)?;
        let memory = device.memory_info()?;
        let capability = device.cuda_compute_capability().ok();
        Ok(Gpu {
            maker: "NVIDIA",
            name: device.name()?,
            memory: memory.total,
            free_memory: memory.free,
            compute_capability: capability.map(|version| format!("{}.{}", version.major, version.minor)),
        })
    });
    let gpus = gpus.collect::<Result<_, NvmlError>>()?;
    Ok(Some((nvml.sys_driver_version()?, gpus)))
}

/// AMD's, without any library.
pub(super) fn amd() -> Vec<Gpu> {
    amd_below(Path::new(DEVICES))
}

fn amd_below(devices: &Path) -> Vec<Gpu> {
    let Ok(entries) = fs::read_dir(devices) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().filter_map(|path| amd_at(&path.join("device"))).collect()
}

/// The connectors of a card have entries of their own, but no maker.
fn amd_at(device: &Path) -> Option<Gpu> {
    let read = |file: &str| fs::read_to_string(device.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    if read("vendor")?.trim() != AMD {
        return None;
    }
    let memory = number("mem_info_vram_total")?;
    let name = read("product_name").map(|name| name.trim().to_owned());
    let id = || format!("device {}", read("device").unwrap_or_default().trim());
    Some(Gpu {
        maker: "AMD",
        name: name.filter(|name| !name.is_empty()).unwrap_or_else(id),
        memory,
        free_memory: memory.saturating_sub(number("mem_info_vram_used").unwrap_or(0)),
        compute_capability: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_of_amd_are_found_among_the_devices() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("card0/device/vendor", "0x10de\n");
        put("card0/device/mem_info_vram_total", "1\n");
        put("card0-DP-1/status", "connected\n");
        put("card1/device/vendor", "0x1002\n");
        put("card1/device/device", "0x744c\n");
        put("card1/device/mem_info_vram_total", "25753026560\n");
        put("card1/device/mem_info_vram_used", "753026560\n");
        let found = amd_below(root.path());
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].name.as_str(), found[0].memory),
            ("device 0x744c", 25_753_026_560)
        );
        assert_eq!(found[0].free_memory, 25_000_000_000);
        assert!(amd_below(&root.path().join("nothing")).is_empty());
    }
}
