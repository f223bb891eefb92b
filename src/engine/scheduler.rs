//! Decides what each step runs. Pure: no device, no clock, no I/O; time comes in as a parameter.
//!
//! Requests join and leave between any two steps. Slots and blocks are handed out in order of rank (priority, then
//! arrival); where they run out, the lowest rank is preempted and later recomputed, so that the highest rank always
//! progresses. A step's tokens go by priority; of equal priority decodes come before chunks of prompts (`budget`).
//!
//! [`Sequence`] has drawings of a request's states and of its tokens; [`Scheduler::plan`] lists what makes a step.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;

use crate::backend::{Sampled, SlotState, TokenLogprob};
use crate::engine::batch::{BatchBuilder, SampledRow, StepPlan};
use crate::engine::budget::{Claim, Leftover, share_out};
use crate::engine::event::{FinishReason, RequestId};
use crate::engine::sequence::{Micros, Phase, Rank, Sequence, SequenceParams};
use crate::kv::pool::BlockPool;

/// Tokens for which each running sequence has blocks left before one of lower rank is admitted. Blocks also come back
/// as sequences end, so this covers the steps in which fewer end than usual.
const GROWTH_TOKENS: usize = 4;

/// Sizes that the scheduler plans with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Slots, and most rows of a step; at least 1.
    pub max_num_sequences: usize,
    /// Most tokens of a step; above `max_num_sequences`, so that decodes always leave room for a prompt.
    pub max_batched_tokens: usize,
    /// Prompts beside decodes stop where the step's tokens are a multiple of this, at least 1; see
    /// [`crate::backend::Backend::token_quantum`].
    pub token_quantum: usize,
    /// Tokens in a KV block.
    pub block_size: usize,
    /// KV blocks.
    pub num_blocks: u32,
}

/// What became of a request in a step; in order, the last of a request is [`Outcome::Ended`].
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// A step runs it for the first time.
    Started {
        /// The request.
        id: RequestId,
    },
    /// It has one more token.
    Token {
        /// The request.
        id: RequestId,
        /// The token.
        token: u32,
        /// Its log-probability and the alternatives', where asked for.
        logprobs: Vec<TokenLogprob>,
        /// Whether it is one of the request's stop tokens; the request then ends.
        is_stop: bool,
    },
    /// It is over.
    Ended {
        /// The request.
        id: RequestId,
        /// Why; [`FinishReason::Error`] means that the logits held NaN or an infinity.
        reason: FinishReason,
    },
}

/// Requests and blocks, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedulerCounts {
    /// Not in the running set.
    pub num_waiting: usize,
    /// In the running set.
    pub num_running: usize,
    /// Paused, of either set.
    pub num_paused: usize,
    /// Free blocks.
    pub num_blocks_free: usize,
    /// Sequences preempted so far.
    pub num_preemptions: u64,
    /// Prompt tokens planned so far, recomputed ones included.
    pub num_prompt_tokens: u64,
}

/// The requests of an engine and their blocks.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    pool: BlockPool,
    sequences: HashMap<RequestId, Sequence>,
    /// Those with a slot, by rank.
    running: BTreeMap<Rank, RequestId>,
    /// Those without, by rank.
    waiting: BTreeMap<Rank, RequestId>,
    deadlines: BTreeSet<(Micros, RequestId)>,
    free_slots: Vec<u32>,
    resets: Vec<(u32, SlotState)>,
    /// Planned steps whose results have not come back: their rows that sample, in order.
    in_flight: VecDeque<Vec<SampledRow>>,
    num_steps: u64,
    num_arrivals: u64,
    num_paused: usize,
    num_preemptions: u64,
    num_prompt_tokens: u64,
}

impl Scheduler {
    /// A scheduler without requests.
    pub fn new(config: SchedulerConfig) -> Self {
        assert!(config.max_num_sequences >= 1 && config.max_batched_tokens > config.max_num_sequences);
        assert!(config.token_quantum >= 1 && config.block_size >= 1 && config.num_blocks >= 1);
        Self {
            config,
            pool: BlockPool::new(config.num_blocks),
            sequences: HashMap::new(),
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            free_slots: (0..config.max_num_sequences as u32).rev().collect(),
            resets: Vec::new(),
            in_flight: VecDeque::new(),
            num_steps: 0,
            num_arrivals: 0,
            num_paused: 0,
            num_preemptions: 0,
            num_prompt_tokens: 0,
        }
    }

