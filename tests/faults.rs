//! Every call of the backend fails once, in several scenarios, and whatever happens every accepted request gets
//! exactly one terminal event, its tokens up to there are those of a run without a fault, and the engine ends.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use inflight::backend::cpu::Cpu;
use inflight::backend::faulty::{FaultKind, FaultPlan, Faulty, Operation};
use inflight::backend::{BackendLimits, DType};
use inflight::engine::executor::ModelExecutor;
use inflight::engine::{EngineFacts, EngineParts, Event, EventKind, FinishReason, MemoryPlan, RequestId};
use inflight::format::Checkpoint;
use inflight::model::decoder::{Decoder, DecoderConfig};
use inflight::model::families::load_spec;
use inflight::model::load::LoadOptions;
use inflight::token::Tokenizer;
use inflight::{Engine, EngineOptions, Prompt, Request, Result, Status};

const VOCAB: u32 = 89;
const PATIENCE: Duration = Duration::from_secs(20);

/// What a scenario asks of the engine.
struct Scenario {
    name: &'static str,
    max_num_sequences: usize,
    max_batched_tokens: usize,
    num_kv_blocks: usize,
    pipeline_depth: usize,
    requests: Vec<Request>,
    /// Requests to cancel once the first event has come.
    cancelled: Vec<usize>,
}

fn request(index: u32, prompt_len: u32, max_tokens: u32) -> Request {
    let prompt = (0..prompt_len).map(|position| (position * 5 + index * 7 + 1) % VOCAB).collect();
    Request { max_tokens, ignore_eos: true, ..Request::new(Prompt::Tokens(prompt)) }
}

fn with(mut request: Request, change: impl FnOnce(&mut Request)) -> Request {
    change(&mut request);
    request
}

fn scenarios() -> Vec<Scenario> {
    let base = |name, requests| Scenario {
        name,
        max_num_sequences: 4,
        max_batched_tokens: 32,
        num_kv_blocks: 16,
        pipeline_depth: 1,
        requests,
        cancelled: Vec::new(),
    };
    let plain = || (0..3).map(|index| request(index, 5, 4)).collect::<Vec<_>>();
    let sampling = |change: fn(&mut Request)| plain().into_iter().map(|r| with(r, change)).collect();
    vec![
        base("one request", vec![request(0, 3, 5)]),
        base("a batch", plain()),
        base("more requests than slots", (0..7).map(|index| request(index, 4, 3)).collect()),
        Scenario { max_batched_tokens: 5, ..base("chunks", vec![request(0, 17, 3), request(1, 9, 3)]) },
        Scenario { num_kv_blocks: 3, ..base("preemption", (0..3).map(|i| request(i, 12, 12)).collect()) },
        Scenario { pipeline_depth: 2, ..base("steps planned ahead", plain()) },
        Scenario { cancelled: vec![0, 2], ..base("cancels", (0..3).map(|i| request(i, 5, 9)).collect()) },
        base("penalties", sampling(|r| r.sampling.repetition_penalty = Some(1.3))),
        base("log-probabilities", sampling(|r| r.sampling.num_logprobs = Some(3))),
        base(
            "random sampling",
            sampling(|r| {
                (r.sampling.temperature, r.sampling.top_p, r.sampling.seed) =
                    (Some(1.5), Some(0.9), Some(11));
            }),
        ),
        base("stop tokens", sampling(|r| r.stop_tokens = (0..VOCAB).step_by(3).collect())),
        base("priorities", (0..5).map(|i| with(request(i, 6, 3), |r| r.priority = i as i32 % 2)).collect()),
    ]
}

