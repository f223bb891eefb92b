//! `ifl_request`: what a host asks for.

use std::ffi::c_char;
use std::time::Duration;

use super::error::ifl_error;
use super::ffi::{Caller, NUL_TERMINATED, Sized32, guard};
use super::queue::{QUEUES, ifl_queue};
use super::status::ifl_status;
use crate::engine::{Prompt, Request};
use crate::error::{Error, Result, Status};
use crate::sample::SamplingParams;

/// What the prompt of a request is, an ifl_prompt_kind_value.
///
/// Since 0.1.0.
pub type ifl_prompt_kind = i32;

/// Values of an ifl_prompt_kind.
///
/// Since 0.1.0.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum ifl_prompt_kind_value {
    /// prompt is text for the model to continue, as it stands.
    IFL_PROMPT_TEXT = 1,
    /// prompt is what a user says to a chat model; the model's chat template is put around it.
    IFL_PROMPT_USER = 2,
    /// prompt is a JSON array of chat messages, such as [{"role": "user", "content": "Hello"}], which the
    /// model's chat template renders. Content cannot spell special tokens. Malformed messages are
    /// IFL_INVALID_ARGUMENT; what the template itself refuses is IFL_TEMPLATE_FAILED.
    IFL_PROMPT_CHAT = 3,
    /// prompt_tokens are token ids.
    IFL_PROMPT_TOKENS = 4,
}

/// Seed that stands for a fresh one per request.
pub(super) const RANDOM_SEED: u64 = u64::MAX;
/// Sampling parameter that stands for the model's own.
pub(super) const MODEL_DEFAULT: i32 = -1;
/// `num_logprobs` that asks for none.
const NO_LOGPROBS: i32 = -1;

/// One request. Fill it with ifl_request_init or IFL_REQUEST_INIT, then set prompt and what should differ
/// from the defaults. The library reads the struct, and what it points to, during ifl_engine_enqueue only.
/// Flags are 0 or 1. A value outside a field's range is IFL_INVALID_ARGUMENT.
///
/// Since 0.1.0.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct ifl_request {
    /// sizeof(ifl_request).
    pub struct_size: u32,
    /// What the prompt is; default IFL_PROMPT_TEXT.
    pub prompt_kind: ifl_prompt_kind,
    /// The prompt as text or JSON, UTF-8; NULL for IFL_PROMPT_TOKENS. Text of more than 16 MiB, or than
    /// max_model_len tokens can hold, is IFL_PROMPT_TOO_LONG. JSON of more than 16 MiB, which IFL_PROMPT_USER is
    /// turned into, is IFL_INVALID_ARGUMENT.
    pub prompt: *const c_char,
    /// Length of prompt in bytes, or IFL_NUL_TERMINATED, the default.
    pub prompt_len: u64,
    /// The prompt as token ids, at least one, for IFL_PROMPT_TOKENS; NULL otherwise.
    pub prompt_tokens: *const u32,
    /// Number of prompt_tokens.
    pub num_prompt_tokens: u64,
    /// Flag: the tokenizer adds what the model expects around a text, such as a first token. For
    /// IFL_PROMPT_TEXT; default 1.
    pub add_special_tokens: u32,
    /// Flag: the text may spell special tokens. For IFL_PROMPT_TEXT; default 0, which is safe for untrusted
    /// text.
    pub parse_special_tokens: u32,
    /// Most tokens to produce; 0, the default: until the context is full.
    pub max_tokens: u32,
    /// Tokens before which only max_tokens, cancellation and errors end the output, at most max_tokens and what the
    /// context leaves; default 0.
    pub min_tokens: u32,
    /// Flag: do not stop at the model's end-of-sequence tokens; default 0.
    pub ignore_eos: u32,
    /// Higher runs first, and its prompt goes before further tokens of lower ones; equal ones run in order of
    /// arrival. Default 0.
    pub priority: i32,
    /// Milliseconds after which the request ends with IFL_FINISH_DEADLINE, by a monotonic clock from
    /// ifl_engine_enqueue on; 0, the default: never.
    pub timeout_ms: u64,
    /// Comes back in every event of the request; default 0.
    pub user_data: u64,
    /// Queue that gets the events; NULL, the default: the engine's own, which ifl_engine_poll reads.
    pub queue: *mut ifl_queue,
    /// Tokens that end the output, besides the model's own. They are reported but give no text. Default none.
    pub stop_tokens: *const u32,
    /// Number of stop_tokens, at most 256.
    pub num_stop_tokens: u64,
    /// Strings that end the output, UTF-8, of 1 to 4096 bytes each. The text ends before the match, which may lie
    /// across tokens. Default none.
    pub stop_strings: *const *const c_char,
    /// Length in bytes of each of stop_strings, or IFL_NUL_TERMINATED; NULL: all are NUL-terminated.
    pub stop_string_lens: *const u64,
    /// Number of stop_strings, at most 64.
    pub num_stop_strings: u64,
    /// In [0, 100]; 0 always takes the likeliest token. Default IFL_MODEL_DEFAULT: what generation_config.json
    /// recommends where it says do_sample (1 where it names no temperature), else 0. A GGUF file recommends nothing,
    /// so 0.
    pub temperature: f32,
    /// Samples among the top_k likeliest tokens only; 0: off. Default IFL_MODEL_DEFAULT.
    pub top_k: i32,
    /// Samples among the likeliest tokens that together reach this probability only, in (0, 1]; 1: off.
    /// Default IFL_MODEL_DEFAULT.
    pub top_p: f32,
    /// Drops tokens less likely than min_p times the likeliest, in [0, 1]; default 0: off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that have occurred, in (0, 100]; 1: off.
    /// Default IFL_MODEL_DEFAULT.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the output so far, in [-100, 100]; default 0.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens once for each time they are in the output so far, in [-100, 100];
    /// default 0.
    pub frequency_penalty: f32,
    /// Alternatives to report beside the token itself, each with its log-probability, 0 to 20; default -1: no
    /// log-probabilities. With n here an event has n + 1 entries for each token: ifl_event.num_logprobs counts
    /// the token itself too.
    pub num_logprobs: i32,
    /// The same seed, model and device give the same tokens: on the CPU whatever else runs, on a CUDA device where the
    /// same requests run beside it, since there rounding depends on the batch. Default IFL_RANDOM_SEED: a fresh one.
    pub seed: u64,
    /// Tokens whose logits get a bias, none twice; default none.
    pub logit_bias_tokens: *const u32,
    /// The finite number to add for each of logit_bias_tokens.
    pub logit_bias_values: *const f32,
    /// Number of logit_bias_tokens and of logit_bias_values, at most 1024.
    pub num_logit_biases: u64,
}

