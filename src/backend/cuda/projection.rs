//! Last projections of blocks. Products of many rows add to the residual themselves where that is faster than to leave
//! it to the norm that follows, which is timed, once per size.

use super::choice::{self, Choices, Way};
use super::cublas::ProductShape;
use super::driver::{DevicePtr, Gpu};
use super::linear::{self, Linear};
use super::linear_sm90::AddedProduct;
use super::tensor::{Checker, Tensor};
use crate::backend::{BackendResult, Projection};

/// About what a norm of many rows reads and writes in a millisecond.
const NORM_BYTES_PER_MILLISECOND: f32 = 2.5e9;

/// The ways that were timed. Apart, the norm that follows adds what products have left; in tiles, one product adds.
pub(super) struct Projections {
    /// By the width of the second projection's input, or 0.
    choices: Choices<usize>,
}

impl Projections {
    pub(super) fn new() -> Projections {
        Projections { choices: Choices::new() }
    }

    /// See [`crate::backend::Backend::project`].
    pub(super) fn run(
        &mut self,
        gpu: &Gpu,
        check: Checker,
        linear: &mut Linear,
        projections: [Option<Projection<'_, Tensor>>; 2],
        (residual, rows): (&mut Tensor, usize),
    ) -> BackendResult<bool> {
        let Some(products) = Products::new(check, projections, residual, rows)? else { return Ok(false) };
        let way = self.choose(gpu, check, linear, &products)?;
        products.run(gpu, check, linear, way, residual.data)?;
        Ok(way != Way::Apart)
    }

    /// The fastest way. What is tried leaves the residual as it is.
    fn choose(
        &mut self,
        gpu: &Gpu,
        check: Checker,
        linear: &mut Linear,
        products: &Products,
    ) -> BackendResult<Way> {
        if Linear::is_skinny(products.first.shape.rows) || linear.hopper.is_none() {
            return Ok(Way::Apart);
        }
        if let Some(way) = linear.forced() {
            return Ok(way);
        }
        let shape = products.first.shape;
        self.choices.choose(gpu, (shape, products.second_width(), shape.out_features), || {
            let delta = products.first.operands.out;
            let run = |way| products.run(gpu, check, linear, way, delta);
            let mut times = choice::time(gpu, check.operation, |_| true, run)?;
            for (way, milliseconds) in &mut times {
                *milliseconds += products.norm_milliseconds(*way);
            }
            Ok(times)
        })
    }
}

/// Checked projections of the same rows.
struct Products {
    first: AddedProduct,
    second: Option<AddedProduct>,
}

impl Products {
    /// `None` where there are no projections.
    fn new(
        check: Checker,
        projections: [Option<Projection<'_, Tensor>>; 2],
        residual: &Tensor,
        rows: usize,
    ) -> BackendResult<Option<Products>> {
        let (dtype, width) = (residual.dtype(), residual.columns());
        check.vectors("residual", residual)?;
        check.tensor("residual", residual, dtype, rows, width)?;
        let mut products = projections.into_iter().flatten().map(|projection| {
            let Projection { input, weight, bias, delta } = projection;
            check.tensor("weight", weight, dtype, width, weight.columns())?;
            check.tensor("delta", delta, dtype, rows, width)?;
            let (shape, operands) = linear::product(check, (input, weight, delta), rows, width)?;
            Ok(AddedProduct { shape, operands, bias: check.optional_row("bias", bias, width)? })
        });
        let Some(first) = products.next().transpose()? else { return Ok(None) };
        Ok(Some(Products { first, second: products.next().transpose()? }))
    }

    fn second_width(&self) -> usize {
        self.second.map_or(0, |second| second.shape.in_features)
    }

    /// Puts products into their deltas or adds them to `residual`.
    fn run(
        &self,
        gpu: &Gpu,
        check: Checker,
        linear: &mut Linear,
        way: Way,
        residual: DevicePtr,
    ) -> BackendResult<()> {
        match (way, &linear.hopper) {
            _ if self.first.shape.rows == 0 => Ok(()),
            (Way::Tiles(columns), Some(hopper)) => {
                hopper.add(gpu, check, columns, (self.first, self.second), residual)
            }
            _ => [Some(self.first), self.second]
                .into_iter()
                .flatten()
                .try_for_each(|product| linear.run(gpu, check, product.shape, product.operands)),
        }
    }

    /// How much longer the norm that follows takes: it reads the deltas, and writes the residual.
    fn norm_milliseconds(&self, way: Way) -> f32 {
        let num_matrices = match way {
            Way::Apart => 2 + usize::from(self.second.is_some()),
            Way::Tiles(_) => 0,
        };
        let ProductShape { rows, out_features, dtype, .. } = self.first.shape;
        (num_matrices * rows * out_features * dtype.size_bytes()) as f32 / NORM_BYTES_PER_MILLISECOND
    }
}
