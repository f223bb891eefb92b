//! A backend of plain loops in f32 that counts what it allocates. Slow, and easy to believe.

use crate::backend::{
    Activate, AttentionShape, Backend, BackendError, BackendLimits, BackendResult, Batch, DType, Delta,
    Embedding, ExpertWeighting, Gating, Head, KvLayout, Mixture, Norm, NormExtent, NormKind, Projection,
    QkvTransform, RopePairing, RouterScoring, Sampled, Scoring, SlotState,
};
use crate::quant;

use super::reference::activation;

/// What [`Naive::workspace_sizes`] claims per slot, so that a plan that forgets it differs.
const SLOT_BYTES: u64 = 24;

/// The backend.
#[derive(Default)]
pub(super) struct Naive {
    /// Bytes of tensors, caches and workspace so far.
    pub(super) allocated_bytes: u64,
    memory_limit: Option<u64>,
    /// Elements of padding behind heads and MLPs.
    padding: [usize; 2],
    /// Whether last projections are added to the residual at once.
    adds: bool,
    /// Whether branches are said to run at the same time.
    forks: bool,
    batch: Batch,
    collected: Vec<Vec<Sampled>>,
}

/// `[rows, columns]`; poisoned with NaN until written.
pub(super) struct Tensor {
    dtype: DType,
    columns: usize,
    data: Vec<f32>,
}

impl Tensor {
    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.columns..][..self.columns]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.columns..][..self.columns]
    }
}

/// Keys or values of `[layer][block][k|v][kv_head][token][head_dim]`.
pub(super) struct Cache {
    layout: KvLayout,
    data: Vec<f32>,
}

impl Cache {
    fn at(&self, layer: usize, block: usize, part: usize, head: usize, token: usize) -> usize {
        let KvLayout { num_blocks, num_kv_heads, block_size, head_dim, .. } = self.layout;
        ((((layer * num_blocks + block) * 2 + part) * num_kv_heads + head) * block_size + token) * head_dim
    }
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

fn add_row(target: &mut [f32], source: &[f32]) {
    target.iter_mut().zip(source).for_each(|(target, source)| *target += source);
}

fn delta_row(delta: &Delta<'_, Tensor>, row: usize) -> Vec<f32> {
    let mut values = delta.values.row(row).to_vec();
    if let Some(bias) = delta.bias {
        add_row(&mut values, bias.row(0));
    }
    values
}

fn norm_row(norm: &Norm<'_, Tensor>, values: &[f32]) -> Vec<f32> {
    let mut values = values.to_vec();
    let columns: Vec<usize> = (0..values.len()).collect();
    norm_columns(norm, &mut values, &columns);
    values
}

/// A norm of some columns of a row, together.
fn norm_columns(norm: &Norm<'_, Tensor>, row: &mut [f32], columns: &[usize]) {
    let values: Vec<f32> = columns.iter().map(|&column| row[column]).collect();
    let width = values.len() as f64;
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => values.iter().map(|&x| f64::from(x)).sum::<f64>() / width,
    };
    let variance = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / width;
    let deviation = (variance + f64::from(norm.epsilon)).sqrt();
    for (&column, &x) in columns.iter().zip(&values) {
        let weight = f64::from(norm.weight.data[column]);
        let bias = norm.bias.map_or(0.0, |bias| bias.data[column]);
        row[column] = ((f64::from(x) - mean) / deviation * weight) as f32 + bias;
    }
}

/// The experts that a row passes, with their weights.
fn routes(products: &[f32], mixture: &Mixture<'_, Tensor>) -> Vec<(usize, f32)> {
    let exponentials: Vec<f32> = products.iter().map(|product| product.exp()).collect();
    let total: f32 = exponentials.iter().sum();
    let score = |expert: usize| match mixture.scoring {
        RouterScoring::Softmax => exponentials[expert] / total,
        RouterScoring::Sigmoid => 1.0 / (1.0 + 1.0 / exponentials[expert]),
    };
    let mut routes: Vec<(usize, f32)> =
        (0..mixture.num_experts).map(|expert| (expert, score(expert))).collect();
    routes.sort_by(|left, right| right.1.total_cmp(&left.1));
    routes.truncate(mixture.num_chosen);
    let sum: f32 = routes.iter().map(|(_, score)| score).sum();
    let divisor = if mixture.weighting == ExpertWeighting::Normalized { sum } else { 1.0 };
    routes.iter().map(|(expert, score)| (*expert, score / divisor * mixture.scale)).collect()
}

