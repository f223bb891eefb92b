//! The scheduler thread: the loop that turns commands into steps and steps into outcomes.
//!
//! Everything it waits for comes through one inbox. It does no text, no I/O and no device call. What a step is says
//! [`crate::engine::batch::StepPlan`]; the scheduler fills it, and this loop decides when. On a device that has two
//! steps at a time (`pipeline_depth` 2) step 2 is planned and handed over while step 1 runs, and the worker is told to
//! wait for step 1 only then:
//!
//! ```text
//! scheduler | plan 1, plan 2              | commit 1, plan 3            | commit 2, plan 4
//!           |   Submit 1, Submit 2,       ^   Submit 3, Collect         ^   Submit 4, Collect
//!           v   Collect                   |                             |
//! worker    | submit 1, submit 2, collect | submit 3, collect           | submit 4, collect
//!           |                    StepDone 1                    StepDone 2
//! device    |    [========= step 1 =========][========= step 2 =========][========= step 3 ====
//! ```
//!
//! From `Collect` to `StepDone` the loop `is_collecting`, so that the worker waits for one step at a time and takes
//! the next `Submit` before the next `Collect`. Step 3 is planned when the tokens of step 1 are known and those of
//! step 2 are not: rows of it take theirs from their slots. A slot is a sequence's place on the device: its sampling
//! state and the token that it sampled last. With a depth of 1 nothing overlaps: plan 1, Submit, Collect, commit 1,
//! plan 2.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::backend::Sampled;
use crate::config::LogLevel;
use crate::engine::event::{FinishReason, RequestId};
use crate::engine::output::OutputMessage;
use crate::engine::scheduler::{Outcome, Scheduler};
use crate::engine::sequence::{Micros, SequenceParams};
use crate::engine::shared::Shared;
use crate::engine::stream::RequestStream;
use crate::engine::sync::Arc;
use crate::engine::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use crate::engine::worker::{Command, panic_text};
use crate::error::{Error, Status};

/// Messages that are taken before the next look at deadlines and steps.
const MAX_MESSAGES_PER_TURN: usize = 1024;

/// What the scheduler thread can be told.
pub(super) enum Message {
    /// From a host thread: a request was accepted.
    Enqueue(Box<SequenceParams>, Box<RequestStream>),
    /// From a host thread, or for a queue that nobody reads: end it.
    Cancel(RequestId),
    /// From a queue: its consumer is behind (`true`) or has caught up.
    SetPaused(RequestId, bool),
    /// From the output thread: it has ended there.
    Remove(RequestId),
    /// From the worker: the oldest step's samples.
    StepDone(Vec<Sampled>),
    /// From the worker: the device or the executor is beyond use.
    StepFailed(Error),
    /// From a host thread: the engine closes.
    Close,
}

/// The scheduler thread's world.
pub(super) struct StepLoop {
    pub(super) scheduler: Scheduler,
    /// Steps that the worker may have at a time.
    pub(super) pipeline_depth: usize,
    pub(super) inbox: Receiver<Message>,
    pub(super) worker: Sender<Command>,
    /// Whether the worker has been told to collect a step and has not answered; see the drawing above.
    pub(super) is_collecting: bool,
    pub(super) output: Sender<OutputMessage>,
    pub(super) shared: Arc<Shared>,
    /// Zero of the engine's clock.
    pub(super) epoch: Instant,
}

impl StepLoop {
    /// Runs until the engine closes or fails, then ends what is left. A panic in here is a defect and ends the
    /// engine, not the host.
    pub(super) fn run(mut self) {
        let error = catch_unwind(AssertUnwindSafe(|| self.run_steps())).unwrap_or_else(|payload| {
            Error::internal(format!("the scheduler panicked: {}", panic_text(payload.as_ref())))
        });
        if error.status() != Status::Closed {
            self.shared.logger.log(LogLevel::Error, format_args!("the engine ends: {error}"));
        }
        self.shut_down(error);
    }

    /// The step loop proper. Returns why it ended.
    fn run_steps(&mut self) -> Error {
        let mut outcomes = Vec::new();
        loop {
            if let Err(error) = self.drain_inbox(&mut outcomes) {
                // Requests that ended before keep the reason that they ended for.
                self.publish(&mut outcomes);
                return error;
            }
            self.scheduler.expire(self.now(), &mut outcomes);
            self.command_worker(&mut outcomes);
            self.publish(&mut outcomes);
        }
    }

    /// Hands over as many steps as may be in flight and only then lets the worker wait for the oldest, so that the
    /// device has its next step before the worker sleeps. A worker that is gone has said why in the inbox.
    fn command_worker(&mut self, outcomes: &mut Vec<Outcome>) {
        while self.scheduler.num_in_flight() < self.pipeline_depth
            && let Some(plan) = self.scheduler.plan(outcomes)
        {
            self.shared.count_step();
            let _ = self.worker.send(Command::Submit(plan));
        }
        if self.scheduler.num_in_flight() > 0 && !self.is_collecting {
            self.is_collecting = true;
            let _ = self.worker.send(Command::Collect);
        }
    }

    /// Waits until there is something to do, then takes the messages that are there, but not so many that hosts who
    /// send without pause could keep the device from its next step.
    fn drain_inbox(&mut self, outcomes: &mut Vec<Outcome>) -> Result<(), Error> {
        let mut next = self.wait();
        let mut num_left = MAX_MESSAGES_PER_TURN;
        while let Some(message) = next {
            self.take(message, outcomes)?;
            num_left -= 1;
            next = if num_left > 0 { self.inbox.try_recv().ok() } else { None };
        }
        Ok(())
    }

