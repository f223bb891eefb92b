//! The border with C: every pointer cast, every `unsafe` block and the panic guard of the C ABI.
//!
//! An exported function is one call of [`guard`] or [`guard_value`]. Its body gets a [`Caller`], the witness
//! that a C program stands behind the raw pointers and has promised what `inflight.h` asks of it: a pointer
//! that is not NULL points to as many valid bytes as its type, its length or its `struct_size` says, and
//! nobody writes to them during the call. Everything that can be checked (NULL, alignment, sizes, UTF-8) is
//! checked here.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::thread;

use super::engine::{ifl_memory_plan, ifl_model_info, ifl_stats};
use super::error::ifl_error;
use super::log::ifl_log_callback;
use super::options::{ifl_engine_options, ifl_progress_callback};
use super::request::ifl_request;
use super::status::{ifl_status, ifl_status_value, number};
use crate::error::{Error, Result, Status};
use crate::threads::NAME_PREFIX;

/// Length that stands for "up to the terminating NUL"; `IFL_NUL_TERMINATED` in the header.
pub(super) const NUL_TERMINATED: u64 = u64::MAX;

/// No struct of this ABI comes near; a larger `struct_size` is garbage and is not believed.
const STRUCT_SIZE_MAX: usize = 4096;

/// Types that C may hand over as bytes.
///
/// # Safety
/// Every bit pattern is a valid value: integers, floats, raw pointers, nullable function pointers, and structs
/// of those.
unsafe trait Plain: Copy {}

// SAFETY: integers, floats and raw pointers have no invalid bit patterns.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl<T> Plain for *const T {}
// SAFETY: fields are integers, raw pointers and nullable function pointers; enums come as integers.
unsafe impl Plain for ifl_engine_options {}
// SAFETY: fields are integers, floats and raw pointers; enums come as integers.
unsafe impl Plain for ifl_request {}
// SAFETY: fields are integers.
unsafe impl Plain for ifl_memory_plan {}
// SAFETY: fields are integers.
unsafe impl Plain for ifl_stats {}
// SAFETY: fields are integers.
unsafe impl Plain for ifl_model_info {}

/// A struct that starts with `uint32_t struct_size` and only ever grows at its end.
#[expect(private_bounds, reason = "only this file may say that a type is plain")]
pub(super) trait Sized32: Plain {
    /// C name, for messages.
    const NAME: &'static str;
    /// Size of its first version.
    const FIRST_SIZE: usize;
    /// Every field at its default, `struct_size` at the size that this library knows.
    fn defaults() -> Self;
}

/// Witness that a C caller has made the promises of the header; see the module's description.
pub(super) struct Caller(());

/// Where a result goes; checked before the work starts, written when it has succeeded.
pub(super) struct Out<'c, T> {
    pointer: *mut T,
    _caller: &'c Caller,
}

/// Like [`Out`], for a struct of which the caller knows the first `size` bytes.
pub(super) struct OutStruct<'c, T> {
    pointer: *mut T,
    size: usize,
    _caller: &'c Caller,
}

/// Runs the body of a fallible export: a failure or a panic becomes a status and, where the caller wants it,
/// an error object. Called only as the whole body of an exported function, which a test checks.
pub(super) fn guard(error: *mut *mut ifl_error, body: impl FnOnce(&Caller) -> Result<()>) -> ifl_status {
    let Err(failure) = contain(|| body(&Caller(()))).and_then(|result| result) else {
        return ifl_status_value::IFL_OK as ifl_status;
    };
    let status = number(failure.status());
    if !error.is_null() && error.is_aligned() {
        let object = Box::into_raw(Box::new(ifl_error::new(failure)));
        // SAFETY: not NULL, aligned, and the caller passes it to have an error stored there.
        unsafe { error.write(object) };
    }
    status
}

/// Runs the body of an export that has no status; a panic gives `fallback`.
pub(super) fn guard_value<T>(fallback: T, body: impl FnOnce(&Caller) -> T) -> T {
    contain(|| body(&Caller(()))).unwrap_or(fallback)
}

