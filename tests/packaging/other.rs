//! A Rust library of somebody else's, to be linked into the same program as the static library.

/// Panics, recovers and returns 7.
#[unsafe(no_mangle)]
pub extern "C" fn other_recovers() -> i32 {
    std::panic::set_hook(Box::new(|_| {}));
    std::panic::catch_unwind(|| -> i32 { panic!("of the other library") }).unwrap_or(7)
}
