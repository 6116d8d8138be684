//! How much memory this process may still take: what the machine has free, and what its control groups leave it; and
//! sizes as people read them.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use sysinfo::System;

/// Share of the free memory that weights and caches are planned with; the rest stays for the system, the network and other programs.
const SHARE: f64 = 0.9;

/// Where version 2 of control groups is mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Bytes that may be planned with now. `None` if the system does not say what is free.
pub(crate) fn free_memory() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory();
    let available = Some(system.available_memory()).filter(|bytes| *bytes > 0);
    // The group that the process sees as the root, as in a container, of either version.
    let visible = system
        .cgroup_limits()
        .map(|limits| limits.total_memory.saturating_sub(limits.rss));
    let own = fs::read_to_string("/proc/self/cgroup").ok();
    let own = own.and_then(|text| least_of_groups(Path::new(CGROUPS), &text, left_by));
    let least = [available, visible, own].into_iter().flatten().min()?;
    Some((least as f64 * SHARE) as u64)
}

/// Bytes that control groups let this process take in all; `None` if they let it take what the machine has.
pub(crate) fn memory_limit() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory();
    let visible = system.cgroup_limits().map(|limits| limits.total_memory);
    let own = fs::read_to_string("/proc/self/cgroup").ok();
    let own = own.and_then(|text| least_of_groups(Path::new(CGROUPS), &text, limit_of));
    let least = [visible, own].into_iter().flatten().min()?;
    Some(least).filter(|limit| *limit < system.total_memory())
}

/// Kept free on a card, in bytes: code and workspace of NVIDIA's libraries, and activations beyond the largest request.
const CARD_RESERVE: u64 = 512 << 20;

/// Bytes of the `free` ones on a card that may be planned with.
pub(crate) fn plannable_on_card(free: u64) -> u64 {
    free.saturating_sub(CARD_RESERVE.min(free / 8))
}

/// The least that `of` says of the group of `text`, the content of `/proc/self/cgroup`, and of those it is in; `None` without a
/// limit.
fn least_of_groups(root: &Path, text: &str, of: fn(&Path) -> Option<u64>) -> Option<u64> {
    // Version 2 has one line, `0::/path`.
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?.trim();
    let group: PathBuf = root.join(path.trim_start_matches('/'));
    let groups = group.ancestors().take_while(|group| group.starts_with(root));
    groups.filter_map(of).min()
}

fn number(group: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
}

/// What one group lets its processes take. Without a limit it says `max`.
fn limit_of(group: &Path) -> Option<u64> {
    number(group, "memory.max")
}

/// What one group leaves. Cached files are not counted: they make room.
fn left_by(group: &Path) -> Option<u64> {
    let max = limit_of(group)?;
    let current = number(group, "memory.current")?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let field = |name: &str| -> u64 {
        let found = stat
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or(0)
    };
    let cached = field("inactive_file") + field("active_file");
    Some(max.saturating_sub(current.saturating_sub(cached)))
}

/// Bytes for people.
pub(crate) struct ByteSize(pub(crate) u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        let (unit, name) = [(1 << 30, "GiB"), (1 << 20, "MiB")]
            .into_iter()
            .find(|(unit, _)| self.0 >= *unit)
            .unwrap_or((1 << 10, "KiB"));
        write!(f, "{:.1} {name}", bytes / unit as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_on_the_way_up_counts_and_cached_files_do_not() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("system.slice/sepal.service");
        fs::create_dir_all(&inner).unwrap();
        let write = |group: &Path, file: &str, text: &str| fs::write(group.join(file), text).unwrap();
        let text = "0::/system.slice/sepal.service\n";
        assert_eq!(least_of_groups(root.path(), text, left_by), None);
        write(&inner, "memory.max", "1000\n");
        write(&inner, "memory.current", "700\n");
        write(&inner, "memory.stat", "anon 300\ninactive_file 350\nactive_file 50\n");
        assert_eq!(least_of_groups(root.path(), text, left_by), Some(700));
        let outer = root.path().join("system.slice");
        write(&outer, "memory.max", "900\n");
        write(&outer, "memory.current", "800\n");
        assert_eq!(least_of_groups(root.path(), text, left_by), Some(100));
        assert_eq!(least_of_groups(root.path(), text, limit_of), Some(900));
        write(&outer, "memory.max", "max\n");
        assert_eq!(least_of_groups(root.path(), text, left_by), Some(700));
        assert_eq!(least_of_groups(root.path(), "4:memory:/x\n", left_by), None);
    }

    #[test]
    fn this_machine_has_some_memory_left() {
        assert!(free_memory().is_none_or(|bytes| bytes > 0));
    }
}
