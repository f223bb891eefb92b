//! GPT-J: attention and MLP side by side after one norm, and rotation of neighbouring elements.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::gpt::Sizes;
use crate::model::families::parts::{DEFAULT_THETA, bare_names, named};
use crate::model::spec::{
    Activation, BlockShape, Mlp, MlpNames, ModelSpec, Positions, QkvNames, RopePairing, RopeScaling,
    WeightNames,
};

pub(super) const FAMILY: Family =
    Family { name: "gptj", architectures: &["GPTJForCausalLM"], model_types: &["gptj"], from_config };

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    config.require_flag("rotary")?;
    let sizes = Sizes::read(config, &["n_layer"], &["n_embd"], &["n_head"])?;
    let max_positions = config.required_size("n_positions")?;
    let positions = Positions::Rope {
        theta: DEFAULT_THETA,
        rotary_dim: config.size_unless_null("rotary_dim", 64)?.unwrap_or(sizes.head_dim),
        pairing: RopePairing::Interleaved,
        scaling: RopeScaling::None,
        local: None,
    };
    let epsilon = config.epsilon("layer_norm_epsilon", 1e-5)?;
    let spec = sizes.describe("gptj", max_positions, positions, epsilon, names());
    Ok(ModelSpec {
        intermediate_size: config.size("n_inner")?.unwrap_or(spec.intermediate_size),
        block: BlockShape::Parallel,
        mlp: Mlp::Plain { activation: config.activation("activation_function", Activation::GeluTanh)? },
        output: config.output(false)?,
        ..spec
    })
}

fn names() -> WeightNames {
    let layer = "transformer.h.{layer}.";
    let embedding = "transformer.wte.weight".to_owned();
    let qkv = QkvNames::Separate {
        query: named(format!("{layer}attn.q_proj"), false),
        key: named(format!("{layer}attn.k_proj"), false),
        value: named(format!("{layer}attn.v_proj"), false),
    };
    let output = named(format!("{layer}attn.out_proj"), false);
    WeightNames {
        attention_norm: Some(named(format!("{layer}ln_1"), true)),
        mlp: Some(MlpNames::Plain {
            up: named(format!("{layer}mlp.fc_in"), true),
            down: named(format!("{layer}mlp.fc_out"), true),
        }),
        final_norm: Some(named("transformer.ln_f", true)),
        head: Some(named("lm_head", true)),
        ..bare_names(embedding, qkv, output)
    }
}
