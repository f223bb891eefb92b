//! The decoder's parameters, and which checkpoint tensors they are made of.

#![allow(clippy::single_range_in_vec_init, reason = "a part is a list of runs, and mostly one run")]

use std::ops::Range;

use crate::backend::DType;
use crate::model::padding::{Extent, Padding};
use crate::model::spec::{
    BlockShape, EmbeddingNorm, ExpertNames, Experts, Heads, MlpNames, ModelSpec, Names, NormExtent,
    NormWeight, Orientation, OutputHead, Positions, QkvNames, QkvOrder,
};

/// All parameters of a decoder: [`Source`] before loading, the backend's tensors after it.
#[derive(Debug)]
pub struct Weights<T> {
    /// Embedding table, `[vocab_size, hidden_size]`; the head too, where that is tied.
    pub embedding: T,
    /// Learned positions from position 0 on, `[max_positions, hidden_size]`.
    pub position_embedding: Option<T>,
    /// Norm of embedded tokens.
    pub embedding_norm: Option<Parameters<T>>,
    /// Decoder layers.
    pub layers: Vec<LayerWeights<T>>,
    /// Norm before the head.
    pub final_norm: Parameters<T>,
    /// Output head, `[vocab_size, hidden_size]`, where it is not tied.
    pub head: Option<T>,
    /// Bias of the head, `[1, vocab_size]`.
    pub head_bias: Option<T>,
}

/// A weight and its bias, which is a row: of a matrix `[out_features, in_features]`, or of a norm, `[1, width]`.
#[derive(Debug)]
pub struct Parameters<T> {
    /// The weight.
    pub weight: T,
    /// `[1, out_features]` or `[1, width]`.
    pub bias: Option<T>,
}

/// Parameters of one layer. Norms are there where the block has a place for them.
#[derive(Debug)]
pub struct LayerWeights<T> {
    /// Norm before attention.
    pub attention_norm: Option<Parameters<T>>,
    /// Query, key and value projections, `[(num_heads + 2 * num_kv_heads) * head_dim, hidden_size]`.
    pub qkv: Parameters<T>,
    /// Norms of queries, `[1, num_heads * head_dim]`, and keys, `[1, num_kv_heads * head_dim]`.
    pub qk_norm: Option<[Parameters<T>; 2]>,
    /// Output projection, `[hidden_size, num_heads * head_dim]`.
    pub attention_output: Parameters<T>,
    /// Norm of attention's result.
    pub post_attention_norm: Option<Parameters<T>>,
    /// Norm before the MLP.
    pub mlp_norm: Option<Parameters<T>>,
    /// MLP or mixture of experts.
    pub mlp: LayerMlp<T>,
    /// Norm of the MLP's result.
    pub post_mlp_norm: Option<Parameters<T>>,
}

/// What stands in the MLP's place.
#[derive(Debug)]
pub enum LayerMlp<T> {
    /// One MLP for all tokens.
    Dense(MlpWeights<T>),
    /// A mixture of experts.
    Experts(ExpertWeights<T>),
}

/// Parameters of an MLP.
#[derive(Debug)]
pub struct MlpWeights<T> {
    /// Up projection, `[intermediate_size, hidden_size]`; with a gate `[gate | up]`, twice as many rows.
    pub up: Parameters<T>,
    /// Down projection, `[hidden_size, intermediate_size]`.
    pub down: Parameters<T>,
}

/// Parameters of a mixture of experts.
#[derive(Debug)]
pub struct ExpertWeights<T> {
    /// `[num_experts, hidden_size]`.
    pub router: T,
    /// Every expert's [`MlpWeights::up`], one under the other.
    pub up: T,
    /// Every expert's [`MlpWeights::down`], one under the other.
    pub down: T,
    /// The shared expert.
    pub shared: Option<MlpWeights<T>>,
    /// Gate of the shared expert, `[1, hidden_size]`.
    pub shared_gate: Option<T>,
}

/// Where a parameter comes from: rows of checkpoint tensors, one under the other; of a vector, pieces side by
/// side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Checkpoint tensors in order.
    pub parts: Vec<Part>,
    /// Rows in the backend.
    pub rows: usize,
    /// Columns in the backend.
    pub columns: usize,
    /// Zeros among a matrix's columns.
    pub column_padding: Padding,
    /// Element type in the backend.
    pub dtype: DType,
    /// What becomes of the values.
    pub adjustment: Adjustment,
}

