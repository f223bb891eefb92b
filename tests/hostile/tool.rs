//! The built tool as a process of its own, with little memory and little time, on models in temporary folders.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

/// What a bad file or parameter may cost beside what the tool takes with a sound model.
const MEMORY_BYTES: u64 = 256 << 20;
/// Processor time of a refusal, in seconds. Tests are built with checks that a release does not have, and run
/// beside each other.
const CPU_SECONDS: f64 = if cfg!(debug_assertions) { 6.0 } else { 2.0 };
/// Seconds after which a run counts as stuck.
const PATIENCE: &str = "60";

/// A model directory that is sound until a test changes it.
pub struct Model(TempDir);

impl Model {
    /// Two layers of random weights, 89 rows of vocabulary, a tokenizer and a chat template.
    pub fn sound() -> Self {
        let model = Self(tempfile::tempdir().unwrap());
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(golden("llama_tiny_gqa_tied").join(file), model.file(file)).unwrap();
        }
        model.with_json("tokenizer.json", &tokenizer());
        model.with("chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
        model
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn with(&self, file: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.file(file), content).unwrap();
    }

    pub fn with_json(&self, file: &str, content: &Value) {
        self.with(file, content.to_string());
    }

    pub fn without(&self, file: &str) {
        std::fs::remove_file(self.file(file)).unwrap();
    }

    pub fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.file(file)).unwrap()).unwrap()
    }
}

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A small byte-level BPE tokenizer.
pub fn tokenizer() -> Value {
    let mut vocab = json!({"<s>": 0, "<unk>": 1, "</s>": 2, "ab": 60});
    for (index, c) in "abcdefghijklmnopqrstuvwxyzĠ0123456789".chars().enumerate() {
        vocab[c.to_string()] = (3 + index).into();
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    json!({
        "added_tokens": [
            {"id": 0, "content": "<s>", "special": true},
            {"id": 2, "content": "</s>", "special": true},
        ],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]], "unk_token": "<unk>"},
    })
}

/// How a run ended.
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    cpu_seconds: f64,
}

/// Runs the tool within the limits. The shell that sets them reports the time that the tool took.
pub fn run(arguments: &[&str]) -> Outcome {
    let script = "ulimit -v \"$1\"; shift; \"$@\" </dev/null; code=$?; echo >&2; times >&2; exit $code";
    let limit_kib = (baseline_bytes() + MEMORY_BYTES) / 1024;
    let output = Command::new("timeout")
        .args(["--signal=KILL", PATIENCE, "sh", "-c", script, "sh", &limit_kib.to_string()])
        .arg(env!("CARGO_BIN_EXE_inflight"))
        .args(arguments)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code().unwrap_or_else(|| panic!("{arguments:?} got stuck: {stderr}"));
    let times = stderr.lines().last().unwrap_or_default();
    let cpu_seconds = times.split_whitespace().map(seconds).sum();
    Outcome { code, stdout, stderr, cpu_seconds }
}

/// Reads `1m2.5s`.
fn seconds(time: &str) -> f64 {
    let (minutes, seconds) = time.trim_end_matches('s').split_once('m').unwrap_or_else(|| panic!("{time}"));
    60.0 * minutes.parse::<f64>().unwrap() + seconds.parse::<f64>().unwrap()
}

/// Address space of the tool while it serves a sound model, with all its threads.
fn baseline_bytes() -> u64 {
    static BASELINE: OnceLock<u64> = OnceLock::new();
    *BASELINE.get_or_init(|| {
        let model = Model::sound();
        let mut child = Command::new(env!("CARGO_BIN_EXE_inflight"))
            .args(["chat", model.path().to_str().unwrap(), "--max-tokens", "2", "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"abc\n").unwrap();
        let mut answer = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut answer).unwrap();
        assert!(answer.contains("\"finish_reason\""), "{answer}");
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
        drop(stdin);
        child.wait().unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    })
}

impl Outcome {
    /// Fails unless the run ended by itself, in time, and without a panic.
    pub fn assert_contained(&self, case: &str) {
        let Self { code, stderr, cpu_seconds, .. } = self;
        assert!((0..=1).contains(code), "{case}: exit code {code}: {stderr}");
        assert!(!stderr.contains("panicked"), "{case}: {stderr}");
        assert!(*cpu_seconds < CPU_SECONDS, "{case}: took {cpu_seconds} s: {stderr}");
    }

    /// Fails unless the run ended with exit code 1 and an error that holds all `words`.
    pub fn assert_refused(&self, case: &str, words: &[&str]) {
        self.assert_contained(case);
        let Self { code, stdout, stderr, .. } = self;
        assert_eq!(*code, 1, "{case}: it was accepted: {stdout}{stderr}");
        assert!(stderr.starts_with("error: "), "{case}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{case}: no {word:?} in: {stderr}");
        }
        assert!(stderr.len() < 4000, "{case}: an error of {} bytes", stderr.len());
    }
}

/// Continues a prompt, which needs every part of the model.
pub fn generate(model: &Path) -> Outcome {
    run(&["generate", model.to_str().unwrap(), "--prompt", "abc", "--max-tokens", "2"])
}

/// Answers a message, which needs the chat template too.
pub fn answer(model: &Path) -> Outcome {
    run(&["generate", model.to_str().unwrap(), "--chat", "abc", "--max-tokens", "2"])
}

/// `generate` must refuse the model with an error that holds `words`; `inspect` and `plan`, which read less of
/// it, must at least stay within their limits.
pub fn assert_refused(case: &str, model: &Path, words: &[&str]) {
    generate(model).assert_refused(case, words);
    for command in ["inspect", "plan"] {
        run(&[command, model.to_str().unwrap()]).assert_contained(&format!("{command}: {case}"));
    }
}
