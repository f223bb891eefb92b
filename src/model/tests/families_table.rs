//! The README's table of families, made from what the other tests check. With INFLIGHT_REGENERATE=1 in the
//! environment it is written instead of compared.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::cases::{BF16_TOLERANCE, CASES, Case, GGUF_CASES};
use crate::backend::Feature;
use crate::model::TensorParallelGap;
use crate::model::spec::{ModelSpec, Positions};

/// What [`crate::backend::Backend::supports`] denies on CUDA.
const CUDA_LACKS: [Feature; 0] = [];

const BEGIN: &str =
    "<!-- Table of families, written by INFLIGHT_REGENERATE=1 cargo test --lib families_table -->\n";
const END: &str = "<!-- End of the table -->\n";

/// Models, the checkpoints that stand for them, the GGUF files, and the chat template.
type Row = (&'static str, &'static [&'static str], &'static [&'static str], &'static str);

/// Models for chats are published, and bring a template of their own.
const OWN: &str = "its own";
/// Models that complete text are all that is published.
const NONE: &str = "none";

const ROWS: [Row; 31] = [
    ("Llama 1, 2, 3; Code Llama, SmolLM, TinyLlama, Yi", &["llama", "llama_bias"], &[LLAMA_GGUF], OWN),
    ("DeepSeek LLM and Coder, dense", &["deepseek"], &[], OWN),
    ("Mistral", &["mistral"], &["mistral"], OWN),
    ("Mixtral", &["mixtral"], &["mixtral"], OWN),
    ("Qwen 1.5, 2, 2.5", &["qwen2", "qwen2_window"], &["qwen2"], OWN),
    ("Qwen 3", &["qwen3"], &["qwen3"], OWN),
    ("Qwen 1.5 MoE, 2 MoE", &["qwen2_moe"], &["qwen2moe"], OWN),
    ("Qwen 3 MoE", &["qwen3_moe"], &["qwen3moe"], OWN),
    ("Gemma 1", &["gemma"], &["gemma"], OWN),
    ("Gemma 2", &["gemma2"], &["gemma2"], OWN),
    ("Gemma 3, its text", &["gemma3", "gemma3_multimodal"], &["gemma3"], OWN),
    ("Phi-1, 1.5, 2", &["phi"], &["phi2"], NONE),
    ("Phi-3, Phi-4, with LongRoPE", &["phi3", "phi3_long", "phi4_mini"], &["phi3"], OWN),
    ("GLM-4 (glm, glm4)", &["glm", "glm4"], &[], OWN),
    ("ChatGLM 2, 3; GLM-4 (chatglm)", &["chatglm"], &[], OWN),
    ("Baichuan 1, 2 of 7B", &["baichuan_7b", "baichuan2_7b"], &[], OWN),
    ("Baichuan 1, 2 of 13B", &["baichuan_13b"], &[], OWN),
    ("InternLM2", &["internlm2"], &[], OWN),
    ("StableLM, StableLM 2", &["stablelm", "stablelm_parallel"], &[], OWN),
    ("OLMo 1", &["olmo", "olmo_clip"], &[], OWN),
    ("OLMo 2", &["olmo2"], &[], OWN),
    ("GPT-2, Cerebras-GPT", &["gpt2", "gpt2_published", "cerebras_gpt"], &["gpt2"], NONE),
    ("GPT-J", &["gptj"], &[], NONE),
    ("GPT-NeoX, Pythia", &["gpt_neox", "gpt_neox_sequential"], &["gptneox"], NONE),
    (
        "StarCoder; SantaCoder as gpt_bigcode",
        &["gpt_bigcode", "gpt_bigcode_multi_head"],
        &["starcoder"],
        NONE,
    ),
    ("StarCoder 2", &["starcoder2"], &["starcoder2"], OWN),
    (
        "Falcon 7B, 11B, 40B, 180B",
        &["falcon_7b", "falcon_11b", "falcon_40b"],
        &["falcon_7b", "falcon_40b"],
        OWN,
    ),
    ("Falcon RW", &["falcon_rw"], &[], NONE),
    ("MPT", &["mpt"], &[], OWN),
    ("BLOOM", &["bloom"], &["bloom"], NONE),
    ("OPT, except 350M and others named below", &["opt", "opt_published"], &[], NONE),
];

/// Llama's GGUF file has tests of its own.
const LLAMA_GGUF: &str = "../llama_tiny_gguf";

/// What a model asks of attention and MLP beyond what every backend does.
fn needs(spec: &ModelSpec) -> BTreeSet<&'static str> {
    let attention = &spec.attention;
    let needs = [
        ("ALiBi", Feature::Alibi, matches!(spec.positions, Positions::Alibi { .. })),
        ("the window", Feature::Window, attention.sliding_window.is_some()),
        ("the soft cap", Feature::ScoreSoftCap, attention.score_soft_cap.is_some()),
    ];
    let lacking =
        needs.into_iter().filter(|(_, feature, is_needed)| *is_needed && CUDA_LACKS.contains(feature));
    lacking.map(|(name, ..)| name).collect()
}

fn table() -> String {
    let mut table = String::from(
        "| Models | CPU | CUDA | GGUF | Chat template | Tensor-parallel ready |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for (models, cases, gguf, template) in ROWS {
        let specs: Vec<ModelSpec> = cases.iter().map(|case| Case::open(case).unwrap().spec).collect();
        let cuda = yes_or("lacks", specs.iter().flat_map(needs).collect());
        let gaps = specs.iter().flat_map(ModelSpec::tensor_parallel_gaps).map(TensorParallelGap::name);
        let parallel = yes_or("needs", gaps.collect());
        let gguf = if gguf.is_empty() { "" } else { "yes" };
        writeln!(table, "| {models} | yes | {cuda} | {gguf} | {template} | {parallel} |").unwrap();
    }
    table
}

/// Yes, or what is missing.
fn yes_or(verb: &str, missing: BTreeSet<&str>) -> String {
    match missing.is_empty() {
        true => "yes".to_owned(),
        false => format!("{verb} {}", missing.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

#[test]
fn every_case_stands_in_a_row() {
    let mut cases: Vec<&str> = ROWS.iter().flat_map(|(_, cases, ..)| cases.iter().copied()).collect();
    cases.sort_unstable();
    assert_eq!(cases, CASES);
    let mut files: Vec<&str> = ROWS.iter().flat_map(|(_, _, files, _)| files.iter().copied()).collect();
    files.retain(|file| *file != LLAMA_GGUF);
    files.sort_unstable();
    assert_eq!(files, GGUF_CASES);
}

/// How many cases are held to transformers' own error in bf16, and between which errors.
#[test]
fn the_readme_says_how_many_cases_may_be_off_further() {
    let checkpoints = CASES.map(|name| Case::open(name).unwrap().bf16_tolerance());
    let files = GGUF_CASES.map(|name| Case::open_gguf(name).unwrap().bf16_tolerance());
    let wider = |tolerances: &[f32]| tolerances.iter().filter(|&&error| error > BF16_TOLERANCE).count();
    let mut errors = [&checkpoints[..], &files].concat();
    errors.retain(|&error| error > BF16_TOLERANCE);
    errors.sort_by(f32::total_cmp);
    let sentence = format!(
        "{} of {} checkpoints and {} of {} GGUF files ({:.1e} to {:.1e})",
        wider(&checkpoints),
        CASES.len(),
        wider(&files),
        GGUF_CASES.len(),
        errors[0],
        errors[errors.len() - 1],
    );
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let readme = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(readme.contains(&sentence), "README.md does not say {sentence:?}");
}

#[test]
fn the_readme_has_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the beginning of the table is marked");
    let (recorded, after) = rest.split_once(END).expect("the end of the table is marked");
    let table = table();
    if std::env::var_os("INFLIGHT_REGENERATE").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert!(
        recorded == table,
        "README.md has another table; INFLIGHT_REGENERATE=1 writes this one:\n{table}"
    );
}
