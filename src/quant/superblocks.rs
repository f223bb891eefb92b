//! The formats with super-blocks of 256 elements, whose groups have scales that are quantised themselves.

use crate::quant::{blocks, scale};

const SUPERBLOCK: usize = 256;

/// `[scale f16 | minimum scale f16 | group scales and minima 12 | codes 128]`; 8 groups of 32 elements, `x =
/// scale * group_scale * code - minimum_scale * group_minimum`. Bytes `32 p..32 p + 32` of the codes hold
/// group `2 p` in their low and group `2 p + 1` in their high halves.
pub fn decode_q4_k(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<144, SUPERBLOCK>(bytes, out) {
        let groups = Groups::new(block);
        for (pair, codes) in block[16..].chunks_exact(32).enumerate() {
            for (index, &byte) in codes.iter().enumerate() {
                out[64 * pair + index] = groups.value(2 * pair, byte & 0xf);
                out[64 * pair + 32 + index] = groups.value(2 * pair + 1, byte >> 4);
            }
        }
    }
}

/// As Q4_K with 32 bytes of fifth bits before the codes: bit `g` of byte `i` belongs to element `i` of group
/// `g`.
pub fn decode_q5_k(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<176, SUPERBLOCK>(bytes, out) {
        let groups = Groups::new(block);
        let fifth_bits = &block[16..48];
        for (pair, codes) in block[48..].chunks_exact(32).enumerate() {
            for (index, &byte) in codes.iter().enumerate() {
                let high = fifth_bits[index] >> (2 * pair);
                out[64 * pair + index] = groups.value(2 * pair, byte & 0xf | (high & 1) << 4);
                out[64 * pair + 32 + index] = groups.value(2 * pair + 1, byte >> 4 | (high & 2) << 3);
            }
        }
    }
}

/// `[low bits 128 | high bits 64 | group scales i8 x 16 | scale f16]`; 16 groups of 16 elements, `x = scale *
/// group_scale * (code - 32)`. Each half of the super-block has 64 bytes of low and 32 of high bits; its
/// quarter `q` takes the low bits of byte `32 (q mod 2) + i`, lower half of the byte for `q < 2`, and bits `2
/// q, 2 q + 1` of high byte `i`.
pub fn decode_q6_k(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<210, SUPERBLOCK>(bytes, out) {
        let (low, high, group_scales) = (&block[..128], &block[128..192], &block[192..208]);
        let scale = scale(block, 208);
        let scales: [f32; 16] = std::array::from_fn(|group| scale * f32::from(group_scales[group] as i8));
        for (index, element) in out.iter_mut().enumerate() {
            let (half, quarter, lane) = (index / 128, index / 32 % 4, index % 32);
            let low = low[64 * half + 32 * (quarter % 2) + lane] >> (4 * (quarter / 2)) & 0xf;
            let high = high[32 * half + lane] >> (2 * quarter) & 3;
            *element = scales[index / 16] * f32::from((low | high << 4) as i8 - 32);
        }
    }
}

/// Scales and minima of the 8 groups of a Q4_K or Q5_K super-block.
struct Groups {
    scales: [f32; 8],
    minima: [f32; 8],
}

impl Groups {
    /// Unpacks the head of a block. Of its 12 bytes of 6-bit numbers, bytes 0 to 3 hold the scales of groups
    /// 0 to 3 and bytes 4 to 7 their minima; bytes 8 to 11 hold the low halves of groups 4 to 7, scale below
    /// minimum, whose upper two bits are the upper two of bytes 0 to 3 and 4 to 7.
    fn new(block: &[u8]) -> Self {
        let (scale, minimum_scale) = (scale(block, 0), scale(block, 2));
        let packed = &block[4..16];
        let (mut scales, mut minima) = ([0.0; 8], [0.0; 8]);
        for group in 0..4 {
            let (low, middle, high) = (packed[group], packed[group + 4], packed[group + 8]);
            scales[group] = scale * f32::from(low & 0x3f);
            minima[group] = minimum_scale * f32::from(middle & 0x3f);
            scales[group + 4] = scale * f32::from(high & 0xf | low >> 6 << 4);
            minima[group + 4] = minimum_scale * f32::from(high >> 4 | middle >> 6 << 4);
        }
        Self { scales, minima }
    }

    fn value(&self, group: usize, code: u8) -> f32 {
        self.scales[group] * f32::from(code) - self.minima[group]
    }
}
