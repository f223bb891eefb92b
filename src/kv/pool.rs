//! KV blocks.
