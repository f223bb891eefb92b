//! Runs the scheduler for many random steps against a device made of memory, and asserts every promise.
//!
//! The device keeps, for every position of every KV block, a hash of all tokens up to that position, reads it
//! through the block tables only, and samples a token that depends on that hash and on the slot's count of
//! outputs. A block that is freed too early, a wrong table, slot, position or token feed therefore changes the
//! output, and the output is compared with an oracle that knows nothing of blocks.
//!
//! `INFLIGHT_SIM_STEPS` sets the number of steps (default 500,000 over all seeds).

use std::collections::{HashMap, HashSet, VecDeque};

use inflight::backend::{Sampled, SlotState, TOKEN_FROM_SLOT};
use inflight::engine::FinishReason;
use inflight::engine::batch::StepPlan;
use inflight::engine::scheduler::{Outcome, Scheduler, SchedulerConfig};
use inflight::engine::sequence::SequenceParams;

const VOCAB: u64 = 23;
const STOP_TOKEN: u32 = 0;

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

fn extend_hash(prefix: u64, token: u32) -> u64 {
    mix(prefix.wrapping_mul(31).wrapping_add(u64::from(token) + 1))
}

/// The model: what follows a history. `None` is a numeric error.
fn sample(hash: u64, output_index: usize) -> Option<u32> {
    let value = mix(hash ^ output_index as u64);
    (!value.is_multiple_of(997)).then_some((value % VOCAB) as u32)
}

/// What a request must produce if nothing ends it early.
fn oracle(prompt: &[u32], max_tokens: usize) -> (Vec<u32>, FinishReason) {
    let mut hash = prompt.iter().fold(0, |hash, &token| extend_hash(hash, token));
    let mut output = Vec::new();
    loop {
        let Some(token) = sample(hash, output.len()) else {
            return (output, FinishReason::Error);
        };
        output.push(token);
        hash = extend_hash(hash, token);
        if token == STOP_TOKEN {
            return (output, FinishReason::Stop);
        }
        if output.len() == max_tokens {
            return (output, FinishReason::Length);
        }
    }
}

/// The seed carries the request's id, so that the test can tell whose row is whose.
fn slot_state(id: u64) -> SlotState {
    SlotState { seed: id, ..SlotState::GREEDY }
}

/// The device: KV blocks and slots.
struct Device {
    config: SchedulerConfig,
    /// Hash of the tokens up to each position, `[block][token]`.
    cache: Vec<Vec<Option<u64>>>,
    /// Count of outputs and last token of each slot.
    slots: Vec<Option<(usize, u32)>>,
    last_step: u64,
}

impl Device {
    fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            cache: vec![vec![None; config.block_size]; config.num_blocks as usize],
            slots: vec![None; config.max_num_sequences],
            last_step: 0,
        }
    }

    fn run(&mut self, plan: &StepPlan) -> Vec<Sampled> {
        assert_eq!(plan.step, self.last_step + 1, "steps run in order");
        self.last_step = plan.step;
        for (slot, state) in &plan.resets {
            self.slots[*slot as usize] = Some((state.output.len(), u32::MAX - 1));
        }
        let batch = &plan.batch;
        assert!(batch.num_tokens() <= self.config.max_batched_tokens, "over the token budget");
        assert!(batch.num_rows() <= self.config.max_num_sequences, "more rows than slots");
        let slots: HashSet<u32> = batch.slots.iter().copied().collect();
        assert_eq!(slots.len(), batch.num_rows(), "a slot stands twice");
        let blocks: HashSet<u32> = batch.block_tables.iter().copied().collect();
        assert_eq!(blocks.len(), batch.block_tables.len(), "two rows write to one block");
        (0..batch.num_rows()).filter_map(|row| self.run_row(plan, row)).collect()
    }

    fn run_row(&mut self, plan: &StepPlan, row: usize) -> Option<Sampled> {
        let batch = &plan.batch;
        let slot = batch.slots[row];
        let (num_output, last_token) = self.slots[slot as usize].expect("a slot is reset before it runs");
        let blocks = batch.blocks(row);
        let block_size = self.config.block_size;
        let first = batch.first_position(row);
        let mut hash = match first {
            0 => 0,
            _ => self.cache[blocks[(first - 1) / block_size] as usize][(first - 1) % block_size]
                .expect("the cache holds what was computed before"),
        };
        for (index, &token) in batch.tokens[batch.query_range(row)].iter().enumerate() {
            let token = if token == TOKEN_FROM_SLOT { last_token } else { token };
            assert!(u64::from(token) < VOCAB, "a slot without a sampled token was read");
            hash = extend_hash(hash, token);
            let position = first + index;
            self.cache[blocks[position / block_size] as usize][position % block_size] = Some(hash);
        }
        if !batch.sampled_rows.contains(&(row as u32)) {
            return None;
        }
        let token = sample(hash, num_output);
        self.slots[slot as usize] = Some((num_output + 1, token.unwrap_or(1)));
        Some(Sampled { slot, token, logprobs: Vec::new() })
    }
}

