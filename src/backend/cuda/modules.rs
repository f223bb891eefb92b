//! The embedded kernels, loaded into the device's context and resolved by name when the backend is created.

use std::collections::HashMap;
use std::ffi::CString;
use std::marker::PhantomData;
use std::ptr;

use cudarc::driver::sys;

use super::driver::{Gpu, Kernel, Params};
use crate::backend::{BackendError, BackendResult, DType};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Ends the names of files that are built for compute capability 9.0 alone.
const HOPPER_SUFFIX: &str = "_sm90";

/// One module per file in `kernels/` that runs on the device.
pub(super) struct Modules {
    modules: HashMap<&'static str, sys::CUmodule>,
}

// SAFETY: module handles may be used from any thread.
unsafe impl Send for Modules {}

impl Modules {
    pub(super) fn load(gpu: &Gpu) -> BackendResult<Modules> {
        gpu.bind()?;
        let mut loaded = Modules { modules: HashMap::new() };
        for (name, fatbin) in FATBINS {
            if name.ends_with(HOPPER_SUFFIX) && !gpu.is_hopper() {
                continue;
            }
            let mut module = ptr::null_mut();
            // SAFETY: the image is a complete fat binary that nvcc wrote; the driver copies what it needs.
            let result = unsafe { sys::cuModuleLoadData(&mut module, fatbin.as_ptr().cast()) };
            gpu.check("load_kernels", result)?;
            loaded.modules.insert(name, module);
        }
        Ok(loaded)
    }

    /// Kernel `name` of file `file`, whose parameter struct is `P`.
    pub(super) fn kernel<P: Params>(&self, gpu: &Gpu, file: &str, name: &str) -> BackendResult<Kernel<P>> {
        let missing = || BackendError::InvalidArgument {
            operation: "load_kernels",
            message: format!("there is no kernel {name} in {file}.cu"),
        };
        let module = *self.modules.get(file).ok_or_else(missing)?;
        let symbol = CString::new(name).map_err(|_| missing())?;
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded and the name is a terminated string.
        let result = unsafe { sys::cuModuleGetFunction(&mut function, module, symbol.as_ptr()) };
        if result == sys::CUresult::CUDA_ERROR_NOT_FOUND {
            return Err(missing());
        }
        gpu.check("load_kernels", result)?;
        Ok(Kernel { function, params: PhantomData })
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        for (_, module) in self.modules.drain() {
            // SAFETY: the backend waits for its stream before it drops its modules, so that none of their kernels runs
            // or is launched any more; an error changes nothing.
            let _ = unsafe { sys::cuModuleUnload(module) };
        }
    }
}

/// One value per element type that activations can have.
pub(super) struct PerDType<T> {
    bf16: T,
    f16: T,
}

impl<T> PerDType<T> {
    /// Makes both values from the type's name in kernels.
    pub(super) fn try_new<E>(mut make: impl FnMut(&str) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self { bf16: make("bf16")?, f16: make("f16")? })
    }

    /// The value of `dtype`, which is not F32: tensors have been checked.
    pub(super) fn get(&self, dtype: DType) -> &T {
        match dtype {
            DType::Bf16 => &self.bf16,
            DType::F16 => &self.f16,
            DType::F32 => unreachable!("activations of {dtype:?} passed the checks"),
        }
    }
}