    /// The next message; `None` where a deadline passed first.
    fn wait(&self) -> Option<Message> {
        let received = match self.scheduler.next_deadline() {
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => {
                self.inbox.recv_timeout(Duration::from_micros(deadline.saturating_sub(self.now())))
            }
        };
        match received {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            // Every sender is gone, the engine's handle included.
            Err(RecvTimeoutError::Disconnected) => Some(Message::Close),
        }
    }

    fn take(&mut self, message: Message, outcomes: &mut Vec<Outcome>) -> Result<(), Error> {
        match message {
            Message::Enqueue(params, stream) => {
                self.send_output(OutputMessage::Open(stream));
                self.scheduler.add(*params);
            }
            Message::Cancel(id) => {
                if self.scheduler.remove(id) {
                    outcomes.push(Outcome::Ended { id, reason: FinishReason::Cancelled });
                }
            }
            Message::SetPaused(id, is_paused) => self.scheduler.set_paused(id, is_paused),
            Message::Remove(id) => {
                self.scheduler.remove(id);
            }
            Message::StepDone(sampled) => {
                self.is_collecting = false;
                self.shared.count_outputs(sampled.len() as u64);
                self.scheduler.commit(sampled, outcomes);
            }
            Message::StepFailed(error) => return Err(error),
            Message::Close => return Err(Error::new(Status::Closed, "the engine was closed")),
        }
        Ok(())
    }

    /// Hands outcomes to the output thread and a snapshot to whoever asks for statistics.
    fn publish(&mut self, outcomes: &mut Vec<Outcome>) {
        if !outcomes.is_empty() {
            self.send_output(OutputMessage::Outcomes(std::mem::take(outcomes)));
        }
        let counts = self.scheduler.counts();
        if counts.num_running + counts.num_waiting == 0 {
            let integrity = self.scheduler.check_integrity();
            assert!(integrity.is_ok(), "{}", integrity.unwrap_err());
        }
        self.shared.set_counts(counts);
    }

    fn send_output(&self, message: OutputMessage) {
        // The output thread outlives this one: it ends when this sender is dropped.
        let _ = self.output.send(message);
    }

    /// Closes the door, then ends every request, those that came in before the door was shut included.
    fn shut_down(self, error: Error) {
        self.shared.close(error.clone());
        while let Ok(message) = self.inbox.try_recv() {
            if let Message::Enqueue(_, stream) = message {
                self.send_output(OutputMessage::Open(stream));
            }
        }
        self.send_output(OutputMessage::Close(error));
    }

    fn now(&self) -> Micros {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::SlotState;
    use crate::config::Logger;
    use crate::engine::scheduler::SchedulerConfig;
    use crate::engine::stream::tests::stream;
    use crate::engine::sync::mpsc::channel;

    /// A loop whose other ends the test holds.
    fn step_loop() -> (StepLoop, Sender<Message>, Receiver<Command>, Receiver<OutputMessage>) {
        let (to_inbox, inbox) = channel();
        let (worker, commands) = channel();
        let (output, messages) = channel();
        let config = SchedulerConfig {
            max_num_sequences: 1,
            max_batched_tokens: 2,
            token_quantum: 1,
            block_size: 16,
            num_blocks: 2,
        };
        let step_loop = StepLoop {
            scheduler: Scheduler::new(config),
            pipeline_depth: 1,
            inbox,
            worker,
            is_collecting: false,
            output,
            shared: Arc::new(Shared::new(Logger::default())),
            epoch: Instant::now(),
        };
        (step_loop, to_inbox, commands, messages)
    }

    fn one_token(id: RequestId) -> Message {
        let params = SequenceParams {
            id,
            prompt: vec![1],
            sampling: SlotState::GREEDY,
            max_tokens: 1,
            stop_tokens: Vec::new(),
            priority: 0,
            deadline: None,
        };
        Message::Enqueue(Box::new(params), Box::new(stream(id, None).0))
    }

    #[test]
    fn what_came_of_requests_before_the_end_is_told() {
        for last in [Message::Close, Message::StepFailed(Error::internal("a fault"))] {
            let (mut step_loop, to_inbox, _commands, messages) = step_loop();
            let mut outcomes = Vec::new();
            step_loop.take(one_token(7), &mut outcomes).unwrap();
            step_loop.command_worker(&mut outcomes);
            let sampled = Sampled { slot: 0, token: Some(5), logprobs: Vec::new() };
            to_inbox.send(Message::StepDone(vec![sampled])).unwrap();
            to_inbox.send(last).unwrap();
            step_loop.run_steps();
            assert!(matches!(messages.recv(), Ok(OutputMessage::Open(_))));
            let Ok(OutputMessage::Outcomes(outcomes)) = messages.recv() else {
                panic!("the outcomes were lost");
            };
            let token = Outcome::Token { id: 7, token: 5, logprobs: Vec::new(), is_stop: false };
            assert_eq!(outcomes, [token, Outcome::Ended { id: 7, reason: FinishReason::Length }]);
        }
    }

    #[test]
    fn a_flood_of_messages_leaves_turns_for_steps() {
        let (mut step_loop, to_inbox, _commands, _messages) = step_loop();
        for id in 0..MAX_MESSAGES_PER_TURN as u64 + 3 {
            to_inbox.send(Message::Cancel(id)).unwrap();
        }
        step_loop.drain_inbox(&mut Vec::new()).unwrap();
        for _ in 0..3 {
            assert!(step_loop.inbox.try_recv().is_ok());
        }
        assert!(step_loop.inbox.try_recv().is_err());
    }
}
