//! How the tokens of one step are given out; the only place that does this arithmetic.
//!
//! Every running sequence that is not paused has a claim to the tokens that it could run. Claims are served by
//! priority; of equal priority decodes come before prompts; of equal kind the earlier arrival comes first:
//!
//! ```text
//! 0 ........................................... num_tokens .... max_batched_tokens
//! |- decodes -|--- prompts ---|- decodes -|--- prompts ---|
//! |------- priority 1 --------|------- priority 0 --------|
//!                                              |- excess -| num_tokens % token_quantum
//! ```
//!
//! Beside decodes the prompts, from the last one on, give up the excess: a part of a quantum would cost as much as a
//! whole one, and what is left joins the next step, which the decodes need anyway.

use crate::engine::event::RequestId;
use crate::engine::sequence::{Phase, ServiceOrder};

/// Tokens that a sequence could run in the next step or, once they are shared out, that it does run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) order: ServiceOrder,
    pub(super) id: RequestId,
    pub(super) num_tokens: usize,
}

impl Claim {
    pub(super) fn phase(&self) -> Phase {
        self.order.1
    }
}

/// Cuts `claims`, which are in order of service, to what a step of `max_tokens` tokens has room for.
pub(super) fn share_out(mut claims: Vec<Claim>, max_tokens: usize, token_quantum: usize) -> Vec<Claim> {
    let mut left = max_tokens;
    let mut num_decodes = 0;
    for claim in &mut claims {
        claim.num_tokens = claim.num_tokens.min(left);
        left -= claim.num_tokens;
        num_decodes += usize::from(claim.phase() == Phase::Decode && claim.num_tokens > 0);
    }
    let num_tokens = max_tokens - left;
    let mut excess = num_tokens % token_quantum;
    // Above the decodes there must be room for the first prompt, which may have the highest rank.
    if num_decodes > 0 && num_tokens - excess > num_decodes {
        for claim in claims.iter_mut().rev().filter(|claim| claim.phase() == Phase::Prompt) {
            let cut = claim.num_tokens.min(excess);
            claim.num_tokens -= cut;
            excess -= cut;
        }
    }
    claims
}

/// What the running sequences leave of a step for waiting ones, which are asked about in order of rank.
#[derive(Debug)]
pub(super) struct Leftover {
    /// In order of service.
    claims: Vec<Claim>,
    /// Claims before this one have been served.
    next_index: usize,
    num_tokens: usize,
}

impl Leftover {
    /// Everything is left before `claims`, which are in order of service, are served.
    pub(super) fn new(claims: Vec<Claim>, max_tokens: usize) -> Self {
        Self { claims, next_index: 0, num_tokens: max_tokens }
    }

    /// Tokens that are left where a claim of this `order` is served.
    pub(super) fn at(&mut self, order: ServiceOrder) -> usize {
        while let Some(claim) = self.claims.get(self.next_index)
            && claim.order < order
        {
            self.take(claim.num_tokens);
            self.next_index += 1;
        }
        self.num_tokens
    }

    /// Serves a further claim.
    pub(super) fn take(&mut self, num_tokens: usize) {
        self.num_tokens = self.num_tokens.saturating_sub(num_tokens);
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use super::*;

    /// Claims of (priority, tokens); one token is a decode.
    fn claims(of: &[(i32, usize)]) -> Vec<Claim> {
        let mut claims: Vec<Claim> = (1..)
            .zip(of)
            .map(|(id, &(priority, num_tokens))| {
                let phase = if num_tokens == 1 { Phase::Decode } else { Phase::Prompt };
                Claim { order: (Reverse(priority), phase, id), id, num_tokens }
            })
            .collect();
        claims.sort_by_key(|claim| claim.order);
        claims
    }

    /// (request, tokens) in order of service.
    fn shares(of: &[(i32, usize)], max_tokens: usize, token_quantum: usize) -> Vec<(RequestId, usize)> {
        let shares = share_out(claims(of), max_tokens, token_quantum);
        shares.iter().map(|claim| (claim.id, claim.num_tokens)).collect()
    }

    #[test]
    fn priority_comes_first_then_decodes_then_arrival() {
        assert_eq!(shares(&[(0, 6), (0, 1), (0, 9)], 10, 1), [(2, 1), (1, 6), (3, 3)]);
        let mixed = [(0, 1), (0, 5), (7, 6), (7, 1)];
        assert_eq!(shares(&mixed, 10, 1), [(4, 1), (3, 6), (1, 1), (2, 2)]);
        assert_eq!(shares(&mixed, 7, 1), [(4, 1), (3, 6), (1, 0), (2, 0)]);
    }

    #[test]
    fn prompts_give_up_the_excess_from_the_last_one_on() {
        assert_eq!(shares(&[(0, 1), (0, 9), (0, 3)], 20, 8), [(1, 1), (2, 7), (3, 0)]);
        // Not without a decode in the step, be it that none is left room for.
        assert_eq!(shares(&[(0, 9), (0, 3)], 20, 8), [(1, 9), (2, 3)]);
        assert_eq!(shares(&[(0, 1), (1, 13)], 13, 8), [(2, 13), (1, 0)]);
        // A decode of lower priority stays in the step.
        assert_eq!(shares(&[(0, 1), (1, 13)], 20, 8), [(2, 7), (1, 1)]);
        // The first prompt keeps a token.
        assert_eq!(shares(&[(0, 1), (0, 1), (0, 3)], 20, 2), [(1, 1), (2, 1), (3, 2)]);
        assert_eq!(shares(&[(0, 1), (0, 1), (0, 3)], 20, 4), [(1, 1), (2, 1), (3, 2)]);
        assert_eq!(shares(&[(0, 1), (0, 3), (0, 1)], 20, 3), [(1, 1), (3, 1), (2, 1)]);
    }

    #[test]
    fn what_is_left_depends_on_who_asks() {
        let order = |priority, id| (Reverse(priority), Phase::Prompt, id);
        let mut leftover = Leftover::new(claims(&[(0, 1), (0, 5), (7, 6)]), 20);
        assert_eq!(leftover.at(order(9, 10)), 20);
        leftover.take(3);
        assert_eq!(leftover.at(order(7, 11)), 11);
        assert_eq!(leftover.at(order(0, 12)), 5);
        leftover.take(8);
        assert_eq!(leftover.at(order(0, 13)), 0);
    }
}
