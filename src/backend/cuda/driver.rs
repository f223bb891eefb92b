//! The driver API as the backend uses it: one device, one stream, every call checked.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::presence::{find_device, success};
use super::recording::{Capture, Recording};
use crate::backend::{BackendError, BackendResult};
use crate::error::{Result, Status};

/// Address in the device's memory.
pub(super) type DevicePtr = sys::CUdeviceptr;

/// A device's primary context, which a host that uses CUDA itself shares, and a stream of our own in it.
pub(super) struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Where what a library launches is captured.
    capture_stream: sys::CUstream,
    /// What kernels are added to instead of being launched.
    recording: RefCell<Option<Recording>>,
    /// Of what libraries launched for recordings.
    capture: RefCell<Option<Capture>>,
    num_multiprocessors: u32,
    /// Shared memory of a multiprocessor, in bytes.
    shared_bytes: u32,
    /// Major and minor compute capability.
    compute_capability: (u32, u32),
    /// Set by the first sticky error; every later call fails at once.
    is_lost: Cell<bool>,
}

// SAFETY: driver handles may be used from any thread; `Gpu` is owned by one backend, which is used by one thread
// at a time and binds the context to it.
unsafe impl Send for Gpu {}

impl Gpu {
    /// Opens device `ordinal` with a stream of the highest priority that the device offers.
    pub(super) fn open(ordinal: u32) -> Result<Gpu> {
        let device = find_device(ordinal)?;
        let check = |what: &str, result: CUresult| {
            let status = match Fault::of(result) {
                Fault::Memory => Status::DeviceOutOfMemory,
                Fault::Arguments | Fault::Device => Status::DeviceUnavailable,
            };
            success(ordinal, what, status, result)
        };
        let (mut context, stream) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: all pointers are to locals; the context is retained before it is used.
        unsafe {
            check("creating a context", sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
        }
        // From here on `Drop` releases what exists.
        let mut gpu = Gpu {
            device,
            context,
            stream,
            capture_stream: stream,
            recording: RefCell::new(None),
            capture: RefCell::new(None),
            num_multiprocessors: 0,
            shared_bytes: 0,
            compute_capability: (0, 0),
            is_lost: Cell::new(false),
        };
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: as above; the stream belongs to the context that is made current.
        unsafe {
            check("entering its context", sys::cuCtxSetCurrent(context))?;
            relax_captures();
            check("reading priorities", sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest))?;
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            for stream in [&mut gpu.stream, &mut gpu.capture_stream] {
                check("creating a stream", sys::cuStreamCreateWithPriority(stream, flags, greatest))?;
            }
        }
        let attribute = |attribute: Attribute| -> Result<u32> {
            let mut value = 0;
            // SAFETY: the pointer is to a local.
            check("reading its size", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        gpu.num_multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1);
        gpu.shared_bytes =
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?.max(1);
        gpu.compute_capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        Ok(gpu)
    }

    /// Major and minor compute capability.
    pub(super) fn compute_capability(&self) -> (u32, u32) {
        self.compute_capability
    }

    /// Whether kernels for compute capability 9.0 alone run.
    pub(super) fn is_hopper(&self) -> bool {
        self.compute_capability() == (9, 0)
    }

    pub(super) fn num_multiprocessors(&self) -> u32 {
        self.num_multiprocessors
    }

    /// Shared memory of a multiprocessor, in bytes.
    pub(super) fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// From here on, kernels are recorded instead of run, until [`Gpu::end_recording`].
    pub(super) fn start_recording(&self) -> BackendResult<()> {
        let recording = Recording::new().map_err(|error| self.fault("record", error.0))?;
        self.recording.replace(Some(recording));
        Ok(())
    }

    /// Ends a recording, whatever became of it.
    pub(super) fn end_recording(&self) -> Option<Recording> {
        self.recording.take()
    }

    /// In a recording, two branches that run at the same time begin; says whether there is a recording.
    pub(super) fn fork(&self) -> bool {
        self.recording.borrow_mut().as_mut().map(Recording::fork).is_some()
    }

    /// In a fork, the second branch begins.
    pub(super) fn next_branch(&self) {
        self.recording.borrow_mut().as_mut().map(Recording::next_branch);
    }

    /// What comes next waits for both branches of the fork.
    pub(super) fn join(&self) {
        self.recording.borrow_mut().as_mut().map(Recording::join);
    }

    /// Has `call` put a library's work on a stream, or records what it puts there.
    pub(super) fn call_library(
        &self,
        operation: &'static str,
        call: impl FnOnce(sys::CUstream) -> BackendResult<()>,
    ) -> BackendResult<()> {
        let mut recording = self.recording.borrow_mut();
        let Some(recording) = recording.as_mut() else { return call(self.stream) };
        let mut capture = self.capture.borrow_mut();
        let capture = match &mut *capture {
            Some(capture) => capture,
            None => {
                let begun = Capture::begin(self.capture_stream);
                capture.insert(begun.map_err(|error| self.fault(operation, error.0))?)
            }
        };
        call(self.capture_stream)?;
        capture.copy_to(recording).map_err(|error| self.fault(operation, error.0))
    }

    /// Ends the capture of libraries' work, if there is one; says whether it was whole.
    pub(super) fn end_capture(&self) -> bool {
        self.capture.take().is_none_or(Capture::finish)
    }

    /// The device's name, as the driver gives it.
    pub(super) fn name(&self) -> String {
        let mut name = [0 as c_char; 128];
        // SAFETY: the driver writes at most the given number of bytes, the last of them 0.
        let result = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, self.device) };
        if result != CUresult::CUDA_SUCCESS {
            return "unnamed device".to_owned();
        }
        // SAFETY: the driver has written a terminated string.
        unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned()
    }

    /// Free and total bytes of the device's memory.
    pub(super) fn memory_info(&self) -> BackendResult<(u64, u64)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both pointers are to locals.
        self.check("memory_info", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }

    /// Makes the context current in the calling thread, which no longer minds what other threads record; fails at
    /// once where the device is lost.
    pub(super) fn bind(&self) -> BackendResult<()> {
        if self.is_lost.get() {
            return Err(lost("bind", "it was lost before".to_owned()));
        }
        // SAFETY: the context is retained as long as `self` lives.
        self.check("bind", unsafe { sys::cuCtxSetCurrent(self.context) })?;
        relax_captures();
        Ok(())
    }

    /// Turns a result into an error of `operation`; sticky ones lose the device.
    pub(super) fn check(&self, operation: &'static str, result: CUresult) -> BackendResult<()> {
        match result {
            CUresult::CUDA_SUCCESS => Ok(()),
            error => Err(self.fault(operation, error)),
        }
    }

    /// What `error` of `operation` is; sticky ones lose the device.
    fn fault(&self, operation: &'static str, error: CUresult) -> BackendError {
        let message = describe(error);
        let fault = if self.is_lost.get() { Fault::Device } else { Fault::of(error) };
        match fault {
            Fault::Arguments => BackendError::InvalidArgument { operation, message },
            Fault::Memory => BackendError::DeviceFull { operation, message },
            Fault::Device => {
                self.is_lost.set(true);
                lost(operation, message)
            }
        }
    }

    /// Launches `kernel` on the stream; a grid without blocks is no launch.
    pub(super) fn launch<P: Params>(
        &self,
        operation: &'static str,
        kernel: &Kernel<P>,
        shape: Launch,
        params: &P,
    ) -> BackendResult<()> {
        let [x, y, z] = shape.grid;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let mut arguments = [ptr::from_ref(params).cast_mut().cast::<c_void>()];
        let overlaps = shape.overlaps && self.compute_capability.0 >= 9;
        if let Some(recording) = &mut *self.recording.borrow_mut() {
            // SAFETY: as below.
            let added =
                unsafe { recording.add_kernel(kernel.function, &shape, arguments.as_mut_ptr(), overlaps) };
            return added.map_err(|error| self.fault(operation, error.0));
        }
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: shape.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared_bytes,
            hStream: self.stream(),
            attrs: &mut overlap,
            numAttrs: overlaps.into(),
        };
        // SAFETY: the kernel takes one parameter, a struct whose layout `P` mirrors (`Params`), and the driver
        // copies it before it returns. What the struct points to was checked by the launcher. The attributes
        // lives through the call.
        let result = unsafe {
            sys::cuLaunchKernelEx(&config, kernel.function, arguments.as_mut_ptr(), ptr::null_mut())
        };
        self.check(operation, result)
    }

    /// Copies `bytes` bytes from pinned memory, in stream order.
    ///
    /// # Safety
    /// `source` is page-locked and stays unchanged until an event recorded later has passed; `target` has room.
    pub(super) unsafe fn upload(
        &self,
        target: DevicePtr,
        source: *const u8,
        bytes: usize,
    ) -> BackendResult<()> {
        // SAFETY: the caller's promise.
        self.check("upload", unsafe {
            sys::cuMemcpyHtoDAsync_v2(target, source.cast(), bytes, self.stream())
        })
    }

    /// Copies `bytes` bytes to pinned memory, in stream order.
    ///
    /// # Safety
    /// `target` is page-locked, has room, and is not read before an event recorded later has passed.
    pub(super) unsafe fn download(
        &self,
        target: *mut u8,
        source: DevicePtr,
        bytes: usize,
    ) -> BackendResult<()> {
        // SAFETY: the caller's promise.
        self.check("download", unsafe {
            sys::cuMemcpyDtoHAsync_v2(target.cast(), source, bytes, self.stream())
        })
    }

    /// Copies `bytes` bytes on the device, in stream order.
    pub(super) fn copy(&self, target: DevicePtr, source: DevicePtr, bytes: u64) -> BackendResult<()> {
        // SAFETY: callers pass allocations of this device; the driver checks the ranges.
        self.check("copy", unsafe {
            sys::cuMemcpyDtoDAsync_v2(target, source, bytes as usize, self.stream())
        })
    }

    /// Sets memory to a byte, in stream order.
    pub(super) fn fill(&self, target: DevicePtr, byte: u8, bytes: u64) -> BackendResult<()> {
        // SAFETY: callers pass allocations of this device; the driver checks the range.
        self.check("fill", unsafe { sys::cuMemsetD8Async(target, byte, bytes as usize, self.stream()) })
    }

    /// Milliseconds on the device of `num_runs` runs of `run`, after one that is not timed.
    pub(super) fn time(
        &self,
        operation: &'static str,
        num_runs: usize,
        mut run: impl FnMut() -> BackendResult<()>,
    ) -> BackendResult<f32> {
        let (start, end) = (Event::new(self, true)?, Event::new(self, true)?);
        run()?;
        start.record(self)?;
        for _ in 0..num_runs {
            run()?;
        }
        end.record(self)?;
        end.wait(operation, self)?;
        end.milliseconds_since(self, &start)
    }

    /// Waits for everything on the stream.
    pub(super) fn synchronize(&self) -> BackendResult<()> {
        // SAFETY: the stream lives as long as `self`.
        self.check("synchronize", unsafe { sys::cuStreamSynchronize(self.stream()) })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        drop((self.end_recording(), self.end_capture()));
        // Errors are left alone: a lost device fails every call, and nothing can be done about it here.
        // SAFETY: nothing of the stream or the context is used after this.
        unsafe {
            let _ = sys::cuCtxSetCurrent(self.context);
            for stream in [self.stream, self.capture_stream] {
                if !stream.is_null() {
                    let _ = sys::cuStreamDestroy_v2(stream);
                }
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// What an error of the driver says about the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is usable: the arguments of the call are at fault.
    Arguments,
    /// It is usable, but the device's memory is taken.
    Memory,
    /// It is lost.
    Device,
}

impl Fault {
    fn of(error: CUresult) -> Fault {
        match error {
            CUresult::CUDA_ERROR_INVALID_VALUE
            | CUresult::CUDA_ERROR_INVALID_HANDLE
            | CUresult::CUDA_ERROR_NOT_SUPPORTED
            | CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
            | CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_NOT_FOUND
            // Someone records a graph, which fails at the worst.
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_MERGE
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
            | CUresult::CUDA_ERROR_CAPTURED_EVENT
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD => Fault::Arguments,
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Fault::Memory,
            _ => Fault::Device,
        }
    }
}

/// Parameters of a kernel.
///
/// # Safety
/// The type is `repr(C)` and has the layout of the kernel's parameter struct; both sides assert its size.
pub(super) unsafe trait Params {}

/// A kernel of a loaded module, which outlives it.
pub(super) struct Kernel<P> {
    pub(super) function: sys::CUfunction,
    pub(super) params: PhantomData<fn(&P)>,
}

// SAFETY: function handles may be used from any thread.
unsafe impl<P> Send for Kernel<P> {}

impl<P> Kernel<P> {
    /// Lets the kernel use more dynamic shared memory than the 48 KiB that every kernel may.
    pub(super) fn allow_shared_bytes(&self, gpu: &Gpu, bytes: u32) -> BackendResult<()> {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function's module is loaded.
        let result = unsafe { sys::cuFuncSetAttribute(self.function, attribute, bytes as c_int) };
        gpu.check("allow_shared_bytes", result)
    }

    /// Leaves all of a multiprocessor's memory but `bytes` of shared memory to its cache while the kernel runs: without
    /// a wish it keeps the split that the kernel before had, which may be one with hardly any cache.
    pub(super) fn leave_cache(&self, gpu: &Gpu, bytes: u32) -> BackendResult<()> {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        let percent = (100 * bytes).div_ceil(gpu.shared_bytes).min(100);
        // SAFETY: the function's module is loaded.
        let result = unsafe { sys::cuFuncSetAttribute(self.function, attribute, percent as c_int) };
        gpu.check("leave_cache", result)
    }
}

/// Geometry of a launch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    /// The kernel may start while the one before it still runs, on devices that can do so, because it calls
    /// `wait_for_predecessor` (`kernels/common.cuh`) before it touches what others write.
    pub(super) overlaps: bool,
}

impl Launch {
    /// `blocks` blocks in a row, without dynamic shared memory, after everything before it has finished.
    pub(super) fn new(blocks: u32, threads: u32) -> Launch {
        Launch { grid: [blocks, 1, 1], threads, shared_bytes: 0, overlaps: false }
    }

    /// The same, overlapping its predecessor.
    pub(super) fn overlapping(blocks: u32, threads: u32) -> Launch {
        Launch { overlaps: true, ..Launch::new(blocks, threads) }
    }
}

/// A point in the stream.
pub(super) struct Event {
    event: sys::CUevent,
}

// SAFETY: event handles may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    /// An event that measures time only where `is_timed`.
    pub(super) fn new(gpu: &Gpu, is_timed: bool) -> BackendResult<Event> {
        let flags = match is_timed {
            true => sys::CUevent_flags::CU_EVENT_DEFAULT,
            false => sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
        };
        let mut event = ptr::null_mut();
        // SAFETY: the pointer is to a local.
        gpu.check("create_event", unsafe { sys::cuEventCreate(&mut event, flags as u32) })?;
        Ok(Event { event })
    }

    /// Records everything on the stream so far.
    pub(super) fn record(&self, gpu: &Gpu) -> BackendResult<()> {
        // SAFETY: event and stream live, in one context.
        gpu.check("record", unsafe { sys::cuEventRecord(self.event, gpu.stream()) })
    }

    /// Waits until the device has come by; an event that was never recorded has passed.
    pub(super) fn wait(&self, operation: &'static str, gpu: &Gpu) -> BackendResult<()> {
        // SAFETY: the event lives.
        gpu.check(operation, unsafe { sys::cuEventSynchronize(self.event) })
    }

    /// Milliseconds from `start` to this event, both passed.
    pub(super) fn milliseconds_since(&self, gpu: &Gpu, start: &Event) -> BackendResult<f32> {
        let mut milliseconds = 0.0;
        // SAFETY: both events live and the pointer is to a local.
        let result = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, start.event, self.event) };
        gpu.check("measure", result)?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nothing uses the event any more; an error of a lost device changes nothing.
        let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
    }
}