/// Some rows of a checkpoint tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The tensor.
    pub tensor: ExpectedTensor,
    /// Rows, in the backend's order; of a vector elements, of a matrix that lies transposed its columns.
    pub runs: Vec<Range<usize>>,
    /// How the tensor lies in the checkpoint.
    pub orientation: Orientation,
    /// Zeros among the rows of all runs together.
    pub row_padding: Padding,
}

/// What becomes of a checkpoint's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adjustment {
    /// They stay.
    None,
    /// 1 is added.
    OnePlus,
    /// Rows are divided by their lengths.
    UnitRows,
    /// There are none: all ones.
    Ones,
}

/// A tensor that the checkpoint must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
}

impl Part {
    /// All of a tensor.
    fn matrix(name: String, rows: Extent, columns: Extent, orientation: Orientation) -> Self {
        let shape = match orientation {
            Orientation::OutIn => vec![rows.len(), columns.len()],
            Orientation::InOut => vec![columns.len(), rows.len()],
        };
        let tensor = ExpectedTensor { name, shape };
        Self { tensor, runs: vec![0..rows.len()], orientation, row_padding: rows.padding() }
    }

    fn vector(name: String, width: Extent) -> Self {
        let tensor = ExpectedTensor { name, shape: vec![width.len()] };
        let (runs, orientation) = (vec![0..width.len()], Orientation::OutIn);
        Self { tensor, runs, orientation, row_padding: width.padding() }
    }

    /// Rows or elements of all runs, with the padding.
    fn len(&self) -> usize {
        self.row_padding.padded(self.runs.iter().map(ExactSizeIterator::len).sum())
    }
}

impl Source {
    /// A vector, always in f32.
    fn vector(parts: Vec<Part>) -> Self {
        let columns = parts.iter().map(Part::len).sum();
        Self { parts, adjustment: Adjustment::None, ..Self::ones(columns) }
    }

    /// A vector of ones.
    fn ones(columns: usize) -> Self {
        let (dtype, column_padding) = (DType::F32, Padding::NONE);
        Self { parts: vec![], rows: 1, columns, column_padding, dtype, adjustment: Adjustment::Ones }
    }

    fn matrix(dtype: DType, columns: Extent, parts: Vec<Part>) -> Self {
        let rows = parts.iter().map(Part::len).sum();
        let (columns, column_padding) = (columns.stored_len(), columns.padding());
        Self { parts, rows, columns, column_padding, dtype, adjustment: Adjustment::None }
    }

    /// Whether it is a vector, whose parts' elements stand side by side.
    pub(super) fn is_vector(&self) -> bool {
        self.parts.iter().all(|part| part.tensor.shape.len() == 1)
    }

    /// Columns without the padding.
    pub(super) fn unpadded_columns(&self) -> usize {
        self.column_padding.unpadded(self.columns)
    }

    /// Bytes in the backend. The limits of [`ModelSpec::validate`] keep it from overflowing.
    pub fn num_bytes(&self) -> u64 {
        (self.rows * self.columns * self.dtype.size_bytes()) as u64
    }
}

/// Makes [`Source`]s of one layer's names, or of those that belong to no layer.
struct Planner<'a> {
    spec: &'a ModelSpec,
    /// The spec in the backend's sizes.
    stored: &'a ModelSpec,
    dtype: DType,
    layer: usize,
}

