//! A model directory or GGUF file on a backend: sizes first, then weights.

use crate::backend::{Backend, BackendLimits, DType};
use crate::config::{DTypeChoice, EngineOptions, LogLevel};
use crate::engine::create::{EngineFacts, EngineParts, MAX_KV_BLOCKS, block_size};
use crate::engine::executor::ModelExecutor;
use crate::engine::info::MemoryPlan;
use crate::error::{Error, Result, Status};
use crate::format::Checkpoint;
use crate::model::decoder::{Decoder, DecoderConfig};
use crate::model::families::load_spec_from;
use crate::model::load::{LoadOptions, check_weights};
use crate::model::memory::memory_plan;
use crate::model::rope;
use crate::model::spec::ModelSpec;
use crate::token::Tokenizer;

/// A backend, and what the engine must know of it.
pub(super) struct Target<B> {
    pub(super) backend: B,
    /// For people, and for [`crate::engine::ModelInfo`].
    pub(super) device: String,
    /// Steps that may be submitted before the first is collected.
    pub(super) pipeline_depth: usize,
    /// Whether the device's memory is the host's too.
    pub(super) shares_host_memory: bool,
}

/// Loads the model that `options` name onto `target`.
pub(super) fn load<B: Backend>(target: Target<B>, options: &EngineOptions) -> Result<EngineParts> {
    let checkpoint = open(options)?;
    let spec = load_spec_from(&checkpoint, options.spec_path.as_deref())?;
    let Sizes { config, memory } = Sizes::choose(&target, &spec, options)?;
    check_fit(&memory, options, target.shares_host_memory)?;
    warn_of_short_contexts(options, &memory, config.max_model_len);
    if let Some(choice) = rope::choice(&spec, config.max_model_len) {
        options.logger.log(LogLevel::Info, format_args!("{choice}"));
    }
    let tokenizer = match checkpoint {
        Checkpoint::Random(_) => Tokenizer::bytes_below(spec.vocab_size),
        Checkpoint::Directory(_) | Checkpoint::Gguf(_) => Tokenizer::load(&checkpoint)?,
    };
    if tokenizer.vocab_size() > spec.vocab_size {
        let (tokens, rows) = (tokenizer.vocab_size(), spec.vocab_size);
        let path = checkpoint.path().display();
        let message = format!("{path}: tokenizer: it has {tokens} tokens, but the model's vocabulary {rows}");
        return Err(Error::new(Status::ModelInvalid, message));
    }
    let loading = LoadOptions { num_threads: options.num_threads, progress: options.progress.as_ref() };
    let decoder = Decoder::load(target.backend, &spec, &checkpoint, &config, &loading)?;
    let num_unrecorded = decoder.backend().num_unrecorded();
    if num_unrecorded > 0 {
        let message = format_args!(
            "steps of {num_unrecorded} sizes run slower than they could: while they were recorded, the host waited for \
             the whole device"
        );
        options.logger.log(LogLevel::Warn, message);
    }
    let token_quantum = decoder.backend().token_quantum(spec.hidden_size);
    let executor = Box::new(ModelExecutor::new(decoder, target.pipeline_depth));
    let facts = EngineFacts::new(options, tokenizer, spec.vocab_size, memory, token_quantum, target.device);
    Ok(EngineParts { executor, facts })
}

/// Says so where the cache has no room for contexts of `wanted` tokens.
pub(super) fn warn_of_short_contexts(options: &EngineOptions, memory: &MemoryPlan, wanted: usize) {
    let tokens = memory.max_model_len;
    if tokens < wanted as u64 {
        let message =
            format_args!("contexts end at {tokens} tokens, not {wanted}: the KV cache has no room for more");
        options.logger.log(LogLevel::Warn, message);
    }
}

fn open(options: &EngineOptions) -> Result<Checkpoint> {
    match options.random_weights {
        Some(seed) => Ok(Checkpoint::random(&options.model, seed)),
        None => Checkpoint::open(&options.model),
    }
}

