//! `ifl_engine_options`: what to load, and how.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::ifl_error;
use super::ffi::{Caller, HostCallback, NUL_TERMINATED, Sized32, guard};
use super::log::{LogGate, ifl_log_callback, ifl_log_level, ifl_log_level_value};
use super::status::ifl_status;
use crate::config::{DTypeChoice, EngineOptions, LogLevel, Logger};
use crate::error::{Error, Result};

/// Type that weights are kept in, an ifl_dtype_value.
///
/// Since 0.1.0.
pub type ifl_dtype = i32;

/// Values of an ifl_dtype.
///
/// Since 0.1.0.
#[derive(Clone, Copy)]
#[repr(C)]
pub enum ifl_dtype_value {
    /// bfloat16, on the CPU and on CUDA.
    IFL_DTYPE_AUTO = 0,
    /// IEEE single precision, which only the CPU has: the device "auto" then takes the CPU, and "cuda" is
    /// IFL_INVALID_ARGUMENT.
    IFL_DTYPE_F32 = 1,
    /// bfloat16.
    IFL_DTYPE_BF16 = 2,
    /// IEEE half precision.
    IFL_DTYPE_F16 = 3,
}

/// Hears how far loading has come, and may abort it.
///
/// - user_data: progress_user_data of the options.
/// - bytes_done: bytes of weights in place.
/// - bytes_total: bytes of weights in all.
///
/// Returns 0 to go on; anything else makes ifl_engine_create fail with IFL_ABORTED.
/// Threads: called on the thread that is in ifl_engine_create, at least every 64 MiB. It must return: no
/// longjmp, no C++ exception, no unwinding may leave it. Since 0.1.0.
pub type ifl_progress_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, bytes_done: u64, bytes_total: u64) -> i32>;

/// What ifl_engine_create loads, and how. Fill it with ifl_engine_options_init or IFL_ENGINE_OPTIONS_INIT,
/// then set what should differ. Only model is required; 0 and NULL mean "choose for me" in every other field.
/// A value outside a field's range is IFL_INVALID_ARGUMENT. The library reads the struct, and what it points to,
/// during the call only.
///
/// Since 0.1.0.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct ifl_engine_options {
    /// sizeof(ifl_engine_options).
    pub struct_size: u32,
    /// Type to keep weights and KV cache in; default IFL_DTYPE_AUTO.
    pub dtype: ifl_dtype,
    /// Path of a model directory in Hugging Face layout, or of a GGUF file; UTF-8. Not used by the device
    /// "echo".
    pub model: *const c_char,
    /// Length of model in bytes, or IFL_NUL_TERMINATED, the default.
    pub model_len: u64,
    /// "auto" (the default: CUDA device 0, or where it cannot be used the CPU; one whose memory is taken is an
    /// error), "cpu", "cuda", "cuda:0", "cuda:0,1" (more than one: IFL_UNSUPPORTED so far), or "echo", which needs
    /// no model and answers with the prompt, byte for byte, and an end-of-sequence token without text ("echo:1000":
    /// 1000 microseconds a step).
    pub device: *const c_char,
    /// Length of device in bytes, or IFL_NUL_TERMINATED, the default.
    pub device_len: u64,
    /// Sequences that can be in one step, at most 65536; default 64, on CUDA 256.
    pub max_num_sequences: u32,
    /// Tokens that one step runs at most, over all sequences: more than max_num_sequences, at most 1048576. Default
    /// 512, on CUDA 8192, and at least twice max_num_sequences.
    pub max_batched_tokens: u32,
    /// Longest prompt plus output of one request in tokens, at most 16777216 and what the model supports; default:
    /// what it was trained for. A KV cache of fewer tokens lowers it, which is no error but logged as a warning:
    /// ifl_memory_plan and ifl_model_info tell what it has become. Where RoPE depends on the context's length
    /// (dynamic NTK, LongRoPE), it is that of this length for every request, however short.
    pub max_model_len: u32,
    /// Tokens in a block of the KV cache, a multiple of 16, at most 4096; default 64.
    pub kv_block_size: u32,
    /// Bytes for the KV cache, per device: as many whole blocks as they hold, at least one, at most 4194304.
    /// Default: enough for max_num_sequences full contexts, but at most a quarter of the memory that the host has
    /// available, or what weights and workspace leave of nine tenths of a CUDA device's free memory.
    /// memory_limit_bytes lowers that further and never raises it.
    pub kv_cache_bytes: u64,
    /// Hard limit in bytes on weights, KV cache and workspace together, per device; default: none. What does not fit
    /// is IFL_MEMORY_LIMIT. Not counted: the tokenizer and what waits to be polled, and with CUDA the driver's
    /// context, loaded kernels, recorded graphs and buffers in the host's memory.
    pub memory_limit_bytes: u64,
    /// Compute threads of the CPU backend, and threads that load weights, at most 1024; default: one per core.
    pub num_threads: u32,
    /// Requests that can be accepted and whose last event has not been polled; one more gets IFL_BUSY. Together
    /// with max_unread_tokens this bounds what waits to be polled. Default 4096.
    pub max_queued_requests: u32,
    /// Tokens of one request that may wait to be polled before that request is paused; default 1024.
    pub max_unread_tokens: u32,
    /// Most detailed level to pass to log; default IFL_LOG_INFO.
    pub log_level: ifl_log_level,
    /// Log sink; NULL: silence.
    pub log: ifl_log_callback,
    /// Passed to log.
    pub log_user_data: *mut c_void,
    /// Progress of loading; NULL: none.
    pub progress: ifl_progress_callback,
    /// Passed to progress.
    pub progress_user_data: *mut c_void,
    /// Path of a model_spec.json under any name, which describes the architecture in place of what model says
    /// of it; UTF-8. Its names of weights are those of the tensors in model, of a GGUF file GGUF's. NULL: model
    /// describes itself.
    pub spec: *const c_char,
    /// Length of spec in bytes, or IFL_NUL_TERMINATED, the default.
    pub spec_len: u64,
}

