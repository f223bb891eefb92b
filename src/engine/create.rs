//! From options to everything an engine needs: device, model, memory.

use std::time::Duration;

use crate::backend::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::backend::cuda::{Cuda, HostContext};
use crate::config::{DTypeChoice, EngineOptions, LogLevel};
use crate::engine::echo::EchoExecutor;
use crate::engine::executor::Executor;
use crate::engine::info::{MemoryPlan, ModelInfo};
use crate::engine::model::{self, CacheBudget, Target};
use crate::engine::scheduler::SchedulerConfig;
use crate::engine::sync::Arc;
use crate::error::{Error, Result, Status};
use crate::token::Tokenizer;

/// Tokens in a KV block where the options leave it open.
pub(super) const DEFAULT_BLOCK_SIZE: usize = 64;
/// KV block sizes are multiples of this, the tile in which attention takes keys.
const BLOCK_SIZE_MULTIPLE: usize = 16;
/// Most KV blocks. The pool keeps a few bytes of each, which must not become a shortage of their own.
pub(super) const MAX_KV_BLOCKS: u64 = 1 << 22;
/// Context of the echo device where the options leave it open.
const ECHO_MODEL_LEN: usize = 4096;

/// An executor, and what the engine must know of it.
pub struct EngineParts {
    /// Runs the steps.
    pub executor: Box<dyn Executor>,
    /// Everything else.
    pub facts: EngineFacts,
}

/// What an engine knows of its model and sizes.
pub struct EngineFacts {
    /// The model's text side.
    pub tokenizer: Arc<Tokenizer>,
    /// Sizes that steps are planned with.
    pub scheduler: SchedulerConfig,
    /// What has been reserved.
    pub memory: MemoryPlan,
    /// What hosts may ask for.
    pub info: ModelInfo,
    /// Requests accepted and not polled to their ends, at most.
    pub max_queued_requests: u64,
    /// Tokens of one request that may wait for its consumer.
    pub max_unread_tokens: usize,
}

/// A device name, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Device {
    /// CUDA device 0, or where it cannot be used the CPU.
    Auto,
    Cpu,
    /// The driver's device of this index.
    Cuda(u32),
    /// Returns the prompt; every step takes this long.
    Echo(Duration),
}

impl Device {
    /// `auto`, `cpu`, `cuda[:N[,N...]]`, `echo[:MICROSECONDS]`.
    pub(super) fn parse(name: &str) -> Result<Device> {
        let (kind, argument) = match name.split_once(':') {
            Some((kind, argument)) => (kind, Some(argument)),
            None => (name, None),
        };
        match (kind, argument) {
            ("auto", None) => Ok(Device::Auto),
            ("cpu", None) => Ok(Device::Cpu),
            ("echo", None) => Ok(Device::Echo(Duration::ZERO)),
            ("echo", Some(micros)) => match micros.parse::<u32>() {
                Ok(micros) => Ok(Device::Echo(Duration::from_micros(micros.into()))),
                Err(_) => Err(Error::invalid_argument(format!(
                    "device {name:?}: the part after echo: is the time of a step in microseconds"
                ))),
            },
            ("cuda", None) => Ok(Device::Cuda(0)),
            ("cuda", Some(list)) if list.contains(',') => Err(Error::new(
                Status::Unsupported,
                format!("device {name:?}: this version runs on one CUDA device; name one, such as cuda:0"),
            )),
            ("cuda", Some(ordinal)) => ordinal.parse().map(Device::Cuda).map_err(|_| {
                Error::invalid_argument(format!("device {name:?}: the part after cuda: is a device's number"))
            }),
            _ => Err(Error::invalid_argument(format!(
                "device {name:?} is unknown; use auto, cpu, cuda, cuda:0 or echo"
            ))),
        }
    }
}

/// There is no context to keep without the backend.
#[cfg(not(feature = "cuda"))]
struct HostContext;

#[cfg(not(feature = "cuda"))]
impl HostContext {
    fn keep() -> Self {
        Self
    }
}

#[cfg(not(feature = "cuda"))]
impl Drop for HostContext {
    fn drop(&mut self) {}
}

/// A device that has been chosen.
enum Chosen {
    Cpu,
    /// The driver's device of this index, open where choosing it meant trying to.
    #[cfg(feature = "cuda")]
    Cuda(u32, Option<Box<Cuda>>),
    Echo(Duration),
}