fn rotate(head: &mut [f32], angles: &[f32], pairing: RopePairing) {
    let num_pairs = angles.len() / 2;
    for pair in 0..num_pairs {
        let (first, second) = match pairing {
            RopePairing::Half => (pair, pair + num_pairs),
            RopePairing::Interleaved => (2 * pair, 2 * pair + 1),
        };
        let (cosine, sine) = (angles[pair], angles[num_pairs + pair]);
        let (x, y) = (head[first], head[second]);
        (head[first], head[second]) = (x * cosine - y * sine, y * cosine + x * sine);
    }
}

impl Naive {
    /// A backend that fails the allocation that would pass `limit` bytes.
    pub(super) fn with_limit(limit: u64) -> Self {
        Self { memory_limit: Some(limit), ..Self::default() }
    }

    /// A backend that pads heads and MLPs.
    pub(super) fn padded(head: usize, mlp: usize) -> Self {
        Self { padding: [head, mlp], ..Self::default() }
    }

    /// A backend that adds last projections to the residual.
    pub(super) fn adding() -> Self {
        Self { adds: true, ..Self::default() }
    }

    /// A backend that runs branches at the same time.
    pub(super) fn forking() -> Self {
        Self { forks: true, ..Self::default() }
    }

    fn take(&mut self, what: &str, bytes: u64) -> BackendResult<()> {
        if self.memory_limit.is_some_and(|limit| self.allocated_bytes + bytes > limit) {
            return Err(BackendError::OutOfMemory { what: what.to_owned(), bytes });
        }
        self.allocated_bytes += bytes;
        Ok(())
    }

    /// Position and blocks of every token of the batch.
    fn places(&self) -> Vec<(usize, Vec<u32>)> {
        let batch = &self.batch;
        let rows = 0..batch.num_rows();
        rows.flat_map(|row| {
            let positions = batch.first_position(row)..batch.context_lens[row] as usize;
            positions.map(move |position| (position, batch.blocks(row).to_vec()))
        })
        .collect()
    }
}

impl Backend for Naive {
    type Tensor = Tensor;
    type KvCache = Cache;

    fn activation_dtype(&self, _weights: DType) -> DType {
        DType::F32
    }

    fn stored_head_dim(&self, head_dim: usize) -> usize {
        head_dim + self.padding[0]
    }

    fn stored_width(&self, width: usize) -> usize {
        width + self.padding[1]
    }

    fn workspace_sizes(&self, limits: &BackendLimits, _num_kv_blocks: usize) -> Vec<u64> {
        vec![limits.max_slots as u64 * SLOT_BYTES]
    }

    fn reserve(&mut self, limits: &BackendLimits) -> BackendResult<()> {
        self.take("workspace", limits.max_slots as u64 * SLOT_BYTES)
    }

    fn alloc(&mut self, dtype: DType, rows: usize, columns: usize) -> BackendResult<Tensor> {
        self.take("a tensor", (rows * columns * dtype.size_bytes()) as u64)?;
        Ok(Tensor { dtype, columns, data: vec![f32::NAN; rows * columns] })
    }

    fn write_rows(&mut self, tensor: &mut Tensor, first_row: usize, bytes: &[u8]) -> BackendResult<()> {
        let out = &mut tensor.data[first_row * tensor.columns..][..bytes.len() / tensor.dtype.size_bytes()];
        match tensor.dtype {
            DType::F32 => quant::decode_f32(bytes, out),
            DType::F16 => quant::decode_f16(bytes, out),
            DType::Bf16 => quant::decode_bf16(bytes, out),
        }
        Ok(())
    }

    fn read_rows(&mut self, tensor: &Tensor, rows: usize) -> BackendResult<Vec<f32>> {
        Ok(tensor.data[..rows * tensor.columns].to_vec())
    }

    fn alloc_kv_cache(&mut self, layout: &KvLayout) -> BackendResult<Cache> {
        let bytes = layout.block_bytes().unwrap() * layout.num_blocks as u64;
        self.take("the KV cache", bytes)?;
        Ok(Cache { layout: *layout, data: vec![f32::NAN; bytes as usize / layout.dtype.size_bytes()] })
    }

    fn reset_slot(&mut self, _slot: u32, _state: &SlotState) -> BackendResult<()> {
        Ok(())
    }

    fn load_batch(&mut self, batch: &Batch) -> BackendResult<()> {
        self.batch = batch.clone();
        Ok(())
    }

