//! How a checkpoint's tensors get into a backend: checked against the plan, then read and converted by several
//! threads, straight into memory that the device has or copies from by itself.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ops::ControlFlow;

use crate::backend::{Backend, DType};
use crate::config::{Progress, ProgressCallback};
use crate::error::{Error, Result, Status};
use crate::format::{Checkpoint, Encoding, TensorTable};
use crate::model::error::{ModelError, ModelResult};
use crate::model::origin::{Chunk, Origin};
use crate::model::spec::{ModelSpec, Orientation, OutputHead};
use crate::model::weights::{Part, Source, Weights};
use crate::threads;

/// More threads than this read no faster.
const DEFAULT_THREADS_MAX: usize = 16;
/// Tensors that checkpoints carry and nobody needs, by the end of their names: precomputed RoPE frequencies,
/// causal masks, and GGUF's frequency factors, which are part of the spec.
const HARMLESS_SUFFIXES: [&str; 9] = [
    "rotary_emb.inv_freq",
    "rotary_pos_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
];
/// Tensors of models that see images too, by the start of their names: only text goes through the decoder.
const VISION_PREFIXES: [&str; 4] =
    ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];

/// What [`load`] needs beside the model.
#[derive(Clone, Copy, Default)]
pub struct LoadOptions<'a> {
    /// Threads that read and convert, while the caller's waits; 0: one per core, at most 16.
    pub num_threads: usize,
    /// Hears how far loading has come.
    pub progress: Option<&'a ProgressCallback>,
}

/// Loads the weights of a validated spec from `checkpoint` into `backend`, matrices in `dtype`, norms and biases
/// in f32, heads and MLPs in the backend's sizes. Weights of a [`Checkpoint::Random`] are made up.
///
/// Host memory beside the backend's stays below a chunk of 16 MiB (or a row, where that is longer) and 2 MiB per
/// thread. The backend's includes two more chunks where the device has memory of its own.
pub fn load<B: Backend>(
    backend: &mut B,
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    dtype: DType,
    options: &LoadOptions<'_>,
) -> Result<Weights<B::Tensor>> {
    let plan = Weights::plan_stored(spec, &spec.stored_by(backend), dtype);
    let mut progress = Reporter::start(options.progress, plan.num_bytes())?;
    let (places, sources) = take_sources(plan);
    let origins = match checkpoint {
        Checkpoint::Random(description) => Origin::made_up(&sources, description.seed()),
        Checkpoint::Directory(_) | Checkpoint::Gguf(_) => {
            let table = checkpoint.weights()?;
            check_tensors(spec, &sources, table)
                .map_err(Error::from)
                .and_then(|()| check_tied_head(spec, table, &mut progress))
                .map_err(|error| error.context(checkpoint.path().display()))?;
            Origin::in_checkpoint(&sources, table)
        }
    };
    let chunks: Vec<Chunk> = origins.iter().flat_map(Origin::chunks).collect();
    let pool = thread_pool(options.num_threads)?;
    let mut target = Target { backend, pool, sources: &sources, progress, tensors: Vec::new() };
    chunks.iter().try_for_each(|chunk| target.take(chunk))?;
    let mut tensors = target.tensors.into_iter();
    places.try_map(&mut |()| tensors.next().ok_or_else(|| Error::internal("a parameter has no rows")))
}

/// The sources of a plan in its order, and their places.
fn take_sources(plan: Weights<Source>) -> (Weights<()>, Vec<Source>) {
    let mut sources = Vec::new();
    let Ok(places) = plan.try_map(&mut |source| {
        sources.push(source);
        Ok::<_, Infallible>(())
    });
    (places, sources)
}

fn thread_pool(num_threads: usize) -> Result<rayon::ThreadPool> {
    let num_cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let num_threads = if num_threads > 0 { num_threads } else { num_cores().min(DEFAULT_THREADS_MAX) };
    threads::pool("load", num_threads).map_err(|error| {
        Error::new(Status::OutOfMemory, format!("threads for loading could not be started: {error}"))
    })
}

/// Compares the tensors of `checkpoint` with those that a validated spec names: none missing, none left over, shapes
/// and types right. Reads headers alone. Weights that are not there or made up are right.
pub fn check_weights(spec: &ModelSpec, checkpoint: &Checkpoint) -> Result<()> {
    let Ok(table) = checkpoint.weights() else { return Ok(()) };
    let (_, sources) = take_sources(Weights::plan(spec, DType::F32));
    check_tensors(spec, &sources, table)
        .map_err(|error| Error::from(error).context(checkpoint.path().display()))
}