    /// Takes a request into the waiting line. It must fit an empty cache (see [`Scheduler::fits`]).
    pub fn add(&mut self, params: SequenceParams) {
        assert!(!params.prompt.is_empty() && params.max_tokens >= 1);
        assert!(
            Self::fits(&self.config, params.prompt.len(), params.max_tokens),
            "the request can never run"
        );
        self.num_arrivals += 1;
        let sequence = Sequence::new(params, self.num_arrivals);
        self.waiting.insert(sequence.rank, sequence.id);
        self.deadlines.extend(sequence.deadline.map(|deadline| (deadline, sequence.id)));
        let previous = self.sequences.insert(sequence.id, sequence);
        assert!(previous.is_none(), "request ids are never reused");
    }

    /// Whether a request of these lengths could run alone. The last output needs no place in the cache.
    pub fn fits(config: &SchedulerConfig, prompt_len: usize, max_tokens: usize) -> bool {
        prompt_len
            .checked_add(max_tokens - 1)
            .is_some_and(|tokens| tokens <= config.num_blocks as usize * config.block_size)
    }

    /// Drops a request without an outcome; rows of it that still run are discarded when they return.
    /// Returns whether it was there.
    pub fn remove(&mut self, id: RequestId) -> bool {
        let Some(mut sequence) = self.sequences.remove(&id) else {
            return false;
        };
        self.running.remove(&sequence.rank);
        self.waiting.remove(&sequence.rank);
        if let Some(deadline) = sequence.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        self.num_paused -= usize::from(sequence.is_paused);
        self.give_back(&mut sequence);
        true
    }

    /// Holds a request back while its consumer is behind, or lets it go on. Unknown requests are ignored: it may
    /// have ended meanwhile.
    pub fn set_paused(&mut self, id: RequestId, is_paused: bool) {
        if let Some(sequence) = self.sequences.get_mut(&id)
            && sequence.is_paused != is_paused
        {
            sequence.is_paused = is_paused;
            if is_paused { self.num_paused += 1 } else { self.num_paused -= 1 }
        }
    }

