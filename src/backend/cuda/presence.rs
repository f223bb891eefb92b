//! The driver before a device is open: whether it is there, what it sees, and the context that a host has.

use std::ffi::c_int;
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use super::driver::{describe, exchange_capture_mode, relax_captures};
use crate::error::{Error, Result, Status};

/// Oldest driver that runs this build's CUDA version, 13.0.
const MIN_DRIVER_VERSION: c_int = 13_000;

/// Device `ordinal`, in the driver's order. Everything that goes wrong means that there is no such device to be had:
/// the driver also says that memory is short where the host's address space is.
pub(super) fn find_device(ordinal: u32) -> Result<sys::CUdevice> {
    let unavailable = |message: String| Error::new(Status::DeviceUnavailable, message);
    // SAFETY: looks for the library by name and closes it again.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable("the NVIDIA driver (libcuda) is not installed".to_owned()));
    }
    let check = |what: &str, result: CUresult| success(ordinal, what, Status::DeviceUnavailable, result);
    let (mut version, mut count, mut device) = (0, 0, 0);
    // SAFETY: all pointers are to locals that outlive the calls.
    unsafe {
        check("initialising the driver", sys::cuInit(0))?;
        check("reading the driver's version", sys::cuDriverGetVersion(&mut version))?;
        check("counting devices", sys::cuDeviceGetCount(&mut count))?;
    }
    check_version(version).map_err(unavailable)?;
    let index = c_int::try_from(ordinal).ok().filter(|&index| index < count);
    let index = index
        .ok_or_else(|| unavailable(format!("there is no CUDA device {ordinal}; the driver sees {count}")))?;
    // SAFETY: the pointer is to a local.
    check("opening", unsafe { sys::cuDeviceGet(&mut device, index) })?;
    Ok(device)
}

/// An error of `status` that says what went wrong with device `ordinal`, unless nothing did.
pub(super) fn success(ordinal: u32, what: &str, status: Status, result: CUresult) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        error => Err(Error::new(status, format!("CUDA device {ordinal}: {what}: {}", describe(error)))),
    }
}

/// Refuses a driver whose newest CUDA is older than this build's.
fn check_version(version: c_int) -> std::result::Result<(), String> {
    if version >= MIN_DRIVER_VERSION {
        return Ok(());
    }
    let (major, minor) = (version / 1000, version % 1000 / 10);
    Err(format!(
        "the NVIDIA driver supports CUDA {major}.{minor}, but 13.0 is needed: install driver 580 or newer"
    ))
}

/// The context that was current on a thread and whether it minds what others record, which are so again when this is
/// dropped there.
pub struct HostContext {
    /// The context, null where none was; `None` where there is no driver.
    kept: Option<(sys::CUcontext, sys::CUstreamCaptureMode)>,
}

impl HostContext {
    /// Keeps what the calling thread has. Until the drop, it does not mind what others record.
    pub fn keep() -> HostContext {
        let mut context = ptr::null_mut();
        // SAFETY: the library is looked for before it is called, and the pointer is to a local, which stays null
        // where the call fails because nobody has initialised the driver yet.
        let kept = unsafe {
            sys::is_culib_present().then(|| {
                let _ = sys::cuCtxGetCurrent(&mut context);
                (context, relax_captures())
            })
        };
        HostContext { kept }
    }
}

impl Drop for HostContext {
    fn drop(&mut self) {
        let Some((context, capture_mode)) = self.kept else { return };
        exchange_capture_mode(capture_mode);
        // SAFETY: the host had this context current and has not destroyed it, since its thread has been here. The
        // call fails without harm where the driver was never initialised.
        let _ = unsafe { sys::cuCtxSetCurrent(context) };
    }
}
