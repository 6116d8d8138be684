//! What the machine offers: memory, disk, open files, CPU. It asks the system and changes nothing.

use std::path::Path;

use rlimit::Resource;
use sysinfo::System;

use super::finding::Finding;
use crate::model;

const GIB: u64 = 1 << 30;

/// A server with less can hold hardly a block of any useful model beside its cache and buffers.
const MIN_MEMORY: u64 = GIB;

/// What Petals leaves free on a disk (`petals/utils/disk_cache.py`), and what logs and caches of ours need at most.
const MIN_DISK: u64 = GIB;

/// Every connection is an open file; Petals raises the limit to the same number (`--increase_file_limit`).
const WANTED_FILES: u64 = 4096;

pub(super) fn memory() -> Finding {
    let mut system = System::new();
    system.refresh_memory();
    judge_memory(system.available_memory(), system.total_memory())
}

fn judge_memory(available: u64, total: u64) -> Finding {
    let seen = format!("{} of {} free", gib(available), gib(total));
    if available < MIN_MEMORY {
        Finding::problem("memory", seen, "end other programs, or serve from a machine with more")
    } else {
        Finding::fine("memory", seen)
    }
}

/// Free space where models are kept, against what is still to be downloaded, in bytes.
pub(super) fn disk(folder: &Path, download: u64) -> Finding {
    let Some(disk) = model::disk_space(folder) else {
        return Finding::note(
            "disk",
            format!("cannot tell how much is free under {}", folder.display()),
        );
    };
    judge_disk(folder, &disk.mount, disk.free, download)
}

fn judge_disk(folder: &Path, mount: &Path, available: u64, download: u64) -> Finding {
    let needed = MIN_DISK + download;
    let seen = format!(
        "{} free on {}, where {} is; {} needed",
        gib(available),
        mount.display(),
        folder.display(),
        gib(needed)
    );
    if available < needed {
        Finding::problem(
            "disk",
            seen,
            "free some space, or set HF_HUB_CACHE to a folder on a larger disk",
        )
    } else {
        Finding::fine("disk", seen)
    }
}

pub(super) fn open_files() -> Finding {
    match Resource::NOFILE.get() {
        Ok((soft, hard)) => judge_files(soft, hard),
        Err(error) => Finding::note("open files", format!("the limit cannot be read: {error}")),
    }
}

fn judge_files(soft: u64, hard: u64) -> Finding {
    // The program raises the soft limit to the hard one when it starts.
    let usable = soft.max(hard);
    if usable < WANTED_FILES {
        Finding::problem(
            "open files",
            format!("at most {usable}, and each connection is one"),
            format!(
                "raise the hard limit to {WANTED_FILES} or more: ulimit -Hn, limits.conf, or LimitNOFILE= of the service"
            ),
        )
    } else if usable == u64::MAX {
        Finding::fine("open files", "no limit")
    } else {
        Finding::fine("open files", format!("at most {usable}"))
    }
}

pub(super) fn cpu() -> Finding {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (kernels, are_fast) = model::cpu_kernels();
    let seen = format!("{threads} threads, {kernels} kernels");
    if are_fast {
        Finding::fine("cpu", seen)
    } else {
        Finding::note(
            "cpu",
            format!("{seen}: no vector instructions that there are faster kernels for; blocks run slowly"),
        )
    }
}

pub(super) fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / GIB as f64)
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Outcome, *};

    #[test]
    fn too_little_of_anything_is_a_problem_with_a_remedy() {
        let folder = Path::new("/models");
        for (little, enough) in [
            (judge_memory(GIB / 2, 8 * GIB), judge_memory(4 * GIB, 8 * GIB)),
            (
                judge_disk(folder, folder, 10 * GIB, 10 * GIB),
                judge_disk(folder, folder, 12 * GIB, 10 * GIB),
            ),
            (judge_files(256, 1024), judge_files(1024, 4096)),
        ] {
            assert_eq!(little.outcome, Outcome::Problem, "{little}");
            assert!(little.remedy.is_some());
            assert_eq!(enough.outcome, Outcome::Fine, "{enough}");
        }
    }
}
