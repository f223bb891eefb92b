//! How a checkpoint's tensors get into a backend: checked against the plan, converted, brought into order.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};

use crate::backend::{Backend, DType};
use crate::config::{Progress, ProgressCallback};
use crate::error::{Error, Result, Status};
use crate::format::{Checkpoint, Encoding, TensorInfo, TensorTable};
use crate::model::convert;
use crate::model::error::{ModelError, ModelResult};
use crate::model::random::Generator;
use crate::model::spec::{ModelSpec, Orientation, OutputHead};
use crate::model::weights::{Adjustment, Part, Source, Weights};
use crate::quant;

/// Bytes that are converted and handed to the backend at a time.
const CHUNK_BYTES: usize = 8 << 20;
/// Tensors that checkpoints carry and nobody needs, by the end of their names: precomputed RoPE frequencies,
/// causal masks, and GGUF's frequency factors, which are part of the spec.
const HARMLESS_SUFFIXES: [&str; 9] = [
    ".rotary_emb.inv_freq",
    ".rotary_pos_emb.inv_freq",
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

/// Loads the weights of a validated spec from `checkpoint` into `backend`, matrices in `dtype`, norms and biases
/// in f32.
///
/// Host memory beside the backend's stays below 3 chunks of 8 MiB (or 3 rows, where a row is longer).
pub fn load<B: Backend>(
    backend: &mut B,
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    dtype: DType,
    progress: Option<&ProgressCallback>,
) -> Result<Weights<B::Tensor>> {
    let plan = Weights::plan(spec, dtype);
    if let Checkpoint::Random(description) = checkpoint {
        return make_up(backend, plan, description.seed(), progress);
    }
    let table = checkpoint.weights()?;
    check_tensors(spec, &plan, table)
        .map_err(|error| Error::from(error).context(checkpoint.path().display()))?;
    let (pool, progress) = (thread_pool(8)?, Reporter::start(progress, plan.num_bytes())?);
    let mut loader = Loader { backend, table, pool, progress, source: Vec::new(), target: Vec::new() };
    plan.try_map(&mut |source| loader.load(&source))
}

/// Random parameters instead of a checkpoint's.
fn make_up<B: Backend>(
    backend: &mut B,
    plan: Weights<Source>,
    seed: u64,
    progress: Option<&ProgressCallback>,
) -> Result<Weights<B::Tensor>> {
    let (pool, mut progress) = (thread_pool(usize::MAX)?, Reporter::start(progress, plan.num_bytes())?);
    let mut target = Vec::new();
    plan.try_map(&mut |source| {
        let generator = Generator::new(seed, &source);
        let row_bytes = source.columns * source.dtype.size_bytes();
        let chunk_rows = (CHUNK_BYTES / row_bytes).clamp(1, source.rows);
        let mut tensor = backend.alloc(source.dtype, source.rows, source.columns)?;
        for row in (0..source.rows).step_by(chunk_rows) {
            resize(&mut target, chunk_rows.min(source.rows - row) * row_bytes)?;
            pool.install(|| generator.fill((row * source.columns) as u64, &mut target));
            backend.write_rows(&mut tensor, row, &target)?;
            progress.add(target.len())?;
        }
        Ok(tensor)
    })
}

/// One thread per core, at most `num_threads_max`.
fn thread_pool(num_threads_max: usize) -> Result<rayon::ThreadPool> {
    let num_threads =
        std::thread::available_parallelism().map_or(1, |count| count.get().min(num_threads_max));
    rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().map_err(|error| {
        Error::new(Status::OutOfMemory, format!("threads for loading could not be started: {error}"))
    })
}

/// Compares the checkpoint's tensors with the plan: none missing, none left over, shapes and types right.
fn check_tensors(spec: &ModelSpec, plan: &Weights<Source>, table: &TensorTable) -> ModelResult<()> {
    let mut parts: Vec<&Part> = Vec::new();
    plan.for_each(&mut |source| parts.extend(&source.parts));
    let mut expected_names = BTreeSet::new();
    for part in parts {
        check_tensor(part, table)?;
        expected_names.insert(part.tensor.name.as_str());
    }
    let tied_head = spec.weights.head.as_ref().filter(|_| spec.output == OutputHead::Tied);
    let is_tied_head = |name: &str| {
        tied_head.is_some_and(|head| name == head.weight)
            && table.get(name).is_some_and(|info| info.shape == [spec.vocab_size, spec.hidden_size])
    };
    let is_harmless = |name: &str| {
        HARMLESS_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
            || VISION_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    let leftovers: Vec<&str> = table
        .names()
        .filter(|&name| !expected_names.contains(name) && !is_tied_head(name) && !is_harmless(name))
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

struct Loader<'a, B> {
    backend: &'a mut B,
    table: &'a TensorTable,
    pool: rayon::ThreadPool,
    progress: Reporter<'a>,
    /// Bytes as the checkpoint has them.
    source: Vec<u8>,
    /// Bytes as the backend takes them.
    target: Vec<u8>,
}

impl<B: Backend> Loader<'_, B> {
    fn load(&mut self, source: &Source) -> Result<B::Tensor> {
        let mut tensor = self.backend.alloc(source.dtype, source.rows, source.columns)?;
        let is_vector = source.parts.iter().all(|part| part.tensor.shape.len() == 1);
        if is_vector {
            self.load_vector(source, &mut tensor)?;
            return Ok(tensor);
        }
        let mut first_row = 0;
        for part in &source.parts {
            for run in &part.runs {
                match part.orientation {
                    Orientation::OutIn => self.load_rows(source, part, run, first_row, &mut tensor)?,
                    Orientation::InOut => self.load_columns(source, part, run, first_row, &mut tensor)?,
                }
                first_row += run.len();
            }
        }
        Ok(tensor)
    }

    fn info(&self, part: &Part) -> &TensorInfo {
        self.table.get(&part.tensor.name).expect("check_tensors found every part")
    }

    /// Puts the pieces of a vector side by side.
    fn load_vector(&mut self, source: &Source, tensor: &mut B::Tensor) -> Result<()> {
        let num_bytes = source.columns * size_of::<f32>();
        let mut values: Vec<f32> = Vec::new();
        values.try_reserve_exact(source.columns).map_err(|_| out_of_memory(num_bytes))?;
        if source.adjustment == Adjustment::Ones {
            values.resize(source.columns, 1.0);
        }
        for part in &source.parts {
            let info = self.info(part);
            let (encoding, num_elements) = (info.encoding, part.tensor.shape[0]);
            let mut bytes = Vec::new();
            resize(&mut bytes, info.num_bytes as usize)?;
            self.table.read(info, 0, &mut bytes)?;
            resize(&mut self.target, num_elements * size_of::<f32>())?;
            convert::convert(encoding, &bytes, DType::F32, &mut self.target);
            for run in &part.runs {
                let bytes = &self.target[run.start * size_of::<f32>()..run.end * size_of::<f32>()];
                let first = values.len();
                values.resize(first + run.len(), 0.0);
                quant::decode_f32(bytes, &mut values[first..]);
            }
        }
        if source.adjustment == Adjustment::OnePlus {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        resize(&mut self.target, num_bytes)?;
        quant::encode_f32(&values, &mut self.target);
        self.backend.write_rows(tensor, 0, &self.target)?;
        self.progress.add(num_bytes)
    }

    /// Streams rows `run` of a tensor to the rows of `tensor` from `first_row` on. Tensors of more than two
    /// dimensions are matrices one under the other.
    fn load_rows(
        &mut self,
        source: &Source,
        part: &Part,
        run: &Range<usize>,
        first_row: usize,
        tensor: &mut B::Tensor,
    ) -> Result<()> {
        let table = self.table;
        let info = table.get(&part.tensor.name).expect("check_tensors found every part");
        let source_row_bytes = source.columns / info.encoding.block_len() * info.encoding.block_bytes();
        let target_row_bytes = source.columns * source.dtype.size_bytes();
        let largest_row_bytes = source_row_bytes.max(source.columns * size_of::<f32>());
        let chunk_rows = (CHUNK_BYTES / largest_row_bytes).clamp(1, run.len().max(1));
        for row in (0..run.len()).step_by(chunk_rows) {
            let rows = chunk_rows.min(run.len() - row);
            let start = ((run.start + row) * source_row_bytes) as u64;
            resize(&mut self.target, rows * target_row_bytes)?;
            if convert::is_same(info.encoding, source.dtype) && source.adjustment == Adjustment::None {
                table.read(info, start, &mut self.target)?;
            } else {
                resize(&mut self.source, rows * source_row_bytes)?;
                table.read(info, start, &mut self.source)?;
                self.convert_rows(info.encoding, source)?;
            }
            self.backend.write_rows(tensor, first_row + row, &self.target)?;
            self.progress.add(self.target.len())?;
        }
        Ok(())
    }

    /// Converts whole rows from one buffer to the other.
    fn convert_rows(&mut self, encoding: Encoding, source: &Source) -> Result<()> {
        let Self { pool, source: from, target: to, .. } = self;
        if source.adjustment != Adjustment::UnitRows {
            pool.install(|| convert::convert(encoding, from, source.dtype, to));
            return Ok(());
        }
        let num_elements = to.len() / source.dtype.size_bytes();
        let mut single = Vec::new();
        resize(&mut single, num_elements * size_of::<f32>())?;
        pool.install(|| convert::convert(encoding, from, DType::F32, &mut single));
        single.chunks_exact_mut(source.columns * size_of::<f32>()).for_each(divide_by_length);
        pool.install(|| convert::convert(Encoding::F32, &single, source.dtype, to));
        Ok(())
    }

    /// Transposes columns `run` of a tensor to the rows of `tensor` from `first_row` on, as many at a time as fit
    /// a chunk.
    fn load_columns(
        &mut self,
        source: &Source,
        part: &Part,
        run: &Range<usize>,
        first_row: usize,
        tensor: &mut B::Tensor,
    ) -> Result<()> {
        let table = self.table;
        let info = table.get(&part.tensor.name).expect("check_tensors found every part");
        let (element_bytes, size_bytes) = (info.encoding.block_bytes(), source.dtype.size_bytes());
        let (depth, stride) = (source.columns, part.tensor.shape[1]);
        let chunk_rows = (CHUNK_BYTES / (depth * size_of::<f32>())).clamp(1, run.len().max(1));
        let mut converted = Vec::new();
        for row in (0..run.len()).step_by(chunk_rows) {
            let rows = chunk_rows.min(run.len() - row);
            resize(&mut self.source, depth * rows * element_bytes)?;
            for (k, piece) in self.source.chunks_exact_mut(rows * element_bytes).enumerate() {
                let start = (k * stride + run.start + row) * element_bytes;
                table.read(info, start as u64, piece)?;
            }
            resize(&mut converted, depth * rows * size_bytes)?;
            let from = &self.source;
            self.pool.install(|| convert::convert(info.encoding, from, source.dtype, &mut converted));
            resize(&mut self.target, depth * rows * size_bytes)?;
            transpose(&converted, &mut self.target, rows, size_bytes);
            self.backend.write_rows(tensor, first_row + row, &self.target)?;
            self.progress.add(self.target.len())?;
        }
        Ok(())
    }
}

/// Writes the transpose of `source`, `[_, columns]` elements of `size_bytes`.
fn transpose(source: &[u8], target: &mut [u8], columns: usize, size_bytes: usize) {
    let depth = source.len() / (columns * size_bytes);
    for (column, out) in target.chunks_exact_mut(depth * size_bytes).enumerate() {
        for (k, element) in out.chunks_exact_mut(size_bytes).enumerate() {
            let start = (k * columns + column) * size_bytes;
            element.copy_from_slice(&source[start..start + size_bytes]);
        }
    }
}

/// Divides a row of f32 values by its length; a row of zeros stays.
fn divide_by_length(row: &mut [u8]) {
    let values = || row.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap_or_default()));
    let length = values().map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    let factor = if length > 0.0 { 1.0 / length } else { 1.0 };
    for bytes in row.chunks_exact_mut(4) {
        let value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        bytes.copy_from_slice(&((f64::from(value) * factor) as f32).to_le_bytes());
    }
}

fn out_of_memory(num_bytes: usize) -> Error {
    Error::new(
        Status::OutOfMemory,
        format!("{num_bytes} bytes for a chunk of weights could not be allocated"),
    )
}

/// Makes `buffer` hold `num_bytes` bytes, of any value.
fn resize(buffer: &mut Vec<u8>, num_bytes: usize) -> Result<()> {
    buffer.try_reserve(num_bytes.saturating_sub(buffer.len())).map_err(|_| out_of_memory(num_bytes))?;
    buffer.resize(num_bytes, 0);
    Ok(())
}
