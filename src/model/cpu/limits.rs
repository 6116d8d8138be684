//! What the machine can do at best, measured: to see how near blocks come to it. Nothing is computed that anyone needs.

use std::{hint::black_box, io, time::Instant};

use super::{Engine, memory::Memory, panels::dispatch};

/// Programs that were built without optimisation take a hundred times as long for figures that mean nothing.
const HASTE: usize = if cfg!(debug_assertions) { 100 } else { 1 };

/// Memory to read: more than caches hold.
const BYTES: usize = (1 << 30) / HASTE;

/// How many times a third-level cache it should be.
const TIMES_CACHE: usize = if cfg!(debug_assertions) { 1 } else { 8 };

/// Each measurement is the best of so many: somebody else may be computing.
const REPETITIONS: usize = if cfg!(debug_assertions) { 2 } else { 12 };

/// Parts that threads read one after the other.
const PARTS: usize = 64;

/// Numbers that are multiplied at a time.
const WIDTH: usize = 16;

/// Steps of multiply-adds of one task: some 20 ms.
const STEPS: usize = 8_000_000 / HASTE;

/// What all threads of an engine reach together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MachineLimits {
    /// Bytes per second, read from memory.
    pub read_bytes_per_second: f64,
    /// Operations on f32 per second, a multiply-add counted as two.
    pub flops_per_second: f64,
}

/// Measures for about a second, on all threads, and takes a GiB or eight third-level caches meanwhile.
///
/// # Errors
/// When there is no memory.
pub fn measure_limits(engine: &Engine) -> io::Result<MachineLimits> {
    let memory = LargeMemory::new()?;
    Ok(MachineLimits {
        read_bytes_per_second: memory.len() as f64 / best(|| memory.read(engine)),
        flops_per_second: multiply(engine),
    })
}

/// Memory that no cache holds: a GiB, or eight third-level caches.
#[derive(Debug)]
pub struct LargeMemory {
    memory: Memory,
    /// Numbers of each of the parts.
    part: usize,
}

impl LargeMemory {
    /// # Errors
    /// When there is no memory.
    pub fn new() -> io::Result<Self> {
        let bytes = BYTES.max(TIMES_CACHE * third_level_cache().unwrap_or(0));
        let part = bytes / size_of::<f32>() / PARTS;
        let mut memory = Memory::zeroed(part * PARTS * size_of::<f32>())?;
        // What was never written is one page of zeros, again and again.
        memory.numbers_mut::<f32>(part * PARTS).fill(1.0);
        Ok(Self { memory, part })
    }

    /// Bytes per second, reading all of it once on all threads: for who compares with what the machine does at the moment.
    pub fn bytes_per_second(&self, engine: &Engine) -> f64 {
        let start = Instant::now();
        self.read(engine);
        self.len() as f64 / start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE)
    }

    fn len(&self) -> usize {
        self.part * PARTS * size_of::<f32>()
    }

    fn read(&self, engine: &Engine) {
        let part = self.part;
        let numbers = self.memory.numbers::<f32>(part * PARTS);
        engine.pool.run(PARTS, &|i| {
            // SAFETY: it takes nothing but the level.
            black_box(unsafe { dispatch!(engine.kernels, sum(&numbers[i * part..(i + 1) * part])) });
        });
    }
}

fn multiply(engine: &Engine) -> f64 {
    let threads = engine.pool.threads();
    let chains = engine.kernels.chains();
    let seconds = best(|| {
        engine.pool.run(threads, &|_| {
            // SAFETY: it takes nothing but the level.
            black_box(unsafe { dispatch!(engine.kernels, multiply_registers(STEPS)) });
        });
    });
    (2 * WIDTH * chains * STEPS * threads) as f64 / seconds
}

/// Seconds that `run` takes when nothing disturbs it.
fn best(run: impl Fn()) -> f64 {
    let once = || {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE)
    };
    (0..REPETITIONS).map(|_| once()).fold(f64::INFINITY, f64::min)
}

/// Bytes; `None` where the system does not say.
fn third_level_cache() -> Option<usize> {
    let size = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").ok()?;
    size.trim()
        .strip_suffix('K')?
        .parse::<usize>()
        .ok()
        .map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cpu::Kernels;

    #[test]
    fn all_numbers_are_read() {
        for kernels in Kernels::available() {
            let numbers: Vec<f32> = (0..1009).map(|i| i as f32).collect();
            // SAFETY: the CPU was seen to have the level.
            let sum = unsafe { dispatch!(kernels, sum(&numbers)) };
            assert_eq!(sum, (1008 * 1009 / 2) as f32);
        }
    }
}
