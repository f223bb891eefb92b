//! Completion queues: where events wait for the host.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::engine::event::{Event, EventKind, Output, RequestId};
use crate::engine::stream::Place;
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
    /// The engine that made it.
    engine_id: u64,
    /// Tells the engine about a request. Called under the lock, so that the engine hears everything in the order in
    /// which it happened.
    notify: Box<dyn Fn(RequestId, Notice) + Send + Sync>,
    /// Unread tokens of one request at which it is paused.
    max_unread_tokens: usize,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    /// Requests that have not ended.
    open: BTreeSet<RequestId>,
    /// Places of requests whose ends wait to be polled.
    places: Vec<Place>,
    /// Per request with unread output: where its last output event stands, and how many tokens wait.
    unread: HashMap<RequestId, Unread>,
    /// Requests to resume at the next poll.
    paused: Vec<RequestId>,
    /// Made when first asked for; readable while there are events or the queue is closed.
    descriptor: Option<std::sync::Arc<OwnedFd>>,
    /// Why nothing more will come, once nothing will.
    closed: Option<Error>,
    /// The host has given the queue up; events are dropped.
    is_abandoned: bool,
}

struct Unread {
    event_index: usize,
    num_tokens: usize,
}

/// What a queue tells its engine about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// Its consumer is behind.
    Paused,
    /// Its consumer has caught up.
    Resumed,
    /// Nobody will read it.
    Abandoned,
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
    /// `notify` must not block and must not use the queue.
    pub(super) fn new(
        engine_id: u64,
        max_unread_tokens: usize,
        notify: impl Fn(RequestId, Notice) + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared {
            state: Mutex::new(State::default()),
            ready: Condvar::new(),
            engine_id,
            notify: Box::new(notify),
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
        state.unread.clear();
        state.places.clear();
        for request in std::mem::take(&mut state.paused) {
            (self.shared.notify)(request, Notice::Resumed);
        }
        if state.closed.is_none() {
            state.signal(false);
        }
        Ok(events)
    }

    /// A descriptor that is readable while events wait or the queue is closed, for epoll and select; do not read from
    /// it. [`Queue::abandon`] closes it as far as nobody else holds it. Fails with [`crate::Status::OutOfMemory`]
    /// where the process has no descriptors left, and with [`crate::Status::Closed`] after `abandon`.
    pub fn descriptor(&self) -> Result<std::sync::Arc<OwnedFd>> {
        let mut state = lock(&self.shared.state);
        if state.is_abandoned {
            return Err(destroyed());
        }
        if let Some(descriptor) = &state.descriptor {
            return Ok(descriptor.clone());
        }
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::new(Status::OutOfMemory, format!("eventfd for the queue: {error}")))?;
        let descriptor = std::sync::Arc::new(descriptor);
        state.descriptor = Some(descriptor.clone());
        state.signal(!state.events.is_empty() || state.closed.is_some());
        Ok(descriptor)
    }

    /// Whether the engine of this id made the queue.
    pub(super) fn belongs_to(&self, engine_id: u64) -> bool {
        self.shared.engine_id == engine_id
    }

    /// Notes a request whose events will come here.
    pub(super) fn open(&self, request_id: RequestId) {
        lock(&self.shared.state).open.insert(request_id);
    }

    /// Notes that a request will give no events after all.
    pub(super) fn forget(&self, request_id: RequestId) {
        lock(&self.shared.state).open.remove(&request_id);
    }

    /// Whether the host has given the queue up. Requests that were opened later than that are not cancelled.
    pub(super) fn is_abandoned(&self) -> bool {
        lock(&self.shared.state).is_abandoned
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
            (self.shared.notify)(request_id, Notice::Paused);
        }
        Pushed::Accepted
    }

    /// Adds a request's last event. Its place stays taken until that is polled, so that the number of places bounds
    /// what may wait here.
    pub(super) fn push_last(&self, event: Event, place: Option<Place>) {
        let mut state = lock(&self.shared.state);
        state.open.remove(&event.request_id);
        if !state.is_abandoned {
            state.places.extend(place);
            self.push(&mut state, event);
        }
    }

    fn push(&self, state: &mut State, event: Event) {
        state.events.push(event);
        if state.events.len() == 1 {
            state.signal(true);
        }
        self.shared.ready.notify_one();
    }

    /// Gives the queue up: what waits is dropped, and requests whose events would come here are cancelled.
    pub fn abandon(&self) {
        let mut state = lock(&self.shared.state);
        state.is_abandoned = true;
        state.events.clear();
        state.places.clear();
        state.unread.clear();
        state.paused.clear();
        state.descriptor = None;
        for request in std::mem::take(&mut state.open) {
            (self.shared.notify)(request, Notice::Abandoned);
        }
        state.closed.get_or_insert_with(destroyed);
        self.shared.ready.notify_all();
    }

    /// Nothing more will come; wakes everyone who waits.
    pub(super) fn close(&self, error: Error) {
        let mut state = lock(&self.shared.state);
        state.closed.get_or_insert(error);
        state.signal(true);
        self.shared.ready.notify_all();
    }

    pub(super) fn downgrade(&self) -> WeakQueue {
        WeakQueue(Arc::downgrade(&self.shared))
    }
}

impl State {
    /// Makes the descriptor readable or not; does nothing where nobody asked for one.
    fn signal(&self, is_readable: bool) {
        if let Some(descriptor) = &self.descriptor {
            // A full or an empty counter is already in the state that is wanted.
            let _ = match is_readable {
                true => rustix::io::write(descriptor, &1u64.to_ne_bytes()),
                false => rustix::io::read(descriptor, &mut [0u8; 8]),
            };
        }
    }
}

fn destroyed() -> Error {
    Error::new(Status::Closed, "the queue was destroyed")
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
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("num_events", &lock(&self.shared.state).events.len()).finish()
    }
}
