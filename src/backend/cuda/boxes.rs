//! Matrices that kernels copy in boxes (TMA).

use std::ffi::c_void;

use cudarc::driver::sys;

use super::driver::{DevicePtr, Gpu};
use crate::backend::{BackendResult, DType};

/// A row-major matrix of 2-byte elements that kernels copy in boxes, `[box_rows, box_columns]`, to shared memory
/// (`kernels/hopper.cuh`). Rows of a box are 32, 64 or 128 bytes.
pub(super) struct BoxedMatrix {
    pub(super) data: DevicePtr,
    pub(super) dtype: DType,
    pub(super) rows: u64,
    pub(super) columns: u64,
    pub(super) box_rows: u32,
    pub(super) box_columns: u32,
}

/// A [`BoxedMatrix`] as the device reads it, in kernel parameters.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub(super) struct TensorMap(sys::CUtensorMap);

impl Gpu {
    /// Encodes `matrix` for copies of boxes; the driver checks sizes and alignment.
    pub(super) fn encode_boxes(
        &self,
        operation: &'static str,
        matrix: &BoxedMatrix,
    ) -> BackendResult<TensorMap> {
        let [rows, columns] = [matrix.rows, matrix.columns];
        let row_bytes = columns * 2;
        let swizzle = match matrix.box_columns {
            64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        };
        let dtype = match matrix.dtype {
            DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::F32 => unreachable!("boxes hold elements of 2 bytes"),
        };
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: all pointers are to locals with as many entries as the rank, 2, or one less for strides. The
        // matrix's address is stored, not read.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                dtype,
                2,
                matrix.data as *mut c_void,
                [columns, rows].as_ptr(),
                [row_bytes].as_ptr(),
                [matrix.box_columns, matrix.box_rows].as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        self.check(operation, result)?;
        Ok(TensorMap(map))
    }
}
