//! Choices between ways of multiplying many rows: the ways are timed once for all numbers of rows that share a bucket,
//! and chosen for each number by the waves that its tiles run in.

use std::collections::HashMap;
use std::hash::Hash;

use super::cublas::ProductShape;
use super::driver::Gpu;
use super::linear_sm90::TILE_COLUMNS;
use super::waves;
use crate::backend::BackendResult;

/// Timed runs of a way in each of two rounds, after one that is not timed.
const NUM_TIMED_RUNS: usize = 3;
/// What reading operands from the second-level cache takes of the energy of a product in the widest tiles: without the
/// reads, such products ran 16 to 20 % faster at the card's power limit.
const READING_SHARE: f32 = 0.16;

/// Rows from which on products draw as much power as the card may.
const LOADED_ROWS_MIN: usize = 1024;

/// A way to multiply many rows and to do what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// cuBLASLt, and what follows as an operation of its own.
    Apart,
    /// At once, in tiles of so many columns.
    Tiles(usize),
}

impl Way {
    /// How much more energy a product takes than one in the widest tiles. A loaded card stands at its power limit,
    /// where energy, not time on an idle card, is what products cost.
    fn energy(self) -> f32 {
        let reads = |columns: usize| waves::TILE_ROWS as f32 / columns as f32 + 0.5;
        let widest = TILE_COLUMNS[TILE_COLUMNS.len() - 1];
        match self {
            Way::Apart => 1.0,
            Way::Tiles(columns) => 1.0 + READING_SHARE * (reads(columns) / reads(widest) - 1.0),
        }
    }

    /// About how long a product takes, to be compared with other numbers of rows alone.
    fn length(self, num_multiprocessors: usize, rows: usize, weight_rows: usize) -> f32 {
        match self {
            Way::Apart => waves::num_row_tiles(rows) as f32,
            Way::Tiles(columns) => waves::num_waves(num_multiprocessors, rows, weight_rows, columns) as f32,
        }
    }
}

/// Milliseconds of ways, for `rows` rows.
struct Timed {
    rows: usize,
    ways: Vec<(Way, f32)>,
}

/// Timed ways of an operation. `K` is what else their times depend on than the product.
pub(super) struct Choices<K> {
    timed: HashMap<(ProductShape, K), Timed>,
}

impl<K: Copy + Eq + Hash> Choices<K> {
    pub(super) fn new() -> Self {
        Self { timed: HashMap::new() }
    }

    /// The way that should be fastest for a product, by what `time_ways` tells when the first product of a bucket
    /// comes. `weight_rows` are the columns that tiles cover.
    pub(super) fn choose(
        &mut self,
        gpu: &Gpu,
        (shape, key, weight_rows): (ProductShape, K, usize),
        time_ways: impl FnOnce() -> BackendResult<Vec<(Way, f32)>>,
    ) -> BackendResult<Way> {
        let num_multiprocessors = gpu.num_multiprocessors() as usize;
        if let Some(way) = self.fastest(num_multiprocessors, shape, key, weight_rows) {
            return Ok(way);
        }
        self.insert(shape, key, time_ways()?);
        Ok(self.fastest(num_multiprocessors, shape, key, weight_rows).unwrap_or(Way::Apart))
    }

    /// The same, if products of the bucket have been timed.
    fn fastest(
        &self,
        num_multiprocessors: usize,
        shape: ProductShape,
        key: K,
        weight_rows: usize,
    ) -> Option<Way> {
        let Timed { rows, ways } = self.timed.get(&(shape.bucket(), key))?;
        let expected = |way: Way, milliseconds: f32| {
            let length = |rows| way.length(num_multiprocessors, rows, weight_rows);
            let share = length(shape.rows) / length(*rows);
            let energy = if shape.rows >= LOADED_ROWS_MIN { way.energy() } else { 1.0 };
            milliseconds * share * energy
        };
        let times = ways.iter().map(|&(way, milliseconds)| (way, expected(way, milliseconds)));
        times.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(way, _)| way)
    }

    fn insert(&mut self, shape: ProductShape, key: K, ways: Vec<(Way, f32)>) {
        self.timed.insert((shape.bucket(), key), Timed { rows: shape.rows, ways });
    }
}

/// Milliseconds of `run`, apart and in tiles of every width that it takes, in turns and in both orders: a card slows
/// down while it is loaded.
pub(super) fn time(
    gpu: &Gpu,
    operation: &'static str,
    takes: impl Fn(usize) -> bool,
    mut run: impl FnMut(Way) -> BackendResult<()>,
) -> BackendResult<Vec<(Way, f32)>> {
    let tiles = TILE_COLUMNS.into_iter().filter(|&columns| takes(columns)).map(Way::Tiles);
    let ways: Vec<Way> = [Way::Apart].into_iter().chain(tiles).collect();
    let mut times: Vec<_> = ways.iter().map(|&way| (way, 0.0)).collect();
    for index in (0..ways.len()).chain((0..ways.len()).rev()) {
        let milliseconds = gpu.time(operation, NUM_TIMED_RUNS, || run(ways[index]))?;
        times[index].1 += milliseconds / (2 * NUM_TIMED_RUNS) as f32;
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::DType;

    fn chosen(timed: [(usize, &[(Way, f32)]); 1], rows: usize, width: usize) -> Option<Way> {
        let shape = |rows| ProductShape {
            rows,
            out_features: width,
            in_features: 4096,
            dtype: DType::Bf16,
            out_dtype: DType::Bf16,
        };
        let mut choices = Choices::new();
        for (rows, ways) in timed {
            choices.insert(shape(rows), (), ways.to_vec());
        }
        choices.fastest(132, shape(rows), (), width)
    }

    #[test]
    fn ways_are_chosen_by_the_waves_of_the_rows() {
        // 128 pairs of 256 columns are two waves, as are 5 x 16 pairs; 5 x 22 of 192 columns are two instead of three.
        let timed = [(2048, &[(Way::Tiles(192), 100.0), (Way::Tiles(256), 90.0)][..])];
        assert_eq!(chosen(timed, 2048, 4096), Some(Way::Tiles(256)));
        assert_eq!(chosen(timed, 1280, 4096), Some(Way::Tiles(192)));
        // cuBLASLt's time goes with the rows.
        let timed = [(512, &[(Way::Apart, 100.0), (Way::Tiles(256), 90.0)][..])];
        assert_eq!(chosen(timed, 512, 4096), Some(Way::Tiles(256)));
        assert_eq!(chosen(timed, 257, 4096), Some(Way::Apart));
        assert_eq!(chosen(timed, 513, 4096), None);
    }

    #[test]
    fn many_rows_prefer_tiles_that_read_little() {
        let ways = [(Way::Tiles(192), 99.0), (Way::Tiles(256), 100.0)];
        assert_eq!(chosen([(8192, &ways)], 8192, 4096), Some(Way::Tiles(256)));
        assert_eq!(chosen([(512, &ways)], 512, 4096), Some(Way::Tiles(192)));
    }
}
