//! The engine: accepts requests from any thread, runs them in flight together, hands back events.
//!
//! Read [`step`] first, then [`scheduler`]; `stream` is where the promise of one terminal event lives.

mod admission;
pub mod batch;
mod budget;
mod create;
pub mod echo;
pub mod event;
pub mod executor;
pub mod info;
mod model;
mod output;
pub mod queue;
pub mod request;
pub mod scheduler;
pub mod sequence;
mod shared;
mod step;
mod stream;
mod sync;
mod threads;
mod worker;

use std::time::{Duration, Instant};

pub use create::{EngineFacts, EngineParts};
pub use event::{Event, EventKind, FinishReason, Finished, Output, RequestId, Timings};
pub use info::{MemoryPlan, ModelInfo, Stats};
pub use queue::Queue;
pub use request::{Prompt, Request};

use crate::config::{EngineOptions, LogLevel};
use crate::engine::admission::{Admission, Admitted};
use crate::engine::queue::Notice;
use crate::engine::scheduler::Scheduler;
use crate::engine::shared::Shared;
use crate::engine::step::{Message, StepLoop};
use crate::engine::stream::{Place, RequestStream, StreamParams};
use crate::engine::sync::Arc;
use crate::engine::sync::atomic::{AtomicU64, Ordering};
use crate::engine::sync::mpsc::{Sender, channel};
use crate::engine::threads::Threads;
use crate::error::{Error, Result, Status};
use crate::token::{DecodeOptions, EncodeOptions, StreamDecoder, Tokenizer};

/// How long [`Engine::close`] waits for the threads.
const CLOSE_LIMIT: Duration = Duration::from_millis(1500);

/// A loaded model and the threads that run it. Cheap to clone; all methods may be called from any thread. The
/// engine closes when its last clone is dropped.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    facts: EngineFacts,
    inbox: Sender<Message>,
    queue: Queue,
    next_id: AtomicU64,
    epoch: Instant,
    threads: Threads,
}

impl Engine {
    /// Loads the model and starts the threads.
    pub fn create(options: &EngineOptions) -> Result<Engine> {
        let _kept = create::keep_host_context(options);
        Self::start(create::load(options)?, options)
    }

    /// What [`Engine::create`] would reserve with the same options; loads no weights, and takes a `config.json` or
    /// `model_spec.json` alone for a model, under any name in `.json`.
    pub fn plan(options: &EngineOptions) -> Result<MemoryPlan> {
        let _kept = create::keep_host_context(options);
        create::plan(options)
    }

