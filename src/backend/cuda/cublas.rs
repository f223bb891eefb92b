//! Matrix products of many rows through cuBLASLt, with algorithms chosen by timing.
//!
//! cuBLASLt is column-major: `out = input * weight^T` on row-major matrices is `out^T = weight * input^T` there,
//! with `weight` transposed and all three as they lie in memory.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys as driver;

use super::driver::{DevicePtr, Gpu};
use crate::backend::{BackendError, BackendResult, DType};
use crate::error::{Error, Result, Status};

/// Workspace of one product; what cuBLAS recommends for Hopper.
pub(super) const WORKSPACE_BYTES: u64 = 32 << 20;
/// Candidates that are timed per shape.
const NUM_CANDIDATES: usize = 16;
/// Oldest version that is known to run: 13.0.
const MIN_VERSION: usize = 130_000;
/// Timed runs per candidate, after one that is not timed.
const NUM_TIMED_RUNS: usize = 3;
const OPERATION: &str = "linear";

/// Rows, columns and types of a product: `out [rows, out_features]`, `weight [out_features, in_features]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ProductShape {
    pub(super) rows: usize,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    pub(super) dtype: DType,
    pub(super) out_dtype: DType,
}

impl ProductShape {
    /// The shape whose algorithm this one shares: rows rounded up to a power of two.
    pub(super) fn bucket(self) -> ProductShape {
        ProductShape { rows: self.rows.next_power_of_two(), ..self }
    }
}

/// Addresses of a product's matrices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands {
    pub(super) input: DevicePtr,
    pub(super) weight: DevicePtr,
    pub(super) out: DevicePtr,
}

/// A handle that no backend uses, and the device that it was made on.
struct Handle(sys::cublasLtHandle_t, u32);

// SAFETY: handles may be used from any thread, by one at a time.
unsafe impl Send for Handle {}

/// Handles to use again. They are never destroyed: that waits for the whole device, which a host that
/// records a graph must not have.
static HANDLES: Mutex<Vec<Handle>> = Mutex::new(Vec::new());

fn unused_handle(ordinal: u32) -> Option<sys::cublasLtHandle_t> {
    let mut handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
    let place = handles.iter().position(|handle| handle.1 == ordinal)?;
    Some(handles.swap_remove(place).0)
}

/// A handle, its workspace and the algorithms found so far.
pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    ordinal: u32,
    description: sys::cublasLtMatmulDesc_t,
    preference: sys::cublasLtMatmulPreference_t,
    workspace: DevicePtr,
    /// Fastest algorithm of each bucket, timed on the first shape that fell into it.
    timed: HashMap<ProductShape, sys::cublasLtMatmulAlgo_t>,
    /// Algorithm of each shape seen: its bucket's where that takes the shape, else cuBLASLt's first choice.
    chosen: HashMap<ProductShape, sys::cublasLtMatmulAlgo_t>,
}

// SAFETY: the handle may be used from any thread, by one at a time.
unsafe impl Send for CublasLt {}

/// Refuses a library that is older than what the kernels were built beside; another one may be found first.
fn check_version(version: usize) -> Result<()> {
    if version >= MIN_VERSION {
        return Ok(());
    }
    let (major, minor) = (version / 10_000, version % 10_000 / 100);
    let message = format!(
        "the first libcublasLt on the library path is {major}.{minor}, but 13.0 is needed; put the folder of \
         libcublasLt.so.13 before it (LD_LIBRARY_PATH)"
    );
    Err(Error::new(Status::DeviceUnavailable, message))
}

