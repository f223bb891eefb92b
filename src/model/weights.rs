//! The decoder's parameters: which checkpoint tensors they are made of, and how they get into a backend.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use crate::backend::{Backend, DType};
use crate::config::{Progress, ProgressCallback};
use crate::error::{Error, Result, Status};
use crate::format::{Checkpoint, Encoding, TensorInfo, TensorTable};
use crate::model::convert;
use crate::model::error::{ModelError, ModelResult};
use crate::model::random::Generator;
use crate::model::spec::{ModelSpec, OutputHead};

/// Bytes that are converted and handed to the backend at a time.
const CHUNK_BYTES: usize = 8 << 20;
/// Tensors that checkpoints carry and nobody needs, by the end of their names: precomputed RoPE frequencies,
/// and GGUF's frequency factors, which are part of the spec.
const HARMLESS_SUFFIXES: [&str; 2] = [".rotary_emb.inv_freq", "rope_freqs.weight"];

/// All parameters of a decoder: [`Source`] before loading, the backend's tensors after it.
#[derive(Debug)]
pub struct Weights<T> {
    /// Embedding table, `[vocab_size, hidden_size]`; the head too, where that is tied.
    pub embedding: T,
    /// Decoder layers.
    pub layers: Vec<LayerWeights<T>>,
    /// Norm before the head, `[1, hidden_size]`.
    pub final_norm: T,
    /// Output head, `[vocab_size, hidden_size]`, where it is not tied.
    pub head: Option<T>,
}

/// Parameters of one layer.
#[derive(Debug)]
pub struct LayerWeights<T> {
    /// Norm before attention, `[1, hidden_size]`.
    pub attention_norm: T,
    /// Query, key and value projections, `[(num_heads + 2 * num_kv_heads) * head_dim, hidden_size]`.
    pub qkv: T,
    /// Output projection, `[hidden_size, num_heads * head_dim]`.
    pub attention_output: T,
    /// Norm before the MLP, `[1, hidden_size]`.
    pub mlp_norm: T,
    /// Gate and up projections, `[2 * intermediate_size, hidden_size]`.
    pub gate_up: T,
    /// Down projection, `[hidden_size, intermediate_size]`.
    pub down: T,
}

/// Where a parameter comes from: checkpoint tensors whose rows it stacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The checkpoint's tensors, from the first row on.
    pub parts: Vec<ExpectedTensor>,
    /// Columns of every row.
    pub columns: usize,
    /// Element type in the backend.
    pub dtype: DType,
}

/// A tensor that the checkpoint must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Name.
    pub name: String,
    /// Shape, `[columns]` or `[rows, columns]`.
    pub shape: Vec<usize>,
}

impl ExpectedTensor {
    fn rows(&self) -> usize {
        if self.shape.len() == 1 { 1 } else { self.shape[0] }
    }
}

impl Source {
    /// A vector, always in f32.
    fn vector(name: String, columns: usize) -> Self {
        Self { parts: vec![ExpectedTensor { name, shape: vec![columns] }], columns, dtype: DType::F32 }
    }

    fn matrix(dtype: DType, columns: usize, parts: impl IntoIterator<Item = (String, usize)>) -> Self {
        let expected = |(name, rows)| ExpectedTensor { name, shape: vec![rows, columns] };
        Self { parts: parts.into_iter().map(expected).collect(), columns, dtype }
    }

    /// Rows of all parts.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(ExpectedTensor::rows).sum()
    }

    /// Bytes in the backend. The limits of [`ModelSpec::validate`] keep it from overflowing.
    pub fn num_bytes(&self) -> u64 {
        (self.rows() * self.columns * self.dtype.size_bytes()) as u64
    }
}

impl Weights<Source> {
    /// The sources of a validated spec's parameters, with matrices in `dtype`.
    pub fn plan(spec: &ModelSpec, dtype: DType) -> Self {
        let (names, hidden) = (&spec.weights, spec.hidden_size);
        let head = match spec.output {
            OutputHead::Tied => None,
            OutputHead::Untied => {
                Some(Source::matrix(dtype, hidden, [(names.head.clone(), spec.vocab_size)]))
            }
        };
        Weights {
            embedding: Source::matrix(dtype, hidden, [(names.embedding.clone(), spec.vocab_size)]),
            layers: (0..spec.num_layers).map(|layer| LayerWeights::plan(spec, dtype, layer)).collect(),
            final_norm: Source::vector(names.final_norm.clone(), hidden),
            head,
        }
    }

    /// Bytes of all parameters in the backend.
    pub fn num_bytes(&self) -> u64 {
        self.iter().map(Source::num_bytes).sum()
    }

    /// Every tensor that the checkpoint must have.
    pub fn expected_tensors(&self) -> impl Iterator<Item = &ExpectedTensor> {
        self.iter().flat_map(|source| &source.parts)
    }

    fn iter(&self) -> impl Iterator<Item = &Source> {
        let layers = self.layers.iter().flat_map(|layer| {
            let LayerWeights { attention_norm, qkv, attention_output, mlp_norm, gate_up, down } = layer;
            [attention_norm, qkv, attention_output, mlp_norm, gate_up, down]
        });
        [&self.embedding, &self.final_norm].into_iter().chain(&self.head).chain(layers)
    }
}

