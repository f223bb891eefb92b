//! A backend that fails on demand.
