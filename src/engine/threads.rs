//! An engine's three threads.

use crate::engine::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use crate::engine::sync::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use crate::error::{Error, Result, Status};

/// Threads that are waited for, but not for ever.
pub(super) struct Threads {
    handles: Vec<JoinHandle<()>>,
    /// Disconnects when the last thread has ended.
    ended: Receiver<()>,
    alive: Option<Sender<()>>,
}

impl Threads {
    pub(super) fn new() -> Self {
        let (alive, ended) = channel();
        Self { handles: Vec::new(), ended, alive: Some(alive) }
    }

    /// Starts `run` on a thread called `name`.
    pub(super) fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let alive = self.alive.clone();
        let handle = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                run();
                drop(alive);
            })
            .map_err(|error| Error::new(Status::OutOfMemory, format!("starting thread {name}: {error}")))?;
        self.handles.push(handle);
        Ok(())
    }

    /// Waits until all threads have ended, at most `limit`; says whether they have. A thread that is in the
    /// middle of a long step is left to finish it; it holds nothing of the host's. Called on one of the threads
    /// themselves, it does not wait.
    pub(super) fn join(&mut self, limit: Duration) -> bool {
        let me: ThreadId = thread::current().id();
        self.alive = None;
        if self.handles.iter().any(|handle| handle.thread().id() == me) {
            return false;
        }
        if self.ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        for handle in self.handles.drain(..) {
            // Panics are contained inside the threads; there is nothing left to tell.
            let _ = handle.join();
        }
        true
    }
}
