use super::*;
use crate::error::Status;

const VOCAB_SIZE: usize = 100;

fn resolve(params: &SamplingParams) -> Result<SlotState> {
    params.resolve(&GenerationDefaults::default(), VOCAB_SIZE)
}

/// The message of the error that `change` of the default parameters causes.
fn message(change: impl FnOnce(&mut SamplingParams)) -> String {
    let mut params = SamplingParams::default();
    change(&mut params);
    let error = resolve(&params).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    error.message().to_owned()
}

#[test]
fn nothing_given_is_greedy() {
    let state = resolve(&SamplingParams { seed: Some(7), ..Default::default() }).unwrap();
    let expected = SlotState {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: vec![],
        suppressed_tokens: vec![],
        min_tokens: 0,
        seed: 7,
        num_logprobs: None,
        prompt: vec![],
        output: vec![],
    };
    assert_eq!(state, expected);
}

#[test]
fn callers_overrule_the_model() {
    let defaults =
        GenerationDefaults { temperature: 0.6, top_k: 40, top_p: Some(0.9), repetition_penalty: Some(1.1) };
    let state = SamplingParams::default().resolve(&defaults, VOCAB_SIZE).unwrap();
    assert_eq!((state.temperature, state.top_k, state.top_p), (0.6, 40, 0.9));
    assert_eq!(state.repetition_penalty, 1.1);

    let params = SamplingParams {
        temperature: Some(0.0),
        top_k: Some(0),
        top_p: Some(1.0),
        repetition_penalty: Some(1.0),
        ..Default::default()
    };
    let state = params.resolve(&defaults, VOCAB_SIZE).unwrap();
    assert_eq!((state.temperature, state.top_k, state.top_p), (0.0, 0, 1.0));
    assert_eq!(state.repetition_penalty, 1.0);
}

#[test]
fn ends_of_the_ranges_are_allowed() {
    let params = SamplingParams {
        temperature: Some(100.0),
        top_k: Some(u32::MAX),
        top_p: Some(f32::MIN_POSITIVE),
        min_p: 1.0,
        repetition_penalty: Some(100.0),
        presence_penalty: -100.0,
        frequency_penalty: 100.0,
        logit_bias: (0..VOCAB_SIZE as u32).map(|token| (token, f32::MAX)).collect(),
        seed: Some(u64::MAX),
        num_logprobs: Some(MAX_LOGPROBS),
    };
    let state = resolve(&params).unwrap();
    assert_eq!((state.temperature, state.min_p, state.num_logprobs), (100.0, 1.0, Some(20)));
    assert_eq!(state.logit_bias, params.logit_bias);
}

#[test]
fn bad_numbers_are_refused_by_name() {
    type Set = fn(&mut SamplingParams, f32);
    let fields: [(&str, &str, &[f32], Set); 6] = [
        ("temperature", "[0, 100]", &[-0.1, 100.1], |params, x| params.temperature = Some(x)),
        ("top_p", "(0, 1]", &[0.0, -0.5, 1.001], |params, x| params.top_p = Some(x)),
        ("min_p", "[0, 1]", &[-0.001, 1.5], |params, x| params.min_p = x),
        ("repetition_penalty", "(0, 100]", &[0.0, -1.0, 101.0], |params, x| {
            params.repetition_penalty = Some(x)
        }),
        ("presence_penalty", "[-100, 100]", &[-100.5, 100.5], |params, x| params.presence_penalty = x),
        ("frequency_penalty", "[-100, 100]", &[-100.5, 100.5], |params, x| params.frequency_penalty = x),
    ];
    for (field, range, values, set) in fields {
        for &value in values.iter().chain(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
            let message = message(|params| set(params, value));
            assert_eq!(message, format!("{field} is {value}; it must be in {range}"));
        }
    }
    assert_eq!(message(|params| params.num_logprobs = Some(21)), "num_logprobs is 21; it must be in [0, 20]");
}

#[test]
fn bad_defaults_of_the_model_are_refused_by_name() {
    let defaults = GenerationDefaults { top_p: Some(1.5), ..Default::default() };
    let error = SamplingParams::default().resolve(&defaults, VOCAB_SIZE).unwrap_err();
    assert_eq!(error.message(), "top_p is 1.5; it must be in (0, 1]");
    let params = SamplingParams { top_p: Some(0.5), ..Default::default() };
    assert!(params.resolve(&defaults, VOCAB_SIZE).is_ok());
}

#[test]
fn bad_tokens_and_biases_are_refused_by_name() {
    assert_eq!(
        message(|params| params.logit_bias = vec![(99, 1.0), (100, 1.0)]),
        "logit_bias[1]: token 100 is outside the vocabulary; ids must be below 100"
    );
    assert_eq!(
        message(|params| params.logit_bias = vec![(5, f32::NAN)]),
        "logit_bias[0] is NaN; it must be finite"
    );
    assert_eq!(
        message(|params| params.logit_bias = vec![(5, f32::NEG_INFINITY)]),
        "logit_bias[0] is -inf; it must be finite"
    );
    assert_eq!(
        message(|params| params.logit_bias = vec![(5, 1.0), (6, 1.0), (5, 1.0)]),
        "logit_bias[2]: token 5 has a bias already; give each token once"
    );
    assert_eq!(
        message(|params| params.logit_bias = vec![(0, 0.0); MAX_LOGIT_BIASES + 1]),
        "logit_bias has 1025 entries; at most 1024 are allowed"
    );
}

#[test]
fn seeds_are_fresh_unless_given() {
    let fresh: HashSet<u64> = (0..100).map(|_| resolve(&SamplingParams::default()).unwrap().seed).collect();
    assert_eq!(fresh.len(), 100);
}
