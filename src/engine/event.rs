//! What a host gets back.

use crate::backend::TokenLogprob;
use crate::error::Error;

/// Identifies a request within its engine; never reused, never 0.
pub type RequestId = u64;

/// One event of a request. Events of a request come in order; exactly one, the last, has
/// [`EventKind::Finished`].
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The request.
    pub request_id: RequestId,
    /// The request's `user_data`.
    pub user_data: u64,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// More output.
    Output(Output),
    /// The end; nothing follows.
    Finished(Finished),
}

/// More output of a request.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    /// Token ids, in order; may be empty where text was held back and is released.
    pub token_ids: Vec<u32>,
    /// Text that these and earlier tokens complete: whole code points; may be empty.
    pub text: String,
    /// For each token, itself and then the alternatives asked for; empty where not asked for.
    pub logprobs: Vec<Vec<TokenLogprob>>,
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// The error, for [`FinishReason::Error`].
    pub error: Option<Error>,
    /// Tokens of the prompt.
    pub num_prompt_tokens: u32,
    /// Tokens of the output.
    pub num_output_tokens: u32,
    /// How long things took.
    pub timings: Timings,
}

/// Why a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum FinishReason {
    /// An end-of-sequence token, a stop token or a stop string.
    Stop = 1,
    /// `max_tokens` or the context is used up.
    Length = 2,
    /// The host cancelled it.
    Cancelled = 3,
    /// Its deadline passed.
    Deadline = 4,
    /// It failed; the event has the error.
    Error = 5,
}

/// Durations in microseconds from enqueueing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// To the first step that ran the request; 0 where none did.
    pub queued_us: u64,
    /// To the first output token; 0 where there was none.
    pub first_token_us: u64,
    /// To the end.
    pub total_us: u64,
}