/// What [`load`] would reserve. A description alone is enough; weights that are there must fit it.
pub(super) fn plan<B: Backend>(target: &Target<B>, options: &EngineOptions) -> Result<MemoryPlan> {
    let checkpoint = match options.random_weights {
        Some(_) => open(options)?,
        None => Checkpoint::open_description(&options.model)?,
    };
    let spec = load_spec_from(&checkpoint, options.spec_path.as_deref())?;
    check_weights(&spec, &checkpoint)?;
    Ok(Sizes::choose(target, &spec, options)?.memory)
}

/// The sizes of a decoder and the memory that they take.
struct Sizes {
    config: DecoderConfig,
    memory: MemoryPlan,
}

impl Sizes {
    fn choose<B: Backend>(target: &Target<B>, spec: &ModelSpec, options: &EngineOptions) -> Result<Sizes> {
        let backend = &target.backend;
        if options.max_model_len > spec.max_positions {
            return Err(Error::invalid_argument(format!(
                "max_model_len is {} but the model was made for {} positions",
                options.max_model_len, spec.max_positions
            )));
        }
        let max_model_len = match options.max_model_len {
            0 => rope::default_context(spec),
            max_model_len => max_model_len,
        };
        let dtype = match options.dtype {
            DTypeChoice::Auto | DTypeChoice::Bf16 => DType::Bf16,
            DTypeChoice::F32 => DType::F32,
            DTypeChoice::F16 => DType::F16,
        };
        let limits = BackendLimits {
            max_tokens: options.max_batched_tokens,
            max_slots: options.max_num_sequences,
            vocab_size: spec.vocab_size,
        };
        let config = DecoderConfig {
            weight_dtype: dtype,
            kv_dtype: dtype,
            num_kv_blocks: 1,
            kv_block_size: block_size(options),
            max_model_len,
            limits,
        };
        let smallest = memory_plan(backend, spec, &config)?;
        let available_bytes = backend.available_bytes().unwrap_or(0);
        let block_bytes = config.kv_layout(&spec.stored_by(backend)).block_bytes().unwrap_or(u64::MAX).max(1);
        let budget = CacheBudget {
            block_bytes,
            other_bytes: smallest.total_bytes().saturating_sub(block_bytes),
            full_blocks: (max_model_len.div_ceil(config.kv_block_size) as u64)
                .saturating_mul(options.max_num_sequences as u64),
            available_bytes,
            shares_host_memory: target.shares_host_memory,
        };
        let plan_with = |num_kv_blocks: u64| {
            let config = DecoderConfig { num_kv_blocks: num_kv_blocks as usize, ..config };
            memory_plan(backend, spec, &config).map(|plan| (num_kv_blocks, config, plan))
        };
        let mut planned = plan_with(budget.num_blocks(options)?)?;
        // What grows with the cache, and how allocations are rounded, shows in the plan alone.
        let limit = options.memory_limit_bytes;
        while options.kv_cache_bytes == 0 && limit > 0 && planned.0 > 1 && planned.2.total_bytes() > limit {
            let excess = planned.2.total_bytes() - limit;
            planned = plan_with(planned.0.saturating_sub(excess.div_ceil(block_bytes)).max(1))?;
        }
        let (num_kv_blocks, config, chosen) = planned;
        let total_bytes = chosen.total_bytes();
        let is_within = |limit: u64| limit == 0 || total_bytes <= limit;
        let memory = MemoryPlan {
            weights_bytes: chosen.weights_bytes,
            kv_cache_bytes: chosen.kv_cache_bytes,
            workspace_bytes: total_bytes - chosen.weights_bytes - chosen.kv_cache_bytes,
            num_kv_blocks,
            kv_block_size: config.kv_block_size as u64,
            max_model_len: (max_model_len as u64).min(num_kv_blocks * config.kv_block_size as u64),
            available_bytes,
            fits: is_within(options.memory_limit_bytes) && is_within(available_bytes),
        };
        Ok(Sizes { config, memory })
    }
}