impl LayerWeights<Source> {
    fn plan(spec: &ModelSpec, dtype: DType, layer: usize) -> Self {
        let name = |template: &str| template.replace("{layer}", &layer.to_string());
        let (names, heads) = (&spec.weights, &spec.heads);
        let (hidden, intermediate) = (spec.hidden_size, spec.intermediate_size);
        let matrix = |columns, parts: &[(&str, usize)]| {
            Source::matrix(dtype, columns, parts.iter().map(|&(template, rows)| (name(template), rows)))
        };
        Self {
            attention_norm: Source::vector(name(&names.attention_norm), hidden),
            qkv: matrix(
                hidden,
                &[
                    (&names.query, heads.query_width()),
                    (&names.key, heads.kv_width()),
                    (&names.value, heads.kv_width()),
                ],
            ),
            attention_output: matrix(heads.query_width(), &[(&names.attention_output, hidden)]),
            mlp_norm: Source::vector(name(&names.mlp_norm), hidden),
            gate_up: matrix(hidden, &[(&names.gate, intermediate), (&names.up, intermediate)]),
            down: matrix(intermediate, &[(&names.down, hidden)]),
        }
    }
}

impl<T> Weights<T> {
    /// The same parameters, each converted by `convert`, in an order that follows the decoder.
    fn try_map<U, E>(self, mut convert: impl FnMut(T) -> Result<U, E>) -> Result<Weights<U>, E> {
        let embedding = convert(self.embedding)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in self.layers {
            layers.push(LayerWeights {
                attention_norm: convert(layer.attention_norm)?,
                qkv: convert(layer.qkv)?,
                attention_output: convert(layer.attention_output)?,
                mlp_norm: convert(layer.mlp_norm)?,
                gate_up: convert(layer.gate_up)?,
                down: convert(layer.down)?,
            });
        }
        let final_norm = convert(self.final_norm)?;
        let head = self.head.map(convert).transpose()?;
        Ok(Weights { embedding, layers, final_norm, head })
    }
}

/// Loads the weights of a validated spec from `checkpoint` into `backend`, matrices in `dtype` and norms in
/// f32.
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
    plan.try_map(|source| loader.load(&source))
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
    plan.try_map(|source| {
        let generator = Generator::new(seed, &source);
        let row_bytes = source.columns * source.dtype.size_bytes();
        let chunk_rows = (CHUNK_BYTES / row_bytes).clamp(1, source.rows());
        let mut tensor = backend.alloc(source.dtype, source.rows(), source.columns)?;
        for row in (0..source.rows()).step_by(chunk_rows) {
            resize(&mut target, chunk_rows.min(source.rows() - row) * row_bytes)?;
            pool.install(|| generator.fill((row * source.columns) as u64, &mut target));
            backend.write_rows(&mut tensor, row, &target)?;
            progress.add(target.len() as u64)?;
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
    let mut expected_names = BTreeSet::new();
    for expected in plan.expected_tensors() {
        let name = format!("tensor {:?}", expected.name);
        let info = table
            .get(&expected.name)
            .ok_or_else(|| ModelError::invalid(&name, "is missing from the checkpoint"))?;
        if info.shape != expected.shape {
            let message = format!("has shape {:?}, but the model needs {:?}", info.shape, expected.shape);
            return Err(ModelError::invalid(&name, message));
        }
        if let Encoding::Other(encoding) = info.encoding {
            let message = format!("weights of type {encoding} are not supported");
            return Err(ModelError::unsupported(&name, message));
        }
        expected_names.insert(expected.name.as_str());
    }
    let is_tied_head = |name: &str| {
        spec.output == OutputHead::Tied
            && name == spec.weights.head
            && table.get(name).is_some_and(|info| info.shape == [spec.vocab_size, spec.hidden_size])
    };
    let is_harmless = |name: &str| HARMLESS_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
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

    fn add(&mut self, num_bytes: u64) -> Result<()> {
        self.state.bytes_done += num_bytes;
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
        let mut tensor = self.backend.alloc(source.dtype, source.rows(), source.columns)?;
        let mut first_row = 0;
        for part in &source.parts {
            let table = self.table;
            let info = table.get(&part.name).expect("check_tensors found every part");
            self.load_part(info, source, part.rows(), first_row, &mut tensor)?;
            first_row += part.rows();
        }
        Ok(tensor)
    }

    /// Streams the rows of `info` to the rows of `tensor` from `first_row` on.
    fn load_part(
        &mut self,
        info: &TensorInfo,
        source: &Source,
        num_rows: usize,
        first_row: usize,
        tensor: &mut B::Tensor,
    ) -> Result<()> {
        let source_row_bytes = source.columns / info.encoding.block_len() * info.encoding.block_bytes();
        let target_row_bytes = source.columns * source.dtype.size_bytes();
        let chunk_rows = (CHUNK_BYTES / source_row_bytes.max(target_row_bytes)).clamp(1, num_rows);
        for row in (0..num_rows).step_by(chunk_rows) {
            let rows = chunk_rows.min(num_rows - row);
            let start = (row * source_row_bytes) as u64;
            resize(&mut self.target, rows * target_row_bytes)?;
            if convert::is_same(info.encoding, source.dtype) {
                self.table.read(info, start, &mut self.target)?;
            } else {
                resize(&mut self.source, rows * source_row_bytes)?;
                self.table.read(info, start, &mut self.source)?;
                let (from, to) = (&self.source, &mut self.target);
                self.pool.install(|| convert::convert(info.encoding, from, source.dtype, to));
            }
            self.backend.write_rows(tensor, first_row + row, &self.target)?;
            self.progress.add(self.target.len() as u64)?;
        }
        Ok(())
    }
}

/// Makes `buffer` hold `num_bytes` bytes, of any value.
fn resize(buffer: &mut Vec<u8>, num_bytes: usize) -> Result<()> {
    buffer.try_reserve(num_bytes.saturating_sub(buffer.len())).map_err(|_| {
        Error::new(
            Status::OutOfMemory,
            format!("{num_bytes} bytes for a chunk of weights could not be allocated"),
        )
    })?;
    buffer.resize(num_bytes, 0);
    Ok(())
}