impl Caller {
    /// The text at `pointer`: `len` bytes of UTF-8, or up to the NUL for [`NUL_TERMINATED`].
    pub(super) fn text(&self, pointer: *const c_char, len: u64, name: &str) -> Result<&str> {
        if pointer.is_null() && len != 0 {
            return Err(null(name));
        }
        let bytes = match len {
            // SAFETY: not NULL, and the caller promises a NUL-terminated text with this length.
            NUL_TERMINATED => unsafe { CStr::from_ptr(pointer) }.to_bytes(),
            _ => self.slice(pointer.cast::<u8>(), len, name)?,
        };
        std::str::from_utf8(bytes).map_err(|error| {
            Error::new(Status::InvalidUtf8, format!("{name} is not UTF-8 after byte {}", error.valid_up_to()))
        })
    }

    /// The `num` elements at `pointer`, which may be NULL where `num` is 0.
    #[expect(private_bounds, reason = "only this file may say that a type is plain")]
    pub(super) fn slice<T: Plain>(&self, pointer: *const T, num: u64, name: &str) -> Result<&[T]> {
        if num == 0 {
            return Ok(&[]);
        }
        check_pointer(pointer, name)?;
        let len = usize::try_from(num)
            .ok()
            .filter(|len| len.checked_mul(size_of::<T>()).is_some_and(|bytes| bytes <= isize::MAX as usize))
            .ok_or_else(|| Error::invalid_argument(format!("{name}: {num} elements are not possible")))?;
        // SAFETY: not NULL, aligned, a possible size; the caller promises `num` elements that do not change.
        Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
    }

    /// A copy of the caller's struct, with defaults for the fields that a program built against an older
    /// header does not know.
    pub(super) fn read<T: Sized32>(&self, pointer: *const T) -> Result<T> {
        let size = self.struct_size(pointer)?;
        let num_known = size.min(size_of::<T>());
        let mut value = T::defaults();
        // SAFETY: the caller promises `struct_size` readable bytes; a plain type takes every bit pattern.
        unsafe { std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), (&raw mut value).cast(), num_known) };
        // SAFETY: `num_known` is within the `struct_size` bytes that the caller promises.
        let tail = unsafe { pointer.cast::<u8>().add(num_known) };
        let tail = self.slice(tail, (size - num_known) as u64, T::NAME)?;
        if tail.iter().any(|byte| *byte != 0) {
            let message = format!(
                "{} of {size} bytes sets fields that this library, which knows {num_known} bytes, does not \
                 have; use a newer library or leave them at zero",
                T::NAME
            );
            return Err(Error::new(Status::InvalidStructSize, message));
        }
        Ok(value)
    }

    /// Fills the first `size` bytes at `pointer` with defaults, and with zeros what this library does not
    /// know.
    pub(super) fn init<T: Sized32>(&self, pointer: *mut T, size: u32) -> Result<()> {
        check_pointer(pointer, T::NAME)?;
        let size = check_struct_size::<T>(size)?;
        let out = OutStruct { pointer, size, _caller: self };
        out.set(T::defaults());
        Ok(())
    }

    /// The place for a result.
    pub(super) fn out<T>(&self, pointer: *mut T, name: &str) -> Result<Out<'_, T>> {
        check_pointer(pointer, name)?;
        Ok(Out { pointer, _caller: self })
    }

    /// The place for a result that the caller may not want.
    pub(super) fn out_optional<T>(&self, pointer: *mut T, name: &str) -> Result<Option<Out<'_, T>>> {
        if pointer.is_null() { Ok(None) } else { self.out(pointer, name).map(Some) }
    }

    /// The place for a result struct, whose `struct_size` the caller has set.
    pub(super) fn out_struct<T: Sized32>(&self, pointer: *mut T) -> Result<OutStruct<'_, T>> {
        let size = self.struct_size(pointer)?;
        Ok(OutStruct { pointer, size, _caller: self })
    }

    /// The object of this library at `pointer`; `None` for NULL.
    pub(super) fn object<T>(&self, pointer: *const T) -> Option<&T> {
        // SAFETY: the caller passes NULL or what this library gave it and it has not freed; such objects are
        // never written to after they have been handed out.
        unsafe { pointer.as_ref() }
    }

    /// Frees an object of this library; NULL is allowed.
    pub(super) fn free<T>(&self, pointer: *mut T) {
        if !pointer.is_null() {
            // SAFETY: the caller passes what `Out::set_box` or `guard` gave it, once.
            drop(unsafe { Box::from_raw(pointer) });
        }
    }

    fn struct_size<T: Sized32>(&self, pointer: *const T) -> Result<usize> {
        check_pointer(pointer, T::NAME)?;
        // SAFETY: not NULL, aligned for `T` and so for its first field, which the caller has set.
        check_struct_size::<T>(unsafe { pointer.cast::<u32>().read() })
    }
}

