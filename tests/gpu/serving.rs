//! The whole engine on the device, on random weights: many requests of every kind, the memory it takes, and a
//! device that is lost under it.

use std::collections::HashMap;
use std::io::Write;

use inflight::backend::cuda::Cuda;
use inflight::engine::{EventKind, FinishReason};
use inflight::{Engine, EngineOptions, Prompt, Request, SamplingParams, Status};

use crate::rig::{Random, is_small};

const VOCAB: u32 = 2000;

/// Options of an engine on a small Llama; the file that describes it lives as long as the second value.
pub fn options() -> (EngineOptions, tempfile::NamedTempFile) {
    let mut file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
    });
    file.write_all(config.to_string().as_bytes()).unwrap();
    let mut options = EngineOptions::new(file.path());
    options.random_weights = Some(1);
    options.device = "cuda:0".to_owned();
    options.max_num_sequences = 48;
    options.max_batched_tokens = 256;
    (options, file)
}

/// A request of random lengths and parameters, some of which only the slow path samples.
fn request(random: &mut Random) -> Request {
    let length = 1 + random.below(300);
    let prompt = (0..length).map(|_| random.below(VOCAB as usize) as u32).collect();
    let mut request = Request::new(Prompt::Tokens(prompt));
    request.max_tokens = 1 + random.below(60) as u32;
    request.ignore_eos = true;
    request.priority = random.below(3) as i32;
    request.sampling = SamplingParams {
        temperature: Some([0.0, 0.8, 1.5][random.below(3)]),
        top_k: Some([0, 5, 50][random.below(3)]),
        top_p: Some([1.0, 0.9][random.below(2)]),
        repetition_penalty: Some([1.0, 1.2][random.below(2)]),
        seed: Some(random.next()),
        ..SamplingParams::default()
    };
    if random.below(4) == 0 {
        request.sampling.logit_bias = vec![(random.below(VOCAB as usize) as u32, 5.0)];
    }
    if random.below(4) == 0 {
        request.sampling.num_logprobs = Some(random.below(5) as u32);
    }
    request
}

#[test]
fn a_thousand_mixed_requests_with_cancels_leave_the_pool_whole() {
    let (mut options, _file) = options();
    // Room for about 20 sequences, so that some are preempted.
    options.kv_cache_bytes = 4 << 20;
    let engine = Engine::create(&options).unwrap();
    let mut random = Random(11);
    let mut expected: HashMap<u64, (u32, u32)> = HashMap::new();
    let (mut num_cancelled, mut num_complete) = (0, 0);
    // Tools that watch every launch have no memory for those of all.
    let num_requests = if is_small() { 60 } else { 1000 };
    for _ in 0..num_requests {
        let request = request(&mut random);
        let max_tokens = request.max_tokens;
        expected.insert(engine.enqueue(request).unwrap(), (max_tokens, 0));
    }
    while !expected.is_empty() {
        for event in engine.poll(None).unwrap() {
            let (max_tokens, num_tokens) = expected.get_mut(&event.request_id).expect("ends once");
            match event.kind {
                EventKind::Output(output) => {
                    assert!(output.token_ids.iter().all(|&token| token < VOCAB));
                    *num_tokens += output.token_ids.len() as u32;
                    if random.below(100) == 0 {
                        engine.cancel(event.request_id).unwrap();
                    }
                }
                EventKind::Finished(finished) => {
                    match finished.reason {
                        FinishReason::Length => {
                            assert_eq!(num_tokens, max_tokens);
                            num_complete += 1;
                        }
                        FinishReason::Cancelled => num_cancelled += 1,
                        other => panic!("{other:?}: {:?}", finished.error),
                    }
                    expected.remove(&event.request_id);
                }
            }
        }
    }
    let stats = engine.stats();
    println!("{num_complete} complete, {num_cancelled} cancelled, {} preemptions", stats.num_preemptions);
    let is_mixed = num_complete > num_requests / 2 && num_cancelled > num_requests / 20;
    assert!(is_mixed && (stats.num_preemptions > 0 || is_small()), "of {num_requests}");
    assert_eq!((stats.num_kv_blocks_used, stats.num_running, stats.num_waiting), (0, 0, 0));
}