impl Planner<'_> {
    fn name(&self, template: &str) -> String {
        template.replace("{layer}", &self.layer.to_string())
    }

    /// `count` heads.
    fn heads(&self, count: usize) -> Extent {
        Extent::padded(count, self.spec.heads.head_dim, self.stored.heads.head_dim)
    }

    /// A norm over `width` elements, of which `repeats` are normalised with the same weights. Whether it has any
    /// is the spec's word; `names` follows it.
    fn norm(&self, names: Option<&Names>, width: Extent, repeats: usize) -> Parameters<Source> {
        let Some(names) = names else {
            return Parameters { weight: Source::ones(width.stored_len() * repeats), bias: None };
        };
        let vector = |template: &str| {
            let template = self.name(template);
            if template.contains("{head}") {
                let name = |head: usize| template.replace("{head}", &head.to_string());
                return Source::vector((0..repeats).map(|head| Part::vector(name(head), width)).collect());
            }
            let mut part = Part::vector(template, width);
            part.runs = vec![0..width.len(); repeats];
            Source::vector(vec![part])
        };
        let mut weight = vector(&names.weight);
        if self.spec.norm.weight == NormWeight::OnePlus {
            weight.adjustment = Adjustment::OnePlus;
        }
        Parameters { weight, bias: names.bias.as_deref().map(vector) }
    }

    /// A norm of the residual, where `is_there`.
    fn hidden_norm(&self, is_there: bool, names: Option<&Names>) -> Option<Parameters<Source>> {
        is_there.then(|| self.norm(names, self.hidden(), 1))
    }

    fn hidden(&self) -> Extent {
        Extent::exact(self.spec.hidden_size)
    }

    /// Stacked matrices of `columns` columns, with their biases side by side.
    fn linear(&self, columns: Extent, parts: &[(&Names, Extent)]) -> Parameters<Source> {
        let orientation = self.spec.weights.orientation;
        let matrices = parts
            .iter()
            .map(|(names, rows)| Part::matrix(self.name(&names.weight), *rows, columns, orientation));
        let biases: Option<Vec<Part>> = parts
            .iter()
            .map(|(names, rows)| Some(Part::vector(self.name(names.bias.as_ref()?), *rows)))
            .collect();
        Parameters {
            weight: Source::matrix(self.dtype, columns, matrices.collect()),
            bias: biases.map(Source::vector),
        }
    }

    fn qkv(&self) -> Parameters<Source> {
        let (Heads { num_heads, num_kv_heads, .. }, hidden) = (self.spec.heads, self.hidden());
        let (queries, keys) = (self.heads(num_heads), self.heads(num_kv_heads));
        match &self.spec.weights.qkv {
            QkvNames::Separate { query, key, value } => {
                self.linear(hidden, &[(query, queries), (key, keys), (value, keys)])
            }
            QkvNames::Fused { qkv, order } => {
                let mut parameters = self.linear(hidden, &[(qkv, self.heads(num_heads + 2 * num_kv_heads))]);
                if *order == QkvOrder::Groups {
                    let runs = self.group_runs();
                    for source in parameters.bias.iter_mut().chain([&mut parameters.weight]) {
                        source.parts[0].runs.clone_from(&runs);
                    }
                }
                parameters
            }
        }
    }

    /// Rows of `[group][queries, key, value][head_dim]` as all queries, all keys, all values.
    fn group_runs(&self) -> Vec<Range<usize>> {
        let heads = &self.spec.heads;
        let queries = heads.num_heads / heads.num_kv_heads * heads.head_dim;
        let stride = queries + 2 * heads.head_dim;
        let groups = || (0..heads.num_kv_heads).map(|group| group * stride);
        let queries_of = groups().map(|start| start..start + queries);
        let keys = groups().map(|start| start + queries..start + queries + heads.head_dim);
        let values = groups().map(|start| start + queries + heads.head_dim..start + stride);
        queries_of.chain(keys).chain(values).collect()
    }

    fn qk_norm(&self) -> Option<[Parameters<Source>; 2]> {
        let (heads, names) = (&self.spec.heads, &self.spec.weights);
        let norm = |names: Option<&Names>, num_heads: usize, extent: NormExtent| match extent {
            NormExtent::Head => self.norm(names, self.heads(1), num_heads),
            NormExtent::Width => self.norm(names, self.heads(num_heads), 1),
        };
        self.spec.attention.qk_norm.map(|extent| {
            [
                norm(names.query_norm.as_ref(), heads.num_heads, extent),
                norm(names.key_norm.as_ref(), heads.num_kv_heads, extent),
            ]
        })
    }

    /// An MLP of `width` elements, or with a gate of twice as many, of which the backend stores `stored`.
    fn mlp(&self, names: &MlpNames, width: usize, stored: usize) -> MlpWeights<Source> {
        let (hidden, width) = (self.hidden(), Extent::padded(1, width, stored));
        let (up, down) = match names {
            MlpNames::Plain { up, down } => (self.linear(hidden, &[(up, width)]), down),
            MlpNames::Gated { gate, up, down } => (self.linear(hidden, &[(gate, width), (up, width)]), down),
            MlpNames::FusedGated { gate_up, down } => {
                (self.linear(hidden, &[(gate_up, width.twice())]), down)
            }
        };
        MlpWeights { up, down: self.linear(width, &[(down, hidden)]) }
    }

    fn experts(&self, names: &ExpertNames, experts: &Experts) -> ExpertWeights<Source> {
        let stored = self.stored.experts.as_ref().unwrap_or(experts);
        let hidden = self.hidden();
        let width = Extent::padded(1, experts.intermediate_size, stored.intermediate_size);
        let (up, down): (Vec<(&Names, Extent)>, _) = match &names.experts {
            MlpNames::Plain { up, down } => (vec![(up, width)], down),
            MlpNames::Gated { gate, up, down } => (vec![(gate, width), (up, width)], down),
            MlpNames::FusedGated { gate_up, down } => (vec![(gate_up, width.twice())], down),
        };
        let stack = |columns: Extent, parts: &[(&Names, Extent)]| {
            let part = |expert: usize, (names, rows): &(&Names, Extent)| {
                self.expert_part(&names.weight, expert, experts.num_experts, [*rows, columns])
            };
            let experts = 0..experts.num_experts;
            let parts = experts.flat_map(|expert| parts.iter().map(move |names| part(expert, names)));
            Source::matrix(self.dtype, columns, parts.collect())
        };
        let row = |template: &String, rows: usize| {
            let part = Part::matrix(self.name(template), Extent::exact(rows), hidden, Orientation::OutIn);
            Source::matrix(self.dtype, hidden, vec![part])
        };
        let shared = names.shared.as_ref().zip(experts.shared.zip(stored.shared));
        ExpertWeights {
            router: row(&names.router, experts.num_experts),
            up: stack(hidden, &up),
            down: stack(width, &[(down, hidden)]),
            shared: shared.map(|(names, (shared, stored))| {
                self.mlp(names, shared.intermediate_size, stored.intermediate_size)
            }),
            shared_gate: names.shared_gate.as_ref().map(|name| row(name, 1)),
        }
    }

    /// One expert's matrix: a tensor of its own, or its part of one that stacks all experts'.
    fn expert_part(
        &self,
        template: &str,
        expert: usize,
        num_experts: usize,
        [rows, columns]: [Extent; 2],
    ) -> Part {
        let template = self.name(template);
        if template.contains("{expert}") {
            let name = template.replace("{expert}", &expert.to_string());
            return Part::matrix(name, rows, columns, self.spec.weights.orientation);
        }
        let shape = vec![num_experts, rows.len(), columns.len()];
        Part {
            tensor: ExpectedTensor { name: template, shape },
            runs: vec![expert * rows.len()..(expert + 1) * rows.len()],
            orientation: Orientation::OutIn,
            row_padding: rows.padding(),
        }
    }

    fn layer(&self) -> LayerWeights<Source> {
        let (spec, names) = (self.spec, &self.spec.weights);
        let has_pre_norms = spec.block != BlockShape::PostNorm;
        let has_post_norms = matches!(spec.block, BlockShape::Sandwich | BlockShape::PostNorm);
        let has_mlp_norm = has_pre_norms && spec.block != BlockShape::Parallel;
        let experts = names.experts.as_ref().zip(spec.experts_of(self.layer));
        let mlp = match (experts, &names.mlp) {
            (Some((names, experts)), _) => LayerMlp::Experts(self.experts(names, experts)),
            (None, Some(names)) => {
                LayerMlp::Dense(self.mlp(names, spec.intermediate_size, self.stored.intermediate_size))
            }
            (None, None) => unreachable!("validation demands names for dense layers"),
        };
        LayerWeights {
            attention_norm: self.hidden_norm(has_pre_norms, names.attention_norm.as_ref()),
            qkv: self.qkv(),
            qk_norm: self.qk_norm(),
            attention_output: self
                .linear(self.heads(spec.heads.num_heads), &[(&names.attention_output, self.hidden())]),
            post_attention_norm: self.hidden_norm(has_post_norms, names.post_attention_norm.as_ref()),
            mlp_norm: self.hidden_norm(has_mlp_norm, names.mlp_norm.as_ref()),
            mlp,
            post_mlp_norm: self.hidden_norm(has_post_norms, names.post_mlp_norm.as_ref()),
        }
    }
}

