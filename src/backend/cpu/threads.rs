//! A pool of threads for the many small parallel regions of a decoding step.
//!
//! A decode step of a small model has some 200 parallel regions of 10 to 100 microseconds, so that entering and
//! leaving one may cost about a microsecond. The workers therefore spin for a moment between regions, and park
//! once none has come for [`SPIN`], so that an idle engine burns no core. A region does not wait for workers
//! that have not joined it: where the host's own threads hold a core, the caller runs all tasks by itself.
//!
//! One atomic word tells it all: `epoch << 32 | OPEN | number of workers inside`. The caller writes the job,
//! then opens the region; a worker joins by adding one to the count while the region is open; the caller closes
//! it when no task is left, waits until the count is zero, and only then returns. So the job, which borrows from
//! the caller's stack, is read by nobody outside of the caller's call.

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result, Status};
use crate::threads::spawn;

/// How long a worker spins before it parks.
const SPIN: Duration = Duration::from_micros(100);
/// Spins between two looks at the clock, and before a waiting caller first yields its core.
const SPINS_PER_LOOK: u32 = 64;

/// Most threads of a pool, so that a mistaken number does not eat the host's memory.
const MAX_THREADS: usize = 1024;

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const EPOCH_SHIFT: u32 = 32;

/// Keeps a value in cache lines of its own; two, because processors prefetch them in pairs.
#[repr(align(128))]
struct Padded<T>(T);

/// A region's work. The pointer is valid while the region is open or workers are inside.
#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize, usize) + Sync),
    num_tasks: usize,
}

struct Shared {
    state: Padded<AtomicU64>,
    next_task: Padded<AtomicUsize>,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    parked: Vec<Padded<AtomicBool>>,
    stop: AtomicBool,
}

// SAFETY: `job` is the only field that is not `Sync` by itself. It is written by the one caller (`run` takes
// `&mut self`) while the region is closed and empty, and read only by workers inside; `state` orders the two.
// What it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as for `Sync`; the pointer is not tied to a thread.
unsafe impl Send for Shared {}

/// The calling thread and `num_threads - 1` workers.
pub(super) struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
}

