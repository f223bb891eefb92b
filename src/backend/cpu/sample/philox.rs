//! Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
//! (2011): a number is a function of key and counter alone, so that it can be computed anywhere, in any order.

/// Tokens whose noise [`token_noise_group`] computes together.
pub(super) const GROUP: usize = 64;

/// Counters of a group: each yields four words.
const LANES: usize = GROUP / 4;

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const NUM_ROUNDS: usize = 10;

/// `N` independent blocks of Philox4x32-10 under one key, as a struct of arrays: `words[w][lane]`.
#[inline(always)]
fn philox<const N: usize>(mut words: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for _ in 0..NUM_ROUNDS {
        let [c0, c1, c2, c3] = words;
        for lane in 0..N {
            let product0 = u64::from(MULTIPLIERS[0]) * u64::from(c0[lane]);
            let product1 = u64::from(MULTIPLIERS[1]) * u64::from(c2[lane]);
            words[0][lane] = (product1 >> 32) as u32 ^ c1[lane] ^ key[0];
            words[1][lane] = product1 as u32;
            words[2][lane] = (product0 >> 32) as u32 ^ c3[lane] ^ key[1];
            words[3][lane] = product0 as u32;
        }
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    words
}

/// Key and counter of the noise of one output token.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoiseKey {
    /// Seed of the sequence.
    pub(super) seed: u64,
    /// Index of the output token.
    pub(super) output_index: u32,
}

/// Random words of tokens `GROUP * group_index ..`, in order of their ids.
///
/// Token `t` has word `(t / 16) % 4` of the block with key `[seed low, seed high]` and counter
/// `[16 * (t / 64) + t % 16, output_index, 0, 0]`; so a group's words need no transposition.
#[inline(always)]
pub(super) fn token_noise_group(key: NoiseKey, group_index: u32) -> [u32; GROUP] {
    let mut blocks = [group_index * LANES as u32; LANES];
    for (lane, block) in blocks.iter_mut().enumerate() {
        *block += lane as u32;
    }
    let counters = [blocks, [key.output_index; LANES], [0; LANES], [0; LANES]];
    let words = philox(counters, [key.seed as u32, (key.seed >> 32) as u32]);
    let mut noise = [0; GROUP];
    for (part, lanes) in noise.chunks_exact_mut(LANES).zip(&words) {
        part.copy_from_slice(lanes);
    }
    noise
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
        philox(counter.map(|word| [word]), key).map(|[word]| word)
    }

    /// The vectors that the authors publish with their implementation.
    #[test]
    fn known_answers() {
        assert_eq!(block([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(block([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            block([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_group_is_the_blocks_that_its_documentation_names() {
        let key = NoiseKey { seed: 0x0123_4567_89ab_cdef, output_index: 77 };
        for group_index in [0u32, 1, 767] {
            let noise = token_noise_group(key, group_index);
            for (index, &word) in noise.iter().enumerate() {
                let token = group_index as usize * GROUP + index;
                let counter = [(16 * (token / 64) + token % 16) as u32, 77, 0, 0];
                assert_eq!(word, block(counter, [0x89ab_cdef, 0x0123_4567])[token / 16 % 4]);
            }
        }
    }
}
