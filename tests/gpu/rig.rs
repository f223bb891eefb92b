//! A pair of backends that get the same data, and comparisons.

use half::{bf16, f16};
use inflight::backend::cpu::{self, Cpu};
use inflight::backend::cuda::{self, Cuda};
use inflight::backend::{Backend, BackendLimits, Batch, DType, SlotState};

/// Types of activations and weights on the device.
pub const DTYPES: [DType; 2] = [DType::Bf16, DType::F16];

pub const GREEDY: SlotState = SlotState::GREEDY;

/// Whether large shapes are left out.
pub fn is_small() -> bool {
    std::env::var("INFLIGHT_GPU_TEST_SIZE").is_ok_and(|size| size == "small")
}

/// Those of `sizes` that the run takes: all, or those of at most `max`.
pub fn sizes(sizes: &[usize], max: usize) -> Vec<usize> {
    sizes.iter().copied().filter(|&size| !is_small() || size <= max).collect()
}

/// Whether products of many rows run in our own kernels alone, where there are some: compute-sanitizer takes the
/// library's barriers for races.
pub fn is_in_own_tiles() -> bool {
    std::env::var_os("INFLIGHT_GPU_TEST_TILES").is_some()
}

/// A device, whose products of many rows run in the way that is fastest, unless they have to run in our own.
pub fn gpu() -> Cuda {
    let mut gpu = Cuda::new(0).expect("this test needs a CUDA device");
    if is_in_own_tiles()
        && let Some(&columns) = gpu.tile_columns().last()
    {
        gpu.force_tiles(columns);
    }
    gpu
}

/// One that multiplies many rows in the narrowest tiles, whatever is fastest, where it has kernels for that.
pub fn narrow_gpu() -> Cuda {
    tiled_gpu(|columns| columns.first())
}

/// The same in the widest tiles.
pub fn wide_gpu() -> Cuda {
    tiled_gpu(|columns| columns.last())
}

fn tiled_gpu(choose: impl Fn(&[usize]) -> Option<&usize>) -> Cuda {
    let mut gpu = gpu();
    if let Some(&columns) = choose(gpu.tile_columns()) {
        gpu.force_tiles(columns);
    }
    gpu
}

pub fn cpu() -> Cpu {
    Cpu::new(0).unwrap()
}

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// `count` values, uniform in [-scale, scale).
    pub fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| ((self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale).collect()
    }

    /// `0..count` in random order.
    pub fn permutation(&mut self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        for i in (1..count).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

pub fn bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

/// The values that a tensor of `dtype` holds.
pub fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    match dtype {
        DType::F32 => values.to_vec(),
        DType::F16 => values.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
        DType::Bf16 => values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
    }
}

/// A CPU and a CUDA backend. Activations are F32 on the CPU and of `dtype` on the device, with the same values.
pub struct Rig {
    pub cpu: Cpu,
    pub gpu: Cuda,
    pub dtype: DType,
}

pub struct Pair {
    pub cpu: cpu::Tensor,
    pub gpu: cuda::Tensor,
}

impl Rig {
    pub fn new(dtype: DType) -> Rig {
        Rig { cpu: cpu(), gpu: gpu(), dtype }
    }

    pub fn reserve(&mut self, limits: &BackendLimits) {
        self.cpu.reserve(limits).unwrap();
        self.gpu.reserve(limits).unwrap();
    }

    pub fn load_batch(&mut self, batch: &Batch) {
        self.cpu.load_batch(batch).unwrap();
        self.gpu.load_batch(batch).unwrap();
    }

    fn tensors(&mut self, dtypes: (DType, DType), columns: usize, values: &[f32]) -> Pair {
        let rows = values.len() / columns;
        let mut cpu = self.cpu.alloc(dtypes.0, rows, columns).unwrap();
        self.cpu.write_rows(&mut cpu, 0, &bytes(dtypes.0, values)).unwrap();
        let mut gpu = self.gpu.alloc(dtypes.1, rows, columns).unwrap();
        self.gpu.write_rows(&mut gpu, 0, &bytes(dtypes.1, values)).unwrap();
        Pair { cpu, gpu }
    }

    /// Activations: `values` as `dtype` holds them.
    pub fn activation(&mut self, columns: usize, values: &[f32]) -> Pair {
        let values = rounded(self.dtype, values);
        self.tensors((DType::F32, self.dtype), columns, &values)
    }

    /// A matrix of weights.
    pub fn weight(&mut self, columns: usize, values: &[f32]) -> Pair {
        self.tensors((self.dtype, self.dtype), columns, values)
    }

    /// F32 on both.
    pub fn single(&mut self, columns: usize, values: &[f32]) -> Pair {
        self.tensors((DType::F32, DType::F32), columns, values)
    }

    /// Activations of NaN.
    pub fn poisoned(&mut self, rows: usize, columns: usize) -> Pair {
        self.activation(columns, &vec![f32::NAN; rows * columns])
    }

    /// Compares all of a pair: NaN stands in the same places, and the rest agrees to `tolerance`, relative to
    /// the norm of the expected values, element by element to eight times that of their largest.
    pub fn assert_same(&mut self, what: &str, pair: &Pair, tolerance: f64) {
        let expected = self.cpu.read_rows(&pair.cpu, pair.cpu.rows()).unwrap();
        let actual = self.gpu.read_rows(&pair.gpu, pair.gpu.rows()).unwrap();
        assert_close(what, &actual, &expected, tolerance);
    }

    /// What rounding to the device's type costs.
    pub fn tolerance(&self) -> f64 {
        match self.dtype {
            DType::F32 => 1e-6,
            DType::F16 => 1.5e-3,
            DType::Bf16 => 8e-3,
        }
    }
}

pub fn assert_close(what: &str, actual: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let largest = expected.iter().filter(|x| !x.is_nan()).fold(0.0f64, |max, &x| max.max(f64::from(x.abs())));
    let (mut error_squares, mut squares) = (0.0f64, 0.0f64);
    for (i, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        assert_eq!(
            actual.is_nan(),
            expected.is_nan(),
            "{what}: element {i} is {actual}, expected {expected}"
        );
        if expected.is_nan() {
            continue;
        }
        let error = f64::from(actual) - f64::from(expected);
        assert!(
            error.abs() <= 8.0 * tolerance * largest + 1e-30,
            "{what}: element {i} is {actual}, expected {expected} (largest {largest})"
        );
        error_squares += error * error;
        squares += f64::from(expected) * f64::from(expected);
    }
    let relative = (error_squares / squares.max(1e-300)).sqrt();
    assert!(relative <= tolerance, "{what}: relative error {relative:e}, allowed {tolerance:e}");
}

/// One row of a batch: its slot, new tokens, and tokens in the cache after them.
pub struct BatchRow {
    pub slot: u32,
    pub tokens: Vec<u32>,
    pub context_len: usize,
    pub blocks: Vec<u32>,
}

pub fn batch(rows: &[BatchRow], sampled_rows: &[u32]) -> Batch {
    let mut batch = Batch::new();
    for row in rows {
        batch.slots.push(row.slot);
        batch.tokens.extend(&row.tokens);
        batch.query_starts.push(batch.tokens.len() as u32);
        batch.context_lens.push(row.context_len as u32);
        batch.block_tables.extend(&row.blocks);
        batch.block_starts.push(batch.block_tables.len() as u32);
    }
    batch.sampled_rows = sampled_rows.to_vec();
    batch
}
