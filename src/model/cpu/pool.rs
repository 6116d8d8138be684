//! Threads that compute: they share out the tasks of one parallel region at a time. Between the regions of a step they
//! spin, because waking a thread costs as much as a small region; between steps they sleep.
//!
//! A region never waits for a thread that has not joined it, so a pool with more threads than cores is slower but never
//! stuck.

use std::{
    any::Any,
    cell::Cell,
    fmt, hint, io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

use core_affinity::CoreId;

use super::cores;

/// How long a thread looks for the next region before it sleeps: longer than what lies between two regions of a step.
const SPIN: Duration = Duration::from_micros(50);

/// Pauses between two looks at the clock.
const PAUSES: usize = 32;

/// In [`Shared::state`]: threads that joined the region, besides the caller.
const JOINED: u64 = 0xffff;
/// In [`Shared::state`]: the region may be joined.
const OPEN: u64 = 1 << 16;
/// In [`Shared::state`]: what the number of a region is counted in.
const REGION: u64 = 1 << 17;

thread_local! {
    /// Whether this thread is computing tasks of a region.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A pool of threads, of which the caller of [`Pool::run`] is one. Dropping it ends them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for a region.
    turn: Mutex<()>,
}

/// What threads share. Alone in its cache lines, since everybody looks at it while spinning.
#[repr(align(128))]
struct Shared {
    state: AtomicU64,
    /// The region of `state`; valid while it is open or threads are in it.
    region: AtomicPtr<Region<'static>>,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    /// Guards nothing but the way into sleep.
    bed: Mutex<()>,
    wake: Condvar,
}

/// One call of [`Pool::run`].
struct Region<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    n: usize,
    next: AtomicUsize,
    caller: Thread,
    /// What the first task that panicked said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Pool {
    /// Starts `threads - 1` threads, each on a core of its own if they are to use all cores there are.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn new(threads: usize) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            region: AtomicPtr::new(ptr::null_mut()),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            bed: Mutex::new(()),
            wake: Condvar::new(),
        });
        let cores = cores::physical();
        let mut pool = Self {
            shared: Arc::clone(&shared),
            workers: Vec::new(),
            turn: Mutex::new(()),
        };
        for i in 1..threads {
            let shared = Arc::clone(&shared);
            let core = place(&cores, threads, i);
            let worker = thread::Builder::new().name(format!("kernel-{i}")).spawn(move || {
                if let Some(core) = core {
                    core_affinity::set_for_current(core);
                }
                shared.work();
            })?;
            pool.workers.push(worker);
        }
        Ok(Arc::new(pool))
    }

    /// How many threads compute, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// `task(i)` for every `i` in `0..n`, on all threads, the caller's included; returns when all are done. Callers
    /// take turns; inside a task it runs on that task's thread alone.
    ///
    /// # Panics
    /// If a task panics, with what it said; tasks that had not begun are left out then.
    pub(crate) fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        if n <= 1 || self.workers.is_empty() || INSIDE.get() {
            return (0..n).for_each(task);
        }
        let region = Region {
            task,
            n,
            next: AtomicUsize::new(0),
            caller: thread::current(),
            panic: Mutex::new(None),
        };
        {
            let _turn = lock(&self.turn);
            self.shared.open(&region);
            region.take_part();
            self.shared.close();
        }
        if let Some(panic) = lock(&region.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        drop(lock(&self.shared.bed));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A task's panic was caught, so there is nothing a thread could have died of.
            drop(worker.join());
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Shared {
    /// Lets threads join `region`. Only the one caller whose turn it is calls this, and then [`Shared::close`].
    fn open(&self, region: &Region<'_>) {
        self.region.store(ptr::from_ref(region).cast_mut().cast(), SeqCst);
        let state = self.state.load(SeqCst);
        debug_assert_eq!(state & (OPEN | JOINED), 0, "a region begins before another has ended");
        self.state.store((state + REGION) | OPEN, SeqCst);
        // A thread counts itself before it looks at the state a last time, so one of the two sees the other.
        if self.sleepers.load(SeqCst) > 0 {
            drop(lock(&self.bed));
            self.wake.notify_all();
        }
    }

    /// Returns when nobody is in the region, nor will be.
    fn close(&self) {
        let mut joined = self.state.fetch_and(!OPEN, SeqCst) & JOINED;
        let mut spin = Spin::new();
        while joined > 0 {
            if !spin.again() {
                // Whoever leaves last unparks.
                thread::park();
            }
            joined = self.state.load(SeqCst) & JOINED;
        }
    }

    fn work(&self) {
        let mut last = 0;
        let mut spin = Spin::new();
        while !self.stop.load(SeqCst) {
            let state = self.state.load(SeqCst);
            let region = state / REGION;
            if state & OPEN == 0 || region == last {
                if !spin.again() {
                    self.sleep(last);
                    spin = Spin::new();
                }
                continue;
            }
            if self.state.compare_exchange(state, state + 1, SeqCst, SeqCst).is_ok() {
                last = region;
                self.join();
                spin = Spin::new();
            }
        }
    }

    /// Computes tasks of the region that this thread was just counted in.
    fn join(&self) {
        // SAFETY: the caller of the region stays in `close` until this thread has left, and the region is its local.
        let region = unsafe { &*self.region.load(SeqCst) };
        let caller = region.caller.clone();
        region.take_part();
        // From here on the region may be gone.
        if self.state.fetch_sub(1, SeqCst) & (OPEN | JOINED) == 1 {
            caller.unpark();
        }
    }

    /// Until there may be a region other than `last`.
    fn sleep(&self, last: u64) {
        let mut bed = lock(&self.bed);
        self.sleepers.fetch_add(1, SeqCst);
        while !self.stop.load(SeqCst) {
            let state = self.state.load(SeqCst);
            if state & OPEN != 0 && state / REGION != last {
                break;
            }
            bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }
}

impl Region<'_> {
    /// Takes tasks until there are none.
    fn take_part(&self) {
        let was_inside = INSIDE.replace(true);
        let tasks = AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, SeqCst);
                if i >= self.n {
                    break;
                }
                (self.task)(i);
            }
        });
        if let Err(panic) = catch_unwind(tasks) {
            self.next.store(self.n, SeqCst);
            lock(&self.panic).get_or_insert(panic);
        }
        INSIDE.set(was_inside);
    }
}

/// Where thread `i` of `threads` stays. Nowhere if they leave cores free: other nodes on this machine, which know as little of
/// us as we of them, would choose the same ones, while the system sees which are idle.
fn place(cores: &[CoreId], threads: usize, i: usize) -> Option<CoreId> {
    (cores.len() == threads).then(|| cores[i])
}

/// Waiting that burns the CPU, for a while.
struct Spin {
    started: Instant,
}

impl Spin {
    fn new() -> Self {
        Self {
            started: Instant::now(),
        }
    }

    /// Waits a little; `false` when that was long enough.
    fn again(&mut self) -> bool {
        for _ in 0..PAUSES {
            hint::spin_loop();
        }
        self.started.elapsed() < SPIN
    }
}

/// A panic of a task does not happen under a lock, and would spoil nothing that is guarded.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