    /// An engine on an executor of the caller's. Of `options` it uses the queue limits and the logger.
    pub fn start(parts: EngineParts, options: &EngineOptions) -> Result<Engine> {
        let EngineParts { executor, facts } = parts;
        let shared = Arc::new(Shared::new(options.logger.clone()));
        let epoch = Instant::now();
        let (inbox, messages) = channel();
        let (command_sender, commands) = channel();
        let (output_sender, outputs) = channel();
        let step_loop = StepLoop {
            scheduler: Scheduler::new(facts.scheduler),
            pipeline_depth: executor.pipeline_depth(),
            inbox: messages,
            worker: command_sender,
            is_collecting: false,
            output: output_sender,
            shared: shared.clone(),
            epoch,
        };
        let mut threads = Threads::new();
        threads.spawn("output", {
            let (shared, inbox) = (shared.clone(), inbox.clone());
            move || output::run(outputs, inbox, &shared)
        })?;
        threads.spawn("worker", {
            let inbox = inbox.clone();
            move || worker::run(executor, commands, inbox)
        })?;
        threads.spawn("scheduler", move || step_loop.run())?;
        let queue = make_queue(&shared, &inbox, facts.max_unread_tokens);
        shared
            .logger
            .log(LogLevel::Info, format_args!("engine ready on {}: {:?}", facts.info.device, facts.memory));
        let inner = Inner { shared, facts, inbox, queue, next_id: AtomicU64::new(1), epoch, threads };
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// Accepts a request and returns its id, or fails at once: [`Status::Busy`] where `max_queued_requests` run, wait,
    /// or have ended and not been polled to their ends; an argument error where a value is not allowed. Tokenises in
    /// the calling thread, after a thread that it waits for has rendered chat messages, within 50 ms of processor
    /// time or, where they have characters with which special tokens begin, twice that.
    pub fn enqueue(&self, request: Request) -> Result<RequestId> {
        let enqueued_at = Instant::now();
        let inner = &self.inner;
        inner.shared.while_open(|| Ok(()))?;
        let max_requests = inner.facts.max_queued_requests;
        let place = Place::take(&inner.shared.num_places_taken, max_requests).ok_or_else(|| {
            Error::new(
                Status::Busy,
                format!(
                    "{max_requests} requests run, wait or have ended unread; poll every queue and try again"
                ),
            )
        })?;
        if request.queue.as_ref().is_some_and(|queue| !queue.belongs_to(inner.shared.engine_id)) {
            return Err(Error::invalid_argument("the request's queue belongs to another engine"));
        }
        // An answer to a chat starts a text; any other output continues the prompt's.
        let continues = !matches!(request.prompt, Prompt::Chat(_));
        let decode_options = DecodeOptions { skip_special: true, continues };
        let id = inner.next_id.fetch_add(1, Ordering::Relaxed);
        let Admitted { params, stops, min_tokens, user_data, queue } =
            inner.admission().admit(id, request, enqueued_at)?;
        let queue = queue.unwrap_or_else(|| inner.queue.clone());
        let stream_params = StreamParams {
            id,
            user_data,
            queue: queue.clone(),
            decoder: StreamDecoder::new(&inner.facts.tokenizer, decode_options),
            stops,
            min_tokens,
            num_prompt_tokens: u32::try_from(params.prompt.len()).unwrap_or(u32::MAX),
            enqueued_at,
            num_finished: inner.shared.num_finished.clone(),
            logger: inner.shared.logger.clone(),
        };
        let stream = Box::new(RequestStream::new(stream_params, place));
        let mut message = Some(Message::Enqueue(Box::new(params), stream));
        let sent = inner.shared.while_open(|| {
            let sent = inner.inbox.send(message.take().expect("sent once"));
            sent.map_err(|unsent| {
                message = Some(unsent.0);
                Error::internal("the scheduler thread is gone")
            })
        });
        if let Some(Message::Enqueue(_, stream)) = message {
            stream.disarm();
        }
        sent?;
        if queue.is_abandoned() {
            // It may have said so before the scheduler knew of the request. An engine that is closed has ended it.
            let _ = self.cancel(id);
        }
        inner.shared.num_accepted.fetch_add(1, Ordering::Relaxed);
        Ok(id)
    }

    /// Asks for a request's end within one step; its terminal event says [`FinishReason::Cancelled`]. A request
    /// that has ended, or never was, is not an error.
    pub fn cancel(&self, request: RequestId) -> Result<()> {
        let send = || self.inner.inbox.send(Message::Cancel(request)).map_err(|_| closed());
        self.inner.shared.while_open(send)
    }

    /// Events of the engine's own queue; see [`Queue::poll`].
    pub fn poll(&self, timeout: Option<Duration>) -> Result<Vec<Event>> {
        self.inner.queue.poll(timeout)
    }

    /// The queue that [`Engine::poll`] takes from.
    pub fn queue(&self) -> &Queue {
        &self.inner.queue
    }

    /// A further queue; it may outlive the engine.
    pub fn create_queue(&self) -> Result<Queue> {
        let inner = &self.inner;
        inner.shared.while_open(|| Ok(make_queue(&inner.shared, &inner.inbox, inner.facts.max_unread_tokens)))
    }

    /// A snapshot of counters and gauges.
    pub fn stats(&self) -> Stats {
        let Inner { shared, facts, .. } = &*self.inner;
        let counts = shared.counts();
        // A request may end before the thread that enqueued it has counted it.
        let num_finished = shared.num_finished.load(Ordering::Relaxed);
        let num_accepted = shared.num_accepted.load(Ordering::Relaxed);
        let num_blocks = u64::from(facts.scheduler.num_blocks);
        let num_free = counts.map_or(num_blocks, |counts| counts.num_blocks_free as u64);
        let counts = counts.unwrap_or_default();
        Stats {
            num_steps: shared.num_steps(),
            num_prompt_tokens: counts.num_prompt_tokens,
            num_output_tokens: shared.num_output_tokens(),
            num_accepted,
            num_finished: num_finished.min(num_accepted),
            num_preemptions: counts.num_preemptions,
            num_waiting: counts.num_waiting as u64,
            num_running: counts.num_running as u64,
            num_paused: counts.num_paused as u64,
            num_kv_blocks_used: num_blocks - num_free,
            num_kv_blocks_free: num_free,
            weights_bytes: facts.memory.weights_bytes,
            kv_cache_bytes: facts.memory.kv_cache_bytes,
            workspace_bytes: facts.memory.workspace_bytes,
        }
    }

    /// What the loaded model is.
    pub fn model_info(&self) -> &ModelInfo {
        &self.inner.facts.info
    }

    /// What the engine has reserved.
    pub fn memory(&self) -> &MemoryPlan {
        &self.inner.facts.memory
    }

    /// Token ids that a request with this prompt would run.
    pub fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.inner.admission().prompt_tokens(prompt)
    }

