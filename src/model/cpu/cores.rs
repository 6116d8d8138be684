//! Which cores threads may run on: one number per physical core, because two threads of arithmetic on the halves of one
//! core only take turns.

use core_affinity::CoreId;

/// The cores of the affinity mask, of each physical core the first; empty where the system does not say.
pub(super) fn physical() -> Vec<CoreId> {
    let mut cores = core_affinity::get_core_ids().unwrap_or_default();
    let allowed: Vec<usize> = cores.iter().map(|core| core.id).collect();
    cores.retain(|core| first_sibling(core.id, &allowed).is_none_or(|first| first == core.id));
    cores
}

/// How many threads to compute with: one per physical core, fewer if a container may use less.
pub(super) fn default_threads() -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    match physical().len() {
        0 => available,
        cores => cores.min(available),
    }
}

/// The smallest allowed number among the logical processors of `core`'s physical core.
#[cfg(target_os = "linux")]
fn first_sibling(core: usize, allowed: &[usize]) -> Option<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    let list = std::fs::read_to_string(path).ok()?;
    siblings(&list).filter(|sibling| allowed.contains(sibling)).min()
}

#[cfg(not(target_os = "linux"))]
fn first_sibling(_: usize, _: &[usize]) -> Option<usize> {
    None
}

/// The numbers of a list of the kernel: `0,4` or `2-3,8`.
#[cfg(any(target_os = "linux", test))]
fn siblings(list: &str) -> impl Iterator<Item = usize> {
    list.trim().split(',').flat_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => first..last + 1,
            _ => 0..0,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel_are_read() {
        let read = |list| siblings(list).collect::<Vec<usize>>();
        assert_eq!(read("0,4\n"), [0, 4]);
        assert_eq!(read("2-3,8\n"), [2, 3, 8]);
        assert_eq!(read("5"), [5]);
        assert_eq!(read("what"), [0; 0]);
    }

    #[test]
    fn there_is_a_thread_to_compute_with() {
        assert!(default_threads() >= 1);
    }
}