impl Weights<Source> {
    /// The sources of a validated spec's parameters, with matrices in `dtype`.
    pub fn plan(spec: &ModelSpec, dtype: DType) -> Self {
        Self::plan_stored(spec, spec, dtype)
    }

    /// The same in a backend's sizes, which [`ModelSpec::stored_by`] gives as `stored`.
    pub fn plan_stored(spec: &ModelSpec, stored: &ModelSpec, dtype: DType) -> Self {
        let (names, hidden) = (&spec.weights, Extent::exact(spec.hidden_size));
        let table = |name: &str, rows: Range<usize>| {
            let all_rows = Extent::exact(rows.end);
            let mut part = Part::matrix(name.to_owned(), all_rows, hidden, Orientation::OutIn);
            part.runs = vec![rows];
            Source::matrix(dtype, hidden, vec![part])
        };
        let position_embedding = match (&spec.positions, &names.position_embedding) {
            (Positions::Learned { offset }, Some(name)) => {
                Some(table(name, *offset..*offset + spec.max_positions))
            }
            _ => None,
        };
        let head = names.head.as_ref().filter(|_| spec.output != OutputHead::Tied);
        let adjustment = match spec.output {
            OutputHead::UntiedUnitRows => Adjustment::UnitRows,
            OutputHead::Tied | OutputHead::Untied => Adjustment::None,
        };
        let head_bias = names.head.as_ref().and_then(|head| head.bias.clone());
        let planner = |layer| Planner { spec, stored, dtype, layer };
        let has_embedding_norm = spec.embedding.norm == EmbeddingNorm::Normalized;
        Weights {
            embedding: table(&names.embedding, 0..spec.vocab_size),
            position_embedding,
            embedding_norm: planner(0).hidden_norm(has_embedding_norm, names.embedding_norm.as_ref()),
            layers: (0..spec.num_layers).map(|layer| planner(layer).layer()).collect(),
            final_norm: planner(0).norm(names.final_norm.as_ref(), hidden, 1),
            head: head.map(|head| Source { adjustment, ..table(&head.weight, 0..spec.vocab_size) }),
            head_bias: head_bias
                .map(|name| Source::vector(vec![Part::vector(name, Extent::exact(spec.vocab_size))])),
        }
    }

