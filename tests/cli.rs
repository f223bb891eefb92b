//! The built command line tool, on the echo device and on a small real model.

mod common;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How a run of the tool ended.
struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Outcome {
    fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        Self {
            code: output.status.code().expect("ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Standard output of a run that must have gone well and quietly.
    fn ok(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{}", self.stdout);
        self.stdout
    }

    fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    fn json_lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn start(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inflight"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn run(arguments: &[&str]) -> Outcome {
    run_with_input(arguments, "")
}

fn run_with_input(arguments: &[&str], input: &str) -> Outcome {
    let mut child = start(arguments);
    let mut stdin = child.stdin.take().unwrap();
    // A tool that refuses its arguments ends without reading.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    Outcome::of(child)
}

/// `inflight generate` on the echo device.
fn echo(arguments: &[&str]) -> Outcome {
    run(&[&["generate", "none", "--device", "echo"], arguments].concat())
}

/// A subcommand on SmolLM2 with little memory.
fn smollm2(subcommand: &str, arguments: &[&str]) -> Outcome {
    let model = common::smollm2();
    let limits = ["--max-model-len", "256", "--max-sequences", "4", "--kv-cache", "64MiB"];
    run(&[&[subcommand, model.to_str().unwrap()], &limits[..], arguments].concat())
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

fn numbers(array: &Value) -> Vec<u64> {
    array.as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
}

#[test]
fn help_has_examples_and_exit_codes() {
    assert!(run(&["--help"]).ok().contains("Exit codes:"));
    for subcommand in ["generate", "chat", "bench", "plan", "inspect"] {
        assert!(run(&[subcommand, "--help"]).ok().contains("Examples:\n  inflight"), "{subcommand}");
    }
    assert_eq!(run(&["--version"]).ok(), format!("inflight {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn generate_prints_one_object() {
    let object = echo(&["--prompt-tokens", "72,105,33", "--max-tokens", "3", "--json"]).json();
    assert_eq!(keys(&object), ["prompt_tokens", "token_ids", "text", "finish_reason", "timings"]);
    assert_eq!(numbers(&object["prompt_tokens"]), [72, 105, 33]);
    assert_eq!(numbers(&object["token_ids"]), [72, 105, 33]);
    assert_eq!(object["text"], "Hi!");
    assert_eq!(object["finish_reason"], "length");
    assert_eq!(keys(&object["timings"]), ["queued_us", "first_token_us", "total_us"]);
    let us = |name: &str| object["timings"][name].as_u64().unwrap();
    assert!(us("queued_us") <= us("first_token_us") && us("first_token_us") <= us("total_us"));
}

#[test]
fn generate_streams_text() {
    assert_eq!(echo(&["--prompt", "Grüße 🌍"]).ok(), "Grüße 🌍\n");
    let from_stdin = run_with_input(&["generate", "none", "--device", "echo", "--prompt", "-"], "a\nb");
    assert_eq!(from_stdin.ok(), "a\nb\n");
    assert_eq!(echo(&["--prompt", "one two three", "--stop", " thr"]).ok(), "one two\n");
}

#[test]
fn requests_of_a_file_end_out_of_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("requests.jsonl");
    let long = "x".repeat(60);
    let lines = format!(
        "{{\"id\": \"long\", \"prompt\": \"{long}\"}}\n\n{{\"prompt_tokens\": [72, 105]}}\n\
         {{\"id\": 7, \"prompt\": \"{long}\", \"max_tokens\": 20}}\n"
    );
    std::fs::write(&file, lines).unwrap();
    // A step takes a millisecond, so that the requests meet in flight.
    let arguments =
        ["generate", "none", "--device", "echo:1000", "--prompts-file", file.to_str().unwrap(), "--json"];
    let outcome = run(&arguments);
    let objects = outcome.json_lines();
    outcome.ok();
    let order: Vec<u64> = objects.iter().map(|object| object["index"].as_u64().unwrap()).collect();
    assert_eq!(order, [1, 2, 0]);
    assert_eq!(objects[0].get("id"), None);
    assert_eq!((&objects[0]["text"], &objects[0]["finish_reason"]), (&"Hi".into(), &"stop".into()));
    assert_eq!((&objects[1]["id"], &objects[1]["finish_reason"]), (&7.into(), &"length".into()));
    assert_eq!(objects[1]["text"], "x".repeat(20));
    assert_eq!((&objects[2]["id"], &objects[2]["text"]), (&"long".into(), &long.into()));
}

#[test]
fn more_requests_than_the_queue_holds_all_end() {
    let input: String = (0..5000).map(|id| format!("{{\"id\": {id}, \"prompt_tokens\": [65]}}\n")).collect();
    let outcome = run_with_input(&["generate", "none", "--device", "echo", "--prompts-file", "-"], &input);
    let mut ids: Vec<u64> =
        outcome.json_lines().iter().map(|object| object["id"].as_u64().unwrap()).collect();
    outcome.ok();
    ids.sort_unstable();
    assert_eq!(ids, (0..5000).collect::<Vec<u64>>());
}

#[test]
fn a_bad_line_is_named_and_nothing_runs() {
    let arguments = ["generate", "none", "--device", "echo", "--prompts-file", "-"];
    let outcome = run_with_input(&arguments, "{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\", \"top_q\": 1}\n");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""));
    assert!(outcome.stderr.starts_with("error: standard input, line 3: "), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("top_q"), "{}", outcome.stderr);
    assert_eq!(run_with_input(&arguments, "\n").code, 2);
}

#[test]
fn a_refused_request_leaves_the_others_alone() {
    let arguments = ["generate", "none", "--device", "echo", "--prompts-file", "-"];
    let outcome = run_with_input(
        &arguments,
        "{\"prompt_tokens\": [65]}\n{\"prompt_tokens\": [99999]}\n{\"prompt\": \"b\", \"top_p\": 7}\n",
    );
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("2 of 3 requests failed"), "{}", outcome.stderr);
    let mut objects = outcome.json_lines();
    objects.sort_by_key(|object| object["index"].as_u64());
    assert_eq!(objects[0]["text"], "A");
    for (object, word) in [(&objects[1], "99999"), (&objects[2], "top_p")] {
        assert_eq!(object["finish_reason"], "error");
        assert_eq!(keys(&object["error"]), ["code", "status", "message"]);
        assert!(object["error"]["message"].as_str().unwrap().contains(word), "{object}");
    }
}

#[test]
fn errors_say_what_to_do() {
    let prompt = ["--prompt", "a"];
    let generate = |arguments: &[&str]| run(&[&["generate"], arguments, &prompt].concat());
    for (outcome, code, words) in [
        (generate(&["/no/such/model"]), 1, ["/no/such/model", "hint: MODEL is a directory"]),
        (generate(&["none", "--dtype", "q4"]), 2, ["--dtype", "bf16"]),
        (generate(&["none", "--device", "tpu"]), 2, ["tpu", "cuda:0"]),
        (generate(&["none", "--kv-cache", "many"]), 2, ["--kv-cache", "512MiB"]),
        (generate(&["none", "--device", "echo", "--temperature", "1000"]), 2, ["temperature", "1000"]),
        (generate(&["none", "--device", "echo", "--max-tokens", "99999"]), 1, ["99999", "hint: shorten"]),
        (echo(&["--prompt-tokens", "1,x"]), 2, ["--prompt-tokens", "'x'"]),
        (echo(&["--prompt-tokens", "1,4000000000"]), 2, ["4000000000", "vocabulary"]),
        (echo(&["--prompts-file", "/no/such/file"]), 2, ["/no/such/file", "cannot read"]),
        (echo(&[]), 2, ["--prompt", "--prompts-file"]),
        (run(&["bench", "none", "--device", "echo", "--requests", "0"]), 2, ["--requests", "at least 1"]),
    ] {
        assert_eq!((outcome.code, outcome.stdout.as_str()), (code, ""), "{}", outcome.stderr);
        assert!(outcome.stderr.starts_with("error: "), "{}", outcome.stderr);
        for word in words {
            assert!(outcome.stderr.contains(word), "no {word:?} in: {}", outcome.stderr);
        }
    }
}

/// A generation of many steps on the echo device, 10 ms each.
const SLOW: [&str; 9] = [
    "generate",
    "none",
    "--device",
    "echo:10000",
    "--prompt-tokens",
    "65",
    "--ignore-eos",
    "--max-tokens",
    "900",
];

fn press_ctrl_c(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
}

#[test]
fn ctrl_c_cancels_and_reports() {
    let child = start(&[&SLOW[..], &["--json"]].concat());
    std::thread::sleep(Duration::from_millis(500));
    press_ctrl_c(&child);
    let outcome = Outcome::of(child);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (130, "error: interrupted\n"));
    let objects = outcome.json_lines();
    assert_eq!((objects.len(), &objects[0]["finish_reason"]), (1, &"cancelled".into()));
    assert!(objects[0]["timings"]["total_us"].as_u64().unwrap() < 8_000_000, "{}", objects[0]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = start(&SLOW);
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    drop(child.stdout.take());
    let outcome = Outcome::of(child);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
}

#[test]
fn chat_keeps_the_conversation() {
    let arguments = ["chat", "none", "--device", "echo", "--system", "S", "--json"];
    let outcome = run_with_input(&arguments, "one\n\ntwo\n/reset\n/rest\nthree\n/exit\nfour\n");
    assert_eq!(outcome.code, 0);
    assert!(outcome.stderr.contains("\"/rest\" is no command"), "{}", outcome.stderr);
    // The echo device gives back what the template made of the conversation.
    let texts: Vec<String> = outcome.json_lines().iter().map(|object| object["text"].to_string()).collect();
    assert_eq!(texts.len(), 3);
    assert!(texts[0].contains('S') && texts[0].contains("one") && !texts[0].contains("two"));
    assert!(texts[1].contains("one") && texts[1].contains("two"));
    assert!(texts[2].contains('S') && texts[2].contains("three") && !texts[2].contains("one"));
}

#[test]
fn bench_runs_exact_lengths() {
    // A step takes a millisecond, so that tokens come one by one.
    let arguments = ["bench", "none", "--device", "echo:1000", "--json"];
    let lengths = ["--requests", "5", "--input-len", "7", "--output-len", "9", "--repeats", "3"];
    let object = run(&[&arguments[..], &lengths].concat()).json();
    assert_eq!(object["results"][0]["runs"].as_array().unwrap().len(), 3);
    assert_eq!(object["config"]["requests"], "5 x 7 in, 9 out");
    assert_eq!(object["config"]["warmup"], "5 requests at once, not counted");
    let shown = &object["results"][0]["median_run"];
    let number = |name: &str| shown[name].as_f64().unwrap();
    let ratio = number("total_tokens_per_second") / number("output_tokens_per_second");
    assert!((ratio - 16.0 / 9.0).abs() < 1e-9);
    assert!((number("requests_per_second") * number("duration_s") - 5.0).abs() < 1e-9);
    assert!(shown["num_steps"].as_u64().unwrap() >= 9);
    for name in ["ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"] {
        let p = |percentile: &str| shown[name][percentile].as_f64().unwrap();
        assert!(0.0 <= p("p50") && p("p50") <= p("p90") && p("p90") <= p("p99"), "{name}: {shown}");
    }
    let text = run(&["bench", "none", "--device", "echo", "--single-stream"]).ok();
    assert!(text.contains("1 x 512 in, 128 out") && text.contains("decode tok/s"), "{text}");
}

#[test]
fn bench_runs_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    std::fs::write(&trace, "[[10, 2], [3, 1], [5000000, 1]]").unwrap();
    let bench = |limit: &str| {
        let arguments = ["bench", "none", "--device", "echo", "--json", "--requests", limit, "--trace"];
        run(&[&arguments[..], &[trace.to_str().unwrap()]].concat())
    };
    let object = bench("2").json();
    let run = &object["results"][0]["median_run"];
    let tokens = |name: &str| run[name].as_f64().unwrap() * run["duration_s"].as_f64().unwrap();
    assert!((tokens("total_tokens_per_second") - 16.0).abs() < 1e-9);
    assert!((tokens("output_tokens_per_second") - 3.0).abs() < 1e-9);
    let outcome = bench("3");
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("request 2 (5000000 tokens in, 1 out)"), "{}", outcome.stderr);
}

