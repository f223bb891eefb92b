//! An executor without weights: every request gets its own prompt back, then the end-of-sequence token.
//!
//! Bindings, the scheduler and the ABI are tested with it: it keeps no model, but it takes its tokens from the
//! same plans, chunks, slots and recomputations as a real one, and would return wrong ones if those were wrong.

use std::collections::VecDeque;
use std::time::Duration;

use crate::backend::{BackendResult, Sampled, SlotState, TOKEN_FROM_SLOT, TokenLogprob};
use crate::engine::batch::StepPlan;
use crate::engine::executor::Executor;

/// See the module's description.
pub struct EchoExecutor {
    slots: Vec<EchoSlot>,
    eos_token: u32,
    step_time: Duration,
    results: VecDeque<Vec<Sampled>>,
}

/// What a KV cache would hold, and how many outputs there are.
#[derive(Default, Clone)]
struct EchoSlot {
    tokens: Vec<u32>,
    state: Option<SlotState>,
    num_output: usize,
    last_token: u32,
}

impl EchoExecutor {
    /// Every step sleeps for `step_time`.
    pub fn new(max_slots: usize, eos_token: u32, step_time: Duration) -> Self {
        let slots = vec![EchoSlot::default(); max_slots];
        Self { slots, eos_token, step_time, results: VecDeque::new() }
    }
}

impl Executor for EchoExecutor {
    fn pipeline_depth(&self) -> usize {
        2
    }

    fn submit(&mut self, plan: &StepPlan) -> BackendResult<()> {
        for (slot, state) in &plan.resets {
            let num_output = state.output.len();
            self.slots[*slot as usize] =
                EchoSlot { state: Some(state.clone()), num_output, ..EchoSlot::default() };
        }
        let batch = &plan.batch;
        for row in 0..batch.num_rows() {
            let slot = &mut self.slots[batch.slots[row] as usize];
            slot.tokens.truncate(batch.first_position(row));
            assert_eq!(
                slot.tokens.len(),
                batch.first_position(row),
                "a row goes on where its slot has got to"
            );
            for &token in &batch.tokens[batch.query_range(row)] {
                slot.tokens.push(if token == TOKEN_FROM_SLOT { slot.last_token } else { token });
            }
        }
        let sampled = batch.sampled_rows.iter().map(|&row| {
            let slot = batch.slots[row as usize];
            self.slots[slot as usize].sample(slot, self.eos_token)
        });
        self.results.push_back(sampled.collect());
        if !self.step_time.is_zero() {
            std::thread::sleep(self.step_time);
        }
        Ok(())
    }

    fn collect(&mut self) -> BackendResult<Vec<Sampled>> {
        Ok(self.results.pop_front().expect("a step was submitted"))
    }
}

impl EchoSlot {
    /// The prompt's next token; past its end the end of sequence or, while that is suppressed, the prompt again.
    fn sample(&mut self, slot: u32, eos_token: u32) -> Sampled {
        let state = self.state.as_ref().expect("a slot is reset before it runs");
        let prompt_len = self.tokens.len() - self.num_output;
        let is_suppressed =
            self.num_output < state.min_tokens as usize && state.suppressed_tokens.contains(&eos_token);
        let token = match self.num_output < prompt_len || is_suppressed {
            true => self.tokens[self.num_output % prompt_len],
            false => eos_token,
        };
        let logprobs = state.num_logprobs.map(|_| TokenLogprob { token, logprob: 0.0 });
        self.num_output += 1;
        self.last_token = token;
        Sampled { slot, token: Some(token), logprobs: logprobs.into_iter().collect() }
    }
}
