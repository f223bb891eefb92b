//! The one decoder.