/// What the size of the KV cache is chosen from.
pub(super) struct CacheBudget {
    pub(super) block_bytes: u64,
    /// Everything but the cache.
    pub(super) other_bytes: u64,
    /// Blocks that let every sequence use its whole context.
    pub(super) full_blocks: u64,
    /// 0 where unknown.
    pub(super) available_bytes: u64,
    pub(super) shares_host_memory: bool,
}

impl CacheBudget {
    /// Most bytes that the cache takes where the options do not set its size. Of memory that is the host's too, a
    /// quarter: the host wants to live. Of a device's own, what weights and workspace leave of nine tenths: it is there
    /// to be used, but the driver, compiled graphs and other processes need some.
    fn default_bytes(&self) -> u64 {
        match self.shares_host_memory {
            true => self.available_bytes / 4,
            false => (self.available_bytes / 10 * 9).saturating_sub(self.other_bytes),
        }
    }

    /// The blocks asked for, or as many as can be of use within its share of the memory that is free and within the
    /// limit, at least one. Fails where more than [`MAX_KV_BLOCKS`] are asked for.
    pub(super) fn num_blocks(&self, options: &EngineOptions) -> Result<u64> {
        let num_blocks = if options.kv_cache_bytes > 0 {
            let num_blocks = options.kv_cache_bytes / self.block_bytes;
            if num_blocks > MAX_KV_BLOCKS {
                return Err(Error::invalid_argument(format!(
                    "kv_cache_bytes is {}, which is {num_blocks} blocks of {} bytes, but there can be at most \
                     {MAX_KV_BLOCKS}; lower it or raise kv_block_size",
                    options.kv_cache_bytes, self.block_bytes
                )));
            }
            num_blocks
        } else {
            let limit = options.memory_limit_bytes;
            let left = [
                (limit > 0).then(|| limit.saturating_sub(self.other_bytes)),
                (self.available_bytes > 0).then(|| self.default_bytes()),
            ];
            let left_blocks = left.into_iter().flatten().map(|bytes| bytes / self.block_bytes);
            left_blocks.fold(self.full_blocks, u64::min)
        };
        Ok(num_blocks.clamp(1, MAX_KV_BLOCKS))
    }
}

