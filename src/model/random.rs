//! Random parameters for models that are only described: what a benchmark needs, and nothing that makes sense.

use rayon::prelude::*;

use crate::backend::DType;
use crate::model::convert;
use crate::model::weights::Source;

/// Standard deviation of a matrix's elements.
const DEVIATION: f32 = 0.02;
/// Sums that four bytes can have.
const NUM_LEVELS: usize = 4 * 255 + 1;
/// Elements of a task.
const TASK_LEN: usize = 1 << 16;
/// What SplitMix64 adds to its state per number.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The elements of one parameter.
///
/// Norm weights are 1 and biases 0. An element of a matrix is the sum of four random bytes (a close neighbour of
/// the normal distribution, cut off at 3.5 deviations), centred and scaled. The bytes come from a hash of seed,
/// name and index, so that they depend neither on the number of threads nor on how the matrix is cut up.
pub(super) enum Generator {
    /// The same everywhere, in the target's type.
    Constant(Vec<u8>),
    Matrix {
        key: u64,
        /// What each sum stands for, in the target's type.
        levels: Vec<u8>,
        dtype: DType,
    },
}

impl Generator {
    /// The elements of the parameter that `source` describes.
    pub(super) fn new(seed: u64, source: &Source) -> Self {
        let mut encoded = vec![0; NUM_LEVELS * source.dtype.size_bytes()];
        let name = source.parts.first().map_or("", |part| part.tensor.name.as_str());
        if source.parts.iter().all(|part| part.tensor.shape.len() == 1) {
            let value = if name.ends_with("bias") { 0.0 } else { 1.0 };
            encoded.truncate(source.dtype.size_bytes());
            convert::encode(source.dtype, &[value], &mut encoded);
            return Self::Constant(encoded);
        }
        let key = name.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)));
        // A byte that is uniform in 0..=255 has the variance (256^2 - 1) / 12.
        let scale = DEVIATION / (4.0f32 * (65536.0 - 1.0) / 12.0).sqrt();
        let centre = (NUM_LEVELS / 2) as f32;
        let values: Vec<f32> = (0..NUM_LEVELS).map(|level| (level as f32 - centre) * scale).collect();
        convert::encode(source.dtype, &values, &mut encoded);
        Self::Matrix { key, levels: encoded, dtype: source.dtype }
    }

    /// Fills `target` with the elements from index `first` on, on all threads of the current rayon pool.
    pub(super) fn fill(&self, first: u64, target: &mut [u8]) {
        match self {
            Self::Constant(value) => {
                target.chunks_exact_mut(value.len()).for_each(|element| element.copy_from_slice(value));
            }
            Self::Matrix { key, levels, dtype: DType::F32 } => fill_matrix::<4>(*key, levels, first, target),
            Self::Matrix { key, levels, dtype: DType::F16 | DType::Bf16 } => {
                fill_matrix::<2>(*key, levels, first, target);
            }
        }
    }
}

fn fill_matrix<const SIZE: usize>(key: u64, levels: &[u8], first: u64, target: &mut [u8]) {
    let (levels, elements) = (levels.as_chunks::<SIZE>().0, target.as_chunks_mut::<SIZE>().0);
    elements.par_chunks_mut(TASK_LEN).enumerate().for_each(|(task, elements)| {
        let first = first + (task * TASK_LEN) as u64;
        for (index, element) in (first..).zip(elements) {
            let [a, b, c, d, ..] = mix(key.wrapping_add(index.wrapping_mul(STEP))).to_le_bytes();
            *element = levels[usize::from(a) + usize::from(b) + usize::from(c) + usize::from(d)];
        }
    });
}

/// The output function of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
