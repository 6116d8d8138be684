//! What the system says of this process, under the names that Prometheus gives such numbers everywhere: memory, files,
//! time. On Linux; elsewhere only what the program knows by itself.

use std::{
    fs,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use crate::metrics::Family;

/// Parts of a second in which Linux tells times of processes to programs, whatever it counts in itself (`man 5 proc`,
/// `sysconf(_SC_CLK_TCK)`: 100 on all machines that this runs on).
const TICKS: f64 = 100.0;

/// When a process began to do its work, on the clock that only runs and on that of the wall, which is set now and then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Began {
    at: Instant,
    time: SystemTime,
}

impl Began {
    pub(super) fn now() -> Self {
        Self {
            at: Instant::now(),
            time: SystemTime::now(),
        }
    }
}

/// Of a process that began then.
pub(super) fn families(began: Began) -> Vec<Family> {
    let started = began.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut families = vec![
        Family::gauge("sepal_build_info", "1, with what runs").of(
            &[
                ("version", env!("CARGO_PKG_VERSION")),
                ("os", std::env::consts::OS),
                ("arch", std::env::consts::ARCH),
            ],
            true,
        ),
        Family::gauge("sepal_uptime_seconds", "Since the node began").is(began.at.elapsed().as_secs_f64()),
        Family::gauge("process_start_time_seconds", "When the node began").is(started.as_secs_f64()),
    ];
    families.extend(of_system());
    families
}

fn of_system() -> Vec<Family> {
    let mut families = Vec::new();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (key, name, help) in [
        ("VmRSS", "process_resident_memory_bytes", "Memory that is in use"),
        ("VmSize", "process_virtual_memory_bytes", "Addresses that are in use"),
    ] {
        if let Some(kilobytes) = number_of(&status, key) {
            families.push(Family::gauge(name, help).is(kilobytes * 1024));
        }
    }
    if let Some(threads) = number_of(&status, "Threads") {
        families.push(Family::gauge("process_threads", "Threads").is(threads));
    }
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some(seconds) = cpu_seconds(&stat) {
        let help = "Time of processors that was used";
        families.push(Family::counter("process_cpu_seconds", help).is(seconds));
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // The folder that is read is one of them.
        let n = files.count().saturating_sub(1);
        families.push(Family::gauge("process_open_fds", "Files that are open, and connections").is(n));
    }
    if let Ok((soft, _)) = rlimit::Resource::NOFILE.get() {
        families.push(Family::gauge("process_max_fds", "Files that may be open").is(soft));
    }
    families
}

/// `Threads: 12`, or `VmRSS: 1234 kB`, with tabs and blanks between.
fn number_of(status: &str, key: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line?.split_whitespace().next()?.parse().ok()
}

/// The 14th and 15th field, counted from behind the name, which may have blanks and brackets in it.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) as f64 / TICKS)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{exposition, testing};

    #[test]
    fn lines_of_the_system_are_read() {
        let status = "Name:\tsepal\nVmSize:\t  2048 kB\nVmRSS:\t  1024 kB\nThreads:\t7\n";
        assert_eq!(number_of(status, "VmRSS"), Some(1024));
        assert_eq!(number_of(status, "Threads"), Some(7));
        assert_eq!(number_of(status, "Vm"), None);
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 7 0 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds(""), None);
    }

    #[test]
    fn a_process_began_when_it_began_whenever_it_is_asked() {
        let began = Began {
            at: Instant::now(),
            time: UNIX_EPOCH + Duration::from_millis(1_500),
        };
        let start = Family::gauge("process_start_time_seconds", "When the node began").is(1.5);
        assert!(families(began).contains(&start));
    }

    #[test]
    fn a_process_knows_its_version_its_memory_and_its_files() {
        let samples = testing::check(&exposition(&families(Began::now())));
        assert!(samples["sepal_build_info"].contains("version"), "{samples:?}");
        for name in ["sepal_uptime_seconds", "process_start_time_seconds"] {
            assert!(samples.contains_key(name), "{name}");
        }
        if cfg!(target_os = "linux") {
            for name in [
                "process_resident_memory_bytes",
                "process_cpu_seconds_total",
                "process_open_fds",
                "process_max_fds",
                "process_threads",
            ] {
                assert!(samples.contains_key(name), "{name}");
            }
        }
    }
}