/// Refuses a plan that fits neither the options' limit nor the memory that is free, which is the host's or a
/// device's own.
pub(super) fn check_fit(
    memory: &MemoryPlan,
    options: &EngineOptions,
    shares_host_memory: bool,
) -> Result<()> {
    if memory.fits {
        return Ok(());
    }
    let MemoryPlan { weights_bytes, kv_cache_bytes, workspace_bytes, available_bytes, .. } = memory;
    let (status, limit) = match options.memory_limit_bytes {
        limit if limit > 0 && memory.total_bytes() > limit => {
            (Status::MemoryLimit, format!("memory_limit_bytes {limit}"))
        }
        _ if shares_host_memory => {
            (Status::OutOfMemory, format!("the {available_bytes} bytes that are free on the host"))
        }
        _ => (Status::DeviceOutOfMemory, format!("the {available_bytes} bytes that are free on the device")),
    };
    Err(Error::new(
        status,
        format!(
            "weights ({weights_bytes} bytes), KV cache ({kv_cache_bytes}) and workspace ({workspace_bytes}) do not \
             fit {limit}; lower kv_cache_bytes, max_num_sequences or max_batched_tokens, or use a smaller model"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::backend::cpu::Cpu;

    fn num_blocks(budget: CacheBudget, change: impl FnOnce(&mut EngineOptions)) -> u64 {
        let mut options = EngineOptions::new("model");
        change(&mut options);
        budget.num_blocks(&options).unwrap()
    }

    fn budget(shares_host_memory: bool, available_bytes: u64) -> CacheBudget {
        CacheBudget {
            block_bytes: 10,
            other_bytes: 400,
            full_blocks: 80,
            available_bytes,
            shares_host_memory,
        }
    }

    #[test]
    fn a_host_gives_a_quarter_and_a_device_what_is_left_of_most() {
        let blocks = |is_host, available| num_blocks(budget(is_host, available), |_| {});
        assert_eq!(blocks(true, 1000), 25);
        assert_eq!(blocks(false, 1000), 50);
        // No more than is of use, no fewer than one, and everything of use where nothing is known.
        assert_eq!(blocks(true, 100_000), 80);
        assert_eq!(blocks(false, 100_000), 80);
        assert_eq!(blocks(false, 440), 1);
        assert_eq!(blocks(false, 0), 80);
    }

    /// The model's base is raised for more than 16 positions, of which it supports 33.
    #[test]
    fn contexts_are_stretched_only_where_that_is_asked_for() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama_tiny_dynamic");
        let longest_request = |max_model_len| {
            let backend = Cpu::new(1).unwrap();
            let device = "cpu".to_owned();
            let target = Target { backend, device, pipeline_depth: 1, shares_host_memory: true };
            let mut options = EngineOptions::new(&model);
            options.max_model_len = max_model_len;
            options.max_num_sequences = 2;
            options.max_batched_tokens = 8;
            plan(&target, &options).map(|plan| plan.max_model_len)
        };
        assert_eq!(longest_request(0).unwrap(), 16);
        assert_eq!(longest_request(33).unwrap(), 33);
        assert!(longest_request(34).unwrap_err().message().contains("33 positions"));
    }

    #[test]
    fn options_come_before_shares() {
        for is_host in [true, false] {
            assert_eq!(num_blocks(budget(is_host, 1000), |options| options.kv_cache_bytes = 999), 99);
            assert_eq!(num_blocks(budget(is_host, 10_000), |options| options.memory_limit_bytes = 725), 32);
            assert_eq!(num_blocks(budget(is_host, 10_000), |options| options.memory_limit_bytes = 300), 1);
            assert_eq!(num_blocks(budget(is_host, 0), |options| options.memory_limit_bytes = 725), 32);
        }
        // A limit above what is free asks for no more than without one.
        assert_eq!(num_blocks(budget(true, 1000), |options| options.memory_limit_bytes = 5000), 25);
        assert_eq!(num_blocks(budget(false, 1000), |options| options.memory_limit_bytes = 5000), 50);
    }

    #[test]
    fn the_number_of_blocks_is_bounded() {
        let mut options = EngineOptions::new("model");
        options.kv_cache_bytes = 10 * MAX_KV_BLOCKS;
        assert_eq!(budget(true, 1000).num_blocks(&options).unwrap(), MAX_KV_BLOCKS);
        options.kv_cache_bytes += 10;
        let error = budget(true, 1000).num_blocks(&options).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.message().contains("kv_cache_bytes is 41943050"), "{error}");
        let unknown = CacheBudget { full_blocks: 1 << 40, ..budget(true, 0) };
        assert_eq!(num_blocks(unknown, |_| {}), MAX_KV_BLOCKS);
    }

    #[test]
    fn what_does_not_fit_names_the_memory_that_is_short() {
        let memory = MemoryPlan { weights_bytes: 70, available_bytes: 50, ..MemoryPlan::default() };
        let mut options = EngineOptions::new("model");
        let status = |options: &EngineOptions, shares_host_memory| {
            check_fit(&memory, options, shares_host_memory).unwrap_err().status()
        };
        assert_eq!(status(&options, true), Status::OutOfMemory);
        assert_eq!(status(&options, false), Status::DeviceOutOfMemory);
        options.memory_limit_bytes = 60;
        assert_eq!(status(&options, false), Status::MemoryLimit);
        let fits = MemoryPlan { fits: true, ..memory.clone() };
        assert!(check_fit(&fits, &options, false).is_ok());
    }
}
