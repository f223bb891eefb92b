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
    /// Sampling state without history: the scheduler fills `output` and, where there is a repetition penalty,
    /// `prompt` whenever a slot takes the sequence over.
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

/// Who gets slots and KV blocks first: higher priority, then earlier arrival. Never changes.
pub type Rank = (Reverse<i32>, u64);

/// Who gets a step's tokens first: by rank too, but of equal priority decodes come before prompts, since a decode
/// costs one token and somebody reads along. The numbers are those of the [`Rank`].
pub(super) type ServiceOrder = (Reverse<i32>, Phase, u64);

/// What a sequence would run next; in order of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// One token: the last sampled one or, which costs the same, the last one of a prompt.
    Decode,
    /// Several: a prompt, or everything again after a preemption.
    Prompt,
}

/// A request on its way.
///
/// The lines of the scheduler that it can stand in:
///
/// ```text
///        add            admit: gets a slot and blocks
/// host ------> waiting ------------------------------> running
///                |  ^                                   |  |
///                |  +-----------------------------------+  |
///                |   preempt: gives slot and blocks back,  |
///                |   num_computed = 0                      |
///                +-----------------> ended <---------------+
///                   remove, expire, or the commit of its last token
/// ```
///
/// Two more facts cut across these:
///
/// - `is_paused`, in either line: it gets no rows and is not admitted. One that runs keeps its blocks until somebody
///   needs them, and is then the first to be preempted.
/// - `num_in_flight > 0`: steps that are planned and not committed sample tokens of it. While it runs, that is the
///   rule, and the next step takes the token from the slot. If it is preempted it waits at least until those steps
///   are committed, since to compute it again all its tokens must be known. If it ends, it is forgotten at once, and
///   its rows are discarded when they come back.
///
/// The intervals of its tokens:
///
/// ```text
/// 0 ............ prompt_len ............ tokens.len() ................ total_len()
/// |--- prompt ------|------ known output ------|--- num_in_flight, on the device --|
/// |---------------- num_computed ---------| KV written, or planned to be
///                                         |------- num_remaining() ----------------|
/// ```
#[derive(Debug)]
pub struct Sequence {
    pub(super) id: RequestId,
    pub(super) rank: Rank,
    pub(super) deadline: Option<Micros>,
    pub(super) max_tokens: usize,
    pub(super) stop_tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Prompt and the output that has come back from the device.
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache once the planned steps have run.
    pub(super) num_computed: usize,
    /// Outputs that planned steps sample and that have not come back.
    pub(super) num_in_flight: usize,
    /// Blocks in order of position; covers at least `num_computed` tokens.
    pub(super) blocks: Vec<BlockIndex>,
    /// The slot while it runs.
    pub(super) slot: Option<u32>,
    /// Its consumer is behind: no rows until it resumes.
    pub(super) is_paused: bool,
    /// Whether a step has ever run it; the first one is an outcome.
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
            num_in_flight: 0,
            blocks: Vec::new(),
            slot: None,
            is_paused: false,
            has_started: false,
            sampling: params.sampling,
        }
    }

    /// Tokens that exist once the planned steps have run.
    pub(super) fn total_len(&self) -> usize {
        self.tokens.len() + self.num_in_flight
    }

    /// Tokens that a step still has to run before the next output can be sampled; 0 where the planned steps
    /// already sample everything the request may have.
    pub(super) fn num_remaining(&self) -> usize {
        if self.total_len() - self.prompt_len >= self.max_tokens {
            return 0;
        }
        self.total_len() - self.num_computed
    }

    /// What it would run next; `None` where that is nothing (see [`Sequence::num_remaining`]).
    pub(super) fn phase(&self) -> Option<Phase> {
        match self.num_remaining() {
            0 => None,
            1 => Some(Phase::Decode),
            _ => Some(Phase::Prompt),
        }
    }

    /// Whether the next token to run is the one that was sampled last, and not one of a prompt or one that is
    /// computed again.
    pub(super) fn continues_output(&self) -> bool {
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
        debug_assert_eq!(self.num_in_flight, 0, "a slot's history must be known when it is handed over");
        let mut state = self.sampling.clone();
        if state.repetition_penalty != 1.0 {
            state.prompt = self.tokens[..self.prompt_len].to_vec();
        }
        state.output = self.tokens[self.prompt_len..].to_vec();
        state
    }
}
