//! The paged KV cache's bookkeeping. It never sees a device.

pub mod pool;
