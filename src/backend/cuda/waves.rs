//! How many rows of a matrix product fill the device: its tiles run in waves of one per multiprocessor, and a wave
//! that is not full takes as long as one that is.

/// Rows of a product that one block of cuBLASLt's kernels for many rows computes.
const TILE_ROWS: usize = 128;
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
}