/// An engine on a tiny random model behind a faulty backend; also the count of backend calls.
fn engine(scenario: &Scenario, plan: FaultPlan) -> Result<(Engine, Arc<AtomicU64>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama_tiny_gqa_tied");
    let checkpoint = Checkpoint::open(&path)?;
    let spec = load_spec(&checkpoint)?;
    let config = DecoderConfig {
        weight_dtype: DType::F32,
        kv_dtype: DType::F32,
        num_kv_blocks: scenario.num_kv_blocks,
        kv_block_size: 16,
        max_model_len: 48,
        limits: BackendLimits {
            max_tokens: scenario.max_batched_tokens,
            max_slots: scenario.max_num_sequences,
            vocab_size: VOCAB as usize,
        },
    };
    let backend = Faulty::new(Cpu::new(1)?, plan);
    let num_calls = backend.num_calls();
    let decoder = Decoder::load(backend, &spec, &checkpoint, &config, &LoadOptions::default())?;
    let memory = MemoryPlan {
        num_kv_blocks: scenario.num_kv_blocks as u64,
        kv_block_size: 16,
        max_model_len: 48,
        fits: true,
        ..MemoryPlan::default()
    };
    let mut options = EngineOptions::new(path);
    options.max_num_sequences = scenario.max_num_sequences;
    options.max_batched_tokens = scenario.max_batched_tokens;
    let parts = EngineParts {
        executor: Box::new(ModelExecutor::new(decoder, scenario.pipeline_depth)),
        facts: EngineFacts::new(&options, Tokenizer::bytes(), VOCAB as usize, memory, 1, "faulty".to_owned()),
    };
    Ok((Engine::start(parts, &options)?, num_calls))
}

/// Tokens and end of one request.
#[derive(Debug, Default, Clone, PartialEq)]
struct Outcome {
    tokens: Vec<u32>,
    end: Option<(FinishReason, Option<Status>)>,
}

/// What a run came to: accepted requests by their index in the scenario.
type Outcomes = HashMap<usize, Outcome>;

fn run(scenario: &Scenario, engine: &Engine) -> Outcomes {
    let mut index_of: HashMap<RequestId, usize> = HashMap::new();
    for (index, request) in scenario.requests.iter().enumerate() {
        match engine.enqueue(request.clone()) {
            Ok(id) => assert!(index_of.insert(id, index).is_none()),
            Err(error) => assert!(is_fault(error.status()), "{}: {error}", scenario.name),
        }
    }
    let mut outcomes: Outcomes = index_of.values().map(|&index| (index, Outcome::default())).collect();
    let mut has_cancelled = false;
    let start = Instant::now();
    while outcomes.values().any(|outcome| outcome.end.is_none()) {
        assert!(start.elapsed() < PATIENCE, "{}: {outcomes:?}", scenario.name);
        let events = engine.poll(Some(Duration::from_millis(50))).expect("requests are open");
        let is_first = !events.is_empty() && !std::mem::replace(&mut has_cancelled, true);
        take(events, &index_of, &mut outcomes);
        if is_first {
            let ids = index_of.iter().filter(|(_, index)| scenario.cancelled.contains(index));
            ids.for_each(|(&id, _)| drop(engine.cancel(id)));
        }
    }
    engine.close();
    assert!(engine.poll(Some(Duration::ZERO)).is_err(), "{}: something follows the end", scenario.name);
    outcomes
}

fn take(events: Vec<Event>, index_of: &HashMap<RequestId, usize>, outcomes: &mut Outcomes) {
    for event in events {
        let outcome = outcomes.get_mut(&index_of[&event.request_id]).expect("accepted");
        assert!(outcome.end.is_none(), "an event follows the end");
        match event.kind {
            EventKind::Output(output) => outcome.tokens.extend(output.token_ids),
            EventKind::Finished(finished) => {
                outcome.end = Some((finished.reason, finished.error.map(|error| error.status())));
            }
        }
    }
}

fn is_fault(status: Status) -> bool {
    matches!(status, Status::DeviceLost | Status::DeviceOutOfMemory | Status::Internal)
}

/// Whether `faulty` is what a run without a fault could have been cut down to.
fn check(scenario: &Scenario, clean: &Outcomes, faulty: &Outcomes) {
    for (index, outcome) in faulty {
        let expected = &clean[index];
        let (reason, status) = outcome.end.expect("checked by run");
        let is_cancelled = scenario.cancelled.contains(index);
        let tokens = &outcome.tokens;
        // A request may be cancelled later than it was in the clean run, and then has more tokens.
        let common = tokens.len().min(expected.tokens.len());
        assert_eq!(tokens[..common], expected.tokens[..common], "{}: request {index}", scenario.name);
        match reason {
            FinishReason::Error => assert!(status.is_some_and(is_fault), "{}: {status:?}", scenario.name),
            _ if is_cancelled => {}
            _ => assert_eq!(outcome, expected, "{}: request {index}", scenario.name),
        }
    }
}

