//! Versions and features of the library.

use std::ffi::c_char;

use super::ffi::guard_value;
use crate::backend::BACKENDS;

/// What every build can do beside computing on its [`BACKENDS`]; names are never reused.
const FEATURES: [&str; 4] = ["echo", "gguf", "safetensors", "queue-fd"];

/// Version of the library that is running, as IFL_VERSION is of the header that the program was compiled
/// with: major * 10000 + minor * 100 + patch.
///
/// From 1.0 on, a program compiled with one header runs with every later library of the same major version.
/// Before, the ABI may change with the minor version, which the soname does not show: check that
/// ifl_version() / 100 == IFL_VERSION / 100.
///
/// Threads: any, at any time. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_version() -> u32 {
    guard_value(0, |_| {
        let number = |text: &str| text.parse::<u32>().unwrap_or(0);
        number(env!("CARGO_PKG_VERSION_MAJOR")) * 10_000
            + number(env!("CARGO_PKG_VERSION_MINOR")) * 100
            + number(env!("CARGO_PKG_VERSION_PATCH"))
    })
}

/// Whether this build of the library has a feature: "cpu" and "cuda" (backends; whether the machine has such a
/// device is another question), "echo" (the device without weights), "gguf" and "safetensors" (model formats),
/// "queue-fd" (ifl_queue_fd).
///
/// - name: name of the feature, UTF-8.
/// - name_len: its length in bytes, or IFL_NUL_TERMINATED.
///
/// Returns 1 or 0; a name that the library does not know, or NULL, gives 0.
/// Threads: any, at any time. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_has_feature(name: *const c_char, name_len: u64) -> u32 {
    guard_value(0, |caller| {
        let has = |name: &str| FEATURES.contains(&name) || BACKENDS.contains(&name);
        caller.text(name, name_len, "name").map_or(0, |name| u32::from(has(name)))
    })
}