    fn embed(&mut self, embedding: &Embedding<'_, Tensor>, out: &mut Tensor) -> BackendResult<()> {
        let places = self.places();
        for (index, &token) in self.batch.tokens.iter().enumerate() {
            for (column, element) in out.row_mut(index).iter_mut().enumerate() {
                let position = embedding.positions.map_or(0.0, |table| table.row(places[index].0)[column]);
                *element = embedding.table.row(token as usize)[column] * embedding.scale + position;
            }
        }
        Ok(())
    }

    fn add_norm(
        &mut self,
        residual: &mut Tensor,
        deltas: [Option<Delta<'_, Tensor>>; 2],
        norm: &Norm<'_, Tensor>,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        for row in 0..rows {
            for delta in deltas.iter().flatten() {
                add_row(residual.row_mut(row), &delta_row(delta, row));
            }
            let normed = norm_row(norm, residual.row(row));
            out.row_mut(row).copy_from_slice(&normed);
        }
        Ok(())
    }

    fn norm_add(
        &mut self,
        delta: Delta<'_, Tensor>,
        norm: &Norm<'_, Tensor>,
        residual: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        for row in 0..rows {
            add_row(residual.row_mut(row), &norm_row(norm, &delta_row(&delta, row)));
        }
        Ok(())
    }

    fn linear(
        &mut self,
        input: &Tensor,
        weight: &Tensor,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        assert_eq!((input.columns, out.columns * input.columns), (weight.columns, weight.data.len()));
        for row in 0..rows {
            for feature in 0..out.columns {
                out.row_mut(row)[feature] = dot(input.row(row), weight.row(feature));
            }
        }
        Ok(())
    }

    fn fork(&mut self) -> BackendResult<bool> {
        Ok(self.forks)
    }

    fn project(
        &mut self,
        projections: [Option<Projection<'_, Tensor>>; 2],
        residual: &mut Tensor,
        rows: usize,
    ) -> BackendResult<bool> {
        for Projection { input, weight, bias, delta } in projections.into_iter().flatten() {
            self.linear(input, weight, delta, rows)?;
            for row in (0..rows).filter(|_| self.adds) {
                add_row(residual.row_mut(row), &delta_row(&Delta { values: delta, bias }, row));
                delta.row_mut(row).fill(f32::NAN);
            }
        }
        Ok(self.adds)
    }

    fn rope_and_write_kv(
        &mut self,
        qkv: &mut Tensor,
        transform: &QkvTransform<'_, Tensor>,
        shape: &AttentionShape,
        cache: &mut Cache,
        layer: usize,
    ) -> BackendResult<()> {
        let dim = shape.head_dim;
        let (num_heads, num_kv_heads) = (shape.num_heads, shape.num_kv_heads);
        for (index, (position, blocks)) in self.places().into_iter().enumerate() {
            let row = qkv.row_mut(index);
            if let Some(bias) = transform.bias {
                add_row(row, bias.row(0));
            }
            let clamp = transform.clamp.unwrap_or(f32::INFINITY);
            row.iter_mut().for_each(|value| *value = value.clamp(-clamp, clamp));
            if let Some(norm) = &transform.norm {
                let (queries, rest) = row.split_at_mut(num_heads * dim);
                let keys = &mut rest[..num_kv_heads * dim];
                for (values, norm_of) in [(queries, &norm.query), (keys, &norm.key)] {
                    let width = if norm.extent == NormExtent::Head { dim } else { values.len() };
                    for start in (0..values.len()).step_by(width) {
                        let columns = (start..start + width).filter(|i| i % dim < norm.head_len);
                        norm_columns(norm_of, values, &columns.collect::<Vec<_>>());
                    }
                }
            }
            if let Some(rope) = &transform.rope {
                for head in row[..(num_heads + num_kv_heads) * dim].chunks_exact_mut(dim) {
                    rotate(head, rope.table.row(position), rope.pairing);
                }
            }
            let block_size = cache.layout.block_size;
            let (block, token) = (blocks[position / block_size] as usize, position % block_size);
            for (part_head, values) in row[num_heads * dim..].chunks_exact(dim).enumerate() {
                let (part, head) = (part_head / num_kv_heads, part_head % num_kv_heads);
                let at = cache.at(layer, block, part, head, token);
                cache.data[at..at + dim].copy_from_slice(values);
            }
        }
        Ok(())
    }

    fn attention(
        &mut self,
        qkv: &Tensor,
        shape: &AttentionShape,
        scoring: &Scoring,
        cache: &Cache,
        layer: usize,
        out: &mut Tensor,
    ) -> BackendResult<()> {
        let (dim, block_size) = (shape.head_dim, cache.layout.block_size);
        for (index, (position, blocks)) in self.places().into_iter().enumerate() {
            for head in 0..shape.num_heads {
                let kv_head = head / (shape.num_heads / shape.num_kv_heads);
                let entry = |part, token: usize| {
                    let block = blocks[token / block_size] as usize;
                    let at = cache.at(layer, block, part, kv_head, token % block_size);
                    &cache.data[at..at + dim]
                };
                let query = &qkv.row(index)[head * dim..][..dim];
                let score = |token: usize| {
                    let mut score = dot(query, entry(0, token)) * shape.scale;
                    if let Some(cap) = scoring.soft_cap {
                        score = cap * (score / cap).tanh();
                    }
                    if let Some(alibi) = scoring.alibi {
                        score -= alibi.slope(head, shape.num_heads) * (position - token) as f32;
                    }
                    let is_seen = scoring.window.is_none_or(|window| position - token < window);
                    if is_seen { score } else { f32::NEG_INFINITY }
                };
                let scores: Vec<f32> = (0..=position).map(score).collect();
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
                let sum: f32 = weights.iter().sum();
                for element in 0..dim {
                    let weighted = weights.iter().enumerate().map(|(token, w)| w * entry(1, token)[element]);
                    out.row_mut(index)[head * dim + element] = weighted.sum::<f32>() / sum;
                }
            }
        }
        Ok(())
    }

    fn activate(
        &mut self,
        input: &Tensor,
        activate: &Activate<'_, Tensor>,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        for row in 0..rows {
            let mut input = input.row(row).to_vec();
            if let Some(bias) = activate.bias {
                add_row(&mut input, bias.row(0));
            }
            for column in 0..out.columns {
                let value = activation(activate.function, input[column].into());
                let factor = match activate.gating {
                    Gating::Gated => f64::from(input[out.columns + column]),
                    Gating::Plain => 1.0,
                };
                out.row_mut(row)[column] = (value * factor) as f32;
            }
        }
        Ok(())
    }

