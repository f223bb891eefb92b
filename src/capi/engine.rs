//! `ifl_engine`: creation, requests, events, figures.

use std::time::{Duration, Instant};

use super::error::ifl_error;
use super::events::ifl_events;
use super::ffi::{Sized32, guard, guard_value};
use super::handle::Handles;
use super::log::LogGate;
use super::options::ifl_engine_options;
use super::queue::poll;
use super::request::ifl_request;
use super::status::ifl_status;
use super::text::ifl_buffer;
use crate::engine::{Engine, MemoryPlan, ModelInfo, Stats};
use crate::error::Result;

/// How long destroying an engine waits for its threads and the log lines that are under way; a little less than the
/// 2 seconds that the header promises.
const DESTROY_LIMIT: Duration = Duration::from_millis(1900);

/// Every engine that hosts hold.
static ENGINES: Handles<HostedEngine> = Handles::new(0x1e, "engine");

/// What an engine handle stands for.
#[derive(Clone)]
struct HostedEngine {
    engine: Engine,
    log_gate: LogGate,
}

/// The engine of a handle.
pub(super) fn engine_of(handle: *const ifl_engine) -> Result<Engine> {
    ENGINES.get(handle).map(|hosted| hosted.engine)
}

/// A loaded model and the threads that run it. A handle, not a pointer: never dereferenced, never reused.
///
/// Functions: ifl_engine_*, ifl_queue_create, ifl_tokenize, ifl_detokenize, ifl_apply_chat_template. Since
/// 0.1.0.
pub struct ifl_engine {
    _opaque: (),
}

/// Exact bytes that an engine reserves, per device. Set struct_size before the call. Not counted: the tokenizer and
/// what waits to be polled, and with CUDA the driver's context, loaded kernels, recorded graphs and buffers in the
/// host's memory.
///
/// Since 0.1.0.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct ifl_memory_plan {
    /// sizeof(ifl_memory_plan); set by the caller.
    pub struct_size: u32,
    /// Flag: the total fits the memory limit of the options and the memory that is available.
    pub fits: u32,
    /// Bytes of weights.
    pub weights_bytes: u64,
    /// Bytes of the KV cache.
    pub kv_cache_bytes: u64,
    /// Bytes of activations and workspace.
    pub workspace_bytes: u64,
    /// Bytes of all three together.
    pub total_bytes: u64,
    /// Bytes that are free now; 0 where unknown.
    pub available_bytes: u64,
    /// Blocks in the KV cache.
    pub num_kv_blocks: u64,
    /// Tokens in a block.
    pub kv_block_size: u64,
    /// Longest prompt plus output of one request, in tokens: what the options say or the model was trained for, or
    /// fewer where the KV cache holds fewer.
    pub max_model_len: u64,
}

/// Counters since the engine was created, and gauges of the moment. Set struct_size before the call.
///
/// Since 0.1.0.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct ifl_stats {
    /// sizeof(ifl_stats); set by the caller.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Counter: steps run.
    pub num_steps: u64,
    /// Counter: prompt tokens run, again after a preemption included.
    pub num_prompt_tokens: u64,
    /// Counter: tokens sampled, those discarded because their request had ended included.
    pub num_output_tokens: u64,
    /// Counter: requests accepted.
    pub num_accepted: u64,
    /// Counter: requests ended.
    pub num_finished: u64,
    /// Counter: requests put back to the waiting line for want of KV blocks.
    pub num_preemptions: u64,
    /// Gauge: requests that wait for their first step or to run again.
    pub num_waiting: u64,
    /// Gauge: requests in the running batch.
    pub num_running: u64,
    /// Gauge: requests paused until their events are polled.
    pub num_paused: u64,
    /// Gauge: KV blocks in use.
    pub num_kv_blocks_used: u64,
    /// Gauge: KV blocks free.
    pub num_kv_blocks_free: u64,
    /// Gauge: bytes of weights.
    pub weights_bytes: u64,
    /// Gauge: bytes of the KV cache.
    pub kv_cache_bytes: u64,
    /// Gauge: bytes of activations and workspace.
    pub workspace_bytes: u64,
}