impl CublasLt {
    /// Whether the library is there.
    pub(super) fn probe() -> Result<()> {
        // SAFETY: looks for the library by name and closes it again.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::new(
                Status::DeviceUnavailable,
                "libcublasLt.so.13 was not found; install NVIDIA's package libcublas-13-0 (or nvidia-cublas from \
                 PyPI) and put its folder on the library path (LD_LIBRARY_PATH)",
            ));
        }
        Ok(())
    }

    /// Opens the library for device `ordinal`, whose context is current; the workspace is set when memory is reserved.
    pub(super) fn open(ordinal: u32) -> Result<CublasLt> {
        Self::probe()?;
        // SAFETY: the library is there and the call takes nothing.
        check_version(unsafe { sys::cublasLtGetVersion() })?;
        let fail = |error: result::CublasError| {
            Error::new(Status::DeviceUnavailable, format!("opening cuBLASLt failed: {error}"))
        };
        let handle = match unused_handle(ordinal) {
            Some(handle) => handle,
            None => result::create_handle().map_err(fail)?,
        };
        let mut library = CublasLt {
            handle,
            ordinal,
            description: ptr::null_mut(),
            preference: ptr::null_mut(),
            workspace: 0,
            timed: HashMap::new(),
            chosen: HashMap::new(),
        };
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        library.description = result::create_matmul_desc(compute, scale).map_err(fail)?;
        library.preference = result::create_matmul_pref().map_err(fail)?;
        // CUBLAS_OP_T, which these bindings do not name.
        let transpose = 1i32;
        let workspace_bytes = WORKSPACE_BYTES as usize;
        // SAFETY: both descriptors were just created; the values are read during the calls.
        unsafe {
            result::set_matmul_desc_attribute(
                library.description,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                ptr::from_ref(&transpose).cast(),
                size_of_val(&transpose),
            )
            .map_err(fail)?;
            result::set_matmul_pref_attribute(
                library.preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                ptr::from_ref(&workspace_bytes).cast(),
                size_of_val(&workspace_bytes),
            )
            .map_err(fail)?;
        }
        Ok(library)
    }

    /// Sets the workspace, [`WORKSPACE_BYTES`] of device memory.
    pub(super) fn set_workspace(&mut self, workspace: DevicePtr) {
        self.workspace = workspace;
    }

    /// `out = input * weight^T` with sums in single precision.
    pub(super) fn multiply(
        &mut self,
        gpu: &Gpu,
        shape: ProductShape,
        operands: Operands,
    ) -> BackendResult<()> {
        if self.workspace == 0 {
            return invalid("nothing was reserved".to_owned());
        }
        let layouts = Layouts::new(shape)?;
        let algorithm = match self.chosen.get(&shape) {
            Some(algorithm) => *algorithm,
            None => {
                let algorithm = self.choose(gpu, shape, &layouts, operands)?;
                self.chosen.insert(shape, algorithm);
                algorithm
            }
        };
        self.run(gpu, &layouts, operands, &algorithm)
    }

    fn choose(
        &mut self,
        gpu: &Gpu,
        shape: ProductShape,
        layouts: &Layouts,
        operands: Operands,
    ) -> BackendResult<sys::cublasLtMatmulAlgo_t> {
        let bucket = shape.bucket();
        if let Some(algorithm) = self.timed.get(&bucket)
            && self.takes(layouts, algorithm)
        {
            return Ok(*algorithm);
        }
        let candidates = self.candidates(shape, layouts)?;
        if self.timed.contains_key(&bucket) {
            return Ok(candidates[0]);
        }
        let mut fastest = (f32::INFINITY, candidates[0]);
        for algorithm in candidates {
            let milliseconds = self.time(gpu, layouts, operands, &algorithm)?;
            if milliseconds < fastest.0 {
                fastest = (milliseconds, algorithm);
            }
        }
        self.timed.insert(bucket, fastest.1);
        Ok(fastest.1)
    }

    /// Algorithms that cuBLASLt thinks fastest, best first; at least one.
    fn candidates(
        &self,
        shape: ProductShape,
        layouts: &Layouts,
    ) -> BackendResult<Vec<sys::cublasLtMatmulAlgo_t>> {
        let mut results = [EMPTY_RESULT; NUM_CANDIDATES];
        let mut count = 0;
        // SAFETY: all descriptors live; the array has room for the number asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                self.description,
                layouts.weight,
                layouts.input,
                layouts.out,
                layouts.out,
                self.preference,
                NUM_CANDIDATES as i32,
                results.as_mut_ptr(),
                &mut count,
            )
        };
        check(status)?;
        let found = results.iter().take(count as usize);
        let usable = found.filter(|found| found.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        let algorithms: Vec<_> = usable.map(|found| found.algo).collect();
        match algorithms.is_empty() {
            true => invalid(format!("cuBLASLt has no algorithm for {shape:?}")),
            false => Ok(algorithms),
        }
    }

    /// Whether an algorithm that was found for other sizes takes these.
    fn takes(&self, layouts: &Layouts, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let mut found = EMPTY_RESULT;
        // SAFETY: all descriptors live and the pointers are to locals.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                self.handle,
                self.description,
                layouts.weight,
                layouts.input,
                layouts.out,
                layouts.out,
                algorithm,
                &mut found,
            )
        };
        status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && found.workspaceSize as u64 <= WORKSPACE_BYTES
    }

    fn time(
        &self,
        gpu: &Gpu,
        layouts: &Layouts,
        operands: Operands,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> BackendResult<f32> {
        gpu.time(OPERATION, NUM_TIMED_RUNS, || self.run(gpu, layouts, operands, algorithm))
    }

    fn run(
        &self,
        gpu: &Gpu,
        layouts: &Layouts,
        operands: Operands,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> BackendResult<()> {
        let (one, zero) = (1.0f32, 0.0f32);
        let pointer = |address: DevicePtr| address as *mut c_void;
        // SAFETY: all descriptors live; the matrices have the layouts' sizes, which the caller has checked; the
        // workspace has `WORKSPACE_BYTES` and belongs to the backend's stream alone.
        let multiply = |stream: driver::CUstream| unsafe {
            result::matmul(
                self.handle,
                self.description,
                ptr::from_ref(&one).cast(),
                ptr::from_ref(&zero).cast(),
                pointer(operands.weight),
                layouts.weight,
                pointer(operands.input),
                layouts.input,
                pointer(operands.out),
                layouts.out,
                pointer(operands.out),
                layouts.out,
                algorithm,
                pointer(self.workspace),
                WORKSPACE_BYTES as usize,
                stream.cast(),
            )
        };
        gpu.call_library(OPERATION, |stream| match multiply(stream) {
            Ok(()) => Ok(()),
            // A device that was lost says so at the next call of the driver.
            Err(error) => gpu.synchronize().and_then(|()| check(error.0)),
        })
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: nothing of the library is used after this; errors change nothing.
        unsafe {
            if !self.preference.is_null() {
                let _ = result::destroy_matmul_pref(self.preference);
            }
            if !self.description.is_null() {
                let _ = result::destroy_matmul_desc(self.description);
            }
        }
        HANDLES.lock().unwrap_or_else(PoisonError::into_inner).push(Handle(self.handle, self.ordinal));
    }
}

/// Column-major descriptions of a product's matrices.
struct Layouts {
    weight: sys::cublasLtMatrixLayout_t,
    input: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
}

impl Layouts {
    fn new(shape: ProductShape) -> BackendResult<Layouts> {
        let ProductShape { rows, out_features, in_features, dtype, out_dtype } = shape;
        let mut layouts = Layouts { weight: ptr::null_mut(), input: ptr::null_mut(), out: ptr::null_mut() };
        layouts.weight = layout(dtype, in_features, out_features)?;
        layouts.input = layout(dtype, in_features, rows)?;
        layouts.out = layout(out_dtype, out_features, rows)?;
        Ok(layouts)
    }
}

impl Drop for Layouts {
    fn drop(&mut self) {
        for layout in [self.weight, self.input, self.out] {
            if !layout.is_null() {
                // SAFETY: created by `Layouts::new` and not used after this.
                let _ = unsafe { result::destroy_matrix_layout(layout) };
            }
        }
    }
}

/// `columns` contiguous columns of `rows` elements.
fn layout(dtype: DType, rows: usize, columns: usize) -> BackendResult<sys::cublasLtMatrixLayout_t> {
    let dtype = match dtype {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    };
    result::create_matrix_layout(dtype, rows as u64, columns as u64, rows as i64).or_else(|error| {
        check(error.0)?;
        invalid("creating a matrix layout failed".to_owned())
    })
}

const EMPTY_RESULT: sys::cublasLtMatmulHeuristicResult_t = sys::cublasLtMatmulHeuristicResult_t {
    algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
    workspaceSize: 0,
    state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED,
    wavesCount: 0.0,
    reserved: [0; 4],
};

fn check(status: sys::cublasStatus_t) -> BackendResult<()> {
    match status {
        sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        error @ sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => {
            Err(BackendError::DeviceFull { operation: OPERATION, message: format!("cuBLASLt: {error:?}") })
        }
        error => invalid(format!("cuBLASLt: {error:?}")),
    }
}

fn invalid<T>(message: String) -> BackendResult<T> {
    Err(BackendError::InvalidArgument { operation: OPERATION, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_library_is_named() {
        assert!(check_version(130_000).is_ok() && check_version(140_205).is_ok());
        let error = check_version(120_905).unwrap_err();
        assert_eq!(error.status(), Status::DeviceUnavailable);
        assert!(error.message().contains("is 12.9"), "{error}");
    }
}
