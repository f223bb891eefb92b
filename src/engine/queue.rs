//! Completion queues: where events wait for the host.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::engine::event::{Event, EventKind, Output, RequestId};
use crate::engine::sync::{Arc, Condvar, Mutex, Weak, lock, wait, wait_timeout};
use crate::error::{Error, Result, Status};

/// A queue of events that any number of threads may poll. Cheap to clone. It may outlive its engine: what was
/// in it can still be taken.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    ready: Condvar,
    /// Made when first asked for; readable while there are events or the queue is closed.
    descriptor: OnceLock<OwnedFd>,
    /// Tells the engine that a request's consumer is behind (`true`) or has caught up (`false`). "Behind" is told
    /// under the lock, so that no poll can tell "caught up" before it.
    set_paused: Box<dyn Fn(RequestId, bool) + Send + Sync>,
    /// Unread tokens of one request at which it is paused.
    max_unread_tokens: usize,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    /// Per request with unread output: where its last output event stands, and how many tokens wait.
    unread: HashMap<RequestId, Unread>,
    /// Requests to resume at the next poll.
    paused: Vec<RequestId>,
    /// Why nothing more will come, once nothing will.
    closed: Option<Error>,
    /// The host has given the queue up; events are dropped.
    is_abandoned: bool,
}

struct Unread {
    event_index: usize,
    num_tokens: usize,
}

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It waits for the host.
    Accepted,
    /// Nobody will read it; the request should end.
    Abandoned,
}

impl Queue {
    /// An empty queue that pauses a request when `max_unread_tokens` of it wait and resumes it when polled.
    /// `set_paused` must not block and must not use the queue.
    pub(super) fn new(
        max_unread_tokens: usize,
        set_paused: impl Fn(RequestId, bool) + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared {
            state: Mutex::new(State::default()),
            ready: Condvar::new(),
            descriptor: OnceLock::new(),
            set_paused: Box::new(set_paused),
            max_unread_tokens,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes every event that waits. Without any: `Some(0)` returns none at once, `Some(d)` waits at most `d`,
    /// `None` waits until there is one. Fails with [`crate::Status::Closed`] (or the error that ended the
    /// engine) once nothing more will come and the queue is empty.
    pub fn poll(&self, timeout: Option<Duration>) -> Result<Vec<Event>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = lock(&self.shared.state);
        while state.events.is_empty() {
            if let Some(error) = &state.closed {
                return Err(error.clone());
            }
            state = match deadline {
                None if timeout.is_some_and(|timeout| timeout.is_zero()) => return Ok(Vec::new()),
                None => wait(&self.shared.ready, state),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(Vec::new());
                    }
                    wait_timeout(&self.shared.ready, state, left)
                }
            };
        }
        let events = std::mem::take(&mut state.events);
        let paused = std::mem::take(&mut state.paused);
        state.unread.clear();
        if state.closed.is_none() {
            self.signal(false);
        }
        drop(state);
        paused.into_iter().for_each(|request| (self.shared.set_paused)(request, false));
        Ok(events)
    }

    /// A descriptor that is readable while events wait or the queue is closed, for epoll and select. It belongs to
    /// the queue: do not read from it, do not close it. Fails with [`crate::Status::OutOfMemory`] where the
    /// process has no descriptors left.
    pub fn borrow_fd(&self) -> Result<BorrowedFd<'_>> {
        if let Some(descriptor) = self.shared.descriptor.get() {
            return Ok(descriptor.as_fd());
        }
        let state = lock(&self.shared.state);
        if self.shared.descriptor.get().is_none() {
            let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| {
                Error::new(Status::OutOfMemory, format!("eventfd for the queue: {error}"))
            })?;
            // Only this line sets it, and it runs under the lock.
            let _ = self.shared.descriptor.set(descriptor);
            self.signal(!state.events.is_empty() || state.closed.is_some());
        }
        Ok(self.shared.descriptor.get().expect("just made").as_fd())
    }

    /// Adds output of a request, joined with the output of it that already waits.
    pub(super) fn push_output(&self, request_id: RequestId, user_data: u64, output: Output) -> Pushed {
        let mut state = lock(&self.shared.state);
        if state.is_abandoned {
            return Pushed::Abandoned;
        }
        let num_tokens = output.token_ids.len();
        let next_index = state.events.len();
        let unread =
            state.unread.entry(request_id).or_insert(Unread { event_index: next_index, num_tokens: 0 });
        let num_unread_before = unread.num_tokens;
        unread.num_tokens += num_tokens;
        let (num_unread, event_index) = (unread.num_tokens, unread.event_index);
        match state.events.get_mut(event_index) {
            Some(Event { kind: EventKind::Output(waiting), .. }) => {
                waiting.token_ids.extend(output.token_ids);
                waiting.text.push_str(&output.text);
                waiting.logprobs.extend(output.logprobs);
            }
            _ => self.push(&mut state, Event { request_id, user_data, kind: EventKind::Output(output) }),
        }
        let limit = self.shared.max_unread_tokens;
        if num_unread_before < limit && num_unread >= limit {
            state.paused.push(request_id);
            (self.shared.set_paused)(request_id, true);
        }
        Pushed::Accepted
    }

    /// Adds an event that stands alone.
    pub(super) fn push_event(&self, event: Event) {
        let mut state = lock(&self.shared.state);
        self.push(&mut state, event);
    }

    fn push(&self, state: &mut State, event: Event) {
        if state.is_abandoned {
            return;
        }
        state.events.push(event);
        if state.events.len() == 1 {
            self.signal(true);
        }
        self.shared.ready.notify_one();
    }

    /// Gives the queue up: what waits is dropped, and requests that still write to it are cancelled.
    pub fn abandon(&self) {
        let mut state = lock(&self.shared.state);
        state.is_abandoned = true;
        state.events.clear();
        state.unread.clear();
        let paused = std::mem::take(&mut state.paused);
        state.closed.get_or_insert(Error::new(Status::Closed, "the queue was destroyed"));
        self.shared.ready.notify_all();
        drop(state);
        paused.into_iter().for_each(|request| (self.shared.set_paused)(request, false));
    }

    /// Nothing more will come; wakes everyone who waits.
    pub(super) fn close(&self, error: Error) {
        let mut state = lock(&self.shared.state);
        state.closed.get_or_insert(error);
        self.signal(true);
        self.shared.ready.notify_all();
    }

    /// Makes the descriptor readable or not; does nothing where nobody asked for one.
    fn signal(&self, is_readable: bool) {
        if let Some(descriptor) = self.shared.descriptor.get() {
            // A full or an empty counter is already in the state that is wanted.
            let _ = match is_readable {
                true => rustix::io::write(descriptor, &1u64.to_ne_bytes()),
                false => rustix::io::read(descriptor, &mut [0u8; 8]),
            };
        }
    }

    pub(super) fn downgrade(&self) -> WeakQueue {
        WeakQueue(Arc::downgrade(&self.shared))
    }
}

/// A queue that may be gone.
pub(super) struct WeakQueue(Weak<Shared>);

impl WeakQueue {
    pub(super) fn upgrade(&self) -> Option<Queue> {
        self.0.upgrade().map(|shared| Queue { shared })
    }

    pub(super) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Whether it is `queue`.
    pub(super) fn is(&self, queue: &Queue) -> bool {
        std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&queue.shared))
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("num_events", &lock(&self.shared.state).events.len()).finish()
    }
}