#[test]
fn the_plan_is_what_creation_takes_and_destroying_gives_back() {
    let (mut options, _file) = options();
    options.kv_cache_bytes = 1 << 30;
    options.memory_limit_bytes = 3 << 30;
    let observer = Cuda::new(0).unwrap();
    // The driver keeps some memory of its own from the first use on.
    drop(Engine::create(&options).unwrap());
    let free_bytes = || observer.memory_info().unwrap().0;
    let before = free_bytes();
    let plan = Engine::plan(&options).unwrap();
    for round in 0..20 {
        let engine = Engine::create(&options).unwrap();
        let taken = before - free_bytes();
        let error = taken as f64 / plan.total_bytes() as f64 - 1.0;
        println!("round {round}: {taken} bytes taken, {} planned", plan.total_bytes());
        assert!(error.abs() < 0.02, "{taken} bytes taken, {} planned", plan.total_bytes());
        drop(engine);
        assert_eq!(free_bytes(), before, "after round {round}");
    }
    options.memory_limit_bytes = 1 << 30;
    let error = Engine::create(&options).map(drop).unwrap_err();
    assert_eq!(error.status(), Status::MemoryLimit, "{error}");
}

/// Blocks of the cache are no multiple of what the driver hands out.
#[test]
fn every_limit_is_kept_and_used() {
    let (mut options, _file) = options();
    options.max_num_sequences = 1024;
    options.max_batched_tokens = 2048;
    for step in 0..100 {
        options.memory_limit_bytes = (600 << 20) + step * 1_234_567;
        let plan = Engine::plan(&options).unwrap();
        let (limit, total) = (options.memory_limit_bytes, plan.total_bytes());
        assert!(plan.fits && total <= limit, "{total} bytes planned, limit {limit}");
        assert!(plan.num_kv_blocks > 1 && limit - total < 20 << 20, "{total} bytes planned, limit {limit}");
    }
}

/// Set in the child process of the next test.
const CHILD: &str = "INFLIGHT_TEST_LOSES_DEVICE";

/// The device is lost to the whole process, so a child of its own loses it.
#[test]
fn a_lost_device_ends_requests_and_the_host_lives() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serving::child_that_loses_the_device", "--ignored", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("the host lives"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "run as a child of a_lost_device_ends_requests_and_the_host_lives"]
fn child_that_loses_the_device() {
    assert!(std::env::var(CHILD).is_ok(), "this process would lose its device");
    let (options, _file) = options();
    let engine = Engine::create(&options).unwrap();
    let mut request = request(&mut Random(3));
    request.max_tokens = 700;
    engine.enqueue(request.clone()).unwrap();
    assert!(!engine.poll(None).unwrap().is_empty(), "it runs");
    trap();
    let ended = loop {
        let finished = engine.poll(None).unwrap().into_iter().find_map(|event| match event.kind {
            EventKind::Finished(finished) => Some(finished),
            EventKind::Output(_) => None,
        });
        if let Some(finished) = finished {
            break finished;
        }
    };
    assert_eq!(ended.reason, FinishReason::Error);
    assert_eq!(ended.error.unwrap().status(), Status::DeviceLost);
    assert_eq!(engine.enqueue(request).unwrap_err().status(), Status::DeviceLost);
    drop(engine);
    let error = Engine::create(&options).map(drop).unwrap_err();
    println!("a new engine in this process: {error}");
    println!("the host lives");
}

/// Runs a kernel that traps, on a stream of its own in the context that the engine uses too.
fn trap() {
    use cudarc::driver::sys;
    const PTX: &std::ffi::CStr =
        c".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry die() { trap; }\n";
    let (mut context, mut module, mut function) =
        (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
    let none: *mut std::ffi::c_void = std::ptr::null_mut();
    // SAFETY: the context is retained before use; the source and the name are terminated strings.
    let results = unsafe {
        [
            sys::cuDevicePrimaryCtxRetain(&mut context, 0),
            sys::cuCtxSetCurrent(context),
            sys::cuModuleLoadData(&mut module, PTX.as_ptr().cast()),
            sys::cuModuleGetFunction(&mut function, module, c"die".as_ptr()),
            sys::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, none.cast(), none.cast(), none.cast()),
        ]
    };
    assert!(results.iter().all(|&result| result == sys::CUresult::CUDA_SUCCESS), "{results:?}");
}