#[test]
fn bench_runs_closed_and_open_loops() {
    let bench = |arguments: &[&str]| {
        let fixed =
            ["bench", "none", "--device", "echo:2000", "--input-len", "4", "--output-len", "4", "--json"];
        run(&[&fixed[..], arguments].concat())
    };
    let number = |value: &Value| value.as_f64().unwrap();
    let closed = bench(&["--concurrency", "1,3", "--requests", "6", "--repeats", "2"]).json();
    let [one, three] = closed["results"].as_array().unwrap().as_slice() else { panic!("{closed}") };
    assert_eq!(one["load"], serde_json::json!({"kind": "closed", "concurrency": 1}));
    assert_eq!((one["runs"].as_array().unwrap().len(), three["runs"].as_array().unwrap().len()), (2, 2));
    // One at a time, requests share no step: 1 for the prompt and its token, 3 for the others.
    let steps = |result: &Value| result["median_run"]["num_steps"].as_u64().unwrap();
    assert!(steps(one) >= 6 * 4 && steps(three) < steps(one), "{closed}");
    let range = &one["spread"]["duration_s"];
    assert!(number(&range["min"]) <= number(&one["median_run"]["duration_s"]), "{closed}");

    let open =
        bench(&["--rate", "100", "--requests", "20", "--slo-ttft", "10000", "--slo-tpot", "10000"]).json();
    let run = &open["results"][0]["median_run"];
    assert_eq!(open["results"][0]["load"]["rate"], 100.0);
    // Twenty gaps of 10 ms on average; the bound holds for this seed alone.
    assert!(number(&run["duration_s"]) > 0.1, "{open}");
    assert_eq!(run["goodput_requests_per_second"], run["requests_per_second"]);

    for (arguments, problem) in [
        (&["--concurrency", "0"][..], "--concurrency is at least 1"),
        (&["--rate", "0"], "--rate is 0; it must be above 0"),
        (&["--rate", "1", "--single-stream"], "cannot be used with"),
    ] {
        let refused = bench(arguments);
        assert!(refused.code == 2 && refused.stderr.contains(problem), "{}", refused.stderr);
    }
}

