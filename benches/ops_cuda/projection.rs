//! The product of queries, keys and values with the rotation and the write to the cache, one after the other and at
//! once.

use inflight::backend::{Backend, DType, QkvProjection, QkvTransform, RopePairing};

use super::{AttentionBench, noise, random_tensor, time};

/// Heads, size of a head, elements of it that rotate, and how; the hidden size is that of all queries.
type Shape = (&'static str, (usize, usize), usize, usize, RopePairing);

const SHAPES: [Shape; 2] = [
    ("Llama-3-8B", (32, 8), 128, 128, RopePairing::Half),
    ("GPT-J", (16, 16), 256, 64, RopePairing::Interleaved),
];

pub fn bench() {
    println!(
        "queries, keys and values: model, rows | us product and rotation | us at once, as chosen | by tiles"
    );
    for (name, heads, head_dim, rotary_dim, pairing) in SHAPES {
        for rows in [512, 2048, 8192] {
            let AttentionBench { mut gpu, shape, mut cache, mut qkv, marker, .. } =
                AttentionBench::new(heads, head_dim, &vec![(512, 512); rows / 512]);
            let (width, hidden) = (shape.qkv_width(), heads.0 * head_dim);
            let noise = noise(4 << 20, 0.05);
            let input = random_tensor(&mut gpu, &noise, rows, hidden);
            // Weights rotate, so that none are found in the second-level cache.
            let num_weights = (256usize << 20).div_ceil(2 * width * hidden).max(2);
            let weights: Vec<_> =
                (0..num_weights).map(|_| random_tensor(&mut gpu, &noise, width, hidden)).collect();
            let table = gpu.alloc(DType::F32, 512, rotary_dim).unwrap();
            let separately = time(&mut gpu, &marker, |gpu, index| {
                gpu.linear(&input, &weights[index % num_weights], &mut qkv, rows).unwrap();
                let transform = QkvTransform::rotate(&table, pairing);
                gpu.rope_and_write_kv(&mut qkv, &transform, &shape, &mut cache, index % 4).unwrap();
            });
            print!("{name}, {rows} | {separately:.1} |");
            let tiles = gpu.tile_columns().iter().copied().map(Some);
            for columns in [None].into_iter().chain(tiles) {
                if let Some(columns) = columns {
                    gpu.force_tiles(columns);
                    print!(" {columns}:");
                }
                let at_once = time(&mut gpu, &marker, |gpu, index| {
                    let transform = QkvTransform::rotate(&table, pairing);
                    let weight = &weights[index % num_weights];
                    let projection = QkvProjection { weight, transform, shape: &shape };
                    gpu.linear_qkv(&input, &projection, &mut qkv, &mut cache, index % 4, rows).unwrap();
                });
                print!(" {at_once:.1}{}", if columns.is_none() { " |" } else { "" });
            }
            println!();
        }
    }
}