impl<T> Out<'_, T> {
    /// Writes the result.
    pub(super) fn set(self, value: T) {
        // SAFETY: checked for NULL and alignment; the caller passes it to have a `T` stored there.
        unsafe { self.pointer.write(value) };
    }
}

impl<T> Out<'_, *mut T> {
    /// Hands an object over, for [`Caller::free`] to take back.
    pub(super) fn set_box(self, value: T) {
        self.set(Box::into_raw(Box::new(value)));
    }
}

impl<T: Sized32> OutStruct<'_, T> {
    /// Writes the part of the result that the caller knows, and zeros where the caller knows more than this
    /// library. `struct_size` becomes the caller's.
    pub(super) fn set(self, value: T) {
        let num_known = self.size.min(size_of::<T>());
        let bytes = self.pointer.cast::<u8>();
        // SAFETY: the caller promises `struct_size` writable bytes, `size` was checked to be at least the
        // first version's, and source and destination are different objects.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), bytes, num_known);
            bytes.add(num_known).write_bytes(0, self.size - num_known);
            self.pointer.cast::<u32>().write(self.size as u32);
        }
    }
}

fn null(name: &str) -> Error {
    Error::invalid_argument(format!("{name} is NULL"))
}

fn check_pointer<T>(pointer: *const T, name: &str) -> Result<()> {
    match pointer {
        _ if pointer.is_null() => Err(null(name)),
        _ if !pointer.is_aligned() => {
            Err(Error::invalid_argument(format!("{name} is not aligned to {} bytes", align_of::<T>())))
        }
        _ => Ok(()),
    }
}

/// Every version of a struct is a multiple of 8 bytes long, so that none ends inside a field.
fn check_struct_size<T: Sized32>(size: u32) -> Result<usize> {
    let size = size as usize;
    if size < T::FIRST_SIZE || size > STRUCT_SIZE_MAX || !size.is_multiple_of(8) {
        let message = format!(
            "struct_size of {} is {size}; this library knows {} to {}: set it to sizeof({})",
            T::NAME,
            T::FIRST_SIZE,
            size_of::<T>(),
            T::NAME
        );
        return Err(Error::new(Status::InvalidStructSize, message));
    }
    Ok(size)
}

/// A host's callback with the pointer that it wants back.
pub(super) struct HostCallback<F> {
    function: F,
    user_data: *mut c_void,
}

// SAFETY: the library only passes `user_data` back; the header asks that the callback may run on any thread.
unsafe impl<F: Send> Send for HostCallback<F> {}
// SAFETY: as above, and at the same time on several.
unsafe impl<F: Sync> Sync for HostCallback<F> {}

impl<F> HostCallback<F> {
    pub(super) fn new(function: F, user_data: *mut c_void) -> Self {
        Self { function, user_data }
    }
}

impl HostCallback<ifl_log_callback> {
    /// Passes one line to the host, NUL-terminated as all text is.
    pub(super) fn log(&self, level: i32, message: &str) {
        if let Some(function) = self.function {
            let line = terminated(message);
            // SAFETY: the host's function has this signature and, as the header asks, does not unwind; the
            // line outlives the call.
            unsafe { function(self.user_data, level, line.as_ptr().cast(), message.len() as u64) };
        }
    }
}

impl HostCallback<ifl_progress_callback> {
    /// Tells the host how far loading has come; `true` asks to go on.
    pub(super) fn progress(&self, bytes_done: u64, bytes_total: u64) -> bool {
        match self.function {
            // SAFETY: the host's function has this signature and, as the header asks, does not unwind.
            Some(function) => unsafe { function(self.user_data, bytes_done, bytes_total) == 0 },
            None => true,
        }
    }
}

/// The bytes of `text` with a NUL behind them.
pub(super) fn terminated(text: &str) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes.into_boxed_slice()
}

/// A value that each process makes for itself: a child made by `fork` gets a fresh one, because a thread that
/// does not exist in the child may have held a lock of the parent's.
pub(super) struct PerProcess<T: 'static> {
    current: AtomicPtr<OfProcess<T>>,
}

struct OfProcess<T> {
    process_tag: u64,
    value: T,
}