/// A `config.json` of a small model, without weights.
const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 48, "intermediate_size": 80,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 301,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": false}"#;

#[test]
fn bench_makes_weights_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("some_model.json");
    let lengths = ["--requests", "3", "--input-len", "20", "--output-len", "5"];
    let bench = |config: &str| {
        std::fs::write(&file, config).unwrap();
        let arguments = ["bench", "--device", "cpu", "--random-weights", file.to_str().unwrap(), "--json"];
        run(&[&arguments[..], &lengths].concat())
    };
    let object = bench(CONFIG).json();
    assert_eq!(object["config"]["requests"], "3 x 20 in, 5 out");
    assert_eq!(object["config"]["weights"], "random");
    let startup = |key: &str| object[key].as_f64().unwrap();
    assert!(0.0 < startup("creation_s") && startup("creation_s") < startup("first_token_s"));
    assert!(object["results"][0]["median_run"]["output_tokens_per_second"].as_f64().unwrap() > 0.0);
    let too_long = bench(&CONFIG.replace("64", "24"));
    assert_eq!(too_long.code, 1);
    assert!(too_long.stderr.contains("request 0 (20 tokens in, 5 out)"), "{}", too_long.stderr);
    let incomplete = bench(&CONFIG.replace("vocab_size", "vocab"));
    assert_eq!(incomplete.code, 1);
    let message = incomplete.stderr;
    assert!(message.contains("some_model.json") && message.contains("vocab_size"), "{message}");
    assert_eq!(run(&["bench", "model", "--random-weights", "x.json"]).code, 2);
    assert_eq!(run(&["bench", "--requests", "3"]).code, 2);
}

