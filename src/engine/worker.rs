//! The worker thread: owns the executor and nothing else.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::backend::BackendResult;
use crate::engine::batch::StepPlan;
use crate::engine::executor::Executor;
use crate::engine::step::Message;
use crate::engine::sync::mpsc::{Receiver, Sender};
use crate::error::{Error, Result};

/// What the worker is told, in order.
pub(super) enum Command {
    /// Start this step; may come while earlier ones run.
    Submit(StepPlan),
    /// Wait for the oldest step and report its samples.
    Collect,
}

/// Follows commands until the scheduler thread hangs up or a step fails; a failure is the last thing it reports.
pub(super) fn run(mut executor: Box<dyn Executor>, commands: Receiver<Command>, scheduler: Sender<Message>) {
    while let Ok(command) = commands.recv() {
        let message = match command {
            Command::Submit(plan) => match guard(|| executor.submit(&plan)) {
                Ok(()) => continue,
                Err(error) => Message::StepFailed(error),
            },
            Command::Collect => match guard(|| executor.collect()) {
                Ok(sampled) => Message::StepDone(sampled),
                Err(error) => Message::StepFailed(error),
            },
        };
        let is_over = matches!(message, Message::StepFailed(_));
        if scheduler.send(message).is_err() || is_over {
            return;
        }
    }
}

/// Contains a panic of the executor.
fn guard<T>(call: impl FnOnce() -> BackendResult<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(Error::from),
        Err(payload) => Err(Error::internal(format!("a step panicked: {}", panic_text(payload.as_ref())))),
    }
}

/// The message of a panic, where it has one.
pub(super) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