/// Lets the calling thread allocate and wait while other threads record graphs: a thread starts in a mode in which such
/// calls fail then, and make the recordings fail too, since they could belong to the recorded work. Ours do not.
/// Says in which mode the thread was.
pub(super) fn relax_captures() -> sys::CUstreamCaptureMode {
    exchange_capture_mode(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
}

/// Sets the calling thread's mode and says which it was. A driver that was never initialised has the one that threads
/// start in.
pub(super) fn exchange_capture_mode(mode: sys::CUstreamCaptureMode) -> sys::CUstreamCaptureMode {
    let mut mode = mode;
    // SAFETY: the pointer is to a local, which the driver reads and writes.
    match unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) } {
        CUresult::CUDA_SUCCESS => mode,
        _ => sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL,
    }
}

fn lost(operation: &'static str, message: String) -> BackendError {
    BackendError::DeviceLost { operation, message }
}

/// The driver's words for an error.
pub(super) fn describe(error: CUresult) -> String {
    let mut text = ptr::null();
    // SAFETY: the pointer is to a local; the driver points it at a constant string, or at nothing for an
    // error that it does not know.
    unsafe {
        if sys::cuGetErrorString(error, &mut text) == CUresult::CUDA_SUCCESS && !text.is_null() {
            return format!("{} ({error:?})", CStr::from_ptr(text).to_string_lossy());
        }
    }
    format!("{error:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_device_is_not_a_lost_one() {
        assert_eq!(Fault::of(CUresult::CUDA_ERROR_OUT_OF_MEMORY), Fault::Memory);
        assert_eq!(Fault::of(CUresult::CUDA_ERROR_INVALID_VALUE), Fault::Arguments);
        assert_eq!(Fault::of(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED), Fault::Arguments);
        for sticky in [
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
        ] {
            assert_eq!(Fault::of(sticky), Fault::Device, "{sticky:?}");
        }
    }
}
