//! Inflight: an LLM inference engine that lives inside the host's process.
//!
//! Hosts in other languages use the C ABI in [`capi`] (header `include/inflight.h`); Rust hosts and the command
//! line tool use [`engine::Engine`], which is the same thing with Rust types. ARCHITECTURE.md is the map.

// Code that tests inside and outside of the library share names it as the latter do.
#[cfg(test)]
extern crate self as inflight;

pub mod backend;
pub mod capi;
pub mod config;
pub mod engine;
pub mod error;
pub mod format;
pub mod kv;
pub mod model;
pub mod quant;
pub mod sample;
mod threads;
pub mod token;

pub use config::{DTypeChoice, EngineOptions};
pub use engine::{Engine, Event, EventKind, FinishReason, Prompt, Request};
pub use error::{Error, Result, Status};
pub use sample::SamplingParams;
