//! The worker thread: owns the executor and nothing else.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::backend::BackendResult;
use crate::engine::batch::StepPlan;
use crate::engine::executor::Executor;
use crate::engine::step::Message;
use crate::engine::sync::mpsc::{Receiver, Sender, TryRecvError};
use crate::error::{Error, Result};

/// Runs plans until the scheduler thread hangs up or a step fails; a failure is the last thing it reports.
pub(super) fn run(mut executor: Box<dyn Executor>, plans: Receiver<StepPlan>, scheduler: Sender<Message>) {
    let mut num_in_flight = 0;
    loop {
        let next = if num_in_flight == 0 {
            plans.recv().map_err(|_| TryRecvError::Disconnected)
        } else if num_in_flight < executor.pipeline_depth() {
            plans.try_recv()
        } else {
            Err(TryRecvError::Empty)
        };
        let result = match next {
            Ok(plan) => {
                num_in_flight += 1;
                guard(|| executor.submit(&plan)).map(|()| None)
            }
            Err(TryRecvError::Empty) => {
                num_in_flight -= 1;
                guard(|| executor.collect()).map(Some)
            }
            Err(TryRecvError::Disconnected) => return,
        };
        let message = match result {
            Ok(None) => continue,
            Ok(Some(sampled)) => Message::StepDone(sampled),
            Err(error) => Message::StepFailed(error),
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