    /// Token ids of `text`.
    pub fn tokenize(&self, text: &str, add_special_tokens: bool, parse_special: bool) -> Result<Vec<u32>> {
        self.tokenizer().encode(text, EncodeOptions { add_special_tokens, parse_special })
    }

    /// Text of `tokens`; bytes that are not UTF-8 become U+FFFD.
    pub fn detokenize(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer().decode(tokens, skip_special)
    }

    /// The text that the model's chat template makes of a JSON array of messages.
    pub fn apply_chat_template(&self, messages: &str, add_generation_prompt: bool) -> Result<String> {
        self.tokenizer().apply_chat_template(messages, add_generation_prompt)
    }

    /// Ends every request with [`Status::Closed`], accepts no more, and stops the threads. Queues can still be
    /// drained. Idempotent; returns within 2 seconds.
    pub fn close(&self) {
        self.inner.close();
    }

    /// Wakes who polls the engine's own queue, even if the last events are still to come, because a thread outlasts
    /// [`Engine::close`]; for an engine that nobody can poll again.
    pub(crate) fn release_pollers(&self) {
        self.inner.queue.close(closed());
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.inner.facts.tokenizer
    }
}

impl Inner {
    fn admission(&self) -> Admission<'_> {
        Admission {
            tokenizer: &self.facts.tokenizer,
            scheduler: &self.facts.scheduler,
            max_model_len: self.facts.info.max_model_len as usize,
            vocab_size: self.facts.info.vocab_size as usize,
            epoch: self.epoch,
        }
    }

    fn close(&self) {
        self.shared.close(closed());
        // A scheduler thread that is gone has ended every request already.
        let _ = self.inbox.send(Message::Close);
        // Nothing is logged where the threads last longer: a log line may be what they are in.
        self.threads.wait(CLOSE_LIMIT);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.threads.were_awaited() {
            self.close();
        }
    }
}

fn closed() -> Error {
    Error::new(Status::Closed, "the engine was closed")
}

fn make_queue(shared: &Arc<Shared>, inbox: &Sender<Message>, max_unread_tokens: usize) -> Queue {
    let inbox = inbox.clone();
    let queue = Queue::new(shared.engine_id, max_unread_tokens, move |request, notice| {
        // An engine that is gone has ended every request already.
        let _ = inbox.send(match notice {
            Notice::Paused => Message::SetPaused(request, true),
            Notice::Resumed => Message::SetPaused(request, false),
            Notice::Abandoned => Message::Cancel(request),
        });
    });
    shared.add_queue(&queue);
    queue
}
