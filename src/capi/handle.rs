//! Handles: keys that the host holds in place of pointers, so that a stale, foreign or inherited one is an
//! error.
//!
//! A key is never reused in its process and never dereferenced. Its bits, from the top: 8 of kind, 22 of
//! process tag, 33 of serial number, and a 1. The kinds make it a non-canonical address: no allocator returns
//! it, a garbage collector that finds it in a pointer variable leaves it alone, and a host that follows it
//! faults at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::ffi::{PROCESS_TAG_BITS, PerProcess, process_tag};
use crate::error::{Error, Result, Status};

const KIND_SHIFT: u32 = 56;
const PROCESS_SHIFT: u32 = 34;
const PROCESS_MASK: u64 = (1 << PROCESS_TAG_BITS) - 1;
const SERIAL_MASK: u64 = (1 << 33) - 1;

const _: () = assert!(usize::BITS == 64, "handles need 64 bits");

/// What the host's handles of one kind stand for.
pub(super) struct Handles<T: 'static> {
    kind: u8,
    name: &'static str,
    table: PerProcess<Table<T>>,
}

struct Table<T> {
    next_serial: AtomicU64,
    entries: RwLock<HashMap<u64, T>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { next_serial: AtomicU64::new(1), entries: RwLock::default() }
    }
}

impl<T: Clone + Send + Sync> Handles<T> {
    /// A table for handles that are called `name` in messages; `kind` is in 1..=0x7e.
    pub(super) const fn new(kind: u8, name: &'static str) -> Self {
        assert!(kind > 0 && kind < 0x7f);
        Self { kind, name, table: PerProcess::new() }
    }

    /// A handle for `value`, typed as the opaque C type `H`.
    pub(super) fn insert<H>(&self, value: T) -> Result<*mut H> {
        let table = self.table.get();
        let serial = table.next_serial.fetch_add(1, Ordering::Relaxed);
        if serial > SERIAL_MASK {
            return Err(Error::internal(format!("this process has used up its {} handles", self.name)));
        }
        let key = u64::from(self.kind) << KIND_SHIFT | process_tag() << PROCESS_SHIFT | serial << 1 | 1;
        table.entries.write().insert(key, value);
        Ok(std::ptr::without_provenance_mut(key as usize))
    }

    /// What `handle` stands for.
    pub(super) fn get<H>(&self, handle: *const H) -> Result<T> {
        let key = self.key(handle)?;
        self.table.get().entries.read().get(&key).cloned().ok_or_else(|| self.gone(key))
    }

    /// Ends `handle` and returns what it stood for.
    pub(super) fn remove<H>(&self, handle: *const H) -> Result<T> {
        let key = self.key(handle)?;
        self.table.get().entries.write().remove(&key).ok_or_else(|| self.gone(key))
    }

    /// The key in `handle`. Looks at nothing that a fork may have left locked.
    fn key<H>(&self, handle: *const H) -> Result<u64> {
        let key = handle.addr() as u64;
        let invalid = |message| Err(Error::new(Status::InvalidHandle, message));
        if key == 0 {
            return invalid(format!("the {} handle is NULL", self.name));
        }
        if key >> KIND_SHIFT != u64::from(self.kind) || key & 1 == 0 {
            return invalid(format!("{key:#x} is not a handle of kind {}", self.name));
        }
        if key >> PROCESS_SHIFT & PROCESS_MASK != process_tag() {
            let message = format!(
                "the {} was made by the process that this one was forked from; only that one may use it",
                self.name
            );
            return Err(Error::new(Status::Forked, message));
        }
        Ok(key)
    }

    fn gone(&self, key: u64) -> Error {
        Error::new(
            Status::InvalidHandle,
            format!("the {} {key:#x} was destroyed or never existed", self.name),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Opaque;

    #[test]
    fn stale_foreign_and_null_handles_are_errors() {
        static NUMBERS: Handles<u32> = Handles::new(0x11, "number");
        static LETTERS: Handles<char> = Handles::new(0x12, "letter");
        let seven: *mut Opaque = NUMBERS.insert(7).unwrap();
        let x: *mut Opaque = LETTERS.insert('x').unwrap();
        assert_eq!(NUMBERS.get(seven).unwrap(), 7);
        assert_eq!(LETTERS.get(x).unwrap(), 'x');

        let on_stack = Opaque;
        for handle in [x.cast_const(), std::ptr::null(), &raw const on_stack, seven.wrapping_byte_add(1)] {
            assert_eq!(NUMBERS.get(handle).unwrap_err().status(), Status::InvalidHandle);
        }
        assert_eq!(NUMBERS.remove(seven).unwrap(), 7);
        assert_eq!(NUMBERS.get(seven).unwrap_err().status(), Status::InvalidHandle);
        assert_eq!(NUMBERS.remove(seven).unwrap_err().status(), Status::InvalidHandle);
        let next: *mut Opaque = NUMBERS.insert(8).unwrap();
        assert_ne!(next.addr(), seven.addr());
    }

    #[test]
    fn a_handle_of_another_process_is_forked() {
        static NUMBERS: Handles<u32> = Handles::new(0x13, "number");
        let handle: *mut Opaque = NUMBERS.insert(1).unwrap();
        let inherited = handle.map_addr(|address| address ^ (1 << PROCESS_SHIFT));
        assert_eq!(NUMBERS.get(inherited).unwrap_err().status(), Status::Forked);
        assert_eq!(NUMBERS.remove(inherited).unwrap_err().status(), Status::Forked);
        assert_eq!(NUMBERS.get(handle).unwrap(), 1);
    }

    #[test]
    fn handles_are_not_addresses() {
        static NUMBERS: Handles<u32> = Handles::new(0x14, "number");
        let handle: *mut Opaque = NUMBERS.insert(1).unwrap();
        let top = handle.addr() >> 47;
        assert!(top != 0 && top != (1 << 17) - 1, "{handle:p} is a canonical address");
    }
}