impl Chosen {
    /// The device that the options name. For `auto` a CUDA device that this build can use, unless the dtype is one
    /// that only the CPU has.
    fn by(options: &EngineOptions) -> Result<Chosen> {
        match Device::parse(&options.device)? {
            Device::Auto if options.dtype == DTypeChoice::F32 => {
                let reason = "dtype is f32, which CUDA devices do not compute in";
                options.logger.log(LogLevel::Info, format_args!("device auto takes the CPU: {reason}"));
                Ok(Chosen::Cpu)
            }
            Device::Auto => match Chosen::first_cuda() {
                // A card without memory to spare is an error that the host can do something about.
                Err(reason) if reason.status() == Status::DeviceUnavailable => {
                    options.logger.log(LogLevel::Info, format_args!("device auto takes the CPU: {reason}"));
                    Ok(Chosen::Cpu)
                }
                chosen => chosen,
            },
            Device::Cpu => Ok(Chosen::Cpu),
            Device::Cuda(ordinal) => Chosen::cuda(ordinal),
            Device::Echo(step_time) => Ok(Chosen::Echo(step_time)),
        }
    }

    #[cfg(feature = "cuda")]
    fn first_cuda() -> Result<Chosen> {
        Ok(Chosen::Cuda(0, Some(Box::new(Cuda::new(0)?))))
    }

    #[cfg(not(feature = "cuda"))]
    fn first_cuda() -> Result<Chosen> {
        Err(no_cuda())
    }

    #[cfg(feature = "cuda")]
    fn cuda(ordinal: u32) -> Result<Chosen> {
        Ok(Chosen::Cuda(ordinal, None))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_ordinal: u32) -> Result<Chosen> {
        Err(no_cuda())
    }
}

/// Keeps the calling thread's CUDA context what it is until the result is dropped: engines are created and planned on
/// a thread of the host's, which may use CUDA itself. Devices without CUDA leave its driver alone.
pub(super) fn keep_host_context(options: &EngineOptions) -> Option<impl Drop + use<>> {
    let uses_cuda = matches!(Device::parse(&options.device), Ok(Device::Auto | Device::Cuda(_)));
    uses_cuda.then(HostContext::keep)
}

/// Loads what `options` name.
pub(super) fn load(options: &EngineOptions) -> Result<EngineParts> {
    let (device, options) = settle(options)?;
    let options = &options;
    match device {
        Chosen::Cpu => model::load(cpu_target(options)?, options),
        #[cfg(feature = "cuda")]
        Chosen::Cuda(ordinal, cuda) => model::load(cuda_target(ordinal, cuda, options)?, options),
        Chosen::Echo(step_time) => load_echo(options, step_time),
    }
}

/// Computes what [`load`] would reserve.
pub(super) fn plan(options: &EngineOptions) -> Result<MemoryPlan> {
    let (device, options) = settle(options)?;
    let options = &options;
    match device {
        Chosen::Cpu => model::plan(&cpu_target(options)?, options),
        #[cfg(feature = "cuda")]
        Chosen::Cuda(ordinal, cuda) => model::plan(&cuda_target(ordinal, cuda, options)?, options),
        Chosen::Echo(_) => plan_echo(options),
    }
}

/// The device, and options without anything that is left to it.
fn settle(options: &EngineOptions) -> Result<(Chosen, EngineOptions)> {
    let device = Chosen::by(options)?;
    let (num_sequences, num_tokens) = match device {
        // Enough rows to read weights once for many, and prompts in pieces that fill the device.
        #[cfg(feature = "cuda")]
        Chosen::Cuda(..) => (256, 8192),
        Chosen::Cpu | Chosen::Echo(_) => (64, 512),
    };
    let or = |value: usize, default: usize| if value == 0 { default } else { value };
    let max_num_sequences = or(options.max_num_sequences, num_sequences);
    let max_batched_tokens = match options.max_batched_tokens {
        0 => num_tokens.max(max_num_sequences.saturating_mul(2)),
        tokens => tokens,
    };
    let options = EngineOptions { max_num_sequences, max_batched_tokens, ..options.clone() };
    check(&options)?;
    Ok((device, options))
}

fn cpu_target(options: &EngineOptions) -> Result<Target<Cpu>> {
    let backend = Cpu::new(options.num_threads)?;
    Ok(Target { backend, device: "cpu".to_owned(), pipeline_depth: 1, shares_host_memory: true })
}

#[cfg(feature = "cuda")]
fn cuda_target(ordinal: u32, opened: Option<Box<Cuda>>, options: &EngineOptions) -> Result<Target<Cuda>> {
    if options.dtype == DTypeChoice::F32 {
        return Err(Error::invalid_argument("dtype is f32; a CUDA device computes in bf16 or f16"));
    }
    let backend = match opened {
        Some(cuda) => *cuda,
        None => Cuda::new(ordinal)?,
    };
    let device = format!("cuda:{ordinal} ({})", backend.device_name());
    Ok(Target { backend, device, pipeline_depth: 2, shares_host_memory: false })
}

#[cfg(not(feature = "cuda"))]
fn no_cuda() -> Error {
    Error::new(Status::DeviceUnavailable, "this build has no CUDA backend; use device \"cpu\" or \"auto\"")
}

