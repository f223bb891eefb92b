//! Tests of the border: struct sizes, text, panics.

use super::*;

#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
struct Grown {
    struct_size: u32,
    first: u32,
    second: u64,
    third: u64,
}

// SAFETY: integers only.
unsafe impl Plain for Grown {}

impl Sized32 for Grown {
    const NAME: &'static str = "grown";
    const FIRST_SIZE: usize = 16;

    fn defaults() -> Self {
        Self { struct_size: 24, first: 1, second: 2, third: 3 }
    }
}

const CALLER: Caller = Caller(());

/// For callbacks that stand for a host's.
pub(in crate::capi) fn with_caller<T>(work: impl FnOnce(&Caller) -> T) -> T {
    work(&CALLER)
}

/// A struct as C has it: `size` in front, then words of 8 bytes.
fn words(size: u32, first: u32, rest: [u64; 4]) -> [u64; 5] {
    let [a, b, c, d] = rest;
    [u64::from(size) | u64::from(first) << 32, a, b, c, d]
}

#[test]
fn an_older_struct_gets_defaults_for_its_missing_tail() {
    let memory = words(16, 10, [20, 99, 99, 99]);
    let read = CALLER.read(memory.as_ptr().cast::<Grown>()).unwrap();
    assert_eq!(read, Grown { struct_size: 16, first: 10, second: 20, third: 3 });
}

#[test]
fn a_newer_struct_is_read_where_its_unknown_tail_is_zero() {
    let memory = words(40, 10, [20, 30, 0, 0]);
    let read = CALLER.read(memory.as_ptr().cast::<Grown>()).unwrap();
    assert_eq!(read, Grown { struct_size: 40, first: 10, second: 20, third: 30 });
    for rest in [[20, 30, 1, 0], [20, 30, 0, 1 << 63]] {
        let memory = words(40, 10, rest);
        let error = CALLER.read(memory.as_ptr().cast::<Grown>()).unwrap_err();
        assert_eq!(error.status(), Status::InvalidStructSize);
    }
}

#[test]
fn struct_sizes_that_no_version_has_are_refused() {
    for size in [0, 1, 8, 15, 17, 20, 4097, 4104, u32::MAX] {
        let memory = words(size, 10, [20, 30, 0, 0]);
        let error = CALLER.read(memory.as_ptr().cast::<Grown>()).unwrap_err();
        assert_eq!(error.status(), Status::InvalidStructSize, "{size}");
    }
    assert_eq!(CALLER.read(std::ptr::null::<Grown>()).unwrap_err().status(), Status::InvalidArgument);
    let memory = words(24, 10, [20, 30, 0, 0]);
    let misaligned = memory.as_ptr().cast::<Grown>().wrapping_byte_add(4);
    assert_eq!(CALLER.read(misaligned).unwrap_err().status(), Status::InvalidArgument);
}

#[test]
fn init_and_results_stay_within_the_callers_size() {
    for (size, expected) in [
        (16, words(16, 1, [2, 77, 77, 77])),
        (24, words(24, 1, [2, 3, 77, 77])),
        (32, words(32, 1, [2, 3, 0, 77])),
        (40, words(40, 1, [2, 3, 0, 0])),
    ] {
        let mut memory = [77u64; 5];
        CALLER.init(memory.as_mut_ptr().cast::<Grown>(), size).unwrap();
        assert_eq!(memory, expected);

        let mut memory = words(size, 77, [77; 4]);
        CALLER.out_struct(memory.as_mut_ptr().cast::<Grown>()).unwrap().set(Grown::defaults());
        assert_eq!(memory, expected);
    }
    let mut memory = [77u64; 5];
    assert!(CALLER.init(memory.as_mut_ptr().cast::<Grown>(), 8).is_err());
    assert_eq!(memory, [77; 5]);
}

#[test]
fn first_sizes_are_the_sizes_of_the_first_version() {
    // The path of a spec came later.
    assert_eq!(ifl_engine_options::FIRST_SIZE, std::mem::offset_of!(ifl_engine_options, spec));
    assert_eq!(ifl_request::FIRST_SIZE, size_of::<ifl_request>());
    assert_eq!(ifl_memory_plan::FIRST_SIZE, size_of::<ifl_memory_plan>());
    assert_eq!(ifl_stats::FIRST_SIZE, size_of::<ifl_stats>());
    assert_eq!(ifl_model_info::FIRST_SIZE, size_of::<ifl_model_info>());
}

