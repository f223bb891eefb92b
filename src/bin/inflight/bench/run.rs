//! One measured run: everything enqueued at once, every event timed.

use std::time::{Duration, Instant};

use inflight::engine::{FinishReason, Stats};
use inflight::{Engine, Event, EventKind, Prompt, Request};

use crate::failure::Failure;
use crate::flight::{Flight, reason_name};
use crate::interrupt::Interrupt;
use crate::workload::{Lengths, RandomTokens};

/// Times of one request, in seconds from its enqueueing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RequestTimes {
    /// First token event.
    pub first_token: f64,
    /// Last token event.
    pub last_token: f64,
    /// Terminal event.
    pub end: f64,
}

/// What a run measured. Times are in seconds.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// From the first request's enqueueing to the last one's end.
    pub duration: f64,
    /// Per request.
    pub requests: Vec<RequestTimes>,
    /// Gaps between tokens, of all requests.
    pub gaps: Vec<f64>,
    /// Steps that the engine ran.
    pub num_steps: u64,
    /// Sequences that were put back for want of KV blocks.
    pub num_preemptions: u64,
}

/// Runs workloads on an engine, each with fresh prompts.
pub struct Bench<'a> {
    engine: &'a Engine,
    interrupt: &'a Interrupt,
    tokens: RandomTokens,
}

impl<'a> Bench<'a> {
    /// Prompts come from `seed`.
    pub fn new(engine: &'a Engine, interrupt: &'a Interrupt, seed: u64) -> Self {
        Self { engine, interrupt, tokens: RandomTokens::new(seed, engine.model_info().vocab_size) }
    }

    /// Enqueues all of `workload` at once and waits for the end.
    pub fn run(&mut self, workload: &[Lengths]) -> Result<Run, Failure> {
        let requests: Vec<Request> = workload.iter().map(|&lengths| self.request(lengths)).collect();
        let before = self.engine.stats();
        let mut flight = Flight::new(self.engine, self.interrupt);
        let mut clock = Clock::new(workload);
        for (index, mut request) in requests.into_iter().enumerate() {
            request.user_data = index as u64;
            clock.enqueued[index] = Some(Instant::now());
            flight.enqueue(request).map_err(|error| {
                let Lengths { input, output } = workload[index];
                error.context(format!("request {index} ({input} tokens in, {output} out)"))
            })?;
            clock.record(flight.poll(Duration::ZERO)?)?;
        }
        while !flight.is_empty() {
            clock.record(flight.wait()?)?;
        }
        if flight.was_cancelled() {
            return Err(Failure::Interrupted);
        }
        Ok(clock.finish(&before, &self.engine.stats()))
    }

    /// A request of exactly these lengths, greedy, whatever the model recommends.
    fn request(&mut self, lengths: Lengths) -> Request {
        let mut request = Request::new(Prompt::Tokens(self.tokens.take(lengths.input)));
        request.max_tokens = lengths.output;
        request.min_tokens = lengths.output;
        request.ignore_eos = true;
        request.sampling.temperature = Some(0.0);
        request.sampling.repetition_penalty = Some(1.0);
        request
    }
}

/// Times the events of a run.
struct Clock<'a> {
    workload: &'a [Lengths],
    enqueued: Vec<Option<Instant>>,
    times: Vec<RequestTimes>,
    num_tokens: Vec<u32>,
    gaps: Vec<f64>,
    end: Option<Instant>,
}

impl<'a> Clock<'a> {
    fn new(workload: &'a [Lengths]) -> Self {
        Self {
            workload,
            enqueued: vec![None; workload.len()],
            times: vec![RequestTimes::default(); workload.len()],
            num_tokens: vec![0; workload.len()],
            gaps: Vec::new(),
            end: None,
        }
    }

    fn record(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        let now = Instant::now();
        for event in events {
            let index = event.user_data as usize;
            let Some(enqueued) = self.enqueued[index] else { continue };
            let elapsed = (now - enqueued).as_secs_f64();
            match event.kind {
                EventKind::Output(output) => self.record_tokens(index, elapsed, output.token_ids.len()),
                EventKind::Finished(finished) => {
                    self.times[index].end = elapsed;
                    self.end = Some(now);
                    if let Some(error) = finished.error {
                        return Err(error.context(format!("request {index}")).into());
                    }
                    let expected = self.workload[index].output;
                    let cancelled = finished.reason == FinishReason::Cancelled;
                    if !cancelled && self.num_tokens[index] != expected {
                        return Err(Failure::Failed(format!(
                            "request {index} ended after {} of {expected} tokens: {}",
                            self.num_tokens[index],
                            reason_name(finished.reason)
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes in an event of `num_tokens` tokens; the gap before it is shared by them. Tokens that come with
    /// the first one have no gap to count.
    fn record_tokens(&mut self, index: usize, elapsed: f64, num_tokens: usize) {
        if num_tokens == 0 {
            return;
        }
        let times = &mut self.times[index];
        if self.num_tokens[index] == 0 {
            times.first_token = elapsed;
        } else {
            let gap = (elapsed - times.last_token) / num_tokens as f64;
            self.gaps.extend(std::iter::repeat_n(gap, num_tokens));
        }
        times.last_token = elapsed;
        self.num_tokens[index] += num_tokens as u32;
    }

    fn finish(self, before: &Stats, after: &Stats) -> Run {
        let start = self.enqueued.first().copied().flatten();
        let duration = match (start, self.end) {
            (Some(start), Some(end)) => (end - start).as_secs_f64(),
            _ => 0.0,
        };
        Run {
            duration,
            requests: self.times,
            gaps: self.gaps,
            num_steps: after.num_steps - before.num_steps,
            num_preemptions: after.num_preemptions - before.num_preemptions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_of_an_event_are_shared_by_its_tokens() {
        let mut clock = Clock::new(&[Lengths { input: 1, output: 4 }]);
        clock.record_tokens(0, 1.0, 1);
        clock.record_tokens(0, 1.5, 0);
        clock.record_tokens(0, 2.0, 2);
        clock.record_tokens(0, 2.25, 1);
        assert_eq!(clock.gaps, [0.5, 0.5, 0.25]);
        assert_eq!(clock.times[0], RequestTimes { first_token: 1.0, last_token: 2.25, end: 0.0 });
        assert_eq!(clock.num_tokens[0], 4);
    }
}
