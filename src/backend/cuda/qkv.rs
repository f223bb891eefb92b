//! Products of queries, keys and values with the rotation and the write to the cache that follow. Products of few rows
//! rotate where their blocks can hold both elements of every pair (`kernels/qkv_few.cu`); those of many rows rotate
//! their own tiles where that is faster than a kernel of its own, which is timed, once per size.

use super::choice::{self, Choices, Way};
use super::cublas::{Operands, ProductShape};
use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::linear::{self, Linear, MAX_SKINNY_ROWS, WEIGHT_ROWS};
use super::linear_sm90::{HopperLinear, TILE_COLUMNS};
use super::modules::{Modules, PerDType};
use super::rope::{Rope, RopeParams, Rotation, RotationForm};
use super::tensor::{Checker, to_u32};
use crate::backend::{BackendResult, RopePairing};

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct QkvFewParams {
    input: DevicePtr,
    weight: DevicePtr,
    rows: u32,
    in_features: u32,
    rope: RopeParams,
}

const _: () = assert!(size_of::<QkvFewParams>() == 152);

// SAFETY: `repr(C)`, mirrors QkvFewParams in qkv_few.cu.
unsafe impl Params for QkvFewParams {}

/// Kernels for up to `max_rows` rows.
struct Few {
    max_rows: usize,
    half: PerDType<Kernel<QkvFewParams>>,
    interleaved: PerDType<Kernel<QkvFewParams>>,
}

impl Few {
    fn new(gpu: &Gpu, modules: &Modules, max_rows: usize) -> BackendResult<Few> {
        let kernels = |pairing: &str| {
            PerDType::try_new(|dtype| {
                modules.kernel(gpu, "qkv_few", &format!("qkv_few_{pairing}_{dtype}_{max_rows}"))
            })
        };
        Ok(Few { max_rows, half: kernels("half")?, interleaved: kernels("interleaved")? })
    }

    /// Whether blocks hold whole pairs; mirrors what `kernels/qkv_few.cu` asks for.
    fn rotates(form: RotationForm) -> bool {
        let RotationForm { head_dim, rotary_dim, pairing: _, has_norm } = form;
        !has_norm && head_dim.is_multiple_of(WEIGHT_ROWS) && rotary_dim.is_multiple_of(WEIGHT_ROWS)
    }

    fn run(
        &self,
        gpu: &Gpu,
        check: Checker,
        (shape, operands): (ProductShape, Operands),
        rotation: &Rotation,
    ) -> BackendResult<()> {
        let kernels = match rotation.form.pairing {
            RopePairing::Half => &self.half,
            RopePairing::Interleaved => &self.interleaved,
        };
        let params = QkvFewParams {
            input: operands.input,
            weight: operands.weight,
            rows: shape.rows as u32,
            in_features: to_u32(check.operation, shape.in_features)?,
            rope: rotation.params,
        };
        let blocks = to_u32(check.operation, shape.out_features / WEIGHT_ROWS)?;
        let launch = Launch::overlapping(blocks, linear::THREADS);
        gpu.launch(check.operation, kernels.get(shape.dtype), launch, &params)
    }
}

/// The ways that were timed. Apart, the rotation follows the product; in tiles, it is done in it.
pub(super) struct QkvProducts {
    few: [Few; 2],
    choices: Choices<RotationForm>,
}

impl QkvProducts {
    pub(super) fn new(gpu: &Gpu, modules: &Modules) -> BackendResult<QkvProducts> {
        let few = [Few::new(gpu, modules, 8)?, Few::new(gpu, modules, MAX_SKINNY_ROWS)?];
        Ok(QkvProducts { few, choices: Choices::new() })
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
        let few = self.few.iter().find(|few| (1..=few.max_rows).contains(&shape.rows));
        if let Some(few) = few.filter(|_| Few::rotates(rotation.form)) {
            return few.run(gpu, check, product, rotation);
        }
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
