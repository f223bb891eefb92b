//! How many rows of a matrix product fill the device: its tiles run in waves of one per multiprocessor, and a wave
//! that is not full takes as long as one that is.

/// Rows of a product that one block computes, of our kernels for many rows as of cuBLASLt's.
pub(super) const TILE_ROWS: usize = 128;
/// Columns of the same.
const TILE_COLUMNS: usize = 256;
/// Most tiles under each other in one wave: products of narrow matrices have smaller tiles, which fill it sooner.
const TILES_MAX: usize = 8;

/// Rows whose product with a matrix of `width` columns fills one wave as far as whole tiles can. Wider matrices of a
/// model mostly have a multiple of the columns, and so about as many whole waves.
pub(super) fn token_quantum(num_multiprocessors: usize, width: usize) -> usize {
    let tiles_across = width.div_ceil(TILE_COLUMNS).max(1);
    (num_multiprocessors / tiles_across).clamp(1, TILES_MAX) * TILE_ROWS
}

/// Tiles under each other.
pub(super) fn num_row_tiles(rows: usize) -> usize {
    rows.div_ceil(TILE_ROWS)
}

/// Waves that a product of `rows` rows with a matrix of `width` rows takes in tiles of `columns`, of which two under
/// each other are done at once.
pub(super) fn num_waves(num_multiprocessors: usize, rows: usize, width: usize, columns: usize) -> usize {
    let num_pairs = num_row_tiles(rows).div_ceil(2) * width.div_ceil(columns);
    num_pairs.div_ceil((num_multiprocessors / 2).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_is_filled_by_whole_tiles() {
        // 132 multiprocessors, 16 tiles across: 8 under each other are 128 tiles.
        assert_eq!(token_quantum(132, 4096), 1024);
        assert_eq!(token_quantum(132, 5120), 6 * 128);
        assert_eq!(token_quantum(132, 8192), 4 * 128);
        assert_eq!(token_quantum(108, 4096), 6 * 128);
        // Narrow, and wider than the device.
        assert_eq!(token_quantum(132, 576), 1024);
        assert_eq!(token_quantum(16, 8192), 128);
    }

    #[test]
    fn waves_end_with_their_last_pair_of_tiles() {
        // 66 pairs at once: 4 x 16 in a wave, 5 x 16 in two; in tiles of 192 columns 3 x 22 are exactly one.
        assert_eq!(num_waves(132, 1024, 4096, 256), 1);
        assert_eq!(num_waves(132, 1025, 4096, 256), 2);
        assert_eq!(num_waves(132, 768, 4096, 192), 1);
        assert_eq!(num_waves(132, 769, 4096, 192), 2);
        assert_eq!(num_waves(132, 1, 1, 128), 1);
    }
}
