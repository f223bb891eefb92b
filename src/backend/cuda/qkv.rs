//! Products of queries, keys and values with the rotation and the write to the cache that follow. Products of many rows
//! rotate their own tiles where that is faster than a kernel of its own, which is timed, once per size.

use super::choice::{self, Choices, Way};
use super::cublas::{Operands, ProductShape};
use super::driver::Gpu;
use super::linear::Linear;
use super::linear_sm90::{HopperLinear, TILE_COLUMNS};
use super::rope::{Rope, Rotation, RotationForm};
use super::tensor::Checker;
use crate::backend::BackendResult;

/// The ways that were timed. Apart, the rotation follows the product; in tiles, it is done in it.
pub(super) struct QkvProducts {
    choices: Choices<RotationForm>,
}

impl QkvProducts {
    pub(super) fn new() -> QkvProducts {
        QkvProducts { choices: Choices::new() }
    }

    /// See [`crate::backend::Backend::linear_qkv`].
    pub(super) fn run(
        &mut self,
        gpu: &Gpu,
        check: Checker,
        (linear, rope): (&mut Linear, &Rope),
        product: (ProductShape, Operands),
        rotation: &Rotation,
    ) -> BackendResult<()> {
        let (shape, operands) = product;
        check.require(shape.rows >= rotation.num_tokens, || {
            format!("{} rows for {} tokens", shape.rows, rotation.num_tokens)
        })?;
        let (forced, has_tiles) =
            (linear.forced(), linear.hopper.is_some() && !Linear::is_skinny(shape.rows));
        let takes = |columns: usize| has_tiles && HopperLinear::rotates(columns, rotation.form);
        let mut run = |way: Way| match (way, &linear.hopper) {
            (Way::Tiles(columns), Some(hopper)) if takes(columns) => {
                hopper.run_rotated(gpu, check, columns, product, rotation)
            }
            _ => {
                linear.run(gpu, check, shape, operands)?;
                rope.run(gpu, check, rotation)
            }
        };
        let way = match forced {
            _ if !TILE_COLUMNS.into_iter().any(takes) => Way::Apart,
            Some(way) => way,
            None => self.choices.choose(gpu, (shape, rotation.form, shape.out_features), || {
                choice::time(gpu, check.operation, takes, &mut run)
            })?,
        };
        run(way)
    }
}
