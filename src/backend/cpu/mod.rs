//! The reference backend.

pub mod sample;