/// Compares the checkpoint's tensors with the plan: none missing, none left over, shapes and types right.
fn check_tensors(spec: &ModelSpec, sources: &[Source], table: &TensorTable) -> ModelResult<()> {
    let mut expected_names = BTreeSet::new();
    for part in sources.iter().flat_map(|source| &source.parts) {
        check_tensor(part, table)?;
        expected_names.insert(part.tensor.name.as_str());
    }
    let tied_head = tied_head(spec);
    let is_harmless = |name: &str| {
        HARMLESS_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
            || VISION_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    let leftovers: Vec<&str> = table
        .names()
        .filter(|&name| !expected_names.contains(name) && tied_head != Some(name) && !is_harmless(name))
        .collect();
    match leftovers.as_slice() {
        [] => Ok(()),
        [first, ..] => Err(ModelError::unsupported(
            format!("tensor {first:?}"),
            format!(
                "the {} architecture has no use for it, nor for {} others",
                spec.family,
                leftovers.len() - 1
            ),
        )),
    }
}

/// Name of a head that is the embedding once more.
fn tied_head(spec: &ModelSpec) -> Option<&str> {
    let head = spec.weights.head.as_ref().filter(|_| spec.output == OutputHead::Tied)?;
    Some(&head.weight)
}

/// A tied head may stand in the checkpoint as a copy of the embedding. One that differs must not be left out in
/// silence. Loading may be aborted meanwhile.
fn check_tied_head(spec: &ModelSpec, table: &TensorTable, progress: &mut Reporter<'_>) -> Result<()> {
    const CHUNK_BYTES: u64 = 1 << 20;
    /// Whoever hears the progress may end it this often.
    const REPORT_BYTES: u64 = 64 << 20;
    let Some(head) = tied_head(spec).and_then(|name| table.get(name)) else { return Ok(()) };
    let Some(embedding) = table.get(&spec.weights.embedding) else { return Ok(()) };
    let mut is_copy = head.encoding == embedding.encoding && head.shape == embedding.shape;
    let mut buffers = [vec![0; CHUNK_BYTES as usize], vec![0; CHUNK_BYTES as usize]];
    let mut start = 0;
    while is_copy && start < head.num_bytes {
        if start.is_multiple_of(REPORT_BYTES) {
            progress.add(0)?;
        }
        let num_bytes = CHUNK_BYTES.min(head.num_bytes - start);
        let [head_bytes, embedding_bytes] =
            buffers.each_mut().map(|buffer| &mut buffer[..num_bytes as usize]);
        table.read(head, start, head_bytes)?;
        table.read(embedding, start, embedding_bytes)?;
        is_copy = head_bytes == embedding_bytes;
        start += num_bytes;
    }
    if is_copy {
        return Ok(());
    }
    let message = "differs from the embedding, although the two are tied; a model with a head of its own says \
                   tie_word_embeddings: false in config.json, or output: untied in model_spec.json";
    Err(ModelError::invalid(format!("tensor {:?}", head.name), message).into())
}

fn check_tensor(part: &Part, table: &TensorTable) -> ModelResult<()> {
    let expected = &part.tensor;
    let name = format!("tensor {:?}", expected.name);
    let info = table
        .get(&expected.name)
        .ok_or_else(|| ModelError::invalid(&name, "is missing from the checkpoint"))?;
    if info.shape != expected.shape {
        let message = format!("has shape {:?}, but the model needs {:?}", info.shape, expected.shape);
        return Err(ModelError::invalid(&name, message));
    }
    match info.encoding {
        Encoding::Other(encoding) => {
            Err(ModelError::unsupported(&name, format!("weights of type {encoding} are not supported")))
        }
        encoding if part.orientation == Orientation::InOut && encoding.block_len() > 1 => {
            Err(ModelError::unsupported(&name, "a quantised matrix that lies transposed is not supported"))
        }
        _ => Ok(()),
    }
}

struct Reporter<'a> {
    progress: Option<&'a ProgressCallback>,
    state: Progress,
}

impl<'a> Reporter<'a> {
    /// Reports the start of `bytes_total` bytes.
    fn start(progress: Option<&'a ProgressCallback>, bytes_total: u64) -> Result<Self> {
        let mut reporter = Self { progress, state: Progress { bytes_done: 0, bytes_total } };
        reporter.add(0)?;
        Ok(reporter)
    }

    fn add(&mut self, num_bytes: usize) -> Result<()> {
        self.state.bytes_done += num_bytes as u64;
        match self.progress.map(|callback| callback(self.state)) {
            Some(ControlFlow::Break(())) => {
                let Progress { bytes_done, bytes_total } = self.state;
                let message = format!("loading was aborted after {bytes_done} of {bytes_total} bytes");
                Err(Error::new(Status::Aborted, message))
            }
            _ => Ok(()),
        }
    }
}

/// Where chunks go, in the order of their sources and rows.
struct Target<'a, B: Backend> {
    backend: &'a mut B,
    pool: rayon::ThreadPool,
    sources: &'a [Source],
    progress: Reporter<'a>,
    /// Parameters so far; the last may still lack rows.
    tensors: Vec<B::Tensor>,
}

impl<B: Backend> Target<'_, B> {
    fn take(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        let source_index = chunk.source_index();
        if source_index == self.tensors.len() {
            let source = &self.sources[source_index];
            self.tensors.push(self.backend.alloc(source.dtype, source.rows, source.columns)?);
        }
        let (pool, num_bytes) = (&self.pool, chunk.num_bytes());
        let mut fill = |target: &mut [u8]| pool.install(|| chunk.fill(target));
        let tensor = &mut self.tensors[source_index];
        self.backend.fill_rows(tensor, chunk.first_row(), num_bytes, &mut fill)?;
        self.progress.add(num_bytes)
    }
}
