//! The CUDA backend against the CPU backend, operation by operation and as a whole. Needs a CUDA device; set
//! RUST_TEST_THREADS=1 on a small one. `INFLIGHT_GPU_TEST_SIZE=small` leaves the large shapes out, for
//! compute-sanitizer.

mod attention;
mod blocks;
#[path = "../common/families.rs"]
mod cases;
mod decoder;
mod engine;
mod experts;
mod families;
mod host;
mod lifecycle;
mod ops;
mod qk_norm;
mod qkv;
mod rig;
mod sampling;
mod serving;