/// What a loaded model is. Set struct_size before the call.
///
/// Since 0.1.0.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct ifl_model_info {
    /// sizeof(ifl_model_info); set by the caller.
    pub struct_size: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Longest prompt plus output of one request, in tokens; see ifl_memory_plan.
    pub max_model_len: u32,
    /// Flag: there is a chat template that can be used, for IFL_PROMPT_USER and IFL_PROMPT_CHAT.
    pub has_chat_template: u32,
}

impl Sized32 for ifl_memory_plan {
    const NAME: &'static str = "ifl_memory_plan";
    const FIRST_SIZE: usize = 72;

    fn defaults() -> Self {
        Self::default()
    }
}

impl Sized32 for ifl_stats {
    const NAME: &'static str = "ifl_stats";
    const FIRST_SIZE: usize = 120;

    fn defaults() -> Self {
        Self::default()
    }
}

impl Sized32 for ifl_model_info {
    const NAME: &'static str = "ifl_model_info";
    const FIRST_SIZE: usize = 16;

    fn defaults() -> Self {
        Self::default()
    }
}

impl From<MemoryPlan> for ifl_memory_plan {
    fn from(plan: MemoryPlan) -> Self {
        Self {
            fits: u32::from(plan.fits),
            total_bytes: plan.total_bytes(),
            weights_bytes: plan.weights_bytes,
            kv_cache_bytes: plan.kv_cache_bytes,
            workspace_bytes: plan.workspace_bytes,
            available_bytes: plan.available_bytes,
            num_kv_blocks: plan.num_kv_blocks,
            kv_block_size: plan.kv_block_size,
            max_model_len: plan.max_model_len,
            ..Self::defaults()
        }
    }
}

impl From<Stats> for ifl_stats {
    fn from(stats: Stats) -> Self {
        Self {
            num_steps: stats.num_steps,
            num_prompt_tokens: stats.num_prompt_tokens,
            num_output_tokens: stats.num_output_tokens,
            num_accepted: stats.num_accepted,
            num_finished: stats.num_finished,
            num_preemptions: stats.num_preemptions,
            num_waiting: stats.num_waiting,
            num_running: stats.num_running,
            num_paused: stats.num_paused,
            num_kv_blocks_used: stats.num_kv_blocks_used,
            num_kv_blocks_free: stats.num_kv_blocks_free,
            weights_bytes: stats.weights_bytes,
            kv_cache_bytes: stats.kv_cache_bytes,
            workspace_bytes: stats.workspace_bytes,
            ..Self::defaults()
        }
    }
}

impl From<&ModelInfo> for ifl_model_info {
    fn from(info: &ModelInfo) -> Self {
        Self {
            vocab_size: info.vocab_size,
            max_model_len: info.max_model_len,
            has_chat_template: u32::from(info.has_chat_template),
            ..Self::defaults()
        }
    }
}

/// Loads a model and starts the engine's threads. A process may have several engines.
///
/// With CUDA the host may use the device meanwhile, and record graphs of its own at any time. Where max_num_sequences
/// is above 16, creation captures what cuBLASLt launches, for some tens of milliseconds at its end: a host had better
/// not synchronise the whole device (cudaDeviceSynchronize, cuCtxSynchronize) on another thread then. Such a call
/// gives cudaErrorStreamCaptureUnsupported, and can be repeated, but where it meets the capture's first or last moment
/// it may crash in the driver (580.159.04). Steps whose capture it interrupts again and again run slower, and the log
/// warns of them.
///
/// - options: what to load, and how; read during the call only. Not NULL.
/// - engine: receives the handle; end it with ifl_engine_destroy. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time. Takes as long as loading does; the progress callback of the options can abort
/// it.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_STRUCT_SIZE, IFL_INVALID_UTF8; IFL_UNSUPPORTED for more than one CUDA
/// device; IFL_MODEL_NOT_FOUND, IFL_MODEL_IO, IFL_MODEL_INVALID, IFL_MODEL_UNSUPPORTED; IFL_OUT_OF_MEMORY,
/// IFL_DEVICE_OUT_OF_MEMORY, IFL_MEMORY_LIMIT; IFL_DEVICE_UNAVAILABLE, IFL_DEVICE_LOST; IFL_ABORTED. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_engine_create(
    options: *const ifl_engine_options,
    engine: *mut *mut ifl_engine,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| {
        let out = caller.out(engine, "engine")?;
        let log_gate = LogGate::default();
        let options = caller.read(options)?.convert(caller, &log_gate)?;
        let engine = Engine::create(&options).inspect_err(|_| {
            log_gate.close(Duration::ZERO);
        })?;
        out.set(ENGINES.insert(HostedEngine { engine, log_gate })?);
        Ok(())
    })
}

