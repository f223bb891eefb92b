//! What a host asks for.

use std::time::Duration;

use crate::engine::queue::Queue;
use crate::sample::SamplingParams;

/// The prompt of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text, tokenised with the model's tokenizer.
    Text {
        /// The text.
        text: String,
        /// Whether the tokenizer adds what the model expects at the start, such as a BOS token.
        add_special_tokens: bool,
        /// Whether the text may spell special tokens.
        parse_special: bool,
    },
    /// Token ids as they are.
    Tokens(Vec<u32>),
    /// A JSON array of messages, rendered with the model's chat template; content cannot spell special tokens.
    Chat(String),
}

/// One request. [`Request::new`] fills the defaults.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt; at least one token.
    pub prompt: Prompt,
    /// How to sample.
    pub sampling: SamplingParams,
    /// Most tokens to produce; 0: until the context is full.
    pub max_tokens: u32,
    /// Tokens before which nothing but `max_tokens` ends the output, at most `max_tokens` and what the context
    /// leaves.
    pub min_tokens: u32,
    /// Do not stop at the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Further tokens that end the output, at most 256; they are reported but produce no text.
    pub stop_tokens: Vec<u32>,
    /// Strings that end the output, at most 64 of 1 to 4096 bytes; the output's text ends before the match.
    pub stop_strings: Vec<String>,
    /// Higher runs first, and its prompt goes before further tokens of lower ones; requests of equal priority run in
    /// order of arrival.
    pub priority: i32,
    /// The request ends with [`crate::FinishReason::Deadline`] this long after it was enqueued.
    pub timeout: Option<Duration>,
    /// Comes back in every event of the request.
    pub user_data: u64,
    /// Where events go; `None`: the engine's own queue.
    pub queue: Option<Queue>,
}

impl Request {
    /// Greedy or model-default sampling until the model stops or the context is full.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            sampling: SamplingParams::default(),
            max_tokens: 0,
            min_tokens: 0,
            ignore_eos: false,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            priority: 0,
            timeout: None,
            user_data: 0,
            queue: None,
        }
    }
}