    /// Every tensor that the checkpoint must have; one that is used twice stands there twice.
    pub fn expected_tensors(&self) -> Vec<&ExpectedTensor> {
        let mut tensors = Vec::new();
        self.for_each(&mut |source| tensors.extend(source.parts.iter().map(|part| &part.tensor)));
        tensors
    }

    /// Bytes of each parameter in the backend, in the order in which they are loaded.
    pub fn sizes(&self) -> Vec<u64> {
        let mut sizes = Vec::new();
        self.for_each(&mut |source| sizes.push(source.num_bytes()));
        sizes
    }

    /// Bytes of all parameters in the backend.
    pub fn num_bytes(&self) -> u64 {
        self.sizes().iter().sum()
    }
}

impl<T> Parameters<T> {
    fn for_each<'a>(&'a self, visit: &mut impl FnMut(&'a T)) {
        visit(&self.weight);
        self.bias.iter().for_each(visit);
    }

    fn try_map<U, E>(self, convert: &mut impl FnMut(T) -> Result<U, E>) -> Result<Parameters<U>, E> {
        Ok(Parameters { weight: convert(self.weight)?, bias: self.bias.map(convert).transpose()? })
    }
}

impl<T> MlpWeights<T> {
    fn for_each<'a>(&'a self, visit: &mut impl FnMut(&'a T)) {
        self.up.for_each(visit);
        self.down.for_each(visit);
    }

    fn try_map<U, E>(self, convert: &mut impl FnMut(T) -> Result<U, E>) -> Result<MlpWeights<U>, E> {
        Ok(MlpWeights { up: self.up.try_map(convert)?, down: self.down.try_map(convert)? })
    }
}

