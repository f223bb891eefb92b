//! Checkpoint encodings to the backends' element types.

use rayon::prelude::*;

use crate::backend::DType;
use crate::format::Encoding;
use crate::quant;

/// Elements that are decoded at a time, so that they stay in the first-level cache; a multiple of every
/// block.
const GROUP: usize = 1024;

/// Whether bytes of `encoding` are bytes of `dtype` already.
pub(crate) fn is_same(encoding: Encoding, dtype: DType) -> bool {
    matches!(
        (encoding, dtype),
        (Encoding::F32, DType::F32) | (Encoding::F16, DType::F16) | (Encoding::BF16, DType::Bf16)
    )
}

/// Converts whole blocks, on all threads of the current rayon pool. Both slices hold the same number of
/// elements; `encoding` is not [`Encoding::Other`].
pub(crate) fn convert(encoding: Encoding, source: &[u8], dtype: DType, target: &mut [u8]) {
    /// Groups of a task: large enough that handing it out costs nothing beside it.
    const TASK_GROUPS: usize = 64;
    let source_group_bytes = GROUP / encoding.block_len() * encoding.block_bytes();
    let target_group_bytes = GROUP * dtype.size_bytes();
    target
        .par_chunks_mut(TASK_GROUPS * target_group_bytes)
        .zip(source.par_chunks(TASK_GROUPS * source_group_bytes))
        .for_each(|(target, source)| {
            let groups = target.chunks_mut(target_group_bytes).zip(source.chunks(source_group_bytes));
            for (target, source) in groups {
                let mut values = [0.0; GROUP];
                let values = &mut values[..target.len() / dtype.size_bytes()];
                decode(encoding, source, values);
                encode(dtype, values, target);
            }
        });
}

fn decode(encoding: Encoding, source: &[u8], values: &mut [f32]) {
    match encoding {
        Encoding::F32 => quant::decode_f32(source, values),
        Encoding::F16 => quant::decode_f16(source, values),
        Encoding::BF16 => quant::decode_bf16(source, values),
        Encoding::Q4_0 => quant::decode_q4_0(source, values),
        Encoding::Q4_1 => quant::decode_q4_1(source, values),
        Encoding::Q5_0 => quant::decode_q5_0(source, values),
        Encoding::Q5_1 => quant::decode_q5_1(source, values),
        Encoding::Q8_0 => quant::decode_q8_0(source, values),
        Encoding::Q4_K => quant::decode_q4_k(source, values),
        Encoding::Q5_K => quant::decode_q5_k(source, values),
        Encoding::Q6_K => quant::decode_q6_k(source, values),
        Encoding::Other(name) => unreachable!("a tensor of type {name} passed the checks"),
    }
}

/// Encodes `values`; `target` has room for exactly them.
pub(crate) fn encode(dtype: DType, values: &[f32], target: &mut [u8]) {
    match dtype {
        DType::F32 => quant::encode_f32(values, target),
        DType::F16 => quant::encode_f16(values, target),
        DType::Bf16 => quant::encode_bf16(values, target),
    }
}
