//! The C ABI. One file per C type; `ffi.rs` holds the only casts and the panic guard.