/// Says what ifl_engine_create with the same options would reserve. Reads the model's description but no
/// weights; model may be a config.json or model_spec.json alone, under any name in ".json". Weights that are
/// there must be those that the description names.
///
/// - options: what would be loaded, and how; read during the call only. Not NULL.
/// - plan: receives the figures; its struct_size is set. Not NULL.
/// - error: receives the error where the call fails; may be NULL. That the plan does not fit is no error.
///
/// Threads: any, at any time.
/// Errors: those of ifl_engine_create about arguments, model and device. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_engine_plan(
    options: *const ifl_engine_options,
    plan: *mut ifl_memory_plan,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| {
        let out = caller.out_struct(plan)?;
        let options = caller.read(options)?.convert(caller, &LogGate::default())?;
        out.set(Engine::plan(&options)?.into());
        Ok(())
    })
}

/// Hands a request to the engine without waiting for the model; the answer comes as events. Exactly one event of
/// each accepted request, its last, is of kind IFL_EVENT_FINISHED.
///
/// A request takes one of the engine's max_queued_requests places and gives it back when its last event is polled or,
/// where its queue is destroyed, when it has ended, within one step after that. While every place is taken this call
/// fails with IFL_BUSY. Then poll each queue that has requests, with a time limit, and try again: other queues may
/// hold the places, and a place that comes back from a destroyed queue comes without an event, so that a poll of one
/// queue without a limit might never return.
///
/// - engine: the engine.
/// - request: what to do; read during the call only. Not NULL.
/// - request_id: receives the request's id, never 0 and never used again by this engine; may be NULL. Another
///   thread may see the request's first events before this call returns: tell them apart by user_data.
/// - error: receives the error where the call fails; may be NULL. The request was not accepted then and gives
///   no events.
///
/// Threads: any, at any time. The prompt is tokenised on the calling thread. Chat messages are rendered before, on a
/// short-lived thread that the call waits for: at most 50 ms of processor time, and that twice where a message has a
/// character with which special tokens begin, such as "<". Where frames must not be late, enqueue from another
/// thread.
/// Errors: IFL_BUSY, as above; IFL_INVALID_ARGUMENT, IFL_INVALID_STRUCT_SIZE, IFL_INVALID_UTF8, IFL_PROMPT_TOO_LONG;
/// for chat messages IFL_UNSUPPORTED where the model has no template, IFL_MODEL_INVALID or IFL_MODEL_UNSUPPORTED
/// where its template cannot be used, and IFL_TEMPLATE_FAILED; IFL_OUT_OF_MEMORY; IFL_INVALID_HANDLE, IFL_FORKED;
/// IFL_CLOSED, or what ended the engine, such as IFL_DEVICE_LOST. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_engine_enqueue(
    engine: *mut ifl_engine,
    request: *const ifl_request,
    request_id: *mut u64,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| {
        let out = caller.out_optional(request_id, "request_id")?;
        let engine = engine_of(engine)?;
        let id = engine.enqueue(caller.read(request)?.convert(caller)?)?;
        if let Some(out) = out {
            out.set(id);
        }
        Ok(())
    })
}

/// Takes every event that waits in the engine's own queue. Events of one request come in order, tokens are
/// neither lost nor doubled. A request whose events are not polled is paused after max_unread_tokens; others
/// go on.
///
/// - engine: the engine.
/// - timeout_ms: 0: do not block; -1: wait until there is an event; otherwise wait at most so many
///   milliseconds.
/// - events: receives the batch, NULL where nothing came in time; free it with ifl_events_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; each event goes to one of the callers.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_HANDLE, IFL_FORKED; IFL_CLOSED, or what ended the engine, once
/// the engine has ended and the queue is empty. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_engine_poll(
    engine: *mut ifl_engine,
    timeout_ms: i32,
    events: *mut *mut ifl_events,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| poll(caller, timeout_ms, events, |timeout| engine_of(engine)?.poll(timeout)))
}