impl Sized32 for ifl_request {
    const NAME: &'static str = "ifl_request";
    const FIRST_SIZE: usize = 192;

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            prompt_kind: ifl_prompt_kind_value::IFL_PROMPT_TEXT as i32,
            prompt: std::ptr::null(),
            prompt_len: NUL_TERMINATED,
            prompt_tokens: std::ptr::null(),
            num_prompt_tokens: 0,
            add_special_tokens: 1,
            parse_special_tokens: 0,
            max_tokens: 0,
            min_tokens: 0,
            ignore_eos: 0,
            priority: 0,
            timeout_ms: 0,
            user_data: 0,
            queue: std::ptr::null_mut(),
            stop_tokens: std::ptr::null(),
            num_stop_tokens: 0,
            stop_strings: std::ptr::null(),
            stop_string_lens: std::ptr::null(),
            num_stop_strings: 0,
            temperature: MODEL_DEFAULT as f32,
            top_k: MODEL_DEFAULT,
            top_p: MODEL_DEFAULT as f32,
            min_p: 0.0,
            repetition_penalty: MODEL_DEFAULT as f32,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            num_logprobs: NO_LOGPROBS,
            seed: RANDOM_SEED,
            logit_bias_tokens: std::ptr::null(),
            logit_bias_values: std::ptr::null(),
            num_logit_biases: 0,
        }
    }
}

impl ifl_request {
    /// The engine's request; `caller` vouches for the pointers.
    pub(super) fn convert(&self, caller: &Caller) -> Result<Request> {
        let mut request = Request::new(self.prompt(caller)?);
        request.sampling = self.sampling(caller)?;
        request.max_tokens = self.max_tokens;
        request.min_tokens = self.min_tokens;
        request.ignore_eos = flag(self.ignore_eos, "ignore_eos")?;
        request.priority = self.priority;
        request.timeout = (self.timeout_ms != 0).then(|| Duration::from_millis(self.timeout_ms));
        request.user_data = self.user_data;
        request.stop_tokens =
            copy(caller, self.stop_tokens, self.num_stop_tokens, "ifl_request.stop_tokens")?;
        request.stop_strings = self.stop_strings(caller)?;
        if !self.queue.is_null() {
            request.queue = Some(QUEUES.get(self.queue).map_err(|error| error.context("ifl_request.queue"))?);
        }
        Ok(request)
    }

    fn prompt(&self, caller: &Caller) -> Result<Prompt> {
        let is_kind = |kind: ifl_prompt_kind_value| self.prompt_kind == kind as i32;
        if is_kind(ifl_prompt_kind_value::IFL_PROMPT_TOKENS) {
            let tokens =
                copy(caller, self.prompt_tokens, self.num_prompt_tokens, "ifl_request.prompt_tokens")?;
            return Ok(Prompt::Tokens(tokens));
        }
        let text = || caller.text(self.prompt, self.prompt_len, "ifl_request.prompt");
        if is_kind(ifl_prompt_kind_value::IFL_PROMPT_TEXT) {
            return Ok(Prompt::Text {
                text: copy_text(text()?)?,
                add_special_tokens: flag(self.add_special_tokens, "add_special_tokens")?,
                parse_special: flag(self.parse_special_tokens, "parse_special_tokens")?,
            });
        }
        if is_kind(ifl_prompt_kind_value::IFL_PROMPT_CHAT) {
            return copy_text(text()?).map(Prompt::Chat);
        }
        if is_kind(ifl_prompt_kind_value::IFL_PROMPT_USER) {
            return user_messages(text()?).map(Prompt::Chat);
        }
        let message = format!("ifl_request.prompt_kind is {}, which is no ifl_prompt_kind", self.prompt_kind);
        Err(Error::invalid_argument(message))
    }

