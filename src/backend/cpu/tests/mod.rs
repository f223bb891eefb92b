//! Every operation against a plain f64 reference, on every instruction set of the processor, over types and
//! awkward shapes; and bit for bit against itself in other batches, chunks and blocks.

mod attention;
mod batches;
mod ops;

use half::{bf16, f16};

use super::simd::Isa;
use super::threads::Threads;
use super::*;

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// `count` values, uniform in [-scale, scale).
    pub(super) fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| ((self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale).collect()
    }
}

pub(super) const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// A backend per instruction set and number of threads.
pub(super) fn backends() -> Vec<Cpu> {
    let mut backends = Vec::new();
    for isa in Isa::supported() {
        for num_threads in [1, 3] {
            backends.push(Cpu::with_isa(Threads::new(num_threads).unwrap(), isa));
        }
    }
    backends
}

pub(super) fn bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

/// The values that a tensor of `dtype` holds.
pub(super) fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    match dtype {
        DType::F32 => values.to_vec(),
        DType::F16 => values.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
        DType::Bf16 => values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
    }
}

pub(super) fn tensor(cpu: &mut Cpu, dtype: DType, columns: usize, values: &[f32]) -> Tensor {
    let mut tensor = cpu.alloc(dtype, values.len() / columns, columns).unwrap();
    cpu.write_rows(&mut tensor, 0, &bytes(dtype, values)).unwrap();
    tensor
}

/// An f32 tensor of NaN.
pub(super) fn poisoned(cpu: &mut Cpu, rows: usize, columns: usize) -> Tensor {
    tensor(cpu, DType::F32, columns, &vec![f32::NAN; rows * columns])
}

pub(super) fn read(cpu: &mut Cpu, tensor: &Tensor) -> Vec<f32> {
    cpu.read_rows(tensor, tensor.rows()).unwrap()
}

/// Compares leading rows with `expected`, whose tolerances stand beside the values, and the rest with NaN.
pub(super) fn assert_close(what: &str, actual: &[f32], expected: &[(f64, f64)]) {
    for (i, (&actual, &(expected, tolerance))) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        assert!(error <= tolerance, "{what}: element {i} is {actual}, expected {expected} +- {tolerance}");
    }
    assert!(actual[expected.len()..].iter().all(|x| x.is_nan()), "{what}: wrote beyond its rows");
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

pub(super) const GREEDY: SlotState = SlotState::GREEDY;
