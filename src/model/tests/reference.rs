//! A whole model in f64, straight from the spec and the checkpoint's own tensors: no batches, no cache, no
//! stacked weights. What the decoder is compared with on axes that no golden file covers.

use std::collections::BTreeMap;

use crate::backend::NormExtent;
use crate::model::rope;
use crate::model::spec::{
    Activation, BlockShape, EmbeddingNorm, ExpertNames, ExpertWeighting, Experts, MlpNames, ModelSpec, Names,
    NormKind, NormWeight, Orientation, OutputHead, Positions, QkvNames, QkvOrder, RopePairing, RouterScoring,
};

/// Tensors by name, with their shapes.
pub(super) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

type Row = Vec<f64>;

pub(super) struct Reference<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) tensors: &'a Tensors,
}

fn add(target: &mut Row, source: &[f64]) {
    target.iter_mut().zip(source).for_each(|(target, source)| *target += source);
}

fn dot(left: &[f64], right: impl Iterator<Item = f64>) -> f64 {
    left.iter().zip(right).map(|(a, b)| a * b).sum()
}

impl Reference<'_> {
    fn tensor(&self, template: &str, layer: usize) -> Row {
        let (_, values) = &self.tensors[&template.replace("{layer}", &layer.to_string())];
        values.iter().map(|&value| f64::from(value)).collect()
    }

    /// Rows `[out, in]` of a matrix of a layer; of a tensor that stacks experts' the expert after `#`.
    fn rows(&self, template: &str, layer: usize) -> Vec<Row> {
        let template = template.replace("{layer}", &layer.to_string());
        if let Some((name, expert)) = template.split_once('#') {
            let (shape, values) = &self.tensors[name];
            let rows = values.chunks(shape[2]).skip(expert.parse::<usize>().unwrap() * shape[1]);
            return rows.take(shape[1]).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
        }
        let (shape, values) = &self.tensors[&template];
        let at = |row: usize, column: usize| f64::from(values[row * shape[1] + column]);
        match self.spec.weights.orientation {
            Orientation::OutIn => {
                (0..shape[0]).map(|row| (0..shape[1]).map(|column| at(row, column)).collect()).collect()
            }
            Orientation::InOut => {
                (0..shape[1]).map(|column| (0..shape[0]).map(|row| at(row, column)).collect()).collect()
            }
        }
    }

    fn linear(&self, names: &Names, layer: usize, input: &[f64]) -> Row {
        let rows = self.rows(&names.weight, layer);
        let mut out: Row = rows.iter().map(|row| dot(input, row.iter().copied())).collect();
        if let Some(bias) = &names.bias {
            add(&mut out, &self.tensor(bias, layer));
        }
        out
    }

    /// A norm of one row; the spec says whether it has weights.
    fn norm(&self, names: Option<&Names>, layer: usize, input: &[f64]) -> Row {
        let weights = names.map(|names| self.tensor(&names.weight, layer));
        let bias = names.and_then(|names| names.bias.as_ref()).map(|bias| self.tensor(bias, layer));
        self.norm_with(weights, bias, input)
    }

    fn norm_with(&self, weights: Option<Row>, bias: Option<Row>, input: &[f64]) -> Row {
        let norm = self.spec.norm;
        let width = input.len() as f64;
        let mean = if norm.kind == NormKind::Layer { input.iter().sum::<f64>() / width } else { 0.0 };
        let variance = input.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width;
        let deviation = (variance + f64::from(norm.epsilon)).sqrt();
        let offset = if norm.weight == NormWeight::OnePlus { 1.0 } else { 0.0 };
        let weight = |i: usize| weights.as_ref().map_or(1.0, |weights| weights[i] + offset);
        let bias = |i: usize| bias.as_ref().map_or(0.0, |bias| bias[i]);
        input.iter().enumerate().map(|(i, x)| (x - mean) / deviation * weight(i) + bias(i)).collect()
    }

    /// Query, key and value heads of one token.
    fn heads(&self, layer: usize, input: &[f64]) -> [Vec<Row>; 3] {
        let heads = &self.spec.heads;
        let split = |row: Row| -> Vec<Row> { row.chunks(heads.head_dim).map(<[f64]>::to_vec).collect() };
        match &self.spec.weights.qkv {
            QkvNames::Separate { query, key, value } => {
                [query, key, value].map(|names| split(self.linear(names, layer, input)))
            }
            QkvNames::Fused { qkv, order } => {
                let all = split(self.linear(qkv, layer, input));
                let (num_heads, num_kv_heads) = (heads.num_heads, heads.num_kv_heads);
                let group = num_heads / num_kv_heads;
                let pick = |wanted: fn(usize, usize) -> bool| -> Vec<Row> {
                    let heads = all.iter().enumerate();
                    heads
                        .filter(|(i, _)| wanted(i % (group + 2), group))
                        .map(|(_, head)| head.clone())
                        .collect()
                };
                match order {
                    QkvOrder::Blocks => [
                        all[..num_heads].to_vec(),
                        all[num_heads..num_heads + num_kv_heads].to_vec(),
                        all[num_heads + num_kv_heads..].to_vec(),
                    ],
                    QkvOrder::Groups => {
                        [pick(|i, group| i < group), pick(|i, group| i == group), pick(|i, group| i > group)]
                    }
                }
            }
        }
    }

    fn qk_norm(&self, names: Option<&Names>, layer: usize, heads: &mut [Row]) {
        match self.spec.attention.qk_norm {
            None => {}
            Some(NormExtent::Head) => {
                for (index, head) in heads.iter_mut().enumerate() {
                    let of_head = |name: &String| name.replace("{head}", &index.to_string());
                    let names = names.map(|names| Names {
                        weight: of_head(&names.weight),
                        bias: names.bias.as_ref().map(of_head),
                    });
                    *head = self.norm(names.as_ref(), layer, head);
                }
            }
            Some(NormExtent::Width) => {
                let all = self.norm(names, layer, &heads.concat());
                for (head, normed) in heads.iter_mut().zip(all.chunks(self.spec.heads.head_dim)) {
                    head.copy_from_slice(normed);
                }
            }
        }
    }

    fn rotate(&self, layer: usize, position: usize, head: &mut Row) {
        let Positions::Rope { pairing, .. } = &self.spec.positions else { return };
        let tables = rope::tables(self.spec, self.spec.max_positions);
        let rope = &tables[rope::table_of_layer(self.spec, layer).unwrap()];
        let half = rope.inverse_frequencies.len();
        for (pair, frequency) in rope.inverse_frequencies.iter().enumerate() {
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            let (first, second) = match pairing {
                RopePairing::Half => (pair, pair + half),
                RopePairing::Interleaved => (2 * pair, 2 * pair + 1),
            };
            let (x, y) = (head[first] * rope.magnitude, head[second] * rope.magnitude);
            (head[first], head[second]) = (x * cosine - y * sine, y * cosine + x * sine);
        }
    }

    fn attention(&self, layer: usize, inputs: &[Row]) -> Vec<Row> {
        let (spec, names) = (self.spec, &self.spec.weights);
        let clamp = spec.attention.qkv_clamp.map_or(f64::INFINITY, f64::from);
        let tokens: Vec<[Vec<Row>; 3]> = inputs
            .iter()
            .enumerate()
            .map(|(position, input)| {
                let mut heads = self.heads(layer, input);
                heads.iter_mut().flatten().flatten().for_each(|value| *value = value.clamp(-clamp, clamp));
                let [queries, keys, _] = &mut heads;
                self.qk_norm(names.query_norm.as_ref(), layer, queries);
                self.qk_norm(names.key_norm.as_ref(), layer, keys);
                queries.iter_mut().chain(keys).for_each(|head| self.rotate(layer, position, head));
                heads
            })
            .collect();
        let attended = (0..tokens.len()).map(|position| {
            let heads = 0..spec.heads.num_heads;
            let row: Row = heads.flat_map(|head| self.attend(layer, &tokens, position, head)).collect();
            self.linear(&names.attention_output, layer, &row)
        });
        attended.collect()
    }

    /// What head `head` of the token at `position` sees.
    fn attend(&self, layer: usize, tokens: &[[Vec<Row>; 3]], position: usize, head: usize) -> Row {
        let (heads, scoring) = (&self.spec.heads, self.spec.scoring(layer));
        let kv_head = head / (heads.num_heads / heads.num_kv_heads);
        let first = scoring.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let score = |seen: usize| {
            let products = dot(&tokens[position][0][head], tokens[seen][1][kv_head].iter().copied());
            let mut score = products * f64::from(heads.score_scale());
            if let Some(cap) = scoring.soft_cap.map(f64::from) {
                score = cap * (score / cap).tanh();
            }
            if let Some(alibi) = scoring.alibi {
                score -= f64::from(alibi.slope(head, heads.num_heads)) * (position - seen) as f64;
            }
            score
        };
        let scores: Row = (first..=position).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Row = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut out = vec![0.0; heads.head_dim];
        for (weight, seen) in weights.iter().zip(first..) {
            let value = &tokens[seen][2][kv_head];
            out.iter_mut().zip(value).for_each(|(out, value)| *out += weight / total * value);
        }
        out
    }

    fn mlp(&self, layer: usize, input: &[f64]) -> Row {
        let names = &self.spec.weights;
        match self.spec.experts_of(layer) {
            None => self.mlp_of(names.mlp.as_ref().unwrap(), layer, input),
            Some(experts) => self.mixture(experts, names.experts.as_ref().unwrap(), layer, input),
        }
    }

    fn mixture(&self, experts: &Experts, names: &ExpertNames, layer: usize, input: &[f64]) -> Row {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let products = self.product(&names.router, layer, input);
        let total: f64 = products.iter().map(|x| x.exp()).sum();
        let score = |x: &f64| match experts.scoring {
            RouterScoring::Softmax => x.exp() / total,
            RouterScoring::Sigmoid => sigmoid(*x),
        };
        let mut scores: Vec<(usize, f64)> = products.iter().map(score).enumerate().collect();
        scores.sort_by(|left, right| right.1.total_cmp(&left.1));
        scores.truncate(experts.num_chosen);
        let sum: f64 = scores.iter().map(|(_, score)| score).sum();
        let divisor = if experts.weighting == ExpertWeighting::Normalized { sum } else { 1.0 };
        let mut out = vec![0.0; input.len()];
        for (expert, score) in scores {
            let weight = score / divisor * f64::from(experts.scale);
            let result = self.mlp_of(&names_of(&names.experts, expert), layer, input);
            add(&mut out, &result.iter().map(|x| x * weight).collect::<Row>());
        }
        if let Some(shared) = &names.shared {
            let gate = names.shared_gate.as_ref().map(|name| self.product(name, layer, input)[0]);
            let factor = gate.map_or(1.0, sigmoid);
            let result = self.mlp_of(shared, layer, input);
            add(&mut out, &result.iter().map(|x| x * factor).collect::<Row>());
        }
        out
    }

    /// A matrix that never lies transposed times a row.
    fn product(&self, name: &str, layer: usize, input: &[f64]) -> Row {
        let table = self.tensor(name, layer);
        table.chunks(input.len()).map(|row| dot(input, row.iter().copied())).collect()
    }

    fn mlp_of(&self, names: &MlpNames, layer: usize, input: &[f64]) -> Row {
        let activate =
            |row: &[f64]| -> Row { row.iter().map(|&x| activation(self.spec.mlp.activation(), x)).collect() };
        let gated = |gate: &[f64], up: &[f64]| -> Row {
            activate(gate).iter().zip(up).map(|(gate, up)| gate * up).collect()
        };
        let (hidden, down) = match names {
            MlpNames::Plain { up, down } => (activate(&self.linear(up, layer, input)), down),
            MlpNames::Gated { gate, up, down } => {
                (gated(&self.linear(gate, layer, input), &self.linear(up, layer, input)), down)
            }
            MlpNames::FusedGated { gate_up, down } => {
                let both = self.linear(gate_up, layer, input);
                let (gate, up) = both.split_at(both.len() / 2);
                (gated(gate, up), down)
            }
        };
        self.linear(down, layer, &hidden)
    }

    fn layer(&self, layer: usize, residual: &mut [Row]) {
        let names = &self.spec.weights;
        let norm_all = |names: Option<&Names>, rows: &[Row]| -> Vec<Row> {
            rows.iter().map(|row| self.norm(names, layer, row)).collect()
        };
        let mlp_all = |rows: &[Row]| -> Vec<Row> { rows.iter().map(|row| self.mlp(layer, row)).collect() };
        let add_all = |rows: &mut [Row], added: Vec<Row>| {
            rows.iter_mut().zip(added).for_each(|(row, added)| add(row, &added));
        };
        let (attention_norm, mlp_norm) = (names.attention_norm.as_ref(), names.mlp_norm.as_ref());
        let post_norms = (names.post_attention_norm.as_ref(), names.post_mlp_norm.as_ref());
        match self.spec.block {
            BlockShape::Sequential => {
                add_all(residual, self.attention(layer, &norm_all(attention_norm, residual)));
                add_all(residual, mlp_all(&norm_all(mlp_norm, residual)));
            }
            BlockShape::Parallel | BlockShape::ParallelTwoNorms => {
                let normed = norm_all(attention_norm, residual);
                let is_parallel = self.spec.block == BlockShape::Parallel;
                let mlp_input = if is_parallel { normed.clone() } else { norm_all(mlp_norm, residual) };
                add_all(residual, self.attention(layer, &normed));
                add_all(residual, mlp_all(&mlp_input));
            }
            BlockShape::Sandwich => {
                let attention = self.attention(layer, &norm_all(attention_norm, residual));
                add_all(residual, norm_all(post_norms.0, &attention));
                let mlp = mlp_all(&norm_all(mlp_norm, residual));
                add_all(residual, norm_all(post_norms.1, &mlp));
            }
            BlockShape::PostNorm => {
                let attention = self.attention(layer, residual);
                add_all(residual, norm_all(post_norms.0, &attention));
                let mlp = mlp_all(residual);
                add_all(residual, norm_all(post_norms.1, &mlp));
            }
        }
    }

    /// Logits at every position of a prompt.
    pub(super) fn logits(&self, prompt: &[u32]) -> Vec<Row> {
        let (spec, names) = (self.spec, &self.spec.weights);
        let row_of = |table: &str, row: usize| -> Row {
            let all = self.tensor(table, 0);
            all[row * spec.hidden_size..(row + 1) * spec.hidden_size].to_vec()
        };
        let embed = |(position, &token): (usize, &u32)| {
            let mut row = row_of(&names.embedding, token as usize);
            row.iter_mut().for_each(|value| *value *= f64::from(spec.embedding.scale));
            if let Positions::Learned { offset } = spec.positions {
                add(&mut row, &row_of(names.position_embedding.as_ref().unwrap(), offset + position));
            }
            match spec.embedding.norm {
                EmbeddingNorm::None => row,
                EmbeddingNorm::Normalized => self.norm(names.embedding_norm.as_ref(), 0, &row),
            }
        };
        let mut residual: Vec<Row> = prompt.iter().enumerate().map(embed).collect();
        (0..spec.num_layers).for_each(|layer| self.layer(layer, &mut residual));
        let head = match spec.output {
            OutputHead::Tied => &names.embedding,
            OutputHead::Untied | OutputHead::UntiedUnitRows => &names.head.as_ref().unwrap().weight,
        };
        let bias = names.head.as_ref().and_then(|head| head.bias.as_ref()).map(|bias| self.tensor(bias, 0));
        let table = self.tensor(head, 0);
        let logits_of = |row: &Row| {
            let hidden = self.norm(names.final_norm.as_ref(), 0, row);
            let rows = table.chunks(spec.hidden_size).enumerate();
            let logits = rows.map(|(token, weights)| {
                let length = weights.iter().map(|x| x * x).sum::<f64>().sqrt();
                let divisor = if spec.output == OutputHead::UntiedUnitRows { length } else { 1.0 };
                let bias = bias.as_ref().map_or(0.0, |bias| bias[token]);
                let logit =
                    (dot(&hidden, weights.iter().copied()) / divisor + bias) * f64::from(spec.logits.scale);
                spec.logits.soft_cap.map_or(logit, |cap| f64::from(cap) * (logit / f64::from(cap)).tanh())
            });
            logits.collect()
        };
        residual.iter().map(logits_of).collect()
    }
}

/// Names of one expert. A tensor that stacks all is looked up by `name#expert`.
fn names_of(names: &MlpNames, expert: usize) -> MlpNames {
    let of = |names: &Names| match names.weight.contains("{expert}") {
        true => Names::weight(names.weight.replace("{expert}", &expert.to_string())),
        false => Names::weight(format!("{}#{expert}", names.weight)),
    };
    match names {
        MlpNames::Plain { up, down } => MlpNames::Plain { up: of(up), down: of(down) },
        MlpNames::Gated { gate, up, down } => MlpNames::Gated { gate: of(gate), up: of(up), down: of(down) },
        MlpNames::FusedGated { gate_up, down } => {
            MlpNames::FusedGated { gate_up: of(gate_up), down: of(down) }
        }
    }
}

/// An activation by its definition.
pub(super) fn activation(function: Activation, x: f64) -> f64 {
    let sigmoid = |y: f64| 1.0 / (1.0 + (-y).exp());
    match function {
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => x * normal_cdf(x),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0).powi(2),
    }
}

/// `P(X <= x)` for a standard normal X, by its series, which converges for every x.
fn normal_cdf(x: f64) -> f64 {
    if x.abs() > 9.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= x * x / f64::from(2 * n + 1);
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
}