/// What the simulation knows of one request.
struct Known {
    rank: (std::cmp::Reverse<i32>, u64),
    deadline: Option<u64>,
    expected: (Vec<u32>, FinishReason),
    num_tokens: usize,
    has_started: bool,
    is_paused: bool,
}

struct Simulation {
    random: Random,
    config: SchedulerConfig,
    pipeline_depth: usize,
    scheduler: Scheduler,
    device: Device,
    /// Results that the device has and the scheduler has not seen.
    results: VecDeque<(Vec<Sampled>, Vec<u64>)>,
    known: HashMap<u64, Known>,
    slot_owner: HashMap<u32, u64>,
    now: u64,
    num_added: u64,
    num_ended: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let max_num_sequences = 1 + random.below(9) as usize;
        let config = SchedulerConfig {
            max_num_sequences,
            max_batched_tokens: max_num_sequences + 1 + random.below(40) as usize,
            token_quantum: 1 + random.below(3) as usize * random.below(12) as usize,
            block_size: 1 + random.below(8) as usize,
            num_blocks: 12 + random.below(30) as u32,
        };
        Self {
            pipeline_depth: 1 + random.below(3) as usize,
            random,
            config,
            scheduler: Scheduler::new(config),
            device: Device::new(config),
            results: VecDeque::new(),
            known: HashMap::new(),
            slot_owner: HashMap::new(),
            now: 0,
            num_added: 0,
            num_ended: 0,
        }
    }

    fn step(&mut self) {
        self.now += self.random.below(10);
        if self.known.len() < 30 && self.random.one_in(3) {
            self.add();
        }
        self.disturb();
        let mut outcomes = Vec::new();
        self.scheduler.expire(self.now, &mut outcomes);
        self.check(outcomes);
        let is_late = |known: &Known| known.deadline.is_some_and(|deadline| deadline <= self.now);
        assert!(!self.known.values().any(is_late), "a deadline passed without an end");
        if self.scheduler.num_in_flight() < self.pipeline_depth {
            self.plan();
        }
        let is_behind = self.scheduler.num_in_flight() == self.pipeline_depth;
        if !self.results.is_empty() && (is_behind || self.random.one_in(2)) {
            self.commit();
        }
        self.scheduler.check_integrity().unwrap();
    }

    fn add(&mut self) {
        let capacity = self.config.num_blocks as u64 * self.config.block_size as u64;
        let prompt_len = 1 + self.random.below(capacity.min(60));
        let max_tokens = 1 + self.random.below((capacity - prompt_len + 1).min(40)) as usize;
        let prompt: Vec<u32> = (0..prompt_len).map(|_| self.random.below(VOCAB) as u32).collect();
        assert!(Scheduler::fits(&self.config, prompt.len(), max_tokens));
        self.num_added += 1;
        let id = self.num_added;
        let priority = if self.random.one_in(6) { self.random.below(3) as i32 - 1 } else { 0 };
        let deadline = self.random.one_in(10).then(|| self.now + self.random.below(400));
        let known = Known {
            rank: (std::cmp::Reverse(priority), id),
            deadline,
            expected: oracle(&prompt, max_tokens),
            num_tokens: 0,
            has_started: false,
            is_paused: false,
        };
        self.known.insert(id, known);
        let sampling = slot_state(id);
        let stop_tokens = vec![STOP_TOKEN];
        self.scheduler.add(SequenceParams {
            id,
            prompt,
            sampling,
            max_tokens,
            stop_tokens,
            priority,
            deadline,
        });
    }

    /// Cancels, pauses and resumes at random.
    fn disturb(&mut self) {
        let mut ids: Vec<u64> = self.known.keys().copied().collect();
        ids.sort_unstable();
        if ids.is_empty() {
            return;
        }
        let id = ids[self.random.below(ids.len() as u64) as usize];
        match self.random.below(60) {
            0 => {
                assert!(self.scheduler.remove(id), "request {id} has not ended");
                assert!(!self.scheduler.remove(id), "request {id} has ended");
                self.end(id);
            }
            1..=4 => self.set_paused(id, true),
            5..=14 => self.set_paused(id, false),
            _ => {}
        }
    }

    fn set_paused(&mut self, id: u64, is_paused: bool) {
        self.scheduler.set_paused(id, is_paused);
        self.known.get_mut(&id).unwrap().is_paused = is_paused;
    }

    fn plan(&mut self) {
        let mut outcomes = Vec::new();
        let plan = self.scheduler.plan(&mut outcomes);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Started { .. })));
        self.check(outcomes);
        let candidates = self.known.iter().filter(|(_, known)| !known.is_paused);
        let top = candidates.min_by_key(|(_, known)| known.rank).map(|(&id, _)| id);
        let Some(plan) = plan else {
            assert!(top.is_none() || !self.results.is_empty(), "a request could run, but the step is empty");
            return;
        };
        self.slot_owner.extend(plan.resets.iter().map(|(slot, state)| (*slot, state.seed)));
        let ids: Vec<u64> = plan.batch.slots.iter().map(|slot| self.slot_owner[slot]).collect();
        assert!(ids.iter().all(|id| !self.known[id].is_paused), "a paused request got a row");
        if let Some(top) = top {
            let is_unread = self.results.iter().any(|(_, ids)| ids.contains(&top));
            assert!(is_unread || ids.contains(&top), "the request of highest rank did not progress");
        }
        let sampled_ids = plan.batch.sampled_rows.iter().map(|&row| ids[row as usize]).collect();
        let sampled = self.device.run(&plan);
        self.results.push_back((sampled, sampled_ids));
    }

    fn commit(&mut self) {
        let (sampled, _) = self.results.pop_front().unwrap();
        let mut outcomes = Vec::new();
        self.scheduler.commit(sampled, &mut outcomes);
        self.check(outcomes);
    }

    fn check(&mut self, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            match outcome {
                Outcome::Started { id } => {
                    let known = self.known.get_mut(&id).expect("no outcome follows the end");
                    assert!(!known.has_started, "request {id} started twice");
                    known.has_started = true;
                }
                Outcome::Token { id, token, is_stop, .. } => {
                    let known = self.known.get_mut(&id).expect("no outcome follows the end");
                    assert!(known.has_started, "request {id} has output before its start");
                    assert_eq!(
                        Some(&token),
                        known.expected.0.get(known.num_tokens),
                        "request {id} went astray"
                    );
                    assert_eq!(is_stop, token == STOP_TOKEN);
                    known.num_tokens += 1;
                }
                Outcome::Ended { id, reason } => {
                    let known = &self.known[&id];
                    if reason == FinishReason::Deadline {
                        assert!(known.deadline.is_some_and(|deadline| deadline <= self.now));
                    } else {
                        assert_eq!(reason, known.expected.1, "request {id}");
                        assert_eq!(known.num_tokens, known.expected.0.len(), "request {id} lost tokens");
                    }
                    self.end(id);
                }
            }
        }
    }

    fn end(&mut self, id: u64) {
        self.known.remove(&id).expect("a request ends once");
        self.num_ended += 1;
    }

    /// Lets everything that is left run to its end.
    fn drain(&mut self) {
        let ids: Vec<u64> = self.known.keys().copied().collect();
        ids.into_iter().for_each(|id| self.set_paused(id, false));
        let mut num_steps = 0;
        while !self.known.is_empty() {
            num_steps += 1;
            assert!(num_steps < 100_000, "{} requests never end", self.known.len());
            if self.scheduler.num_in_flight() < self.pipeline_depth {
                self.plan();
            }
            if !self.results.is_empty() {
                self.commit();
            }
        }
        while !self.results.is_empty() {
            self.commit();
        }
        assert_eq!(self.num_added, self.num_ended);
        assert_eq!(self.scheduler.counts().num_blocks_free, self.config.num_blocks as usize);
        self.scheduler.check_integrity().unwrap();
    }
}