impl Threads {
    /// A pool of `num_threads`, or of one per core available to the process for 0.
    pub(super) fn new(num_threads: usize) -> Result<Self> {
        let num_threads = match num_threads {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            n if n <= MAX_THREADS => n,
            n => {
                return Err(Error::invalid_argument(format!(
                    "{n} threads; at most {MAX_THREADS} can be had"
                )));
            }
        };
        let num_workers = num_threads - 1;
        let shared = Arc::new(Shared {
            state: Padded(AtomicU64::new(0)),
            next_task: Padded(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            parked: (0..num_workers).map(|_| Padded(AtomicBool::new(false))).collect(),
            stop: AtomicBool::new(false),
        });
        let mut threads = Self { shared, workers: Vec::new(), handles: Vec::new() };
        for worker_index in 0..num_workers {
            let shared = threads.shared.clone();
            let name = format!("cpu-{}", worker_index + 1);
            let worker = spawn(&name, move || shared.work(worker_index)).map_err(|error| {
                let message = format!("cannot start thread {} of {num_threads}: {error}", worker_index + 2);
                Error::new(Status::DeviceUnavailable, message)
            })?;
            threads.handles.push(worker.thread().clone());
            threads.workers.push(worker);
        }
        Ok(threads)
    }

    /// Number of threads, the caller's included.
    pub(super) fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` once for each index below `num_tasks`, on any thread and in any order, and returns when all
    /// are done. Panics with the payload of the first panic of a task; the tasks not begun then are left out.
    pub(super) fn run(&mut self, num_tasks: usize, task: impl Fn(usize) + Sync) {
        self.run_with_thread(num_tasks, |_, task_index| task(task_index));
    }

    /// [`Threads::run`] that calls `task(thread_index, task_index)`; no two tasks run on one thread at a time.
    pub(super) fn run_with_thread(&mut self, num_tasks: usize, task: impl Fn(usize, usize) + Sync) {
        if num_tasks <= 1 || self.workers.is_empty() {
            (0..num_tasks).for_each(|task_index| task(0, task_index));
            return;
        }
        let run: *const (dyn Fn(usize, usize) + Sync + '_) = &task;
        // SAFETY: only the lifetime changes. The region is closed and empty again before this function returns,
        // and nobody reads the pointer outside of it.
        let run: *const (dyn Fn(usize, usize) + Sync) = unsafe { std::mem::transmute(run) };
        let job = Job { run, num_tasks };
        self.open(job);
        self.shared.run_tasks(job, 0);
        self.close();
        if let Some(payload) = self.shared.panic.lock().take() {
            resume_unwind(payload);
        }
    }

    /// Cuts `rows` rows of `width` elements into ranges that are worth a task and calls `task` for each.
    pub(super) fn run_rows(&mut self, rows: usize, width: usize, task: impl Fn(Range<usize>) + Sync) {
        const GRAIN: usize = 16 << 10;
        let rows_per_task = (GRAIN / width.max(1)).max(1);
        self.run(rows.div_ceil(rows_per_task), |index| {
            let first = index * rows_per_task;
            task(first..(first + rows_per_task).min(rows));
        });
    }

    fn open(&mut self, job: Job) {
        let shared = &self.shared;
        let state = shared.state.0.load(Ordering::Relaxed);
        debug_assert_eq!(state & (OPEN | INSIDE), 0);
        // SAFETY: the region is closed and empty, so that no worker reads the job; `&mut self` keeps other
        // callers out.
        unsafe { *shared.job.get() = Some(job) };
        shared.next_task.0.store(0, Ordering::Relaxed);
        let epoch = (state >> EPOCH_SHIFT).wrapping_add(1);
        // Sequentially consistent against the worker's store to `parked` and its load of the state after it:
        // either the worker sees the new state or this thread sees that it is parked.
        shared.state.0.store(epoch << EPOCH_SHIFT | OPEN, Ordering::SeqCst);
        // This thread takes a task too, so that one worker less is of use.
        for (parked, handle) in shared.parked.iter().zip(&self.handles).take(job.num_tasks - 1) {
            if parked.0.load(Ordering::SeqCst) {
                handle.unpark();
            }
        }
    }

    /// Closes the region and waits for the workers inside.
    fn close(&mut self) {
        let state = &self.shared.state.0;
        state.fetch_and(!OPEN, Ordering::Relaxed);
        let mut num_spins = 0u32;
        while state.load(Ordering::Acquire) & INSIDE != 0 {
            num_spins = num_spins.saturating_add(1);
            if num_spins < SPINS_PER_LOOK * 64 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for handle in &self.handles {
            handle.unpark();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so that this cannot fail.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self, worker_index: usize) {
        let mut seen_epoch = 0;
        while let Some(state) = self.next_region(worker_index, seen_epoch) {
            seen_epoch = state >> EPOCH_SHIFT;
            if !self.join(seen_epoch) {
                continue;
            }
            // SAFETY: this thread is counted inside an open region, so that the caller waits for it before it
            // writes the job again; `join` acquired the state that was stored after the job.
            if let Some(job) = unsafe { *self.job.get() } {
                self.run_tasks(job, worker_index + 1);
            }
            self.state.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits until the epoch is another than `seen_epoch`; `None` when the pool ends.
    fn next_region(&self, worker_index: usize, seen_epoch: u64) -> Option<u64> {
        let changed = |state: u64| state >> EPOCH_SHIFT != seen_epoch;
        let parked = &self.parked[worker_index].0;
        let start = Instant::now();
        loop {
            for _ in 0..SPINS_PER_LOOK {
                let state = self.state.0.load(Ordering::Acquire);
                if changed(state) {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if start.elapsed() < SPIN {
                continue;
            }
            parked.store(true, Ordering::SeqCst);
            while !changed(self.state.0.load(Ordering::SeqCst)) && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            parked.store(false, Ordering::SeqCst);
        }
    }

    /// Counts this worker inside, if region `epoch` is still open.
    fn join(&self, epoch: u64) -> bool {
        let join_open = |state: u64| (state & OPEN != 0 && state >> EPOCH_SHIFT == epoch).then(|| state + 1);
        self.state.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, join_open).is_ok()
    }

    /// Runs tasks until none is left; keeps the first panic and drops the tasks that have not begun.
    fn run_tasks(&self, job: Job, thread_index: usize) {
        // SAFETY: the caller of `Threads::run` waits for everyone inside, so that the closure lives.
        let run = unsafe { &*job.run };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next_task.0.fetch_add(1, Ordering::Relaxed);
                if index >= job.num_tasks {
                    break;
                }
                run(thread_index, index);
            }
        }));
        if let Err(payload) = result {
            self.next_task.0.store(job.num_tasks, Ordering::Relaxed);
            self.panic.lock().get_or_insert(payload);
        }
    }
}

/// A buffer whose disjoint parts the tasks of one region write.
pub(super) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Parts` is an exclusive borrow of the buffer; `slice` demands that its users keep apart.
unsafe impl<T: Send> Sync for Parts<'_, T> {}
// SAFETY: as for `Sync`.
unsafe impl<T: Send> Send for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Borrows `buffer` for the region.
    pub(super) fn new(buffer: &'a mut [T]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), buffer: PhantomData }
    }

    /// The part `range`; panics where it leaves the buffer.
    ///
    /// # Safety
    /// No two live slices overlap.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(super) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: the range lies in the borrowed buffer, and the caller keeps slices apart.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_task_runs_once() {
        for num_threads in [1, 2, 5] {
            let mut threads = Threads::new(num_threads).unwrap();
            for num_tasks in [0, 1, 2, 3, 17, 100].into_iter().cycle().take(3000) {
                let counts: Vec<_> = (0..num_tasks).map(|_| AtomicU32::new(0)).collect();
                threads.run_with_thread(num_tasks, |thread, task| {
                    assert!(thread < num_threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn parked_workers_wake_and_stop() {
        let mut threads = Threads::new(3).unwrap();
        for _ in 0..20 {
            std::thread::sleep(5 * SPIN);
            let thread_ids = Mutex::new(std::collections::HashSet::new());
            threads.run(3, |_| {
                thread_ids.lock().insert(std::thread::current().id());
                std::thread::sleep(Duration::from_millis(2));
            });
            assert!(thread_ids.lock().len() > 1, "no worker woke within 2 ms");
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
        let mut threads = Threads::new(3).unwrap();
        for bad in [0, 5, 63] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                threads.run(64, |task| assert!(task != bad, "task {task} is bad"));
            }));
            let message = *result.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, format!("task {bad} is bad"));
            let sum = AtomicU32::new(0);
            threads.run(10, |task| {
                sum.fetch_add(task as u32, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn too_many_threads_are_refused() {
        assert!(Threads::new(usize::MAX).is_err());
    }

    #[test]
    #[should_panic(expected = "part 3..5 of 4")]
    fn parts_stay_in_the_buffer() {
        let mut buffer = [0; 4];
        // SAFETY: there is one slice.
        unsafe { Parts::new(&mut buffer).slice(3..5) };
    }
}
