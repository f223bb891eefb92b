//! What a host that uses CUDA itself on the same device does at the same time: its recordings and its waits for the
//! whole device end well, and so does what the engine does meanwhile.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode};
use inflight::engine::EventKind;
use inflight::{Engine, EngineOptions, Prompt, Request};

use crate::serving::options;

/// Makes the context that the engine uses too current in the calling thread.
fn enter_context() {
    let mut context = ptr::null_mut();
    // SAFETY: the pointer is to a local, and the context is retained before it is used. It is never released.
    let results = unsafe {
        [sys::cuInit(0), sys::cuDevicePrimaryCtxRetain(&mut context, 0), sys::cuCtxSetCurrent(context)]
    };
    assert!(results.iter().all(|&result| result == CUresult::CUDA_SUCCESS), "{results:?}");
}

/// Creates an engine, has it answer, and destroys it.
fn serve(options: &EngineOptions) {
    let engine = Engine::create(options).unwrap();
    let mut request = Request::new(Prompt::Tokens((0..100).collect()));
    (request.max_tokens, request.ignore_eos) = (30, true);
    engine.enqueue(request).unwrap();
    let mut num_tokens = 0;
    let finished = 'answer: loop {
        for event in engine.poll(None).unwrap() {
            match event.kind {
                EventKind::Output(output) => num_tokens += output.token_ids.len(),
                EventKind::Finished(finished) => break 'answer finished,
            }
        }
    };
    assert_eq!((num_tokens, finished.error.is_none()), (30, true), "{:?}", finished.error);
}

#[test]
fn a_host_that_records_a_graph_meanwhile_gets_its_graph() {
    let (options, _file) = options();
    enter_context();
    let (has_begun, is_served) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        let recording = scope.spawn(|| {
            enter_context();
            let (mut stream, mut graph) = (ptr::null_mut(), ptr::null_mut());
            let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
            // SAFETY: the stream was just created.
            let begun =
                unsafe { [sys::cuStreamCreate(&mut stream, 1), sys::cuStreamBeginCapture_v2(stream, mode)] };
            has_begun.wait();
            is_served.wait();
            // SAFETY: the stream records, and both are destroyed once.
            unsafe {
                let ended = sys::cuStreamEndCapture(stream, &mut graph);
                let _ = (sys::cuGraphDestroy(graph), sys::cuStreamDestroy_v2(stream));
                (begun, ended)
            }
        });
        has_begun.wait();
        let served = catch_unwind(AssertUnwindSafe(|| serve(&options)));
        is_served.wait();
        let success = CUresult::CUDA_SUCCESS;
        assert_eq!(recording.join().unwrap(), ([success; 2], success), "the host's recording");
        served.unwrap();
    });
    // Creation has left this thread as it was.
    let mut mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    // SAFETY: the pointer is to a local.
    let exchanged = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
    assert_eq!(exchanged, CUresult::CUDA_SUCCESS);
    assert_eq!(mode, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL);
}

/// With up to 16 sequences nothing is captured, which a wait for the whole device must not meet.
#[test]
fn a_host_may_wait_for_the_device_meanwhile() {
    let (mut options, _file) = options();
    options.max_num_sequences = 16;
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            enter_context();
            let mut num_waits = 0;
            while !is_done.load(Ordering::Relaxed) {
                // SAFETY: a context is current.
                assert_eq!(unsafe { sys::cuCtxSynchronize() }, CUresult::CUDA_SUCCESS);
                num_waits += 1;
            }
            num_waits
        });
        let served = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..3 {
                serve(&options);
            }
        }));
        is_done.store(true, Ordering::Relaxed);
        assert!(waiting.join().unwrap() > 0);
        served.unwrap();
    });
}
