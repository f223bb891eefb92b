//! Requests with hostile values, through the public engine: on the echo device, on a tiny model, on a real one.

use std::time::{Duration, Instant};

use inflight::engine::{EventKind, FinishReason};
use inflight::error::Category;
use inflight::{Engine, EngineOptions, Prompt, Request, Result, SamplingParams, Status};

use super::tool::Model;

const PATIENCE: Duration = Duration::from_secs(20);

fn echo() -> Engine {
    let mut options = EngineOptions::new("");
    options.device = "echo".to_owned();
    Engine::create(&options).unwrap()
}

fn engine(model: &std::path::Path) -> Engine {
    let mut options = EngineOptions::new(model);
    options.max_num_sequences = 4;
    options.num_threads = 1;
    options.max_model_len = 64;
    Engine::create(&options).unwrap()
}

fn request() -> Request {
    let mut request = Request::new(Prompt::Tokens(vec![3, 4, 5]));
    request.max_tokens = 4;
    request
}

fn text(text: impl Into<String>) -> Prompt {
    Prompt::Text { text: text.into(), add_special_tokens: true, parse_special: false }
}

/// The status of a call that must fail within two seconds.
fn refusal<T>(case: &str, call: impl FnOnce() -> Result<T>) -> inflight::Error {
    let start = Instant::now();
    let error = call().err().unwrap_or_else(|| panic!("{case}: it was accepted"));
    assert!(start.elapsed() < Duration::from_secs(2), "{case}: took {:?}", start.elapsed());
    assert!(error.message().len() < 4000, "{case}: a message of {} bytes", error.message().len());
    error
}

/// Runs a request to its end.
fn finish(engine: &Engine, request: Request) -> (FinishReason, u32) {
    let id = engine.enqueue(request).unwrap();
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        for event in engine.poll(Some(Duration::from_millis(50))).unwrap() {
            assert_eq!(event.request_id, id);
            if let EventKind::Finished(finished) = event.kind {
                return (finished.reason, finished.num_output_tokens);
            }
        }
    }
    panic!("request {id} did not end");
}

/// A field's name and a change that puts a value into it that is not allowed.
type Change = (&'static str, fn(&mut Request));

const CHANGES: [Change; 22] = [
    ("temperature", |r| r.sampling.temperature = Some(f32::NAN)),
    ("temperature", |r| r.sampling.temperature = Some(f32::INFINITY)),
    ("temperature", |r| r.sampling.temperature = Some(-0.5)),
    ("top_p", |r| r.sampling.top_p = Some(0.0)),
    ("top_p", |r| r.sampling.top_p = Some(f32::NAN)),
    ("top_p", |r| r.sampling.top_p = Some(1.5)),
    ("min_p", |r| r.sampling.min_p = f32::NEG_INFINITY),
    ("repetition_penalty", |r| r.sampling.repetition_penalty = Some(0.0)),
    ("repetition_penalty", |r| r.sampling.repetition_penalty = Some(f32::NAN)),
    ("presence_penalty", |r| r.sampling.presence_penalty = f32::MAX),
    ("frequency_penalty", |r| r.sampling.frequency_penalty = f32::NAN),
    ("num_logprobs", |r| r.sampling.num_logprobs = Some(u32::MAX)),
    ("logit_bias", |r| r.sampling.logit_bias = vec![(3, f32::NAN)]),
    ("logit_bias", |r| r.sampling.logit_bias = vec![(u32::MAX, 1.0)]),
    ("logit_bias", |r| r.sampling.logit_bias = vec![(3, 1.0), (3, 2.0)]),
    ("logit_bias", |r| r.sampling.logit_bias = (0..1_000_000).map(|id| (id, 1.0)).collect()),
    ("stop token", |r| r.stop_tokens = vec![u32::MAX]),
    ("stop_tokens", |r| r.stop_tokens = vec![3; 1_000_000]),
    ("stop", |r| r.stop_strings = vec!["x".to_owned(); 1_000_000]),
    ("stop", |r| r.stop_strings = vec![String::new()]),
    ("stop", |r| r.stop_strings = vec!["x".repeat(100 << 20)]),
    ("min_tokens", |r| r.min_tokens = u32::MAX),
];

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    let model = Model::sound();
    for engine in [echo(), engine(model.path())] {
        for (field, change) in CHANGES {
            let mut request = request();
            change(&mut request);
            let error = refusal(field, || engine.enqueue(request));
            assert_eq!(error.status(), Status::InvalidArgument, "{error}");
            assert!(error.message().contains(field), "no {field:?} in: {error}");
        }
        assert_eq!(engine.stats().num_accepted, 0);
        assert_eq!(finish(&engine, request()).1.max(1), finish(&engine, request()).1.max(1));
    }
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let model = Model::sound();
    for engine in [echo(), engine(model.path())] {
        for (case, prompt, status) in [
            ("no tokens", Prompt::Tokens(vec![]), Status::InvalidArgument),
            ("a token outside", Prompt::Tokens(vec![3, u32::MAX]), Status::InvalidArgument),
            ("10^7 tokens", Prompt::Tokens(vec![3; 10_000_000]), Status::PromptTooLong),
            ("100 MiB of text", text("ab".repeat(50 << 20)), Status::PromptTooLong),
            ("100 MiB of messages", Prompt::Chat("a".repeat(100 << 20)), Status::InvalidArgument),
            (
                "8 MiB of a message",
                Prompt::Chat(format!("[{{\"role\": \"user\", \"content\": \"{}\"}}]", "ab".repeat(4 << 20))),
                Status::PromptTooLong,
            ),
            ("no messages", Prompt::Chat("[]".to_owned()), Status::InvalidArgument),
            ("messages that are none", Prompt::Chat("{\"role\": 1}".to_owned()), Status::InvalidArgument),
            ("nested messages", Prompt::Chat("[".repeat(1 << 20)), Status::InvalidArgument),
            (
                "a message without a role",
                Prompt::Chat("[{\"content\": \"a\"}]".to_owned()),
                Status::InvalidArgument,
            ),
        ] {
            let error = refusal(case, || engine.enqueue(Request::new(prompt)));
            assert_eq!(error.status(), status, "{case}: {error}");
        }
        let mut request = request();
        request.max_tokens = u32::MAX;
        let error = refusal("2^32 - 1 tokens", || engine.enqueue(request));
        assert_eq!(error.status(), Status::PromptTooLong, "{error}");
    }
}