/// The calls of a run without a fault: those of loading, then all of them.
fn clean_run(scenario: &Scenario) -> (Outcomes, u64, u64) {
    let (engine, num_calls) = engine(scenario, FaultPlan::none()).unwrap();
    let num_load_calls = num_calls.load(Ordering::Relaxed);
    let outcomes = run(scenario, &engine);
    assert_eq!(outcomes.len(), scenario.requests.len());
    assert!(outcomes.values().all(|outcome| outcome.end.is_some_and(|(_, error)| error.is_none())));
    (outcomes, num_load_calls, num_calls.load(Ordering::Relaxed))
}

fn fail_every_call(kind: FaultKind) {
    let mut num_runs = 0;
    for scenario in scenarios() {
        let (clean, num_load_calls, num_calls) = clean_run(&scenario);
        for at_call in num_load_calls + 1..=num_calls {
            let (engine, _) = engine(&scenario, FaultPlan::new(at_call, kind)).unwrap();
            check(&scenario, &clean, &run(&scenario, &engine));
            assert!(engine.enqueue(request(0, 1, 1)).is_err());
            num_runs += 1;
        }
    }
    assert!(num_runs > 1000, "only {num_runs} calls were failed");
}

#[test]
fn a_lost_device_at_any_call_ends_every_request_once() {
    fail_every_call(FaultKind::DeviceLost);
}

#[test]
fn a_failed_call_at_any_call_ends_every_request_once() {
    fail_every_call(FaultKind::OutOfMemory);
}

#[test]
fn a_panic_at_any_call_ends_every_request_once() {
    fail_every_call(FaultKind::Panic);
}

#[test]
fn a_fault_while_loading_is_an_error_and_nothing_else() {
    let scenario = &scenarios()[0];
    let (_, num_load_calls, _) = clean_run(scenario);
    assert!(num_load_calls > 20);
    for at_call in 1..=num_load_calls {
        let error = engine(scenario, FaultPlan::new(at_call, FaultKind::DeviceLost)).err().unwrap();
        assert_eq!(error.status(), Status::DeviceLost);
        let error = engine(scenario, FaultPlan::new(at_call, FaultKind::OutOfMemory)).err().unwrap();
        assert_eq!(error.status(), Status::DeviceOutOfMemory);
        let panicked =
            catch_unwind(AssertUnwindSafe(|| engine(scenario, FaultPlan::new(at_call, FaultKind::Panic))));
        assert!(panicked.is_err());
    }
}

#[test]
fn bad_logits_end_the_one_request_that_got_them() {
    for row in 0..3 {
        for at_call in 1..=4 {
            let scenario = &scenarios()[1];
            let (clean, ..) = clean_run(scenario);
            let kind = FaultKind::CorruptLogits { row };
            let plan = FaultPlan { at_call, kind, operation: Some(Operation::Logits) };
            let (engine, _) = engine(scenario, plan).unwrap();
            let outcomes = run(scenario, &engine);
            let is_numeric =
                |outcome: &&Outcome| outcome.end == Some((FinishReason::Error, Some(Status::NumericError)));
            assert_eq!(outcomes.values().filter(is_numeric).count(), 1, "row {row}, logits {at_call}");
            for (index, outcome) in &outcomes {
                if !is_numeric(&outcome) {
                    assert_eq!(outcome, &clean[index], "row {row}, logits {at_call}");
                }
            }
        }
    }
}

#[test]
fn a_slow_step_delays_close_by_less_than_two_seconds() {
    let scenario = &scenarios()[1];
    let (_, num_load_calls, _) = clean_run(scenario);
    let plan = FaultPlan::new(num_load_calls + 9, FaultKind::Delay(Duration::from_secs(4)));
    let (engine, _) = engine(scenario, plan).unwrap();
    let id = engine.enqueue(request(0, 5, 9)).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    engine.close();
    assert!(start.elapsed() < Duration::from_secs(2), "close took {:?}", start.elapsed());
    let events = engine.poll(Some(Duration::ZERO)).unwrap();
    assert_eq!(events.last().map(|event| event.request_id), Some(id));
    assert!(matches!(&events.last().unwrap().kind, EventKind::Finished(end)
        if end.error.as_ref().is_some_and(|error| error.status() == Status::Closed)));
}
