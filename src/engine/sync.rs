//! The synchronisation primitives that queues and shutdown are built on: the standard library's, or those of a
//! model checker when the crate is compiled with the feature `shuttle`.

#[cfg(not(feature = "shuttle"))]
pub use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, Weak, atomic, mpsc},
    thread,
};

#[cfg(feature = "shuttle")]
pub use shuttle::{
    sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, Weak, atomic, mpsc},
    thread,
};

use std::sync::PoisonError;
use std::time::Duration;

/// Locks, whatever a thread that panicked did before: every critical section leaves its data valid.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until somebody notifies.
pub fn wait<'a, T>(ready: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    ready.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// Waits until somebody notifies or `timeout` has passed.
pub fn wait_timeout<'a, T>(
    ready: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
) -> MutexGuard<'a, T> {
    ready.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
}
