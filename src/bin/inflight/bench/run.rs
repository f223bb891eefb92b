//! One measured run: requests started in the shape of a load, every event timed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use inflight::engine::{FinishReason, Stats};
use inflight::{Engine, Event, EventKind, Prompt, Request};

use super::load::Load;
use super::meter::Usage;
use crate::failure::Failure;
use crate::flight::{Flight, POLL_SLICE, reason_name};
use crate::interrupt::Interrupt;
use crate::workload::{Lengths, RandomTokens};

/// Times of one request, in seconds from its start: its enqueueing, or in an open loop its arrival.
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
    /// From the first request's start to the last one's end.
    pub duration: f64,
    /// Per request.
    pub requests: Vec<RequestTimes>,
    /// Gaps between tokens, of all requests.
    pub gaps: Vec<f64>,
    /// Steps that the engine ran.
    pub num_steps: u64,
    /// Sequences that were put back for want of KV blocks.
    pub num_preemptions: u64,
    /// What the GPU took, where that is known.
    pub usage: Option<Usage>,
}

/// Runs workloads on an engine, each with fresh prompts.
pub struct Bench<'a> {
    engine: &'a Engine,
    interrupt: &'a Interrupt,
    seed: u64,
    tokens: RandomTokens,
}

impl<'a> Bench<'a> {
    /// Prompts and arrivals come from `seed`.
    pub fn new(engine: &'a Engine, interrupt: &'a Interrupt, seed: u64) -> Self {
        let tokens = RandomTokens::new(seed, engine.model_info().vocab_size);
        Self { engine, interrupt, seed, tokens }
    }

    /// Runs `workload` in the shape of `load` to its end.
    pub fn run(&mut self, workload: &[Lengths], load: Load) -> Result<Run, Failure> {
        let mut requests: VecDeque<Request> = workload.iter().map(|&lengths| self.request(lengths)).collect();
        let pace = load.pace(workload.len(), self.seed);
        let before = self.engine.stats();
        let mut flight = Flight::new(self.engine, self.interrupt);
        let start = Instant::now();
        let mut clock = Clock::new(workload);
        while !(flight.is_empty() && (requests.is_empty() || flight.was_cancelled())) {
            let index = workload.len() - requests.len();
            let wait = match requests.is_empty() || flight.was_cancelled() {
                true => None,
                false => pace.wait(index, flight.len(), start.elapsed()),
            };
            if wait == Some(Duration::ZERO)
                && let Some(mut request) = requests.pop_front()
            {
                request.user_data = index as u64;
                // An arrival counts from when it was due, however late this loop is with it.
                clock.started[index] =
                    Some(pace.arrival(index).map_or_else(Instant::now, |arrival| start + arrival));
                flight.enqueue(request).map_err(|error| {
                    let Lengths { input, output } = workload[index];
                    error.context(format!("request {index} ({input} tokens in, {output} out)"))
                })?;
            }
            clock.record(flight.poll(wait.unwrap_or(POLL_SLICE).min(POLL_SLICE))?)?;
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
    started: Vec<Option<Instant>>,
    times: Vec<RequestTimes>,
    num_tokens: Vec<u32>,
    gaps: Vec<f64>,
    end: Option<Instant>,
}

impl<'a> Clock<'a> {
    fn new(workload: &'a [Lengths]) -> Self {
        Self {
            workload,
            started: vec![None; workload.len()],
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
            let Some(started) = self.started[index] else { continue };
            let elapsed = (now - started).as_secs_f64();
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
        let start = self.started.first().copied().flatten();
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
            usage: None,
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
