//! Zeros that fill heads and MLPs up to the sizes that a backend stores.
//!
//! They stand behind the elements of each head and of each half of an MLP's first projection: zero rows there make
//! zeros among queries, keys, values and activations, and zero columns of the projections that follow take none of
//! them in. Scores keep their factor, rotations their pairs, and norms of heads count what is no padding.

/// Every `len` rows or elements are followed by zeros, so that they are `stored`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding {
    /// At least 1.
    pub len: usize,
    /// At least `len`.
    pub stored: usize,
}

impl Padding {
    /// Nothing is added.
    pub const NONE: Self = Self { len: 1, stored: 1 };

    /// Whether nothing is added.
    pub fn is_none(self) -> bool {
        self.len == self.stored
    }

    /// What `len` rows or elements become.
    pub fn padded(self, len: usize) -> usize {
        len / self.len * self.stored
    }

    /// What was there before it became `stored` rows or elements.
    pub fn unpadded(self, stored: usize) -> usize {
        stored / self.stored * self.len
    }

    /// Copies `source` to `target` with the zeros; both hold whole units of elements of `size_bytes` bytes.
    pub(super) fn spread(self, source: &[u8], target: &mut [u8], size_bytes: usize) {
        let units = target.chunks_exact_mut(self.stored * size_bytes);
        for (target, source) in units.zip(source.chunks_exact(self.len * size_bytes)) {
            let (elements, zeros) = target.split_at_mut(source.len());
            elements.copy_from_slice(source);
            zeros.fill(0);
        }
    }
}

/// Rows or columns of a parameter: `count` units of `len`, each stored as `stored`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    count: usize,
    unit: Padding,
}

impl Extent {
    /// `len`, without padding.
    pub(super) fn exact(len: usize) -> Self {
        Self { count: len, unit: Padding::NONE }
    }

    pub(super) fn padded(count: usize, len: usize, stored: usize) -> Self {
        Self { count, unit: Padding { len, stored } }
    }

    /// Twice as many units.
    pub(super) fn twice(self) -> Self {
        Self { count: 2 * self.count, ..self }
    }

    /// In the checkpoint.
    pub(super) fn len(self) -> usize {
        self.count * self.unit.len
    }

    /// In the backend.
    pub(super) fn stored_len(self) -> usize {
        self.count * self.unit.stored
    }

    pub(super) fn padding(self) -> Padding {
        self.unit
    }
}