/// Steps per seed; every seed has other sizes.
const STEPS_PER_SEED: u64 = 2_000;

#[test]
fn random_steps_keep_every_promise() {
    let num_steps: u64 = match std::env::var("INFLIGHT_SIM_STEPS") {
        Ok(value) => value.parse().expect("INFLIGHT_SIM_STEPS is a number of steps"),
        Err(_) => 500_000,
    };
    let (mut num_preemptions, mut num_requests) = (0, 0);
    for seed in 0..num_steps.div_ceil(STEPS_PER_SEED) {
        let mut simulation = Simulation::new(seed);
        for _ in 0..STEPS_PER_SEED {
            simulation.step();
        }
        simulation.drain();
        num_preemptions += simulation.scheduler.counts().num_preemptions;
        num_requests += simulation.num_ended;
    }
    println!("{num_steps} steps, {num_requests} requests, {num_preemptions} preemptions");
    assert!(num_preemptions > num_steps / 1000, "the pools were meant to run out often");
}

/// Tokens of each row of the next step, which then ends.
fn next_step(scheduler: &mut Scheduler) -> Vec<usize> {
    let mut outcomes = Vec::new();
    let plan = scheduler.plan(&mut outcomes).expect("there is work");
    let sampled = plan.batch.sampled_rows.iter().map(|&row| {
        let slot = plan.batch.slots[row as usize];
        Sampled { slot, token: Some(1), logprobs: Vec::new() }
    });
    scheduler.commit(sampled.collect(), &mut outcomes);
    (0..plan.batch.num_rows()).map(|row| plan.batch.query_range(row).len()).collect()
}