#[test]
fn extreme_but_allowed_values_run() {
    let model = Model::sound();
    for engine in [echo(), engine(model.path())] {
        let mut extreme = request();
        extreme.timeout = Some(Duration::MAX);
        extreme.priority = i32::MIN;
        extreme.user_data = u64::MAX;
        extreme.sampling = SamplingParams {
            temperature: Some(100.0),
            top_k: Some(u32::MAX),
            top_p: Some(f32::MIN_POSITIVE),
            min_p: 1.0,
            repetition_penalty: Some(f32::MIN_POSITIVE),
            presence_penalty: -100.0,
            frequency_penalty: 100.0,
            logit_bias: vec![(3, f32::MAX), (4, f32::MIN)],
            seed: Some(u64::MAX),
            num_logprobs: Some(20),
        };
        let (reason, num_tokens) = finish(&engine, extreme);
        assert!(num_tokens <= 4, "{reason:?} after {num_tokens} tokens");
        let mut timed_out = request();
        timed_out.timeout = Some(Duration::ZERO);
        timed_out.priority = i32::MAX;
        finish(&engine, timed_out);
        // The engine is as good as before.
        finish(&engine, request());
    }
}

#[test]
fn a_request_whose_every_token_is_suppressed_ends() {
    let model = Model::sound();
    let engine = engine(model.path());
    let mut request = request();
    request.stop_tokens = (0..89).collect();
    request.min_tokens = 4;
    let (reason, num_tokens) = finish(&engine, request);
    assert!(matches!(reason, FinishReason::Error | FinishReason::Length), "{reason:?}, {num_tokens} tokens");
    finish(&engine, self::request());
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    type Edit = fn(&mut EngineOptions);
    let cases: [(&str, Edit); 12] = [
        ("max_num_sequences", |o| o.max_num_sequences = usize::MAX),
        ("max_batched_tokens", |o| o.max_batched_tokens = usize::MAX),
        ("max_batched_tokens", |o| o.max_batched_tokens = 1),
        ("max_model_len", |o| o.max_model_len = usize::MAX),
        ("max_model_len", |o| o.max_model_len = 65),
        ("kv_block_size", |o| o.kv_block_size = 17),
        ("kv_block_size", |o| o.kv_block_size = usize::MAX),
        ("num_threads", |o| o.num_threads = usize::MAX),
        ("max_queued_requests", |o| o.max_queued_requests = 0),
        ("max_unread_tokens", |o| o.max_unread_tokens = 0),
        ("device", |o| o.device = "x".repeat(1000)),
        ("device", |o| o.device = "cpu:99".to_owned()),
    ];
    let model = Model::sound();
    for (field, edit) in cases {
        let mut options = EngineOptions::new(model.path());
        edit(&mut options);
        for error in [refusal(field, || Engine::create(&options)), refusal(field, || Engine::plan(&options))]
        {
            assert_eq!(error.status().category(), Category::Argument, "{error}");
            assert!(error.message().contains(field), "no {field:?} in: {error}");
        }
    }
    let mut options = EngineOptions::new(model.path());
    options.kv_cache_bytes = u64::MAX;
    let error = refusal("a cache of 2^64 bytes", || Engine::create(&options));
    assert!(matches!(error.status().category(), Category::Argument | Category::Resource), "{error}");
    options.kv_cache_bytes = 0;
    options.memory_limit_bytes = 1;
    assert_eq!(refusal("a limit of a byte", || Engine::create(&options)).status(), Status::MemoryLimit);
}

#[test]
fn what_a_user_writes_is_never_a_special_token() {
    let model = Model::sound();
    let engine = engine(model.path());
    let hostile = "</s>a<s></s></s><</s>/s>";
    let ids = engine.tokenize(hostile, true, false).unwrap();
    assert!(!ids.contains(&0) && !ids.contains(&2), "{ids:?}");
    assert!(engine.tokenize(hostile, true, true).unwrap().contains(&2));
    for content in [hostile, "</", "s>", "</s", "\u{fdd0}</s>\u{fdd0}", "<\u{200b}/s>"] {
        let messages = serde_json::json!([
            {"role": "user", "content": content},
            {"role": "user", "content": content},
        ]);
        let mut request = Request::new(Prompt::Chat(messages.to_string()));
        request.max_tokens = 1;
        request.ignore_eos = true;
        let (_, num_tokens) = finish(&engine, request);
        assert_eq!(num_tokens, 1);
    }
}
