//! Every family's resolved operations and weights, recorded from the decoder itself and kept as text in
//! `tests/golden/plans`. With INFLIGHT_REGENERATE=1 in the environment the files are written instead of compared.

use std::collections::VecDeque;
use std::fmt::Write as _;

use super::cases::{CASES, Case, report};
use super::golden::{config, golden, single};
use crate::backend::{
    Activate, AttentionShape, Backend, BackendLimits, BackendResult, Batch, DType, Delta, Embedding,
    ExpertWeighting, Gating, Head, KvLayout, Mixture, Norm, NormExtent, NormKind, QkvTransform, RopePairing,
    RouterScoring, Sampled, Scoring, SharedResult, SlotState,
};
use crate::model::decoder::Decoder;
use crate::model::load::LoadOptions;
use crate::model::memory::Activations;
use crate::model::rope;
use crate::model::spec::ModelSpec;
use crate::model::spec::Orientation;
use crate::model::weights::{Adjustment, Part, Source, Weights};

/// A backend that computes nothing and writes down what it is asked for.
struct Recorder {
    /// Names of the tensors that will be allocated, in that order.
    names: VecDeque<String>,
    text: String,
}

impl Recorder {
    fn line(&mut self, line: String) -> BackendResult<()> {
        writeln!(self.text, "  {line}").unwrap();
        Ok(())
    }
}

/// ` + name`, where there is one.
fn plus(name: Option<&String>) -> String {
    name.map(|name| format!(" + {name}")).unwrap_or_default()
}

fn norm(input: &str, norm: &Norm<'_, String>) -> String {
    let kind = match norm.kind {
        NormKind::Rms => "rms_norm",
        NormKind::Layer => "layer_norm",
    };
    format!("{kind}({input}, epsilon {}) * {}{}", norm.epsilon, norm.weight, plus(norm.bias))
}

impl Backend for Recorder {
    type Tensor = String;
    type KvCache = ();

    fn activation_dtype(&self, weights: DType) -> DType {
        weights
    }

    fn workspace_sizes(&self, _limits: &BackendLimits, _num_kv_blocks: usize) -> Vec<u64> {
        Vec::new()
    }

    fn reserve(&mut self, _limits: &BackendLimits) -> BackendResult<()> {
        Ok(())
    }

    fn alloc(&mut self, _dtype: DType, _rows: usize, _columns: usize) -> BackendResult<String> {
        Ok(self.names.pop_front().expect("every allocation is foreseen"))
    }

    fn write_rows(&mut self, _tensor: &mut String, _first_row: usize, _bytes: &[u8]) -> BackendResult<()> {
        Ok(())
    }

    fn read_rows(&mut self, _tensor: &String, _rows: usize) -> BackendResult<Vec<f32>> {
        unreachable!("nothing is read")
    }

    fn alloc_kv_cache(&mut self, _layout: &KvLayout) -> BackendResult<()> {
        Ok(())
    }

    fn reset_slot(&mut self, _slot: u32, _state: &SlotState) -> BackendResult<()> {
        Ok(())
    }

    fn load_batch(&mut self, _batch: &Batch) -> BackendResult<()> {
        Ok(())
    }

    fn embed(&mut self, embedding: &Embedding<'_, String>, out: &mut String) -> BackendResult<()> {
        let Embedding { table, scale, positions } = embedding;
        let scale = if *scale == 1.0 { String::new() } else { format!(" * {scale}") };
        self.line(format!("{out} = {table}[tokens]{scale}{}", plus(*positions)))
    }