    /// Ends requests whose deadline is not after `now`.
    pub fn expire(&mut self, now: Micros, outcomes: &mut Vec<Outcome>) {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.remove(id);
            outcomes.push(Outcome::Ended { id, reason: FinishReason::Deadline });
        }
    }

    /// When [`Scheduler::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Micros> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Steps planned and not committed.
    pub fn num_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Every request that has not ended.
    pub fn ids(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.sequences.keys().copied()
    }

    /// Plans the next step, or returns `None` where nothing can run. May be called while earlier steps run:
    /// the rows then take their tokens from the device.
    ///
    /// | what | of whom, in which order | gives | within |
    /// | --- | --- | --- | --- |
    /// | `reserve_blocks` | running, by rank | the next chunk's blocks | the pool, or preempts the lowest rank |
    /// | `admit` | waiting, by rank | a slot, all blocks | tokens left; slots and blocks free or of lower rank |
    /// | `share_out` | running, in order of service | tokens | `max_batched_tokens`, `token_quantum` |
    /// | `push_rows` | who got tokens: decodes, then prompts | a row | one per slot |
    ///
    /// Whoever is paused, or has all its outputs in flight, gets nothing. How many steps are in flight is the
    /// caller's matter.
    pub fn plan(&mut self, outcomes: &mut Vec<Outcome>) -> Option<StepPlan> {
        self.reserve_blocks();
        self.admit();
        let claims = share_out(self.claims(), self.config.max_batched_tokens, self.config.token_quantum);
        let mut builder = BatchBuilder::new();
        self.push_rows(&mut builder, &claims, Phase::Decode, outcomes);
        self.push_rows(&mut builder, &claims, Phase::Prompt, outcomes);
        if builder.is_empty() {
            return None;
        }
        let (batch, sampling) = builder.finish();
        self.in_flight.push_back(sampling);
        self.num_steps += 1;
        Some(StepPlan { step: self.num_steps, resets: std::mem::take(&mut self.resets), batch })
    }

    /// Takes the results of the oldest planned step, one per sampled row in row order.
    pub fn commit(&mut self, sampled: Vec<Sampled>, outcomes: &mut Vec<Outcome>) {
        let rows = self.in_flight.pop_front().expect("a result belongs to a planned step");
        assert_eq!(rows.len(), sampled.len(), "one result per sampled row");
        for (SampledRow { id, slot }, sampled) in rows.into_iter().zip(sampled) {
            assert_eq!(slot, sampled.slot, "results come in row order");
            // A request that ended while its row ran costs one discarded row.
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.num_in_flight -= 1;
                if let Some(reason) = Self::take_token(sequence, sampled, outcomes) {
                    self.remove(id);
                    outcomes.push(Outcome::Ended { id, reason });
                }
            }
        }
    }

    /// Appends a sampled token and says whether it was the last.
    fn take_token(
        sequence: &mut Sequence,
        sampled: Sampled,
        outcomes: &mut Vec<Outcome>,
    ) -> Option<FinishReason> {
        let Some(token) = sampled.token else {
            return Some(FinishReason::Error);
        };
        let is_stop = sequence.stop_tokens.contains(&token);
        sequence.tokens.push(token);
        outcomes.push(Outcome::Token { id: sequence.id, token, logprobs: sampled.logprobs, is_stop });
        if is_stop {
            Some(FinishReason::Stop)
        } else if sequence.num_output() >= sequence.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Gives every running sequence the blocks of its next chunk, highest rank first; takes them from the lowest
    /// rank where the pool is empty. Admission gave blocks for all tokens known then; this is for the outputs since.
    fn reserve_blocks(&mut self) {
        let mut ids: VecDeque<RequestId> = self.running.values().copied().collect();
        while let Some(id) = ids.pop_front() {
            let sequence = &self.sequences[&id];
            if sequence.is_paused {
                continue;
            }
            let chunk = sequence.num_remaining().min(self.config.max_batched_tokens);
            let num_blocks = (sequence.num_computed + chunk).div_ceil(self.config.block_size);
            while self.sequences[&id].blocks.len() < num_blocks {
                if let Some(block) = self.pool.allocate() {
                    self.sequences.get_mut(&id).expect("running").blocks.push(block);
                    continue;
                }
                let victim = self.victim().expect("the sequence itself runs");
                self.preempt(victim);
                ids.retain(|&other| other != victim);
                if victim == id {
                    break;
                }
            }
        }
    }

    /// Who gives up its blocks: a paused sequence first, then the lowest rank.
    fn victim(&self) -> Option<RequestId> {
        let paused = self.running.values().rev().find(|id| self.sequences[id].is_paused);
        paused.or_else(|| self.running.values().next_back()).copied()
    }

    /// Back to the waiting line; everything is computed again later.
    fn preempt(&mut self, id: RequestId) {
        let mut sequence = self.sequences.remove(&id).expect("a running sequence");
        self.running.remove(&sequence.rank);
        self.waiting.insert(sequence.rank, id);
        self.give_back(&mut sequence);
        sequence.num_computed = 0;
        self.sequences.insert(id, sequence);
        self.num_preemptions += 1;
    }

    /// Blocks and slot return to their pools. Rows that still run read and write these blocks before any later
    /// step can, since steps run in order.
    fn give_back(&mut self, sequence: &mut Sequence) {
        for block in sequence.blocks.drain(..) {
            self.pool.release(block);
        }
        if let Some(slot) = sequence.slot.take() {
            self.free_slots.push(slot);
        }
    }

    /// What every running sequence could run in the next step, in order of service.
    fn claims(&self) -> Vec<Claim> {
        let claim = |(&(priority, arrival), &id): (&Rank, &RequestId)| {
            let sequence = &self.sequences[&id];
            let phase = sequence.phase().filter(|_| !sequence.is_paused)?;
            Some(Claim { order: (priority, phase, arrival), id, num_tokens: sequence.num_remaining() })
        };
        let mut claims: Vec<Claim> = self.running.iter().filter_map(claim).collect();
        claims.sort_by_key(|claim| claim.order);
        claims
    }

    /// Adds a row for each of the claims that is of `phase` and got tokens.
    fn push_rows(
        &mut self,
        builder: &mut BatchBuilder,
        claims: &[Claim],
        phase: Phase,
        outcomes: &mut Vec<Outcome>,
    ) {
        for claim in claims.iter().filter(|claim| claim.phase() == phase && claim.num_tokens > 0) {
            let sequence = self.sequences.get_mut(&claim.id).expect("running");
            if !std::mem::replace(&mut sequence.has_started, true) {
                outcomes.push(Outcome::Started { id: claim.id });
            }
            if !sequence.continues_output() {
                self.num_prompt_tokens += claim.num_tokens as u64;
            }
            builder.push(sequence, claim.num_tokens, self.config.block_size);
        }
    }

    /// Moves waiting sequences into the running set, in order of rank, while tokens, slots and blocks last. The
    /// first that does not fit ends the line, so that small requests do not starve large ones.
    fn admit(&mut self) {
        // Most steps of a host that keeps up have nobody to admit, and need not ask what the running ones leave.
        if self.waiting.is_empty() {
            return;
        }
        let mut leftover = Leftover::new(self.claims(), self.config.max_batched_tokens);
        let mut next = self.waiting.first_key_value().map(|(&rank, &id)| (rank, id));
        while let Some((rank, id)) = next {
            let sequence = &self.sequences[&id];
            let num_tokens = sequence.total_len();
            // A token that is still on the device must be known before the sequence is computed again.
            if !sequence.is_paused && sequence.num_in_flight == 0 {
                let num_blocks = num_tokens.div_ceil(self.config.block_size);
                let (priority, arrival) = rank;
                if leftover.at((priority, Phase::Prompt, arrival)) == 0 || !self.make_room(rank, num_blocks) {
                    break;
                }
                self.start(id, num_blocks);
                leftover.take(num_tokens);
            }
            next = self
                .waiting
                .range((Bound::Excluded(rank), Bound::Unbounded))
                .next()
                .map(|(&rank, &id)| (rank, id));
        }
    }

    /// Gives a waiting sequence a slot and its blocks, which are free.
    fn start(&mut self, id: RequestId, num_blocks: usize) {
        let sequence = self.sequences.get_mut(&id).expect("waiting");
        let slot = self.free_slots.pop().expect("a free slot");
        sequence.slot = Some(slot);
        sequence.blocks.extend((0..num_blocks).map(|_| self.pool.allocate().expect("a free block")));
        self.resets.push((slot, sequence.slot_state()));
        self.waiting.remove(&sequence.rank);
        self.running.insert(sequence.rank, id);
    }

    /// Frees a slot and `num_blocks` blocks for a sequence of `rank` by preempting running sequences that are
    /// paused or of lower rank, and leaves those of higher rank room to grow, which would preempt it otherwise.
    /// Preempts nothing where that would not suffice.
    fn make_room(&mut self, rank: Rank, num_blocks: usize) -> bool {
        let ahead = self.running.range(..rank).filter(|(_, id)| !self.sequences[*id].is_paused).count();
        let wanted = num_blocks + ahead * GROWTH_TOKENS / self.config.block_size;
        let mut free_blocks = self.pool.num_free();
        let mut free_slots = self.free_slots.len();
        let mut victims = Vec::new();
        for wants_paused in [true, false] {
            for (victim_rank, &id) in self.running.iter().rev() {
                let sequence = &self.sequences[&id];
                let may_go = match wants_paused {
                    true => sequence.is_paused,
                    false => !sequence.is_paused && *victim_rank > rank,
                };
                if (free_slots == 0 || free_blocks < wanted) && may_go {
                    victims.push(id);
                    free_blocks += sequence.blocks.len();
                    free_slots += 1;
                }
            }
        }
        let suffices = free_slots > 0 && free_blocks >= wanted;
        if suffices {
            victims.into_iter().for_each(|victim| self.preempt(victim));
        }
        suffices
    }

    /// Requests and blocks, counted.
    pub fn counts(&self) -> SchedulerCounts {
        SchedulerCounts {
            num_waiting: self.waiting.len(),
            num_running: self.running.len(),
            num_paused: self.num_paused,
            num_blocks_free: self.pool.num_free(),
            num_preemptions: self.num_preemptions,
            num_prompt_tokens: self.num_prompt_tokens,
        }
    }

    /// Proves that blocks, slots and lines agree; says what does not.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.pool
            .check_integrity(self.sequences.values().flat_map(|sequence| sequence.blocks.iter().copied()))?;
        let mut slots: Vec<u32> = self
            .sequences
            .values()
            .filter_map(|sequence| sequence.slot)
            .chain(self.free_slots.clone())
            .collect();
        slots.sort_unstable();
        if !slots.iter().copied().eq(0..self.config.max_num_sequences as u32) {
            return Err(format!("slots owned and free are {slots:?}"));
        }
        if self.running.len() + self.waiting.len() != self.sequences.len() {
            return Err("a sequence is in no line or in both".to_owned());
        }
        for (id, sequence) in &self.sequences {
            let is_running = self.running.get(&sequence.rank) == Some(id);
            let is_waiting = self.waiting.get(&sequence.rank) == Some(id);
            if is_running == is_waiting || is_running != sequence.slot.is_some() {
                return Err(format!("request {id} has lost its place in the lines"));
            }
            if sequence.num_computed > sequence.blocks.len() * self.config.block_size {
                return Err(format!("request {id} has more tokens in the cache than blocks"));
            }
        }
        Ok(())
    }
}