#[test]
fn text_is_checked() {
    let text = c"grün".as_ptr();
    assert_eq!(CALLER.text(text, NUL_TERMINATED, "t").unwrap(), "grün");
    assert_eq!(CALLER.text(text, 2, "t").unwrap(), "gr");
    assert_eq!(CALLER.text(std::ptr::null(), 0, "t").unwrap(), "");
    let status = |pointer, len| CALLER.text(pointer, len, "t").unwrap_err().status();
    assert_eq!(status(text, 3), Status::InvalidUtf8);
    assert_eq!(status(std::ptr::null(), 1), Status::InvalidArgument);
    assert_eq!(status(std::ptr::null(), NUL_TERMINATED), Status::InvalidArgument);
    assert_eq!(status(text, u64::MAX - 1), Status::InvalidArgument);
    let numbers = [1u32, 2, 3];
    assert_eq!(CALLER.slice(numbers.as_ptr(), 3, "n").unwrap(), numbers);
    assert!(CALLER.slice(numbers.as_ptr(), u64::MAX / 4, "n").is_err());
}

#[test]
fn a_panic_becomes_an_internal_error_that_says_where() {
    let mut error = std::ptr::null_mut();
    let status = guard(&raw mut error, |_| panic!("row {}", 3));
    assert_eq!(status, ifl_status_value::IFL_INTERNAL as i32);
    let message =
        CALLER.text(crate::capi::error::ifl_error_message(error, std::ptr::null_mut()), NUL_TERMINATED, "m");
    let message = message.unwrap().to_owned();
    assert!(message.contains("row 3 at ") && message.contains("ffi_tests.rs:"), "{message}");
    CALLER.free(error);
    assert_eq!(guard_value(7, |_| panic!("{}", 1)), 7);
    assert_eq!(
        guard(std::ptr::null_mut(), |_| panic!("nobody asked")),
        ifl_status_value::IFL_INTERNAL as i32
    );
}

#[test]
fn a_payload_that_panics_when_dropped_is_contained() {
    struct Nasty;
    impl Drop for Nasty {
        fn drop(&mut self) {
            std::panic::panic_any(Nasty);
        }
    }
    assert_eq!(
        guard(std::ptr::null_mut(), |_| std::panic::panic_any(Nasty)),
        ifl_status_value::IFL_INTERNAL as i32
    );
}

#[test]
fn errors_are_written_only_on_failure() {
    let mut error = std::ptr::without_provenance_mut::<ifl_error>(8);
    assert_eq!(guard(&raw mut error, |_| Ok(())), ifl_status_value::IFL_OK as i32);
    assert_eq!(error.addr(), 8);
}

#[test]
fn each_process_has_its_own_value() {
    static VALUE: PerProcess<RefCellFree> = PerProcess::new();
    #[derive(Default)]
    struct RefCellFree(u32);
    let first = VALUE.get();
    assert!(std::ptr::eq(first, VALUE.get()));
    assert_eq!(first.0, 0);
}

/// Set in the process that panics for [`panics_of_our_threads_print_nothing`].
const PANICS: &str = "INFLIGHT_TEST_PANICS";

#[test]
fn panics_of_our_threads_print_nothing() {
    if std::env::var_os(PANICS).is_some() {
        contain(|| ()).unwrap();
        crate::threads::spawn("cpu-1", || panic!("on a thread")).unwrap().join().unwrap_err();
        crate::threads::run_on_stack("text", 1 << 20, || panic!("on a stack")).unwrap().unwrap_err();
        let pool = crate::threads::pool("load", 1).unwrap();
        catch_unwind(AssertUnwindSafe(|| pool.install(|| panic!("in a pool")))).unwrap_err();
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "capi::ffi::tests::panics_of_our_threads_print_nothing", "--nocapture"])
        .env(PANICS, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "no such test");
}
