//! What a model must compute and read per token, and what that is of a device's ceilings.

use inflight::backend::DType;
use inflight::model::ModelSpec;
use inflight::model::weights::Weights;

use super::args::BenchArgs;
use super::meter::cuda_device;
use crate::workload::Lengths;

/// Measured ceilings of cards: part of the name, bytes/s, bf16 FLOP/s of large matrix products.
const CARDS: [(&str, f64, Option<f64>); 2] =
    [("H100 80GB HBM3", 3.0e12, Some(798e12)), ("H200", 4.3e12, None)];

/// What a device can do at most, where that is known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ceilings {
    /// Bytes per second from memory.
    pub bytes_per_second: Option<f64>,
    /// Floating point operations per second.
    pub flops: Option<f64>,
}

impl Ceilings {
    /// What the command line says, else what was measured on cards like `device`.
    pub fn of(args: &BenchArgs, device: &str) -> Self {
        let card = cuda_device(device)
            .and_then(|(_, name)| CARDS.iter().find(|(part, ..)| name.contains(part)))
            .map_or(Self::default(), |&(_, bytes_per_second, flops)| Self {
                bytes_per_second: Some(bytes_per_second),
                flops,
            });
        Self {
            bytes_per_second: args.peak_bandwidth.map(|tera| tera * 1e12).or(card.bytes_per_second),
            flops: args.peak_flops.map(|tera| tera * 1e12).or(card.flops),
        }
    }

    /// For people; `None` where nothing is known.
    pub fn describe(&self) -> Option<String> {
        let bandwidth = self.bytes_per_second.map(|bytes| format!("{} TB/s", bytes / 1e12));
        let flops = self.flops.map(|flops| format!("{} TFLOP/s", flops / 1e12));
        let known: Vec<String> = bandwidth.into_iter().chain(flops).collect();
        (!known.is_empty()).then(|| known.join(", "))
    }
}

/// Costs of a model. Matrix products alone are counted, and attention in full, without windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelCosts {
    /// Per token of prompt or output: the layers' matrices.
    layer_flops: f64,
    /// Per token that is sampled: the head.
    head_flops: f64,
    /// Per token and token of its context.
    attention_flops: f64,
    /// Per step: everything but the embedding table, of which a token reads one row.
    weight_bytes: f64,
    /// Per step and token of the context.
    kv_bytes: f64,
}

impl ModelCosts {
    /// Costs with weights and KV cache in `dtype`.
    pub fn new(spec: &ModelSpec, dtype: DType) -> Self {
        let weights = Weights::plan(spec, dtype);
        let size_bytes = dtype.size_bytes() as f64;
        let embedding_bytes = weights.embedding.num_bytes() as f64;
        let head_bytes = weights.head.as_ref().map_or(embedding_bytes, |head| head.num_bytes() as f64);
        let all_bytes = weights.num_bytes() as f64;
        let is_tied = weights.head.is_none();
        let weight_bytes = if is_tied { all_bytes } else { all_bytes - embedding_bytes };
        let layers = spec.num_layers as f64;
        Self {
            // Norms and biases, a thousandth of all, count as if they were matrices.
            layer_flops: 2.0 * (weight_bytes - head_bytes) / size_bytes,
            head_flops: 2.0 * head_bytes / size_bytes,
            attention_flops: 4.0 * layers * spec.heads.query_width() as f64,
            weight_bytes,
            kv_bytes: 2.0 * layers * spec.heads.kv_width() as f64 * size_bytes,
        }
    }

    /// Floating point operations of a request's prompt, up to its first token.
    pub fn prompt_flops(&self, lengths: Lengths) -> f64 {
        let tokens = f64::from(lengths.input);
        tokens * self.layer_flops + self.head_flops + self.attention_flops * sum_to(tokens)
    }

    /// Floating point operations of a whole request. Its last token is not run.
    pub fn request_flops(&self, lengths: Lengths) -> f64 {
        let (input, output) = (f64::from(lengths.input), f64::from(lengths.output));
        let tokens = input + output - 1.0;
        tokens * self.layer_flops + output * self.head_flops + self.attention_flops * sum_to(tokens)
    }

    /// Bytes that a lone request reads after its first token, from step to step.
    pub fn decode_bytes(&self, lengths: Lengths) -> f64 {
        let (input, output) = (f64::from(lengths.input), f64::from(lengths.output));
        let contexts = sum_to(input + output - 1.0) - sum_to(input);
        (output - 1.0) * self.weight_bytes + contexts * self.kv_bytes
    }
}

/// 1 + 2 + ... + `count`.
fn sum_to(count: f64) -> f64 {
    count * (count + 1.0) / 2.0
}

#[cfg(test)]
mod tests {
    use inflight::format::Checkpoint;
    use inflight::model::load_spec;

    use super::*;

    fn spec(is_tied: bool) -> ModelSpec {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.json");
        let config = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
                "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
                "max_position_embeddings": 64, "tie_word_embeddings": {is_tied}}}"#
        );
        std::fs::write(&file, config).unwrap();
        load_spec(&Checkpoint::random(&file, 0)).unwrap()
    }

    #[test]
    fn costs_are_those_of_the_matrices() {
        // Query and output 64 x 64, key and value 32 x 64, three of the MLP 96 x 64.
        let matrices = 3 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64);
        let norms = 7 * 64 * 4;
        for is_tied in [false, true] {
            let costs = ModelCosts::new(&spec(is_tied), DType::Bf16);
            assert_eq!(costs.weight_bytes, f64::from(2 * matrices + norms + 2 * 300 * 64), "{is_tied}");
            assert_eq!(costs.layer_flops, f64::from(2 * matrices + norms));
            assert_eq!(costs.head_flops, f64::from(2 * 300 * 64));
            assert_eq!(costs.kv_bytes, f64::from(3 * 2 * 32 * 2));
            // Scores and values take a multiplication and an addition per element of a head each.
            assert_eq!(costs.attention_flops, f64::from(3 * 4 * 64));
        }
    }

    #[test]
    fn requests_add_up() {
        let costs = ModelCosts {
            layer_flops: 1e6,
            head_flops: 1e4,
            attention_flops: 1.0,
            weight_bytes: 10.0,
            kv_bytes: 1.0,
        };
        // Contexts 1, 2, 3 of the prompt; 4 and 5 after it.
        let lengths = Lengths { input: 3, output: 3 };
        assert_eq!(costs.prompt_flops(lengths), 3e6 + 1e4 + 6.0);
        assert_eq!(costs.request_flops(lengths), 5e6 + 3e4 + 15.0);
        assert_eq!(costs.decode_bytes(lengths), 2.0 * 10.0 + 9.0);
    }
}