    fn mix_experts(
        &mut self,
        input: &Tensor,
        products: &Tensor,
        mixture: &Mixture<'_, Tensor>,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        let (hidden, width) = (input.columns, mixture.down.columns);
        let up_width = mixture.gating.input_width(width);
        for row in 0..rows {
            let mut sum = vec![0.0; hidden];
            for (expert, weight) in routes(products.row(row), mixture) {
                let up: Vec<f32> = (0..up_width)
                    .map(|feature| dot(input.row(row), mixture.up.row(expert * up_width + feature)))
                    .collect();
                let inner: Vec<f32> = (0..width)
                    .map(|column| {
                        let value = activation(mixture.function, up[column].into()) as f32;
                        if mixture.gating == Gating::Gated { value * up[width + column] } else { value }
                    })
                    .collect();
                for (feature, sum) in sum.iter_mut().enumerate() {
                    *sum += weight * dot(&inner, mixture.down.row(expert * hidden + feature));
                }
            }
            if let Some(shared) = &mixture.shared {
                let factor = shared.gate.map_or(1.0, |gate| 1.0 / (1.0 + (-gate.row(row)[0]).exp()));
                let values: Vec<f32> = shared.values.row(row).iter().map(|value| value * factor).collect();
                add_row(&mut sum, &values);
            }
            out.row_mut(row).copy_from_slice(&sum);
        }
        Ok(())
    }

    fn logits(&mut self, hidden: &Tensor, head: &Head<'_, Tensor>, out: &mut Tensor) -> BackendResult<()> {
        for (index, &row) in self.batch.sampled_rows.iter().enumerate() {
            let last = self.batch.query_range(row as usize).end - 1;
            for token in 0..out.columns {
                let bias = head.bias.map_or(0.0, |bias| bias.data[token]);
                let logit = (dot(hidden.row(last), head.weight.row(token)) + bias) * head.scale;
                out.row_mut(index)[token] = head.soft_cap.map_or(logit, |cap| cap * (logit / cap).tanh());
            }
        }
        Ok(())
    }

    fn sample(&mut self, logits: &Tensor) -> BackendResult<()> {
        let rows = self.batch.sampled_rows.iter().enumerate();
        let sampled = rows.map(|(index, &row)| {
            let best =
                (0..logits.columns).max_by(|&a, &b| logits.row(index)[a].total_cmp(&logits.row(index)[b]));
            Sampled {
                slot: self.batch.slots[row as usize],
                token: best.map(|token| token as u32),
                logprobs: Vec::new(),
            }
        });
        self.collected.push(sampled.collect());
        Ok(())
    }

    fn collect(&mut self) -> BackendResult<Vec<Sampled>> {
        Ok(self.collected.remove(0))
    }
}