    fn stop_strings(&self, caller: &Caller) -> Result<Vec<String>> {
        let name = "ifl_request.stop_strings";
        let texts = caller.slice(self.stop_strings, self.num_stop_strings, name)?;
        let num_lens = if self.stop_string_lens.is_null() { 0 } else { self.num_stop_strings };
        let lens = caller.slice(self.stop_string_lens, num_lens, "ifl_request.stop_string_lens")?;
        let one = |(index, text): (usize, &*const c_char)| {
            let len = lens.get(index).copied().unwrap_or(NUL_TERMINATED);
            caller.text(*text, len, &format!("{name}[{index}]")).and_then(copy_text)
        };
        let mut stop_strings = try_vec(texts.len())?;
        for text in texts.iter().enumerate().map(one) {
            stop_strings.push(text?);
        }
        Ok(stop_strings)
    }

    fn sampling(&self, caller: &Caller) -> Result<SamplingParams> {
        let unless_default = |value: f32| (value != MODEL_DEFAULT as f32).then_some(value);
        let num = self.num_logit_biases;
        let tokens = caller.slice(self.logit_bias_tokens, num, "ifl_request.logit_bias_tokens")?;
        let values = caller.slice(self.logit_bias_values, num, "ifl_request.logit_bias_values")?;
        let mut logit_bias = try_vec(tokens.len())?;
        logit_bias.extend(tokens.iter().copied().zip(values.iter().copied()));
        Ok(SamplingParams {
            temperature: unless_default(self.temperature),
            top_k: unless_negative(self.top_k, "top_k")?,
            top_p: unless_default(self.top_p),
            min_p: self.min_p,
            repetition_penalty: unless_default(self.repetition_penalty),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias,
            seed: (self.seed != RANDOM_SEED).then_some(self.seed),
            num_logprobs: unless_negative(self.num_logprobs, "num_logprobs")?,
        })
    }
}

/// Fills a request with the defaults that the fields' descriptions give.
///
/// - request: memory for the struct. Not NULL.
/// - struct_size: sizeof(ifl_request) as your compiler sees it. A newer library never writes more than that,
///   so an old program stays safe; what an older library does not know becomes 0.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time. Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_STRUCT_SIZE; nothing is written then.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_request_init(
    request: *mut ifl_request,
    struct_size: u32,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| caller.init(request, struct_size))
}

fn flag(value: u32, name: &str) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::invalid_argument(format!("ifl_request.{name} is {value}; a flag is 0 or 1"))),
    }
}

/// `None` for -1, which stands for "not set".
fn unless_negative(value: i32, name: &str) -> Result<Option<u32>> {
    match u32::try_from(value) {
        Ok(value) => Ok(Some(value)),
        Err(_) if value == -1 => Ok(None),
        Err(_) => {
            Err(Error::invalid_argument(format!("ifl_request.{name} is {value}; -1 or more is allowed")))
        }
    }
}

fn copy(caller: &Caller, tokens: *const u32, num: u64, name: &str) -> Result<Vec<u32>> {
    let tokens = caller.slice(tokens, num, name)?;
    let mut copy = try_vec(tokens.len())?;
    copy.extend_from_slice(tokens);
    Ok(copy)
}

fn copy_text(text: &str) -> Result<String> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len()).map_err(|_| no_memory(text.len()))?;
    copy.push_str(text);
    Ok(copy)
}

/// Chat messages, as JSON, with one user's message.
fn user_messages(text: &str) -> Result<String> {
    const HEAD: &str = r#"[{"role":"user","content":"#;
    const TAIL: &str = "}]";
    let escaped_len = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..=0x1f => 6,
        _ => 1,
    };
    let num_bytes = HEAD.len() + 2 + text.bytes().map(escaped_len).sum::<usize>() + TAIL.len();
    let mut json = try_vec::<u8>(num_bytes)?;
    json.extend_from_slice(HEAD.as_bytes());
    let written = serde_json::to_writer(&mut json, text);
    json.extend_from_slice(TAIL.as_bytes());
    debug_assert!(json.len() <= num_bytes);
    let json = String::from_utf8(json).ok().filter(|_| written.is_ok());
    json.ok_or_else(|| Error::internal("a text has no JSON form"))
}

/// An empty vector with room for `num` elements.
fn try_vec<T>(num: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(num).map_err(|_| no_memory(num.saturating_mul(size_of::<T>())))?;
    Ok(vec)
}

fn no_memory(num_bytes: usize) -> Error {
    Error::new(Status::OutOfMemory, format!("no memory to copy {num_bytes} bytes of the request"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_text_becomes_json() {
        let text = "a \"b\" \\ \n\u{1} grün \u{7f} {{x}}";
        let messages: serde_json::Value = serde_json::from_str(&user_messages(text).unwrap()).unwrap();
        assert_eq!(messages, serde_json::json!([{ "role": "user", "content": text }]));
    }
}
