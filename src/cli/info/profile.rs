//! What was found out about this machine, kept in a file for commands that would else have to measure again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::machine::{Limits, Machine};
use crate::{cli::environment, model::Engine};

/// Of the file; another one is not read.
const VERSION: u32 = 1;

/// The file: a machine with the time at which it was looked at.
#[derive(Debug, Serialize)]
struct Profile<'a> {
    version: u32,
    /// Seconds since 1970.
    saved_at: u64,
    machine: &'a Machine,
}

/// What is read of it.
#[derive(Debug, Deserialize)]
struct Saved {
    version: u32,
    saved_at: u64,
    machine: SavedMachine,
}

#[derive(Debug, Deserialize)]
struct SavedMachine {
    cpu: SavedCpu,
    kernels: SavedKernels,
    limits: Option<Limits>,
}

#[derive(Debug, Deserialize)]
struct SavedCpu {
    name: String,
}

#[derive(Debug, Deserialize)]
struct SavedKernels {
    threads: usize,
}

/// What the threads of this machine reach together, as it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cli) struct Measured {
    pub(in crate::cli) limits: Limits,
    /// How long ago.
    pub(in crate::cli) age: Duration,
}

/// Where it is kept.
pub(in crate::cli) fn path() -> PathBuf {
    environment::cache_folder().join("machine.json")
}

/// # Errors
/// The file cannot be written.
pub(super) fn save(machine: &Machine, file: &Path) -> io::Result<()> {
    let profile = Profile {
        version: VERSION,
        saved_at: now(),
        machine,
    };
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    // Written beside and renamed, so that nobody reads half a file.
    let fresh = file.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&fresh, serde_json::to_vec_pretty(&profile)?)?;
    fs::rename(&fresh, file)
}

/// What `file` says of this machine with the threads of `engine`; `None` if it was never measured so.
pub(in crate::cli) fn measured(file: &Path, engine: &Engine) -> Option<Measured> {
    let saved: Saved = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let is_this = saved.version == VERSION
        && saved.machine.kernels.threads == engine.threads()
        && saved.machine.cpu.name == super::machine::cpu().name;
    Some(Measured {
        limits: saved.machine.limits.filter(|_| is_this)?,
        age: Duration::from_secs(now().saturating_sub(saved.saved_at)),
    })
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::model::MachineLimits;

    #[test]
    fn a_profile_is_read_back_on_the_machine_and_with_the_threads_that_it_is_of() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sepal/machine.json");
        let engine = |threads| Engine::new(NonZeroUsize::new(threads)).unwrap();
        assert_eq!(measured(&file, &engine(1)), None);
        let limits = MachineLimits {
            read_bytes_per_second: 20e9,
            flops_per_second: 3e11,
        };
        save(&Machine::look(&engine(1), Some(limits)), &file).unwrap();
        let found = measured(&file, &engine(1)).unwrap();
        assert_eq!(found.limits.read_bytes_per_second, 20e9);
        assert_eq!(measured(&file, &engine(2)), None, "more threads read more");
        let other = fs::read_to_string(&file).unwrap();
        fs::write(&file, other.replace("\"version\": 1", "\"version\": 2")).unwrap();
        assert_eq!(measured(&file, &engine(1)), None, "of a later program");
        save(&Machine::look(&engine(1), None), &file).unwrap();
        assert_eq!(measured(&file, &engine(1)), None, "not measured");
    }
}