fn params(id: u64, prompt_len: usize, priority: i32) -> SequenceParams {
    SequenceParams {
        id,
        prompt: vec![1; prompt_len],
        sampling: slot_state(id),
        max_tokens: 50,
        stop_tokens: Vec::new(),
        priority,
        deadline: None,
    }
}

#[test]
fn a_prompt_goes_before_decodes_of_lower_priority_alone() {
    let config = SchedulerConfig {
        max_num_sequences: 32,
        max_batched_tokens: 33,
        token_quantum: 1,
        block_size: 8,
        num_blocks: 2000,
    };
    // Steps until the prompt of 400 tokens is through, beside 31 decodes of priority 0.
    for (priority, expected) in [(100, 13), (0, 200), (-1, 200)] {
        let mut scheduler = Scheduler::new(config);
        (1..=31).for_each(|id| scheduler.add(SequenceParams { max_tokens: 1000, ..params(id, 1, 0) }));
        assert_eq!(next_step(&mut scheduler), [1; 31]);
        scheduler.add(params(99, 400, priority));
        let (mut num_steps, mut num_left) = (0, 400);
        while num_left > 0 {
            let rows = next_step(&mut scheduler);
            num_left -= rows.iter().find(|&&num_tokens| num_tokens > 1).copied().unwrap_or(num_left);
            num_steps += 1;
        }
        assert_eq!(num_steps, expected, "priority {priority}");
        assert_eq!(next_step(&mut scheduler).len(), 32, "the decodes go on");
    }
}

