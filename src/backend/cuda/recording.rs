//! Steps that are put together node by node instead of run, for graphs.
//!
//! Streams are not captured for that: a host's wait for the whole device fails while one of its streams is, makes the
//! capture fail, and crashes in the driver where a capture begins or ends at that moment (580.159.04: one wait in a
//! hundred). Only what cuBLASLt launches cannot be had otherwise. It is captured on a stream of its own, in one capture
//! for all recordings, and its nodes are copied; engines whose recorded steps have no such product capture nothing.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::DriverError;
use cudarc::driver::sys::{self, CUgraphNode, CUresult};

use super::driver::Launch;

/// Part of a multiprocessor's memory that is shared memory while branches run at the same time. Kernels of different
/// parts do not run beside each other on one, and this one has room for blocks of decode attention; the rest is
/// first-level cache, which products of few rows need.
const FORKED_CARVEOUT_PERCENT: u32 = 40;

/// Nodes of a graph that are there so far.
pub(super) struct Recording {
    graph: sys::CUgraph,
    /// What the next node waits for.
    ends: Vec<CUgraphNode>,
    /// Whether the next kernel may start while the one node that it waits for, a kernel, still runs.
    is_after_kernel: bool,
    fork: Option<Fork>,
}

/// Two branches that run at the same time.
struct Fork {
    /// What both wait for.
    parted: Vec<CUgraphNode>,
    /// Where the first one ends, once the second is being recorded.
    first_ends: Vec<CUgraphNode>,
}

impl Recording {
    pub(super) fn new() -> Result<Recording, DriverError> {
        let mut graph = ptr::null_mut();
        // SAFETY: the pointer is to a local.
        unsafe { sys::cuGraphCreate(&mut graph, 0) }.result()?;
        Ok(Recording { graph, ends: Vec::new(), is_after_kernel: false, fork: None })
    }

    /// The nodes, which live as long as `self`.
    pub(super) fn graph(&self) -> sys::CUgraph {
        self.graph
    }

    /// Two branches that run at the same time begin, the first one first.
    pub(super) fn fork(&mut self) {
        self.fork = Some(Fork { parted: self.ends.clone(), first_ends: Vec::new() });
    }

    /// The second branch begins.
    pub(super) fn next_branch(&mut self) {
        if let Some(fork) = &mut self.fork {
            fork.first_ends = std::mem::replace(&mut self.ends, fork.parted.clone());
            self.is_after_kernel = false;
        }
    }

    /// What comes next waits for both branches.
    pub(super) fn join(&mut self) {
        if let Some(fork) = self.fork.take() {
            self.ends.extend(fork.first_ends);
            self.is_after_kernel = false;
        }
    }

    /// Adds a kernel.
    ///
    /// # Safety
    /// `arguments` are those of `function`.
    pub(super) unsafe fn add_kernel(
        &mut self,
        function: sys::CUfunction,
        launch: &Launch,
        arguments: *mut *mut c_void,
        overlaps: bool,
    ) -> Result<(), DriverError> {
        let [x, y, z] = launch.grid;
        let params = sys::CUDA_KERNEL_NODE_PARAMS {
            func: function,
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            kernelParams: arguments,
            extra: ptr::null_mut(),
            kern: ptr::null_mut(),
            ctx: ptr::null_mut(),
        };
        let mut node = ptr::null_mut();
        // SAFETY: graph and kernel live; the arguments, which the driver copies, are the caller's promise.
        unsafe { sys::cuGraphAddKernelNode_v2(&mut node, self.graph, ptr::null(), 0, &params) }.result()?;
        if self.fork.is_some() {
            let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            let value = sys::CUlaunchAttributeValue { sharedMemCarveout: FORKED_CARVEOUT_PERCENT };
            // SAFETY: the node was just added, and the pointer is to a local of the attribute's type.
            unsafe { sys::cuGraphKernelNodeSetAttribute(node, id, &value) }.result()?;
        }
        self.append(node, true, overlaps)
    }

    /// Adds what `captured` launches: a kernel, or memory that it sets.
    fn add_copy(&mut self, captured: CUgraphNode) -> Result<(), DriverError> {
        use sys::CUgraphNodeType as Type;
        let (mut kind, mut node) = (Type::CU_GRAPH_NODE_TYPE_EMPTY, ptr::null_mut());
        // SAFETY: the captured node lives, with what its parameters point to; structs without meaning are overwritten
        // by the driver before they are read, and all pointers are to locals.
        unsafe {
            sys::cuGraphNodeGetType(captured, &mut kind).result()?;
            match kind {
                Type::CU_GRAPH_NODE_TYPE_KERNEL => {
                    let mut params: sys::CUDA_KERNEL_NODE_PARAMS = std::mem::zeroed();
                    sys::cuGraphKernelNodeGetParams_v2(captured, &mut params).result()?;
                    sys::cuGraphAddKernelNode_v2(&mut node, self.graph, ptr::null(), 0, &params).result()?;
                    sys::cuGraphKernelNodeCopyAttributes(node, captured).result()?;
                }
                Type::CU_GRAPH_NODE_TYPE_MEMSET => {
                    let (mut params, mut context) = (std::mem::zeroed(), ptr::null_mut());
                    sys::cuGraphMemsetNodeGetParams(captured, &mut params).result()?;
                    sys::cuCtxGetCurrent(&mut context).result()?;
                    sys::cuGraphAddMemsetNode(&mut node, self.graph, ptr::null(), 0, &params, context)
                        .result()?;
                }
                _ => return Err(DriverError(CUresult::CUDA_ERROR_NOT_SUPPORTED)),
            }
        }
        self.append(node, kind == Type::CU_GRAPH_NODE_TYPE_KERNEL, false)
    }