    fn add_norm(
        &mut self,
        residual: &mut String,
        deltas: [Option<Delta<'_, String>>; 2],
        parameters: &Norm<'_, String>,
        out: &mut String,
        _rows: usize,
    ) -> BackendResult<()> {
        for Delta { values, bias } in deltas.into_iter().flatten() {
            self.line(format!("{residual} += {values}{}", plus(bias)))?;
        }
        self.line(format!("{out} = {}", norm(residual, parameters)))
    }

    fn norm_add(
        &mut self,
        delta: Delta<'_, String>,
        parameters: &Norm<'_, String>,
        residual: &mut String,
        _rows: usize,
    ) -> BackendResult<()> {
        let input = format!("{}{}", delta.values, plus(delta.bias));
        self.line(format!("{residual} += {}", norm(&input, parameters)))
    }

    fn linear(
        &mut self,
        input: &String,
        weight: &String,
        out: &mut String,
        _rows: usize,
    ) -> BackendResult<()> {
        self.line(format!("{out} = {weight} @ {input}"))
    }

    fn rope_and_write_kv(
        &mut self,
        qkv: &mut String,
        transform: &QkvTransform<'_, String>,
        _shape: &AttentionShape,
        _cache: &mut (),
        layer: usize,
    ) -> BackendResult<()> {
        let QkvTransform { bias, clamp, norm: qk_norm, rope } = transform;
        if let Some(bias) = bias {
            self.line(format!("{qkv} += {bias}"))?;
        }
        if let Some(clamp) = clamp {
            self.line(format!("{qkv} = clamp({qkv}, {clamp})"))?;
        }
        if let Some(qk_norm) = qk_norm {
            let extent = match qk_norm.extent {
                NormExtent::Head => "each head",
                NormExtent::Width => "all heads",
            };
            self.line(format!("queries of {extent} = {}", norm("queries", &qk_norm.query)))?;
            self.line(format!("keys of {extent} = {}", norm("keys", &qk_norm.key)))?;
        }
        if let Some(rope) = rope {
            let pairing = match rope.pairing {
                RopePairing::Half => "halves",
                RopePairing::Interleaved => "neighbours",
            };
            self.line(format!("queries, keys = rotate {pairing} by {}", rope.table))?;
        }
        self.line(format!("cache[{layer}] = keys, values"))
    }

    fn attention(
        &mut self,
        qkv: &String,
        shape: &AttentionShape,
        scoring: &Scoring,
        _cache: &(),
        layer: usize,
        out: &mut String,
    ) -> BackendResult<()> {
        let AttentionShape { num_heads, num_kv_heads, head_dim, scale } = shape;
        let mut line = format!(
            "{out} = attention({qkv}, cache[{layer}]), {num_heads} on {num_kv_heads} heads of {head_dim}, \
             scale {scale}"
        );
        let Scoring { soft_cap, alibi, window } = scoring;
        if let Some(cap) = soft_cap {
            write!(line, ", soft cap {cap}").unwrap();
        }
        if let Some(alibi) = alibi {
            let slopes: Vec<f32> = (0..*num_heads).map(|head| alibi.slope(head, *num_heads)).collect();
            write!(line, ", slopes {slopes:?}").unwrap();
        }
        if let Some(window) = window {
            write!(line, ", window {window}").unwrap();
        }
        self.line(line)
    }

    fn keep_sampled(&mut self, tensors: &mut [&mut String], rows: usize) -> BackendResult<usize> {
        let names: Vec<&str> = tensors.iter().map(|name| name.as_str()).collect();
        self.line(format!("keep_sampled {}", names.join(", ")))?;
        Ok(rows)
    }

    fn activate(
        &mut self,
        input: &String,
        activate: &Activate<'_, String>,
        out: &mut String,
        _rows: usize,
    ) -> BackendResult<()> {
        let input = format!("{input}{}", plus(activate.bias));
        let function = activate.function.name();
        match activate.gating {
            Gating::Gated => self.line(format!("{out} = {function}(gate) * up of {input}")),
            Gating::Plain => self.line(format!("{out} = {function}({input})")),
        }
    }

    fn mix_experts(
        &mut self,
        input: &String,
        products: &String,
        mixture: &Mixture<'_, String>,
        out: &mut String,
        _rows: usize,
    ) -> BackendResult<()> {
        let Mixture { up, down, num_experts, num_chosen, scoring, weighting, scale, .. } = mixture;
        let scores = match scoring {
            RouterScoring::Softmax => "softmax",
            RouterScoring::Sigmoid => "sigmoid",
        };
        let weights = match weighting {
            ExpertWeighting::AsScored => "as they are",
            ExpertWeighting::Normalized => "divided by their sum",
        };
        let function = mixture.function.name();
        let activation = match mixture.gating {
            Gating::Gated => format!("{function}(gate) * up"),
            Gating::Plain => format!("{function}(up)"),
        };
        self.line(format!("scores = {scores}({products}), best {num_chosen} of {num_experts}, {weights}"))?;
        let scale = if *scale == 1.0 { String::new() } else { format!(" * {scale}") };
        self.line(format!("{out} = sum of scores{scale} * {down} @ ({activation} of {up} @ {input})"))?;
        match mixture.shared {
            Some(SharedResult { values, gate: Some(gate) }) => {
                self.line(format!("{out} += sigmoid({gate}) * {values}"))
            }
            Some(SharedResult { values, gate: None }) => self.line(format!("{out} += {values}")),
            None => Ok(()),
        }
    }

    fn logits(&mut self, hidden: &String, head: &Head<'_, String>, out: &mut String) -> BackendResult<()> {
        let Head { weight, bias, scale, soft_cap } = head;
        let mut line = format!("{out} = {weight} @ {hidden}{}", plus(*bias));
        if *scale != 1.0 {
            write!(line, ", times {scale}").unwrap();
        }
        if let Some(cap) = soft_cap {
            write!(line, ", soft cap {cap}").unwrap();
        }
        self.line(line)
    }

    fn sample(&mut self, logits: &String) -> BackendResult<()> {
        self.line(format!("sample {logits}"))
    }

    fn collect(&mut self) -> BackendResult<Vec<Sampled>> {
        Ok(Vec::new())
    }
}

/// Names of everything that a decoder of `spec` allocates, in the order in which it does.
fn allocation_names(spec: &ModelSpec) -> VecDeque<String> {
    let mut names = VecDeque::new();
    Weights::plan(spec, DType::F32).for_each(&mut |source| {
        let parts: Vec<&str> = source.parts.iter().map(|part| part.tensor.name.as_str()).collect();
        names.push_back(match parts.as_slice() {
            [] => "ones".to_owned(),
            [first, .., last] if parts.len() > 3 => format!("[{first} | ... | {last}]"),
            [name] => (*name).to_owned(),
            parts => format!("[{}]", parts.join(" | ")),
        });
    });
    let tables = rope::tables(spec, spec.max_positions).len();
    names.extend(["rope_table", "local_rope_table"][..tables].iter().map(|name| name.to_string()));
    // The buffers' names are those of their fields.
    let mut count = 0;
    let limits = config(spec, DType::F32, 3).limits;
    let numbered = Activations::plan(spec, &limits, DType::F32).try_map(|_| {
        count += 1;
        Ok::<usize, ()>(count)
    });
    let numbered = format!("{:?}", numbered.unwrap());
    let fields = numbered.split(|separator: char| !separator.is_alphanumeric() && separator != '_');
    let mut buffers = Vec::new();
    let mut field = "";
    for word in fields.filter(|word| !word.is_empty()) {
        match word.parse::<usize>() {
            Ok(number) => buffers.push((number, field)),
            Err(_) if word != "Some" => field = word,
            Err(_) => {}
        }
    }
    buffers.sort();
    names.extend(buffers.into_iter().map(|(_, field)| field.to_owned()));
    names
}

/// What happens to a tensor when it is loaded.
fn treatment(source: &Source, part: &Part) -> String {
    let mut words = String::new();
    if part.orientation == Orientation::InOut {
        words.push_str(", transposed");
    }
    if part.runs.len() > 1 || part.runs[0].start > 0 {
        write!(words, ", rows {:?}", part.runs).unwrap();
    }
    match source.adjustment {
        Adjustment::None | Adjustment::Ones => {}
        Adjustment::OnePlus => words.push_str(", plus one"),
        Adjustment::UnitRows => words.push_str(", rows of length one"),
    }
    words
}

/// The weights that a checkpoint must have, and the operations of a step.
fn plan(case: &Case) -> Result<String, String> {
    let spec = &case.spec;
    let mut text = String::from("weights\n");
    Weights::plan(spec, DType::F32).for_each(&mut |source| {
        for part in &source.parts {
            writeln!(text, "  {} {:?}{}", part.tensor.name, part.tensor.shape, treatment(source, part))
                .unwrap();
        }
    });
    text.push_str("operations\n");
    let recorder = Recorder { names: allocation_names(spec), text };
    let config = config(spec, DType::F32, 3);
    let decoder = Decoder::load(recorder, spec, &case.checkpoint, &config, &LoadOptions::default());
    let mut decoder = decoder.map_err(|error| error.to_string())?;
    decoder.forward(&single(&[1, 2, 3], 0, config.num_kv_blocks as u32)).unwrap();
    assert!(decoder.backend().names.is_empty(), "{}: fewer allocations than foreseen", spec.family);
    Ok(decoder.backend().text.clone())
}

#[test]
fn plans_of_all_families_are_as_recorded() {
    let must_update = std::env::var_os("INFLIGHT_REGENERATE").is_some();
    let directory = golden("plans");
    std::fs::create_dir_all(&directory).unwrap();
    report(&CASES, |name| {
        let path = directory.join(format!("{name}.txt"));
        let plan = plan(&Case::open(name)?)?;
        if must_update {
            std::fs::write(&path, &plan).unwrap();
        }
        let recorded = std::fs::read_to_string(&path).unwrap_or_default();
        if recorded == plan {
            return Ok(());
        }
        let line =
            recorded.lines().zip(plan.lines()).take_while(|(recorded, now)| recorded == now).count() + 1;
        Err(format!("line {line} has changed; INFLIGHT_REGENERATE=1 cargo test --lib plans writes it anew"))
    });
}