#[test]
fn bench_tells_shares_of_what_the_device_can_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("some_model.json");
    // Heavy enough, with 40 steps of about a millisecond, that a run's first and last token do not arrive
    // together where a busy machine lets the bench look late.
    let config = CONFIG
        .replace(r#""hidden_size": 48"#, r#""hidden_size": 512"#)
        .replace(r#""intermediate_size": 80"#, r#""intermediate_size": 2048"#)
        .replace(r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 8"#);
    std::fs::write(&file, config).unwrap();
    let arguments = ["bench", "--device", "cpu", "--json", "--random-weights", file.to_str().unwrap()];
    let peaks = ["--peak-flops", "10", "--peak-bandwidth", "5"];
    let lengths = ["--input-len", "20", "--output-len", "41"];
    let shares = |load: &[&str], keys: &[&str]| {
        let object = run(&[&arguments[..], &peaks, &lengths, load].concat()).json();
        let median = &object["results"][0]["median_run"];
        for &key in keys {
            let percent = median[key].as_f64().unwrap_or_else(|| panic!("{key} in {median}"));
            assert!(percent > 0.0 && percent < 100.0, "{key}: {median}");
        }
    };
    shares(&["--requests", "3"], &["model_flops_percent"]);
    shares(&["--single-stream"], &["prompt_flops_percent", "decode_bandwidth_percent"]);
}

#[test]
fn plan_adds_up_and_says_what_does_not_fit() {
    let plan = smollm2("plan", &["--json"]).json();
    let bytes = |name: &str| plan[name].as_u64().unwrap();
    let parts = bytes("weights_bytes") + bytes("kv_cache_bytes") + bytes("workspace_bytes");
    assert_eq!((parts, &plan["fits"]), (bytes("total_bytes"), &true.into()));
    // 134,515,008 parameters of 2 bytes and not much beside them.
    assert!((269_030_016..290_000_000).contains(&bytes("weights_bytes")), "{plan}");
    assert!(bytes("kv_cache_bytes") <= 64 << 20, "{plan}");
    assert!(smollm2("plan", &[]).ok().contains("KV cache"));
    let outcome = smollm2("plan", &["--memory-limit", "100MiB"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("--memory-limit"), "{}", outcome.stderr);
}

#[test]
fn inspect_shows_the_architecture() {
    let model = common::smollm2();
    let inspect = |arguments: &[&str]| run(&[&["inspect", model.to_str().unwrap()], arguments].concat());
    let spec: Value = inspect(&["--spec"]).json();
    assert_eq!((&spec["num_layers"], &spec["hidden_size"]), (&30.into(), &576.into()));
    assert!(serde_json::from_value::<inflight::model::ModelSpec>(spec).is_ok());
    let object = inspect(&["--json", "--tensors"]).json();
    assert_eq!(object["num_parameters"], 134_515_008);
    assert_eq!(object["tensors"].as_array().unwrap().len(), 272);
    assert_eq!(object["tokenizer"]["vocab_size"], 49152);
    assert_eq!(object["tokenizer"]["has_chat_template"], true);
    let text = inspect(&[]).ok();
    assert!(text.contains("9 query, 3 key-value, of 64") && text.contains("134.5 million"), "{text}");
}

#[test]
fn inspect_shows_every_family() {
    let families = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/families");
    for entry in std::fs::read_dir(families).unwrap() {
        let path = entry.unwrap().path();
        let inspect = |arguments: &[&str]| run(&[&["inspect", path.to_str().unwrap()], arguments].concat());
        let spec: Value = inspect(&["--spec"]).json();
        assert!(serde_json::from_value::<inflight::model::ModelSpec>(spec).is_ok(), "{}", path.display());
        let text = inspect(&[]).ok();
        assert!(text.contains("query") && text.contains("vocabulary"), "{}: {text}", path.display());
    }
}

/// The first of the prompts that the reference implementation continued.
fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2_greedy.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    golden["cases"][0].clone()
}

#[test]
fn a_real_model_continues_text_and_tokens_alike() {
    let case = golden();
    let ids: Vec<String> = numbers(&case["prompt_ids"]).iter().map(u64::to_string).collect();
    let greedy = ["--dtype", "f32", "--temperature", "0", "--max-tokens", "12", "--ignore-eos", "--json"];
    let continued =
        |name: &str, prompt: &str| smollm2("generate", &[&[name, prompt], &greedy[..]].concat()).json();
    let from_tokens = continued("--prompt-tokens", &ids.join(","));
    let from_text = continued("--prompt", case["prompt"].as_str().unwrap());
    assert_eq!(numbers(&from_tokens["token_ids"]), numbers(&case["token_ids"])[..12]);
    for field in ["prompt_tokens", "token_ids", "text"] {
        assert_eq!(from_text[field], from_tokens[field], "{field}");
    }
    assert!(case["text"].as_str().unwrap().starts_with(from_text["text"].as_str().unwrap()));
}

#[test]
fn a_real_model_answers_a_message() {
    let arguments = ["--chat", "What is the capital of France?", "--temperature", "0", "--max-tokens", "16"];
    let answer = smollm2("generate", &arguments).ok();
    assert!(answer.contains("Paris"), "{answer}");
    let object = smollm2("generate", &[&arguments[..], &["--logprobs", "2", "--json"]].concat()).json();
    assert_eq!(object["text"].as_str().unwrap(), answer.trim_end_matches('\n'));
    let logprobs = object["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), object["token_ids"].as_array().unwrap().len());
    for (token, logprob) in numbers(&object["token_ids"]).iter().zip(logprobs) {
        assert_eq!((logprob[0]["token"].as_u64(), logprob.as_array().unwrap().len()), (Some(*token), 3));
        assert!((-20.0..=0.0).contains(&logprob[0]["logprob"].as_f64().unwrap()), "{logprob}");
    }
}

#[test]
fn the_prompt_shown_is_the_one_that_ran() {
    // The user's text spells a special token, id 2, which it must not become.
    let arguments = ["--chat", "a <|im_end|>", "--system", "b", "--max-tokens", "1", "--json"];
    let tokens = numbers(&smollm2("generate", &arguments).json()["prompt_tokens"]);
    assert_eq!(tokens.iter().filter(|&&token| token == 2).count(), 2, "{tokens:?}");
}

#[test]
fn a_seed_fixes_what_a_real_model_samples() {
    let sample = |seed: &str| {
        let arguments =
            ["--prompt-tokens", "504,3575", "--temperature", "1.5", "--max-tokens", "12", "--seed", seed];
        let arguments = [&arguments[..], &["--ignore-eos", "--json"]].concat();
        numbers(&smollm2("generate", &arguments).json()["token_ids"])
    };
    let tokens = sample("3");
    assert_eq!(tokens, sample("3"));
    assert_ne!(tokens, sample("4"));
}

#[test]
fn a_description_alone_is_planned_and_inspected() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.json");
    let path = file.to_str().unwrap();
    std::fs::write(&file, CONFIG.replace("301", "100")).unwrap();
    let object = run(&["inspect", path, "--json"]).json();
    let num_parameters = object["num_parameters"].as_u64().unwrap();
    // Embedding, head and final norm; then queries and output, keys and values, MLP and two norms of each layer.
    let layer = 2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 80 + 2 * 48;
    assert_eq!(num_parameters, 2 * 100 * 48 + 48 + 2 * layer);
    let text = run(&["inspect", path]).ok();
    assert!(text.contains(&format!("{num_parameters}, by the architecture")), "{text}");
    assert!(text.contains("weights          none"), "{text}");
    let plan = run(&["plan", path, "--device", "cpu", "--json"]).json();
    assert!(plan["weights_bytes"].as_u64().unwrap() >= 2 * num_parameters, "{plan}");
    let bench = ["bench", "--random-weights", path, "--device", "cpu", "--requests", "2", "--json"];
    let object = run(&[&bench[..], &["--input-len", "20", "--output-len", "5"]].concat()).json();
    assert!(object["results"][0]["median_run"]["output_tokens_per_second"].as_f64().unwrap() > 0.0);
    let refused = run(&["generate", path, "--device", "cpu", "--prompt", "x"]);
    assert!(refused.code == 1 && refused.stderr.contains("has no weights"), "{}", refused.stderr);
}

#[test]
fn a_spec_file_takes_the_place_of_a_models_own_words() {
    let model = common::smollm2();
    let (model, folder) = (model.to_str().unwrap(), tempfile::tempdir().unwrap());
    let file = folder.path().join("smol.json");
    let path = file.to_str().unwrap();
    assert_eq!(run(&["inspect", model, "--spec", "--output", path]).ok(), "");
    let mut spec: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    spec["max_positions"] = 100.into();
    std::fs::write(&file, spec.to_string()).unwrap();
    let plan = run(&["plan", model, "--spec", path, "--device", "cpu", "--json"]).json();
    assert_eq!(plan["max_model_len"], 100);
    let generate =
        ["generate", model, "--spec", path, "--device", "cpu", "--prompt", "The", "--max-tokens", "101"];
    let refused = run(&generate);
    assert!(refused.code == 1 && refused.stderr.contains("max_model_len 100"), "{}", refused.stderr);

    // Weights of another architecture are an error, after everything has been shown.
    spec["num_layers"] = 31.into();
    std::fs::write(&file, spec.to_string()).unwrap();
    let refused = run(&["inspect", model, "--spec-file", path]);
    assert!(refused.code == 1 && refused.stdout.contains("134.5 million"), "{}", refused.stdout);
    assert!(refused.stderr.contains("tensor \"blk.30.attn"), "{}", refused.stderr);
    let refused = run(&["inspect", model, "--spec-file", path, "--json"]);
    let object: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert!(refused.code == 1 && object["weights_error"]["status"] == "invalid model", "{object}");
    assert_eq!(run(&["plan", model, "--spec", path, "--device", "cpu"]).code, 1);

    std::fs::write(&file, "").unwrap();
    let refused = run(&["inspect", model, "--spec-file", path]);
    assert!(refused.code == 1 && refused.stderr.contains("the file is empty"), "{}", refused.stderr);
}

#[test]
fn inspect_shows_what_tells_models_apart() {
    let families = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/families/");
    for (family, lines) in [
        ("mixtral", &["experts          2 of 3", "softmax scores normalized", "gated, silu"][..]),
        (
            "gemma2",
            &[
                "sliding window   7 tokens, layers [0]",
                "score soft cap   3",
                "logit soft cap   5",
                "times 1 plus the weight",
                "times 6",
            ],
        ),
        ("qwen2_moe", &["shared expert", "gate sigmoid", "biases           qkv.query, qkv.key, qkv.value"]),
        ("qwen3", &["q/k norm         over each head", "biases           none", "epsilon 0.000001"]),
        ("gemma3", &["with a window theta", "score scale"]),
        ("bloom", &["embedding        normalized", "ALiBi, slopes to 2^-8", "layer norm, epsilon"]),
    ] {
        let text = run(&["inspect", &format!("{families}{family}")]).ok();
        for line in lines {
            assert!(text.contains(line), "no {line:?} in {family}:\n{text}");
        }
    }
}
