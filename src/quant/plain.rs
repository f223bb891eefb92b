//! Plain floats: little-endian bytes to f32 and back. Narrowing rounds to the nearest, ties to even.

use half::{bf16, f16};

use crate::quant::blocks;

/// f32 bytes to f32.
pub fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (block, [element]) in blocks(bytes, out) {
        *element = f32::from_le_bytes(*block);
    }
}

/// f16 bytes to f32.
pub fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    for (block, [element]) in blocks(bytes, out) {
        *element = f16::from_le_bytes(*block).to_f32();
    }
}

/// bf16 bytes to f32.
pub fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (block, [element]) in blocks(bytes, out) {
        *element = bf16::from_le_bytes(*block).to_f32();
    }
}

/// f32 to f32 bytes.
pub fn encode_f32(values: &[f32], out: &mut [u8]) {
    encode(values, out, f32::to_le_bytes);
}

/// f32 to f16 bytes; what is too large becomes infinite.
pub fn encode_f16(values: &[f32], out: &mut [u8]) {
    encode(values, out, |value| f16::from_f32(value).to_le_bytes());
}

/// f32 to bf16 bytes.
pub fn encode_bf16(values: &[f32], out: &mut [u8]) {
    encode(values, out, |value| bf16::from_f32(value).to_le_bytes());
}

fn encode<const BYTES: usize>(values: &[f32], out: &mut [u8], convert: impl Fn(f32) -> [u8; BYTES]) {
    let (chunks, rest) = out.as_chunks_mut::<BYTES>();
    assert!(rest.is_empty() && chunks.len() == values.len(), "partial elements");
    for (chunk, &value) in chunks.iter_mut().zip(values) {
        *chunk = convert(value);
    }
}
