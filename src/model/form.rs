//! The form of a `model_spec.json`: which fields its objects have and of what type they are.
//!
//! It is what deserialising would find out too, but names the field where something is wrong, in words of JSON.
//! A test keeps it and the types of [`crate::model::spec`] together.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::backend::{Activation, ExpertWeighting, NormExtent, NormKind, RopePairing, RouterScoring};
use crate::model::error::{ModelError, ModelResult};
use crate::model::spec::{
    BlockShape, EmbeddingNorm, NormWeight, Orientation, OutputHead, QkvOrder, SharedExpertGate,
};

/// What a value must be.
enum Form {
    /// A whole number.
    Size,
    Number,
    Text,
    /// One of several words; what it tells of another one is what those are.
    Word(fn(Value) -> Option<String>),
    List(&'static Form),
    Object(&'static [Field]),
    /// An object whose field `kind` says which others it has.
    Tagged(&'static [(&'static str, &'static [Field])]),
    /// A tensor's name, or those of a weight and its bias.
    Names,
}

/// A field of an object.
struct Field {
    name: &'static str,
    form: Form,
    presence: Presence,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Required,
    /// It may be left out.
    Defaulted,
    /// It may be left out or null.
    Optional,
}

const fn required(name: &'static str, form: Form) -> Field {
    Field { name, form, presence: Presence::Required }
}

const fn defaulted(name: &'static str, form: Form) -> Field {
    Field { name, form, presence: Presence::Defaulted }
}

const fn optional(name: &'static str, form: Form) -> Field {
    Field { name, form, presence: Presence::Optional }
}

const fn word<T: DeserializeOwned>() -> Form {
    Form::Word(|value| serde_json::from_value::<T>(value).err().map(|error| error.to_string()))
}

const SPEC: Form = Form::Object(&[
    required("family", Form::Text),
    required("num_layers", Form::Size),
    required("hidden_size", Form::Size),
    required("intermediate_size", Form::Size),
    required("vocab_size", Form::Size),
    required("max_positions", Form::Size),
    defaulted(
        "embedding",
        Form::Object(&[defaulted("scale", Form::Number), defaulted("norm", word::<EmbeddingNorm>())]),
    ),
    required("positions", POSITIONS),
    required(
        "norm",
        Form::Object(&[
            required("kind", word::<NormKind>()),
            required("epsilon", Form::Number),
            defaulted("weight", word::<NormWeight>()),
        ]),
    ),
    defaulted("block", word::<BlockShape>()),
    required(
        "heads",
        Form::Object(&[
            required("num_heads", Form::Size),
            required("num_kv_heads", Form::Size),
            required("head_dim", Form::Size),
            optional("scale", Form::Number),
        ]),
    ),
    defaulted("attention", ATTENTION),
    required("mlp", Form::Tagged(&[("gated", MLP), ("plain", MLP)])),
    optional("experts", EXPERTS),
    required("output", word::<OutputHead>()),
    defaulted(
        "logits",
        Form::Object(&[defaulted("scale", Form::Number), optional("soft_cap", Form::Number)]),
    ),
    required("weights", WEIGHTS),
]);

const POSITIONS: Form = Form::Tagged(&[
    ("none", &[]),
    ("learned", &[defaulted("offset", Form::Size)]),
    ("alibi", &[defaulted("max_bias", Form::Number), defaulted("scale", Form::Number)]),
    (
        "rope",
        &[
            required("theta", Form::Number),
            required("rotary_dim", Form::Size),
            defaulted("pairing", word::<RopePairing>()),
            defaulted("scaling", SCALING),
            optional(
                "local",
                Form::Object(&[required("theta", Form::Number), defaulted("scaling", SCALING)]),
            ),
        ],
    ),
]);

const SCALING: Form = Form::Tagged(&[
    ("none", &[]),
    ("linear", &[required("factor", Form::Number)]),
    ("dynamic_ntk", &[required("factor", Form::Number), required("original_max_positions", Form::Size)]),
    (
        "llama3",
        &[
            required("factor", Form::Number),
            required("low_freq_factor", Form::Number),
            required("high_freq_factor", Form::Number),
            required("original_max_positions", Form::Size),
        ],
    ),
    (
        "yarn",
        &[
            required("factor", Form::Number),
            required("original_max_positions", Form::Size),
            required("beta_fast", Form::Number),
            required("beta_slow", Form::Number),
            required("attention_factor", Form::Number),
        ],
    ),
    ("per_frequency", &[required("factors", Form::List(&Form::Number))]),
    (
        "long_rope",
        &[
            required("short_factors", Form::List(&Form::Number)),
            required("long_factors", Form::List(&Form::Number)),
            required("original_max_positions", Form::Size),
            required("attention_factor", Form::Number),
        ],
    ),
]);

const ATTENTION: Form = Form::Object(&[
    optional("qkv_clamp", Form::Number),
    optional("qk_norm", word::<NormExtent>()),
    optional("score_soft_cap", Form::Number),
    optional("sliding_window", Form::Object(&[required("size", Form::Size), defaulted("layers", LAYERS)])),
]);

const LAYERS: Form = Form::Tagged(&[
    ("all", &[]),
    ("from", &[required("first", Form::Size)]),
    ("periodic", &[required("period", Form::Size), required("remainders", Form::List(&Form::Size))]),
    ("listed", &[required("layers", Form::List(&Form::Size))]),
]);

const MLP: &[Field] = &[required("activation", word::<Activation>())];

const EXPERTS: Form = Form::Object(&[
    required("num_experts", Form::Size),
    required("num_chosen", Form::Size),
    required("intermediate_size", Form::Size),
    defaulted("scoring", word::<RouterScoring>()),
    required("weighting", word::<ExpertWeighting>()),
    defaulted("scale", Form::Number),
    optional(
        "shared",
        Form::Object(&[
            required("intermediate_size", Form::Size),
            defaulted("gate", word::<SharedExpertGate>()),
        ]),
    ),
    defaulted("layers", LAYERS),
]);

const WEIGHTS: Form = Form::Object(&[
    defaulted("orientation", word::<Orientation>()),
    required("embedding", Form::Text),
    optional("position_embedding", Form::Text),
    optional("embedding_norm", Form::Names),
    optional("attention_norm", Form::Names),
    required(
        "qkv",
        Form::Tagged(&[
            (
                "separate",
                &[
                    required("query", Form::Names),
                    required("key", Form::Names),
                    required("value", Form::Names),
                ],
            ),
            ("fused", &[required("qkv", Form::Names), required("order", word::<QkvOrder>())]),
        ]),
    ),
    optional("query_norm", Form::Names),
    optional("key_norm", Form::Names),
    required("attention_output", Form::Names),
    optional("post_attention_norm", Form::Names),
    optional("mlp_norm", Form::Names),
    optional("mlp", MLP_NAMES),
    optional(
        "experts",
        Form::Object(&[
            required("router", Form::Text),
            required("experts", MLP_NAMES),
            optional("shared", MLP_NAMES),
            optional("shared_gate", Form::Text),
        ]),
    ),
    optional("post_mlp_norm", Form::Names),
    optional("final_norm", Form::Names),
    optional("head", Form::Names),
]);

const MLP_NAMES: Form = Form::Tagged(&[
    ("plain", &[required("up", Form::Names), required("down", Form::Names)]),
    ("gated", &[required("gate", Form::Names), required("up", Form::Names), required("down", Form::Names)]),
    ("fused_gated", &[required("gate_up", Form::Names), required("down", Form::Names)]),
]);

const NAMES: &[Field] = &[required("weight", Form::Text), optional("bias", Form::Text)];

/// Refuses a value that no spec has the form of; the error names the field.
pub(super) fn check(spec: &Value) -> ModelResult<()> {
    SPEC.check("", spec)
}

impl Form {
    fn check(&self, path: &str, value: &Value) -> ModelResult<()> {
        let is_right = match self {
            Form::Size => value.as_u64().is_some_and(|size| usize::try_from(size).is_ok()),
            Form::Number => value.is_number(),
            Form::Text => value.is_string(),
            Form::Word(problem) => return check_word(path, value, *problem),
            Form::List(form) => match value {
                Value::Array(elements) => {
                    let mut elements = elements.iter().enumerate();
                    return elements
                        .try_for_each(|(index, value)| form.check(&format!("{path}[{index}]"), value));
                }
                _ => false,
            },
            Form::Object(fields) => match value {
                Value::Object(object) => return check_object(path, object, fields, None),
                _ => false,
            },
            Form::Tagged(kinds) => match value {
                Value::Object(object) => return check_tagged(path, object, kinds),
                _ => false,
            },
            Form::Names => match value {
                Value::Object(object) => return check_object(path, object, NAMES, None),
                _ => value.is_string(),
            },
        };
        match is_right {
            true => Ok(()),
            false => Err(not_this(path, self.description(), value)),
        }
    }

    fn description(&self) -> &'static str {
        match self {
            Form::Size => "a whole number",
            Form::Number => "a number",
            Form::Text => "a text",
            Form::Word(_) => "a word",
            Form::List(_) => "a list",
            Form::Object(_) => "an object",
            Form::Tagged(_) => "an object with a field \"kind\"",
            Form::Names => "a tensor's name, or an object of weight and bias",
        }
    }
}

/// `value`, at `path`, is not what it must be.
fn not_this(path: &str, wanted: &str, value: &Value) -> ModelError {
    let path = if path.is_empty() { "model_spec.json" } else { path };
    let message = match value {
        Value::Array(_) => format!("must be {wanted}, but is a list"),
        Value::Object(_) => format!("must be {wanted}, but is an object"),
        _ => format!("must be {wanted}, but is {value}"),
    };
    ModelError::invalid(path, message)
}

fn check_word(path: &str, value: &Value, problem: fn(Value) -> Option<String>) -> ModelResult<()> {
    if !value.is_string() {
        return Err(not_this(path, Form::Word(problem).description(), value));
    }
    problem(value.clone()).map_or(Ok(()), |message| Err(ModelError::invalid(path, message)))
}

fn check_tagged(
    path: &str,
    object: &Map<String, Value>,
    kinds: &[(&str, &'static [Field])],
) -> ModelResult<()> {
    let at = within(path, "kind");
    let kind = object.get("kind").ok_or_else(|| ModelError::invalid(&at, "is missing"))?;
    let (_, fields) = kinds.iter().find(|(name, _)| kind == name).ok_or_else(|| {
        let names: Vec<&str> = kinds.iter().map(|(name, _)| *name).collect();
        not_this(&at, &format!("one of {}", names.join(", ")), kind)
    })?;
    check_object(path, object, fields, Some("kind"))
}

/// Checks the fields of an object; `beside` may be there as well.
fn check_object(
    path: &str,
    object: &Map<String, Value>,
    fields: &[Field],
    beside: Option<&str>,
) -> ModelResult<()> {
    // A field that is not known first: it may be a misspelt one that is missing.
    let is_known = |name: &str| beside == Some(name) || fields.iter().any(|field| field.name == name);
    if let Some(name) = object.keys().find(|name| !is_known(name)) {
        let names: Vec<&str> = beside.into_iter().chain(fields.iter().map(|field| field.name)).collect();
        let message = format!("is not a field that is known here; known are {}", names.join(", "));
        return Err(ModelError::invalid(within(path, name), message));
    }
    for Field { name, form, presence } in fields {
        match object.get(*name) {
            None if *presence != Presence::Required => {}
            None => return Err(ModelError::invalid(within(path, name), "is missing")),
            Some(Value::Null) if *presence == Presence::Optional => {}
            Some(value) => form.check(&within(path, name), value)?,
        }
    }
    Ok(())
}

fn within(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}
