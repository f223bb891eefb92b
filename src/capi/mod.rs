//! The C ABI: `include/inflight.h` is generated from this module, one file per C type.
//!
//! The exported functions check and convert what C hands over and call [`crate::engine`]; they hold no logic
//! of their own. All casts, all unsafe code and the panic guard are in `ffi`; `handle` makes stale handles an
//! error. The modules are private: only C can call the exports, so their safe signatures promise nothing to
//! Rust code.

#![allow(non_camel_case_types, reason = "types have their C names")]

mod status;

mod error;

mod log;

mod options;

mod request;

mod events;

mod engine;

mod queue;

mod text;

mod version;

mod ffi;
mod handle;

#[cfg(test)]
mod tests;