/// Asks for a request's end within one step. Its last event says IFL_FINISH_CANCELLED, or how it ended if it
/// was faster. Cancelling twice, or what has ended, or what never was, does nothing.
///
/// - engine: the engine.
/// - request_id: from ifl_engine_enqueue.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; does not wait.
/// Errors: IFL_INVALID_HANDLE, IFL_FORKED; IFL_CLOSED, or what ended the engine, once it has ended.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_engine_cancel(
    engine: *mut ifl_engine,
    request_id: u64,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |_| engine_of(engine)?.cancel(request_id))
}

/// A snapshot of the engine's counters and gauges; cheap enough for every frame.
///
/// - engine: the engine.
/// - stats: receives the figures; its struct_size is set. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; does not wait.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_STRUCT_SIZE, IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_engine_stats(
    engine: *mut ifl_engine,
    stats: *mut ifl_stats,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| {
        let out = caller.out_struct(stats)?;
        out.set(engine_of(engine)?.stats().into());
        Ok(())
    })
}

/// What the loaded model is.
///
/// - engine: the engine.
/// - info: receives the figures; its struct_size is set. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_STRUCT_SIZE, IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_engine_model_info(
    engine: *mut ifl_engine,
    info: *mut ifl_model_info,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| {
        let out = caller.out_struct(info)?;
        out.set(engine_of(engine)?.model_info().into());
        Ok(())
    })
}

/// The model's end-of-sequence tokens.
///
/// - engine: the engine.
/// - tokens: receives a buffer to read with ifl_buffer_tokens; free it with ifl_buffer_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time. Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_engine_eos_tokens(
    engine: *mut ifl_engine,
    tokens: *mut *mut ifl_buffer,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| {
        let out = caller.out(tokens, "tokens")?;
        out.set_box(ifl_buffer::of_tokens(engine_of(engine)?.model_info().eos_tokens.clone()));
        Ok(())
    })
}

/// The device that the engine runs on, what "auto" has become: "cpu", "echo", or "cuda:0 (NVIDIA H100)". Up to
/// the first space it is what ifl_engine_options.device takes; what follows in brackets is the device's name,
/// for people.
///
/// - engine: the engine.
/// - device: receives a buffer to read with ifl_buffer_text; free it with ifl_buffer_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time. Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_engine_device(
    engine: *mut ifl_engine,
    device: *mut *mut ifl_buffer,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| {
        let out = caller.out(device, "device")?;
        out.set_box(ifl_buffer::of_text(&engine_of(engine)?.model_info().device));
        Ok(())
    })
}

/// Ends every request with IFL_FINISH_ERROR and IFL_CLOSED and stops the engine's threads, but keeps the
/// handle: events can still be polled, after which polling gives IFL_CLOSED. Closing twice does nothing.
///
/// - engine: the engine.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time, but not from a callback of the engine. Returns within 2 seconds.
/// Errors: IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_engine_close(engine: *mut ifl_engine, error: *mut *mut ifl_error) -> ifl_status {
    guard(error, |_| {
        engine_of(engine)?.close();
        Ok(())
    })
}

/// Closes the engine as ifl_engine_close does, ends the handle and frees the engine's memory. A thread that
/// waits in ifl_engine_poll gets one more batch of events or IFL_CLOSED; its next call gives
/// IFL_INVALID_HANDLE, and what was not polled is lost. To see the end of every request, call
/// ifl_engine_close, poll until IFL_CLOSED, then destroy. Queues of ifl_queue_create stay.
///
/// A step that takes longer than this call may is left to finish on a thread of the library, which frees what
/// the step uses when it ends; it calls nothing of the host's.
///
/// - engine: the engine. NULL, an engine that was destroyed already, and one made before a fork by another
///   process are left alone.
///
/// Threads: any, at any time, but not from a callback of the engine. Returns within 2 seconds. Errors: none.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_engine_destroy(engine: *mut ifl_engine) {
    guard_value((), |_| {
        if let Ok(hosted) = ENGINES.remove(engine) {
            let start = Instant::now();
            hosted.engine.close();
            hosted.engine.release_pollers();
            hosted.log_gate.close(DESTROY_LIMIT.saturating_sub(start.elapsed()));
        }
    });
}
