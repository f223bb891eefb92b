//! The formats with blocks of 32 elements and one scale.
//!
//! 4-bit codes lie as `byte i = code[i] | code[i + 16] << 4`. The 5-bit formats keep the fifth bit of code
//! `i` in bit `i` of a little-endian u32.

use crate::quant::{blocks, scale};

/// `[scale f16 | codes 16]`, `x = scale * (code - 8)`.
pub fn decode_q4_0(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<18, 32>(bytes, out) {
        let scale = scale(block, 0);
        for (index, &byte) in block[2..].iter().enumerate() {
            out[index] = scale * f32::from((byte & 0xf) as i8 - 8);
            out[index + 16] = scale * f32::from((byte >> 4) as i8 - 8);
        }
    }
}

/// `[scale f16 | minimum f16 | codes 16]`, `x = scale * code + minimum`.
pub fn decode_q4_1(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<20, 32>(bytes, out) {
        let (scale, minimum) = (scale(block, 0), scale(block, 2));
        for (index, &byte) in block[4..].iter().enumerate() {
            out[index] = scale * f32::from(byte & 0xf) + minimum;
            out[index + 16] = scale * f32::from(byte >> 4) + minimum;
        }
    }
}

/// `[scale f16 | fifth bits u32 | codes 16]`, `x = scale * (code - 16)`.
pub fn decode_q5_0(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<22, 32>(bytes, out) {
        let scale = scale(block, 0);
        for (index, code) in codes_5_bit(&block[2..]).into_iter().enumerate() {
            out[index] = scale * f32::from(code as i8 - 16);
        }
    }
}

/// `[scale f16 | minimum f16 | fifth bits u32 | codes 16]`, `x = scale * code + minimum`.
pub fn decode_q5_1(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<24, 32>(bytes, out) {
        let (scale, minimum) = (scale(block, 0), scale(block, 2));
        for (index, code) in codes_5_bit(&block[4..]).into_iter().enumerate() {
            out[index] = scale * f32::from(code) + minimum;
        }
    }
}

/// `[scale f16 | codes i8 x 32]`, `x = scale * code`.
pub fn decode_q8_0(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<34, 32>(bytes, out) {
        let scale = scale(block, 0);
        for (element, &code) in out.iter_mut().zip(&block[2..]) {
            *element = scale * f32::from(code as i8);
        }
    }
}

/// Codes of `[fifth bits u32 | low bits 16]`.
fn codes_5_bit(packed: &[u8]) -> [u8; 32] {
    let fifth_bits = u32::from_le_bytes([packed[0], packed[1], packed[2], packed[3]]);
    let mut codes = [0; 32];
    for (index, &byte) in packed[4..20].iter().enumerate() {
        codes[index] = byte & 0xf | ((fifth_bits >> index) as u8 & 1) << 4;
        codes[index + 16] = byte >> 4 | ((fifth_bits >> (index + 16)) as u8 & 1) << 4;
    }
    codes
}
