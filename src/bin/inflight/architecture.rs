//! An architecture in words: everything that tells one model from another.

use inflight::model::ModelSpec;
use inflight::model::rope::default_context;
use inflight::model::spec::{
    EmbeddingNorm, Experts, LayerSet, Mlp, NormKind, NormWeight, OutputHead, Positions, RopeScaling,
    SharedExpert,
};
use serde::Serialize;
use serde_json::Value;

/// A line of a description: what it is about, and what it says.
type Fact = (&'static str, String);

/// Lines that describe `spec`. What a model does not have has no line.
pub fn describe(spec: &ModelSpec) -> Vec<Fact> {
    let heads = &spec.heads;
    let head = match spec.output {
        OutputHead::Tied => "the embedding table",
        OutputHead::Untied => "a matrix of its own",
        OutputHead::UntiedUnitRows => "a matrix of its own, its rows divided by their lengths",
    };
    let mut facts = vec![
        ("family", spec.family.clone()),
        ("layers", spec.num_layers.to_string()),
        ("hidden size", spec.hidden_size.to_string()),
    ];
    facts.extend(embedding(spec));
    facts.extend([
        ("positions", positions(&spec.positions)),
        ("block", word(&spec.block)),
        ("norm", norm(spec)),
        (
            "heads",
            format!("{} query, {} key-value, of {}", heads.num_heads, heads.num_kv_heads, heads.head_dim),
        ),
    ]);
    facts.extend(attention(spec));
    facts.push(("MLP", mlp(spec)));
    facts.extend(spec.experts.iter().flat_map(experts));
    facts.push(("biases", biases(spec)));
    facts.push(("output head", head.to_owned()));
    facts.extend(logits(spec));
    facts.extend([("context", context(spec)), ("vocabulary", spec.vocab_size.to_string())]);
    facts
}

fn context(spec: &ModelSpec) -> String {
    match (default_context(spec), spec.max_positions) {
        (default, longest) if default < longest => format!("{default} tokens, stretched up to {longest}"),
        (_, longest) => format!("{longest} tokens"),
    }
}

/// The word that a spec has for a value, with spaces.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name.replace('_', " "),
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

fn embedding(spec: &ModelSpec) -> Option<Fact> {
    let mut parts = Vec::new();
    if spec.embedding.scale != 1.0 {
        parts.push(format!("times {}", spec.embedding.scale));
    }
    if spec.embedding.norm == EmbeddingNorm::Normalized {
        parts.push("normalized".to_owned());
    }
    (!parts.is_empty()).then(|| ("embedding", parts.join(", ")))
}

fn norm(spec: &ModelSpec) -> String {
    let kind = match spec.norm.kind {
        NormKind::Rms => "RMS",
        NormKind::Layer => "layer norm",
    };
    let weight = match spec.norm.weight {
        NormWeight::Plain => "",
        NormWeight::OnePlus => ", times 1 plus the weight",
        NormWeight::Absent => ", without weights",
    };
    format!("{kind}, epsilon {}{weight}", spec.norm.epsilon)
}

fn attention(spec: &ModelSpec) -> Vec<Fact> {
    let attention = &spec.attention;
    let mut facts = Vec::new();
    facts.extend(spec.heads.scale.map(|scale| ("score scale", scale.to_string())));
    facts.extend(attention.score_soft_cap.map(|cap| ("score soft cap", cap.to_string())));
    facts.extend(attention.qkv_clamp.map(|clamp| ("QKV clamp", clamp.to_string())));
    facts.extend(attention.qk_norm.map(|extent| ("q/k norm", format!("over each {}", word(&extent)))));
    facts.extend(
        attention
            .sliding_window
            .as_ref()
            .map(|window| ("sliding window", format!("{} tokens, {}", window.size, layers(&window.layers)))),
    );
    facts
}

fn layers(set: &LayerSet) -> String {
    match set {
        LayerSet::All => "all layers".to_owned(),
        LayerSet::From { first } => format!("layers from {first} on"),
        LayerSet::Periodic { period, remainders } => {
            format!("layers whose index modulo {period} is in {remainders:?}")
        }
        LayerSet::Listed { layers } => format!("layers {layers:?}"),
    }
}

fn mlp(spec: &ModelSpec) -> String {
    let kind = match spec.mlp {
        Mlp::Gated { .. } => "gated",
        Mlp::Plain { .. } => "plain",
    };
    format!("{kind}, {}, of {}", word(&spec.mlp.activation()), spec.intermediate_size)
}

fn experts(experts: &Experts) -> Vec<Fact> {
    let Experts {
        num_experts,
        num_chosen,
        intermediate_size,
        scoring,
        weighting,
        scale,
        shared,
        layers: set,
    } = experts;
    let mut text = format!(
        "{num_chosen} of {num_experts}, of {intermediate_size}, {} scores {}, {}",
        word(scoring),
        word(weighting),
        layers(set)
    );
    if *scale != 1.0 {
        text += &format!(", times {scale}");
    }
    let mut facts = vec![("experts", text)];
    facts.extend(shared.map(|SharedExpert { intermediate_size, gate }| {
        ("shared expert", format!("of {intermediate_size}, gate {}", word(&gate)))
    }));
    facts
}

/// The weights that have a bias, by their fields' names.
fn biases(spec: &ModelSpec) -> String {
    let mut fields = Vec::new();
    if let Ok(names) = serde_json::to_value(&spec.weights) {
        collect_biases("", &names, &mut fields);
    }
    if fields.is_empty() { "none".to_owned() } else { fields.join(", ") }
}

fn collect_biases(path: &str, names: &Value, fields: &mut Vec<String>) {
    let Value::Object(object) = names else { return };
    if object.contains_key("bias") {
        fields.push(path.to_owned());
    }
    for (name, value) in object {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        collect_biases(&path, value, fields);
    }
}

fn logits(spec: &ModelSpec) -> Vec<Fact> {
    let mut facts = Vec::new();
    if spec.logits.scale != 1.0 {
        facts.push(("logit scale", spec.logits.scale.to_string()));
    }
    facts.extend(spec.logits.soft_cap.map(|cap| ("logit soft cap", cap.to_string())));
    facts
}

fn positions(positions: &Positions) -> String {
    match positions {
        Positions::None => "none".to_owned(),
        Positions::Learned { offset: 0 } => "learned".to_owned(),
        Positions::Learned { offset } => format!("learned, from row {offset} on"),
        Positions::Alibi { max_bias, scale: 1.0 } => format!("ALiBi, slopes to 2^-{max_bias}"),
        Positions::Alibi { max_bias, scale } => format!("ALiBi, slopes to 2^-{max_bias}, times {scale}"),
        Positions::Rope { theta, rotary_dim, pairing, scaling: stretch, local } => {
            let pairs = format!("RoPE over {rotary_dim} elements in {} pairs", word(pairing));
            let local = local.as_ref().map_or(String::new(), |local| {
                format!("; with a window theta {}, {}", local.theta, scaling(&local.scaling))
            });
            format!("{pairs}, theta {theta}, {}{local}", scaling(stretch))
        }
    }
}

fn scaling(scaling: &RopeScaling) -> String {
    match scaling {
        RopeScaling::None => "no scaling".to_owned(),
        RopeScaling::Linear { factor } => format!("linear scaling by {factor}"),
        RopeScaling::DynamicNtk { factor, .. } => format!("dynamic NTK scaling by {factor}"),
        RopeScaling::Llama3 { factor, .. } => format!("Llama 3 scaling by {factor}"),
        RopeScaling::Yarn { factor, .. } => format!("YaRN scaling by {factor}"),
        RopeScaling::PerFrequency { .. } => "a factor per frequency".to_owned(),
        RopeScaling::LongRope { .. } => "LongRoPE".to_owned(),
    }
}