impl Sized32 for ifl_engine_options {
    const NAME: &'static str = "ifl_engine_options";
    const FIRST_SIZE: usize = 120;

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            dtype: ifl_dtype_value::IFL_DTYPE_AUTO as i32,
            model: std::ptr::null(),
            model_len: NUL_TERMINATED,
            device: std::ptr::null(),
            device_len: NUL_TERMINATED,
            max_num_sequences: 0,
            max_batched_tokens: 0,
            max_model_len: 0,
            kv_block_size: 0,
            kv_cache_bytes: 0,
            memory_limit_bytes: 0,
            num_threads: 0,
            max_queued_requests: 0,
            max_unread_tokens: 0,
            log_level: 0,
            log: None,
            log_user_data: std::ptr::null_mut(),
            progress: None,
            progress_user_data: std::ptr::null_mut(),
            spec: std::ptr::null(),
            spec_len: NUL_TERMINATED,
        }
    }
}

impl ifl_engine_options {
    /// The engine's options, whose log lines go through `gate`; `caller` vouches for the pointers.
    pub(super) fn convert(&self, caller: &Caller, gate: &LogGate) -> Result<EngineOptions> {
        let device = optional_text(caller, self.device, self.device_len, "ifl_engine_options.device")?;
        let model = optional_text(caller, self.model, self.model_len, "ifl_engine_options.model")?;
        if model.is_none_or(str::is_empty) && !device.is_some_and(|device| device.starts_with("echo")) {
            return Err(Error::invalid_argument(
                "ifl_engine_options.model is not set; it names a model directory or a GGUF file",
            ));
        }
        let spec = optional_text(caller, self.spec, self.spec_len, "ifl_engine_options.spec")?;
        let mut options = EngineOptions::new(model.unwrap_or_default());
        options.spec_path = spec.filter(|spec| !spec.is_empty()).map(PathBuf::from);
        if let Some(device) = device {
            options.device = device.to_owned();
        }
        options.dtype = self.dtype()?;
        set_unless_zero(&mut options.max_num_sequences, self.max_num_sequences);
        set_unless_zero(&mut options.max_batched_tokens, self.max_batched_tokens);
        set_unless_zero(&mut options.max_model_len, self.max_model_len);
        set_unless_zero(&mut options.kv_block_size, self.kv_block_size);
        set_unless_zero(&mut options.num_threads, self.num_threads);
        set_unless_zero(&mut options.max_queued_requests, self.max_queued_requests);
        set_unless_zero(&mut options.max_unread_tokens, self.max_unread_tokens);
        options.kv_cache_bytes = self.kv_cache_bytes;
        options.memory_limit_bytes = self.memory_limit_bytes;
        options.logger = self.logger(gate)?;
        if self.progress.is_some() {
            let callback = HostCallback::new(self.progress, self.progress_user_data);
            options.progress = Some(Arc::new(move |progress| {
                match callback.progress(progress.bytes_done, progress.bytes_total) {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            }));
        }
        Ok(options)
    }

    fn dtype(&self) -> Result<DTypeChoice> {
        const CHOICES: [(ifl_dtype_value, DTypeChoice); 4] = [
            (ifl_dtype_value::IFL_DTYPE_AUTO, DTypeChoice::Auto),
            (ifl_dtype_value::IFL_DTYPE_F32, DTypeChoice::F32),
            (ifl_dtype_value::IFL_DTYPE_BF16, DTypeChoice::Bf16),
            (ifl_dtype_value::IFL_DTYPE_F16, DTypeChoice::F16),
        ];
        let choice = CHOICES.into_iter().find(|(number, _)| *number as i32 == self.dtype);
        choice.map(|(_, dtype)| dtype).ok_or_else(|| {
            Error::invalid_argument(format!(
                "ifl_engine_options.dtype is {}, which is no ifl_dtype",
                self.dtype
            ))
        })
    }

    fn logger(&self, gate: &LogGate) -> Result<Logger> {
        const DEFAULT: i32 = 0;
        const LEVELS: [(i32, LogLevel); 5] = [
            (DEFAULT, LogLevel::Info),
            (ifl_log_level_value::IFL_LOG_ERROR as i32, LogLevel::Error),
            (ifl_log_level_value::IFL_LOG_WARN as i32, LogLevel::Warn),
            (ifl_log_level_value::IFL_LOG_INFO as i32, LogLevel::Info),
            (ifl_log_level_value::IFL_LOG_DEBUG as i32, LogLevel::Debug),
        ];
        let (_, level) =
            LEVELS.into_iter().find(|(number, _)| *number == self.log_level).ok_or_else(|| {
                let message =
                    format!("ifl_engine_options.log_level is {}, which is no ifl_log_level", self.log_level);
                Error::invalid_argument(message)
            })?;
        if self.log.is_none() {
            return Ok(Logger::default());
        }
        Ok(gate.logger(level, HostCallback::new(self.log, self.log_user_data)))
    }
}

/// Fills options with the defaults: everything 0 and NULL but the struct's size and the text lengths, which
/// are IFL_NUL_TERMINATED.
///
/// - options: memory for the struct. Not NULL.
/// - struct_size: sizeof(ifl_engine_options) as your compiler sees it. A newer library never writes more than
///   that, so an old program stays safe; what an older library does not know becomes 0.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time. Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_STRUCT_SIZE; nothing is written then.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_engine_options_init(
    options: *mut ifl_engine_options,
    struct_size: u32,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| caller.init(options, struct_size))
}

fn set_unless_zero(field: &mut usize, value: u32) {
    if value != 0 {
        *field = value as usize;
    }
}

/// The text, or `None` for NULL, whatever the length's default.
fn optional_text<'c>(
    caller: &'c Caller,
    text: *const c_char,
    len: u64,
    name: &str,
) -> Result<Option<&'c str>> {
    match text.is_null() && (len == 0 || len == NUL_TERMINATED) {
        true => Ok(None),
        false => caller.text(text, len, name).map(Some),
    }
}
