//! An engine's three threads.

use std::time::{Duration, Instant};

use crate::engine::sync::thread::{self, JoinHandle, ThreadId};
use crate::engine::sync::{Arc, Condvar, Mutex, lock, wait_timeout};
use crate::error::{Error, Result, Status};
use crate::threads::{full_name, with_signals_blocked};

/// Threads that are waited for, but not for ever.
pub(super) struct Threads {
    ids: Vec<ThreadId>,
    handles: Mutex<Vec<JoinHandle<()>>>,
    life: Arc<Life>,
}

/// What the threads and those who wait for them share.
struct Life {
    state: Mutex<State>,
    /// The last thread has ended.
    ended: Condvar,
}

struct State {
    num_running: usize,
    /// When to give up waiting, once somebody waits.
    deadline: Option<Instant>,
}

impl Threads {
    pub(super) fn new() -> Self {
        let state = Mutex::new(State { num_running: 0, deadline: None });
        let life = Arc::new(Life { state, ended: Condvar::new() });
        Self { ids: Vec::new(), handles: Mutex::new(Vec::new()), life }
    }

    /// Starts `run` on a thread called `name`.
    pub(super) fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let running = Running::new(self.life.clone());
        let start = || {
            thread::Builder::new().name(full_name(name)).spawn(move || {
                run();
                drop(running);
            })
        };
        let handle = with_signals_blocked(start)
            .map_err(|error| Error::new(Status::OutOfMemory, format!("starting thread {name}: {error}")))?;
        self.ids.push(handle.thread().id());
        lock(&self.handles).push(handle);
        Ok(())
    }

    /// Waits until all threads have ended, at most until `limit` after the first call: all who wait share one
    /// deadline. Says whether the threads have ended. One that is in the middle of a long step is left to finish it;
    /// it holds nothing of the host's. Called on one of the threads themselves, it does not wait.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        if self.ids.contains(&thread::current().id()) {
            return false;
        }
        let mut state = lock(&self.life.state);
        let deadline = *state.deadline.get_or_insert_with(|| Instant::now() + limit);
        while state.num_running > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = wait_timeout(&self.life.ended, state, left);
        }
        drop(state);
        for handle in lock(&self.handles).drain(..) {
            // Panics are contained inside the threads; there is nothing left to tell.
            let _ = handle.join();
        }
        true
    }

    /// Whether somebody waits or has waited.
    pub(super) fn were_awaited(&self) -> bool {
        lock(&self.life.state).deadline.is_some()
    }
}

/// A thread that has not ended.
struct Running {
    life: Arc<Life>,
}

impl Running {
    fn new(life: Arc<Life>) -> Self {
        lock(&life.state).num_running += 1;
        Self { life }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.life.state).num_running -= 1;
        self.life.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn all_who_wait_share_one_deadline() {
        const LIMIT: Duration = Duration::from_millis(200);
        let (end, must_end) = channel::<()>();
        let mut threads = Threads::new();
        threads.spawn("slow", move || must_end.recv().unwrap_or_default()).unwrap();
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(!threads.wait(LIMIT)));
            }
        });
        assert!(!threads.wait(LIMIT) && threads.were_awaited());
        let waited = start.elapsed();
        assert!(LIMIT <= waited && waited < 2 * LIMIT, "{waited:?}");
        drop(end);
        while !threads.wait(LIMIT) {
            assert!(start.elapsed() < 100 * LIMIT, "the thread's end is not noticed");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_thread_that_panics_has_ended() {
        let mut threads = Threads::new();
        threads.spawn("wrong", || std::panic::resume_unwind(Box::new(1))).unwrap();
        assert!(threads.wait(Duration::from_secs(60)));
    }
}