impl<T> LayerMlp<T> {
    fn for_each<'a>(&'a self, visit: &mut impl FnMut(&'a T)) {
        match self {
            LayerMlp::Dense(mlp) => mlp.for_each(visit),
            LayerMlp::Experts(ExpertWeights { router, up, down, shared, shared_gate }) => {
                [router, up, down].into_iter().for_each(&mut *visit);
                shared.iter().for_each(|shared| shared.for_each(visit));
                shared_gate.iter().for_each(visit);
            }
        }
    }

    fn try_map<U, E>(self, convert: &mut impl FnMut(T) -> Result<U, E>) -> Result<LayerMlp<U>, E> {
        match self {
            LayerMlp::Dense(mlp) => Ok(LayerMlp::Dense(mlp.try_map(convert)?)),
            LayerMlp::Experts(experts) => Ok(LayerMlp::Experts(ExpertWeights {
                router: convert(experts.router)?,
                up: convert(experts.up)?,
                down: convert(experts.down)?,
                shared: experts.shared.map(|shared| shared.try_map(convert)).transpose()?,
                shared_gate: experts.shared_gate.map(convert).transpose()?,
            })),
        }
    }
}

impl<T> LayerWeights<T> {
    fn for_each<'a>(&'a self, visit: &mut impl FnMut(&'a T)) {
        let norms = [&self.attention_norm, &self.post_attention_norm, &self.mlp_norm, &self.post_mlp_norm];
        self.qk_norm
            .iter()
            .flatten()
            .chain(norms.into_iter().flatten())
            .for_each(|norm| norm.for_each(visit));
        self.qkv.for_each(visit);
        self.attention_output.for_each(visit);
        self.mlp.for_each(visit);
    }

    fn try_map<U, E>(self, convert: &mut impl FnMut(T) -> Result<U, E>) -> Result<LayerWeights<U>, E> {
        let qk_norm = match self.qk_norm {
            Some([query, key]) => Some([query.try_map(convert)?, key.try_map(convert)?]),
            None => None,
        };
        let mut norm = |norm: Option<Parameters<T>>| norm.map(|norm| norm.try_map(&mut *convert)).transpose();
        let (attention_norm, post_attention_norm) =
            (norm(self.attention_norm)?, norm(self.post_attention_norm)?);
        let (mlp_norm, post_mlp_norm) = (norm(self.mlp_norm)?, norm(self.post_mlp_norm)?);
        Ok(LayerWeights {
            attention_norm,
            qkv: self.qkv.try_map(convert)?,
            qk_norm,
            attention_output: self.attention_output.try_map(convert)?,
            post_attention_norm,
            mlp_norm,
            mlp: self.mlp.try_map(convert)?,
            post_mlp_norm,
        })
    }
}

impl<T> Weights<T> {
    /// Shows every parameter to `visit`.
    pub(super) fn for_each<'a>(&'a self, visit: &mut impl FnMut(&'a T)) {
        visit(&self.embedding);
        self.position_embedding.iter().for_each(&mut *visit);
        self.embedding_norm.iter().for_each(|norm| norm.for_each(visit));
        self.layers.iter().for_each(|layer| layer.for_each(visit));
        self.final_norm.for_each(visit);
        self.head.iter().chain(&self.head_bias).for_each(visit);
    }

    /// The same parameters, each converted by `convert`, in an order that follows the decoder.
    pub(super) fn try_map<U, E>(self, convert: &mut impl FnMut(T) -> Result<U, E>) -> Result<Weights<U>, E> {
        let embedding = convert(self.embedding)?;
        let position_embedding = self.position_embedding.map(&mut *convert).transpose()?;
        let embedding_norm = self.embedding_norm.map(|norm| norm.try_map(convert)).transpose()?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in self.layers {
            layers.push(layer.try_map(convert)?);
        }
        let final_norm = self.final_norm.try_map(convert)?;
        let head = self.head.map(&mut *convert).transpose()?;
        let head_bias = self.head_bias.map(convert).transpose()?;
        Ok(Weights { embedding, position_embedding, embedding_norm, layers, final_norm, head, head_bias })
    }
}
