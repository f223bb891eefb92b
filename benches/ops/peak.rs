//! What the machine can do: bytes read from memory and f32 multiply-adds in registers, on all threads at once.

use std::hint::black_box;
use std::time::Instant;

/// Per second, over all threads.
pub struct Peaks {
    pub bytes_per_s: f64,
    pub flops_per_s: f64,
}

/// Best of a few short runs.
pub fn measure(num_threads: usize) -> Peaks {
    Peaks { bytes_per_s: read_bandwidth(num_threads), flops_per_s: multiply_adds(num_threads) }
}

/// Values in whole cache lines.
fn lines(values: &[u64]) -> impl Iterator<Item = &[u64; 8]> {
    values.as_chunks::<8>().0.iter()
}

/// Four streams per thread over 256 MiB, so that the hardware fetches ahead in several pages.
fn read_bandwidth(num_threads: usize) -> f64 {
    let values = vec![1u64; 32 << 20];
    let part = values.len() / num_threads;
    let mut best_s = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for chunk in values.chunks_exact(part) {
                scope.spawn(move || black_box(read(chunk)));
            }
        });
        best_s = best_s.min(start.elapsed().as_secs_f64());
    }
    (values.len() * 8) as f64 / best_s
}

/// Combines all values, four streams at a time, with the widest loads of the processor.
fn read(values: &[u64]) -> [u64; 8] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512.
        return unsafe { x86::read_avx512(values) };
    }
    read_streams(values)
}

#[inline(always)]
fn read_streams(values: &[u64]) -> [u64; 8] {
    let (ab, cd) = values.split_at(values.len() / 2);
    let ((a, b), (c, d)) = (ab.split_at(ab.len() / 2), cd.split_at(cd.len() / 2));
    let mut sums = [0u64; 8];
    for (((a, b), c), d) in lines(a).zip(lines(b)).zip(lines(c)).zip(lines(d)) {
        for i in 0..8 {
            sums[i] ^= a[i] ^ b[i] ^ c[i] ^ d[i];
        }
    }
    sums
}

fn multiply_adds(num_threads: usize) -> f64 {
    const ROUNDS: usize = 2_000_000;
    let mut best = 0.0f64;
    for _ in 0..5 {
        let start = Instant::now();
        let flops: f64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(|| flops_of(ROUNDS))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a peak loop")).sum()
        });
        best = best.max(flops / start.elapsed().as_secs_f64());
    }
    best
}

/// Runs the widest multiply-adds of the processor and returns how many operations they were.
fn flops_of(rounds: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512.
            return unsafe { x86::flops_avx512(rounds) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and FMA.
            return unsafe { x86::flops_avx2(rounds) };
        }
    }
    let mut sums = [black_box(0.0f32); 32];
    let (a, b) = (black_box(0.5f32), black_box(0.25f32));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * a + b;
        }
    }
    black_box(sums);
    (rounds * sums.len() * 2) as f64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx512f")]
    pub fn read_avx512(values: &[u64]) -> [u64; 8] {
        super::read_streams(values)
    }

    #[target_feature(enable = "avx512f")]
    pub fn flops_avx512(rounds: usize) -> f64 {
        let (a, b) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
        let mut sums = [b; 16];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
        (rounds * sums.len() * 16 * 2) as f64
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn flops_avx2(rounds: usize) -> f64 {
        let (a, b) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.25)));
        let mut sums = [b; 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
        (rounds * sums.len() * 8 * 2) as f64
    }
}