    /// Has a node that was just added wait for the last ones, and the next one for it.
    fn append(&mut self, node: CUgraphNode, is_kernel: bool, overlaps: bool) -> Result<(), DriverError> {
        let mut edge = plain_edge();
        if overlaps && self.is_after_kernel {
            edge.from_port = sys::CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC as u8;
            edge.type_ = sys::CUgraphDependencyType_enum::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC as u8;
        }
        for &end in &self.ends {
            // SAFETY: both nodes belong to the graph, and all pointers are to locals.
            unsafe { sys::cuGraphAddDependencies_v2(self.graph, &end, &node, &edge, 1) }.result()?;
        }
        self.ends = vec![node];
        self.is_after_kernel = is_kernel;
        Ok(())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: the graph is destroyed once; graphs that were made of it do not need it.
        let _ = unsafe { sys::cuGraphDestroy(self.graph) };
    }
}

/// A capture of what a library launches, under way on a stream that nothing else uses.
pub(super) struct Capture {
    stream: sys::CUstream,
    /// The last node that has been copied.
    last: CUgraphNode,
}

impl Capture {
    /// Begins on `stream`, which outlives the capture.
    pub(super) fn begin(stream: sys::CUstream) -> Result<Capture, DriverError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the caller's stream lives.
        unsafe { sys::cuStreamBeginCapture_v2(stream, mode) }.result()?;
        Ok(Capture { stream, last: ptr::null_mut() })
    }

    /// Copies what has been launched since the last call into `recording`. Fails where the capture was interrupted.
    pub(super) fn copy_to(&mut self, recording: &mut Recording) -> Result<(), DriverError> {
        let mut nodes = Vec::new();
        let mut node = self.end()?;
        while node != self.last && !node.is_null() {
            nodes.push(node);
            node = before(node)?;
        }
        self.last = nodes.first().copied().unwrap_or(self.last);
        nodes.into_iter().rev().try_for_each(|node| recording.add_copy(node))
    }

    /// The node that the next one would wait for, null at the beginning.
    fn end(&self) -> Result<CUgraphNode, DriverError> {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let (mut id, mut graph, mut num_nodes) = (0, ptr::null_mut(), 0);
        let (mut nodes, mut edges) = (ptr::null(), ptr::null());
        // SAFETY: all pointers are to locals; the array that the driver names is read before its next call.
        unsafe {
            let stream = self.stream;
            sys::cuStreamGetCaptureInfo_v3(
                stream,
                &mut status,
                &mut id,
                &mut graph,
                &mut nodes,
                &mut edges,
                &mut num_nodes,
            )
            .result()?;
            match (status, num_nodes) {
                (sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE, 0) => Ok(ptr::null_mut()),
                (sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE, 1) => Ok(*nodes),
                (sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE, _) => {
                    Err(DriverError(CUresult::CUDA_ERROR_NOT_SUPPORTED))
                }
                _ => Err(DriverError(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)),
            }
        }
    }

    /// Ends the capture; says whether it was whole, and not interrupted by a host that waited for the whole device.
    pub(super) fn finish(self) -> bool {
        let mut graph = ptr::null_mut();
        // SAFETY: the stream lives, the pointer is to a local, and the graph, of which nothing is needed any more, is
        // destroyed once.
        unsafe {
            let ended = sys::cuStreamEndCapture(self.stream, &mut graph);
            if !graph.is_null() {
                let _ = sys::cuGraphDestroy(graph);
            }
            ended == CUresult::CUDA_SUCCESS
        }
    }
}

/// The one node that a captured node waits for, or null.
fn before(node: CUgraphNode) -> Result<CUgraphNode, DriverError> {
    let (mut nodes, mut edges) = ([ptr::null_mut(); 2], [plain_edge(); 2]);
    let mut num_nodes = nodes.len();
    // SAFETY: the node lives, and the arrays have room for the number given.
    unsafe {
        sys::cuGraphNodeGetDependencies_v2(node, nodes.as_mut_ptr(), edges.as_mut_ptr(), &mut num_nodes)
    }
    .result()?;
    match num_nodes {
        0 | 1 => Ok(nodes[0]),
        _ => Err(DriverError(CUresult::CUDA_ERROR_NOT_SUPPORTED)),
    }
}

/// A dependency on all that a node does.
fn plain_edge() -> sys::CUgraphEdgeData {
    sys::CUgraphEdgeData { from_port: 0, to_port: 0, type_: 0, reserved: [0; 5] }
}
