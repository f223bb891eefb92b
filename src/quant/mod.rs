//! Block-quantised number formats of GGUF files and their conversion to f32, and plain half-width floats.
//!
//! A decoder takes whole blocks and fills as many elements as they hold; slices that do not match are a
//! defect of the caller. Scales are kept in f32, so that results equal those of the gguf Python package bit
//! by bit.

mod blocks32;
mod plain;
mod superblocks;
#[cfg(test)]
mod tests;

pub use blocks32::{decode_q4_0, decode_q4_1, decode_q5_0, decode_q5_1, decode_q8_0};
pub use plain::{decode_bf16, decode_f16, decode_f32, encode_bf16, encode_f16, encode_f32};
pub use superblocks::{decode_q4_k, decode_q5_k, decode_q6_k};

use half::f16;

/// The f16 that starts at byte `at` of a block.
fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Pairs blocks of `BYTES` bytes with the `LEN` elements that each decodes to.
fn blocks<'a, const BYTES: usize, const LEN: usize>(
    bytes: &'a [u8],
    out: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [f32; LEN])> {
    let (blocks, rest) = bytes.as_chunks::<BYTES>();
    let (outs, out_rest) = out.as_chunks_mut::<LEN>();
    assert!(rest.is_empty() && out_rest.is_empty() && blocks.len() == outs.len(), "partial blocks");
    blocks.iter().zip(outs)
}
