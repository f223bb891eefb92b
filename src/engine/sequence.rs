//! One request as the scheduler sees it: tokens, blocks, and how far it has come.

use std::cmp::Reverse;

use crate::backend::{SlotState, TOKEN_FROM_SLOT};
use crate::engine::event::RequestId;
use crate::kv::pool::BlockIndex;

/// Microseconds on the engine's monotonic clock.
pub type Micros = u64;

/// What the scheduler must know of a request.
#[derive(Debug, Clone)]
pub struct SequenceParams {
    /// Unique in the engine.
    pub id: RequestId,
    /// At least one token.
    pub prompt: Vec<u32>,
    /// Sampling state without history; the scheduler fills `prompt` (where needed) and `output`.
    pub sampling: SlotState,
    /// Most output tokens, at least 1; prompt and output together fit the context and the cache.
    pub max_tokens: usize,
    /// Tokens that end the output.
    pub stop_tokens: Vec<u32>,
    /// Higher runs first.
    pub priority: i32,
    /// When the request ends unfinished.
    pub deadline: Option<Micros>,
}

/// Order of service: higher priority first, then order of arrival.
pub type Rank = (Reverse<i32>, u64);

/// A request on its way. The intervals of its tokens:
///
/// ```text
/// 0 ............ prompt_len ............ tokens.len() ............ total_len()
/// |--- prompt ------|------ known output ------|--- sampled, not read yet ---|
/// |---------------- num_computed ---------| KV written, or planned to be
/// ```
#[derive(Debug)]
pub struct Sequence {
    pub(super) id: RequestId,
    pub(super) rank: Rank,
    pub(super) deadline: Option<Micros>,
    pub(super) max_tokens: usize,
    pub(super) stop_tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Prompt and the output that the host knows.
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache once the planned steps have run.
    pub(super) num_computed: usize,
    /// Outputs that planned steps sample and the host has not read.
    pub(super) num_unread: usize,
    /// Blocks in order of position; covers at least `num_computed` tokens.
    pub(super) blocks: Vec<BlockIndex>,
    /// The slot while it runs.
    pub(super) slot: Option<u32>,
    /// Its consumer is behind: no rows until it resumes.
    pub(super) is_paused: bool,
    /// Whether a step has ever run it.
    pub(super) has_started: bool,
    sampling: SlotState,
}

impl Sequence {
    pub(super) fn new(params: SequenceParams, arrival: u64) -> Self {
        Self {
            id: params.id,
            rank: (Reverse(params.priority), arrival),
            deadline: params.deadline,
            max_tokens: params.max_tokens,
            stop_tokens: params.stop_tokens,
            prompt_len: params.prompt.len(),
            tokens: params.prompt,
            num_computed: 0,
            num_unread: 0,
            blocks: Vec::new(),
            slot: None,
            is_paused: false,
            has_started: false,
            sampling: params.sampling,
        }
    }

    /// Tokens that exist once the planned steps have run.
    pub(super) fn total_len(&self) -> usize {
        self.tokens.len() + self.num_unread
    }

    /// Tokens that a step still has to run before the next output can be sampled; 0 where the planned steps
    /// already sample everything the request may have.
    pub(super) fn num_remaining(&self) -> usize {
        if self.total_len() - self.prompt_len >= self.max_tokens {
            return 0;
        }
        self.total_len() - self.num_computed
    }

    /// Whether the next token to run is one that was sampled last.
    pub(super) fn is_decoding(&self) -> bool {
        self.num_computed >= self.prompt_len && self.num_computed + 1 == self.total_len()
    }

    /// Known output tokens.
    pub(super) fn num_output(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// The token at position `index`, which may still be on the device.
    pub(super) fn token_at(&self, index: usize) -> u32 {
        debug_assert!(index < self.total_len());
        self.tokens.get(index).copied().unwrap_or(TOKEN_FROM_SLOT)
    }

    /// What a slot needs to go on with this sequence.
    pub(super) fn slot_state(&self) -> SlotState {
        debug_assert_eq!(self.num_unread, 0, "a slot's history must be known when it is handed over");
        let mut state = self.sampling.clone();
        if state.repetition_penalty != 1.0 {
            state.prompt = self.tokens[..self.prompt_len].to_vec();
        }
        state.output = self.tokens[self.prompt_len..].to_vec();
        state
    }
}