#[test]
fn a_slot_gets_the_prompt_where_it_is_penalised_alone() {
    for (repetition_penalty, expected) in [(1.0, vec![]), (1.3, vec![1; 5])] {
        let mut simulation = Simulation::new(1);
        let sampling = SlotState { repetition_penalty, ..SlotState::GREEDY };
        simulation.scheduler.add(SequenceParams { sampling, max_tokens: 2, ..params(1, 5, 0) });
        let plan = simulation.scheduler.plan(&mut Vec::new()).unwrap();
        assert_eq!(plan.resets[0].1.prompt, expected);
    }
}

#[test]
#[should_panic(expected = "results come in row order")]
fn a_result_of_another_slot_is_a_defect() {
    let mut simulation = Simulation::new(1);
    simulation.scheduler.add(SequenceParams { max_tokens: 2, ..params(1, 1, 0) });
    let plan = simulation.scheduler.plan(&mut Vec::new()).unwrap();
    let sampled = Sampled { slot: plan.batch.slots[0] + 1, token: Some(1), logprobs: Vec::new() };
    simulation.scheduler.commit(vec![sampled], &mut Vec::new());
}

#[test]
fn prompts_beside_decodes_stop_at_a_quantum() {
    let config = SchedulerConfig {
        max_num_sequences: 20,
        max_batched_tokens: 64,
        token_quantum: 16,
        block_size: 8,
        num_blocks: 200,
    };
    let scheduler = |prompts: &[usize]| {
        let mut scheduler = Scheduler::new(config);
        for (index, &prompt_len) in prompts.iter().enumerate() {
            scheduler.add(params(index as u64 + 1, prompt_len, 0));
        }
        scheduler
    };
    // Alone, a prompt is not cut: there might be no step for the rest to join.
    assert_eq!(next_step(&mut scheduler(&[45])), [45]);
    // 1 and 45 tokens are 46; 32 leave 14 of the prompt, which with the decode are less than a quantum.
    let mut beside_one = scheduler(&[1, 45]);
    assert_eq!(next_step(&mut beside_one), [1, 31]);
    assert_eq!(next_step(&mut beside_one), [1, 14]);
    assert_eq!(next_step(&mut beside_one), [1, 1]);
    // What is cut off goes first in the next step, and a step that the budget ends is cut as well.
    let mut beside_two = scheduler(&[1, 1, 29, 75]);
    assert_eq!(next_step(&mut beside_two), [1, 1, 29, 33]);
    assert_eq!(next_step(&mut beside_two), [1, 1, 1, 29]);
    assert_eq!(next_step(&mut beside_two), [1, 1, 1, 13]);
    // Decodes are never cut off, and neither is the only prompt beside them.
    assert_eq!(next_step(&mut scheduler(&[1; 18])), [1; 18]);
    let mut crowded = [1; 17];
    crowded[0] = 5;
    assert_eq!(next_step(&mut scheduler(&crowded)), [[1; 16].as_slice(), &[5]].concat());
}

#[test]
fn a_newcomer_leaves_those_that_run_room_to_grow() {
    let config = SchedulerConfig {
        max_num_sequences: 20,
        max_batched_tokens: 64,
        token_quantum: 1,
        block_size: 8,
        num_blocks: 20,
    };
    let mut scheduler = Scheduler::new(config);
    (1..=10).for_each(|id| scheduler.add(params(id, 3, 0)));
    assert_eq!(next_step(&mut scheduler), [3; 10]);
    // 10 blocks are free, of which 5 are left for 4 tokens of each of 10 sequences.
    scheduler.add(params(11, 41, 0));
    assert_eq!(next_step(&mut scheduler), [1; 10]);
    scheduler.add(params(12, 40, 1));
    assert_eq!(next_step(&mut scheduler), [[1; 10].as_slice(), &[40]].concat());
    assert_eq!(scheduler.counts().num_preemptions, 0);
    // A higher priority takes the place of those who would grow.
    scheduler.add(params(13, 41, 2));
    let rows = next_step(&mut scheduler);
    assert_eq!(rows.iter().filter(|&&num_tokens| num_tokens == 41).count(), 1, "{rows:?}");
    // 4 blocks are free and 6 wanted; who has a lower rank need not grow.
    assert_eq!(scheduler.counts().num_preemptions, 2);
}
