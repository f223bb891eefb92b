//! Completion queues.

use std::os::fd::RawFd;
use std::time::Duration;

use crate::engine::event::Event;
use crate::error::Result;

/// A queue of events that any number of threads may poll. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Queue {}

impl Queue {
    /// Takes every event that waits. Without any: `Some(0)` returns none at once, `Some(d)` waits at most `d`,
    /// `None` waits until there is one. Fails with [`crate::Status::Closed`] once the engine is closed and the
    /// queue is empty.
    pub fn poll(&self, timeout: Option<Duration>) -> Result<Vec<Event>> {
        let _ = timeout;
        Ok(Vec::new())
    }

    /// A descriptor that is readable while events wait, for epoll and select. It belongs to the queue: do not
    /// read from it, do not close it.
    pub fn fd(&self) -> RawFd {
        -1
    }
}