impl<T: Default + Sync> PerProcess<T> {
    pub(super) const fn new() -> Self {
        Self { current: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// This process's value, made at the first call.
    pub(super) fn get(&self) -> &'static T {
        let process_tag = process_tag();
        let mut current = self.current.load(Ordering::Acquire);
        loop {
            // SAFETY: NULL or leaked below, and never freed.
            if let Some(known) = unsafe { current.as_ref::<'static>() }
                && known.process_tag == process_tag
            {
                return &known.value;
            }
            let fresh = Box::into_raw(Box::new(OfProcess { process_tag, value: T::default() }));
            match self.current.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => current = fresh,
                Err(other) => {
                    // SAFETY: made above and not shared, since another thread was first.
                    drop(unsafe { Box::from_raw(fresh) });
                    current = other;
                }
            }
        }
    }
}

/// Bits of [`process_tag`].
pub(super) const PROCESS_TAG_BITS: u32 = 22;

/// Forks between this process and the one that called the library first.
static NUM_FORKS: AtomicU64 = AtomicU64::new(0);

/// A number of [`PROCESS_TAG_BITS`] that a process shares with none that it was forked from. Process ids alone do not
/// tell them apart: the first process of a container and that of a container inside it both have the id 1. Forks
/// that bypass libc are told by the id.
pub(super) fn process_tag() -> u64 {
    const ID_BITS: u32 = 22;
    const FORK_BITS: u32 = 20;
    const TAG_SHIFT: u32 = ID_BITS + FORK_BITS;
    /// The tag, and in the bits below it whose it is.
    static CURRENT: AtomicU64 = AtomicU64::new(0);
    static IS_WATCHING: AtomicBool = AtomicBool::new(false);
    if !IS_WATCHING.load(Ordering::Acquire) && !IS_WATCHING.swap(true, Ordering::AcqRel) {
        // SAFETY: the handler adds to an atomic number, which a child may do before anything else.
        unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
    }
    let num_forks = NUM_FORKS.load(Ordering::Acquire) & ((1 << FORK_BITS) - 1);
    let whose = num_forks << ID_BITS | u64::from(std::process::id()) & ((1 << ID_BITS) - 1);
    let mut current = CURRENT.load(Ordering::Acquire);
    loop {
        let tag = current >> TAG_SHIFT;
        if current & ((1 << TAG_SHIFT) - 1) == whose {
            return tag;
        }
        let next = (tag + 1) & ((1 << PROCESS_TAG_BITS) - 1);
        let fresh = next << TAG_SHIFT | whose;
        match CURRENT.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return next,
            Err(other) => current = other,
        }
    }
}

extern "C" fn count_fork() {
    NUM_FORKS.fetch_add(1, Ordering::AcqRel);
}

thread_local! {
    /// How many guards this thread is inside of; a log callback may call back into the library.
    static GUARD_DEPTH: Cell<u32> = const { Cell::new(0) };
    /// What the panic hook saw last on this thread.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `body`; a panic becomes [`Status::Internal`].
fn contain<T>(body: impl FnOnce() -> T) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(install_panic_hook);
    GUARD_DEPTH.set(GUARD_DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(body));
    GUARD_DEPTH.set(GUARD_DEPTH.get() - 1);
    result.map_err(|payload| {
        let place = LAST_PANIC.try_with(RefCell::take).unwrap_or_default();
        let message = place.unwrap_or_else(|| payload_text(payload.as_ref()).to_owned());
        discard(payload);
        Error::internal(format!("a defect in the library was contained: {message}"))
    })
}

/// Keeps panics that are contained, inside a guard and on the engine's threads, off the host's stderr and
/// notes where they were. Others, which only a host that links this library into Rust code can have, go where
/// they went.
fn install_panic_hook() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        let is_guarded = GUARD_DEPTH.try_with(Cell::get).is_ok_and(|depth| depth > 0);
        if !is_guarded && !thread::current().name().is_some_and(|name| name.starts_with(NAME_PREFIX)) {
            return previous(info);
        }
        let place = info.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
        let text = format!("{}{place}", payload_text(info.payload()));
        let _ = LAST_PANIC.try_with(|last| *last.borrow_mut() = Some(text));
    }));
}

fn payload_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Drops a panic's payload, which may panic again, and so on; the second one leaks.
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
}

#[cfg(test)]
#[path = "ffi_tests.rs"]
pub(super) mod tests;
