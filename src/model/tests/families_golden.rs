//! A tiny checkpoint of every family and GGUF architecture: its logits are those of transformers, however its tokens
//! are batched and whatever the backend pads.

use super::cases::{BF16_TOLERANCE, CASES, Case, GGUF_CASES, Runner, golden, report};
use super::loading::edited;
use crate::backend::DType;
use crate::backend::cpu::Cpu;
use crate::format::Checkpoint;
use crate::model::families::load_spec;

/// Tokens in a KV block: small and odd, so that the prompt spans many blocks and ends inside one.
const BLOCK_SIZE: usize = 5;
/// Error of a logit over the largest one: what is asked for in f32, and what another order of the same sums may make
/// of it.
const F32_TOLERANCE: f32 = 2e-4;
const ORDER_TOLERANCE: f32 = 2e-5;

/// Runs `check` on every case on the CPU and reports all failures together.
fn check_all(dtype: DType, check: impl Fn(&mut Runner<'_, Cpu>) -> Result<f32, String>) {
    report(&CASES, |name| {
        let case = Case::open(name)?;
        check(&mut Runner::load(&case, Cpu::new(1).unwrap(), dtype, BLOCK_SIZE)?).map(drop)
    });
}

#[test]
fn every_directory_is_a_case() {
    for (folder, cases) in [("families", &CASES[..]), ("gguf", &GGUF_CASES)] {
        let entries = std::fs::read_dir(golden(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, cases);
    }
}

#[test]
fn logits_in_f32_are_those_of_transformers() {
    check_all(DType::F32, |runner| runner.check_logits(F32_TOLERANCE));
}

/// Compares a case in bf16 on every instruction set of this processor. One that rounds activations to bf16 too is
/// allowed what a GPU is.
fn check_bf16(case: &Case) -> Result<(), String> {
    for cpu in Cpu::each_instruction_set() {
        let tolerance = if cpu.rounds_inputs() { case.bf16_tolerance() } else { BF16_TOLERANCE };
        let name = cpu.instruction_set();
        let checked = Runner::load(case, cpu, DType::Bf16, BLOCK_SIZE)?.check_logits(tolerance);
        checked.map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

#[test]
fn logits_in_bf16_are_close_to_those_of_transformers() {
    report(&CASES, |name| check_bf16(&Case::open(name)?));
}

#[test]
fn padding_leaves_logits_as_they_are() {
    let check = |case: Case| {
        let cpu = Cpu::new(1).unwrap().padded(7, 3);
        Runner::load(&case, cpu, DType::F32, BLOCK_SIZE)?.check_logits(F32_TOLERANCE).map(drop)
    };
    report(&CASES, |name| check(Case::open(name)?));
    report(&GGUF_CASES, |name| check(Case::open_gguf(name)?));
}

#[test]
fn gguf_files_have_the_logits_of_transformers() {
    report(&GGUF_CASES, |name| {
        let case = Case::open_gguf(name)?;
        Runner::load(&case, Cpu::new(1).unwrap(), DType::F32, BLOCK_SIZE)?.check_logits(F32_TOLERANCE)?;
        check_bf16(&case)
    });
}

/// Models without a head are published without the prefix that a model with one puts before its part.
#[test]
fn bare_models_have_the_logits_of_their_checkpoints() {
    let shorten = |name: &mut String| {
        let prefixes = ["model.", "transformer.", "gpt_neox."];
        let rest = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).map(str::to_owned);
        *name = rest.unwrap_or_else(|| name.clone());
    };
    report(&CASES, |name| {
        let bare = edited(&format!("families/{name}"), |tensors| {
            tensors.iter_mut().for_each(|(name, ..)| shorten(name));
        });
        let mut case = Case::open(name)?;
        case.checkpoint = Checkpoint::open(bare.path()).unwrap();
        case.spec = load_spec(&case.checkpoint).map_err(|error| error.to_string())?;
        Runner::load(&case, Cpu::new(1).unwrap(), DType::F32, BLOCK_SIZE)?.check_logits(F32_TOLERANCE)?;
        Ok(())
    });
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    check_all(DType::F32, |runner| runner.check_continuation(F32_TOLERANCE).map(|()| 0.0));
}

#[test]
fn prompts_of_every_length_agree_with_decoding_and_with_chunks() {
    check_all(DType::F32, |runner| runner.check_lengths(ORDER_TOLERANCE));
}

#[test]
fn sequences_of_one_batch_agree_with_each_alone() {
    check_all(DType::F32, |runner| runner.check_batches(true, ORDER_TOLERANCE));
}
