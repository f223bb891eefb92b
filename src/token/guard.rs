//! The wall between this library and the panics of the crates that parse a model's text files.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Result, Status};
use crate::threads::run_on_stack;

/// Stack of [`on_own_stack`]: enough for the deepest nesting that the template limits allow, so that it does
/// not matter how small the stack of the host's thread is. Only touched pages cost memory.
const STACK_BYTES: usize = 16 << 20;

/// Runs `work` and turns a panic in it into an error of `status` that names `what` was being done.
///
/// The process's panic hook still runs. The C ABI's keeps quiet about panics of this library; the default one, which
/// a host in Rust may have, prints to standard error. So the callers check what is known to panic beforehand, and
/// this is what remains.
///
/// The work may leave its own data half-changed, so nothing that it touched mutably is used after a panic.
pub(crate) fn contain<T>(status: Status, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(payload) => Err(Error::new(status, format!("{what} panicked: {}", panic_text(&*payload)))),
    }
}

/// [`contain`] on a thread with a stack of known size; the caller waits for it.
pub(crate) fn on_own_stack<T: Send>(
    status: Status,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    run_on_stack("text", STACK_BYTES, || contain(status, what, work))
        .map_err(|error| Error::new(Status::OutOfMemory, format!("{what}: no thread: {error}")))?
        .unwrap_or_else(|_| Err(Error::internal(format!("{what}: thread ended early"))))
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_the_status_with_its_message() {
        let work = || -> Result<()> { panic!("index 7") };
        for result in [
            contain(Status::ModelInvalid, "reading a.json", work),
            on_own_stack(Status::ModelInvalid, "reading a.json", work),
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.status(), Status::ModelInvalid);
            assert_eq!(error.message(), "reading a.json panicked: index 7");
        }
    }

    #[test]
    fn results_pass_through() {
        assert_eq!(contain(Status::Internal, "x", || Ok(3)), Ok(3));
        assert_eq!(on_own_stack(Status::Internal, "x", || Ok(4)), Ok(4));
        let refused = Error::invalid_argument("no");
        assert_eq!(contain::<()>(Status::Internal, "x", || Err(refused.clone())), Err(refused));
    }
}
