//! What an engine's threads and its handles share.

use std::sync::PoisonError;

use crate::config::Logger;
use crate::engine::queue::{Queue, WeakQueue};
use crate::engine::scheduler::SchedulerCounts;
use crate::engine::sync::atomic::{AtomicU64, Ordering};
use crate::engine::sync::{Arc, Mutex, RwLock, lock};
use crate::error::{Error, Result, Status};

/// Counters, the door for new requests, and the queues to close at the end.
pub(super) struct Shared {
    pub(super) logger: Logger,
    /// Which engine of this process it is.
    pub(super) engine_id: u64,
    /// Requests accepted and not read to their ends; see [`crate::engine::stream::Place`].
    pub(super) num_places_taken: Arc<AtomicU64>,
    pub(super) num_accepted: AtomicU64,
    pub(super) num_finished: Arc<AtomicU64>,
    num_steps: AtomicU64,
    num_output_tokens: AtomicU64,
    counts: Mutex<Option<SchedulerCounts>>,
    /// Why the engine takes no more requests, once it does not.
    door: RwLock<Option<Error>>,
    queues: Mutex<Vec<WeakQueue>>,
}

impl Shared {
    pub(super) fn new(logger: Logger) -> Self {
        // Not the model checker's: a number that is never used again orders nothing.
        static NEXT_ENGINE_ID: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        Self {
            logger,
            engine_id: NEXT_ENGINE_ID.fetch_add(1, Ordering::Relaxed),
            num_places_taken: Arc::new(AtomicU64::new(0)),
            num_accepted: AtomicU64::new(0),
            num_finished: Arc::new(AtomicU64::new(0)),
            num_steps: AtomicU64::new(0),
            num_output_tokens: AtomicU64::new(0),
            counts: Mutex::new(None),
            door: RwLock::new(None),
            queues: Mutex::new(Vec::new()),
        }
    }

    /// Runs `enter` while the door is held open, or fails with the reason why it is shut. What `enter` sends to
    /// the scheduler thread is therefore seen by [`crate::engine::step::StepLoop`] before it ends.
    pub(super) fn while_open<T>(&self, enter: impl FnOnce() -> Result<T>) -> Result<T> {
        let door = self.door.read().unwrap_or_else(PoisonError::into_inner);
        match door.as_ref() {
            Some(error) => Err(error.clone()),
            None => enter(),
        }
    }

    /// Shuts the door; the first reason stays.
    pub(super) fn close(&self, error: Error) {
        self.door.write().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Registers a queue to be closed with the engine.
    pub(super) fn add_queue(&self, queue: &Queue) {
        let mut queues = lock(&self.queues);
        queues.retain(WeakQueue::is_alive);
        queues.push(queue.downgrade());
    }

    /// Tells every poller that nothing more will come.
    pub(super) fn close_queues(&self) {
        let fallback = Error::new(Status::Closed, "the engine was closed");
        let error = self.door.read().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or(fallback);
        let queues = std::mem::take(&mut *lock(&self.queues));
        queues.iter().filter_map(WeakQueue::upgrade).for_each(|queue| queue.close(error.clone()));
    }

    pub(super) fn count_step(&self) {
        self.num_steps.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_outputs(&self, num_tokens: u64) {
        self.num_output_tokens.fetch_add(num_tokens, Ordering::Relaxed);
    }

    pub(super) fn set_counts(&self, counts: SchedulerCounts) {
        *lock(&self.counts) = Some(counts);
    }

    /// The scheduler's last counts; `None` before its first.
    pub(super) fn counts(&self) -> Option<SchedulerCounts> {
        *lock(&self.counts)
    }

    pub(super) fn num_steps(&self) -> u64 {
        self.num_steps.load(Ordering::Relaxed)
    }

    pub(super) fn num_output_tokens(&self) -> u64 {
        self.num_output_tokens.load(Ordering::Relaxed)
    }
}