/// Refuses options that no model could make sense of.
fn check(options: &EngineOptions) -> Result<()> {
    let positive = [
        ("max_queued_requests", options.max_queued_requests),
        ("max_unread_tokens", options.max_unread_tokens),
    ];
    if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Err(Error::invalid_argument(format!("{name} is 0; it must be at least 1")));
    }
    let bounded = [
        ("max_num_sequences", options.max_num_sequences, 1 << 16),
        ("max_batched_tokens", options.max_batched_tokens, 1 << 20),
        ("max_model_len", options.max_model_len, 1 << 24),
        ("kv_block_size", options.kv_block_size, 1 << 12),
        ("num_threads", options.num_threads, 1 << 10),
    ];
    if let Some((name, value, max)) = bounded.iter().find(|(_, value, max)| value > max) {
        return Err(Error::invalid_argument(format!("{name} is {value}; it must be at most {max}")));
    }
    if !options.kv_block_size.is_multiple_of(BLOCK_SIZE_MULTIPLE) {
        return Err(Error::invalid_argument(format!(
            "kv_block_size is {}; it must be a multiple of {BLOCK_SIZE_MULTIPLE}",
            options.kv_block_size
        )));
    }
    if options.max_batched_tokens <= options.max_num_sequences {
        return Err(Error::invalid_argument(format!(
            "max_batched_tokens is {} but max_num_sequences {}; a step must have room for one token of each and \
             some of a prompt",
            options.max_batched_tokens, options.max_num_sequences
        )));
    }
    Ok(())
}

/// The options' block size or the default.
pub(super) fn block_size(options: &EngineOptions) -> usize {
    if options.kv_block_size == 0 { DEFAULT_BLOCK_SIZE } else { options.kv_block_size }
}

/// The echo device's longest context where the cache has room for it.
fn echo_context(options: &EngineOptions) -> usize {
    if options.max_model_len == 0 { ECHO_MODEL_LEN } else { options.max_model_len }
}

/// The echo device counts one byte per token of its imaginary cache.
fn plan_echo(options: &EngineOptions) -> Result<MemoryPlan> {
    let block_size = block_size(options);
    let wanted = echo_context(options);
    let budget = CacheBudget {
        block_bytes: block_size as u64,
        other_bytes: 0,
        full_blocks: (wanted.div_ceil(block_size) as u64).saturating_mul(options.max_num_sequences as u64),
        available_bytes: 0,
        shares_host_memory: true,
    };
    let num_kv_blocks = budget.num_blocks(options)?;
    let kv_cache_bytes = num_kv_blocks * block_size as u64;
    Ok(MemoryPlan {
        weights_bytes: 0,
        kv_cache_bytes,
        workspace_bytes: 0,
        num_kv_blocks,
        kv_block_size: block_size as u64,
        max_model_len: (wanted as u64).min(kv_cache_bytes),
        available_bytes: 0,
        fits: options.memory_limit_bytes == 0 || kv_cache_bytes <= options.memory_limit_bytes,
    })
}

fn load_echo(options: &EngineOptions, step_time: Duration) -> Result<EngineParts> {
    let tokenizer = Tokenizer::bytes();
    let memory = plan_echo(options)?;
    model::check_fit(&memory, options, true)?;
    model::warn_of_short_contexts(options, &memory, echo_context(options));
    let (eos_token, vocab_size) = (tokenizer.eos_tokens()[0], tokenizer.vocab_size());
    let executor = EchoExecutor::new(options.max_num_sequences, eos_token, step_time);
    Ok(EngineParts {
        executor: Box::new(executor),
        facts: EngineFacts::new(options, tokenizer, vocab_size, memory, 1, "echo".to_owned()),
    })
}

impl EngineFacts {
    /// Facts of a model whose logits have `vocab_size` entries, with `memory` reserved on `device`, which takes tokens
    /// best in multiples of `token_quantum`.
    pub fn new(
        options: &EngineOptions,
        tokenizer: Tokenizer,
        vocab_size: usize,
        memory: MemoryPlan,
        token_quantum: usize,
        device: String,
    ) -> Self {
        let scheduler = SchedulerConfig {
            max_num_sequences: options.max_num_sequences,
            max_batched_tokens: options.max_batched_tokens,
            token_quantum,
            block_size: memory.kv_block_size as usize,
            num_blocks: u32::try_from(memory.num_kv_blocks).unwrap_or(u32::MAX),
        };
        let info = ModelInfo {
            vocab_size: vocab_size as u32,
            max_model_len: memory.max_model_len as u32,
            eos_tokens: tokenizer.eos_tokens().to_vec(),
            has_chat_template: tokenizer.has_chat_template(),
            device,
        };
        Self {
            tokenizer: Arc::new(tokenizer),
            scheduler,
            memory,
            info,
            max_queued_requests: options.max_queued_requests as u64,
            max_unread_tokens: options.max_unread_tokens,
        }
    }
}
