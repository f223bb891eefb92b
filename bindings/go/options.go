package inflight

// #include "inflight.h"
import "C"

import (
	"context"
	"fmt"
	"runtime"
	"unsafe"
)

// Options say what [Open] loads, and how. Model is required, except for the device "echo"; the zero value of
// every other field means "choose for me".
type Options struct {
	// Model is the path of a model directory in Hugging Face layout, or of a GGUF file.
	Model string
	// Spec is the path of a model_spec.json under any name, which describes the architecture in place of what Model
	// says of it.
	Spec string
	// Device is "auto" (the default), "cpu", "cuda", "cuda:0", "cuda:0,1" (more than one: not supported yet), or
	// "echo", which needs no model and answers with the prompt ("echo:1000": 1000 microseconds a step).
	Device string
	// DType is the type to keep weights and KV cache in.
	DType DType
	// MaxNumSequences is the number of sequences that can be in one step; default 64, on CUDA 256.
	MaxNumSequences int
	// MaxBatchedTokens is the number of tokens that one step runs at most; default 512, on CUDA 8192.
	MaxBatchedTokens int
	// MaxModelLen is the longest prompt plus output of one request in tokens; default: what the model was
	// trained for. A KV cache of fewer tokens lowers it: Plan and ModelInfo tell what it has become. Where RoPE
	// depends on the context's length, this chooses its frequencies.
	MaxModelLen int
	// KVBlockSize is the number of tokens in a block of the KV cache, a multiple of 16; default 64.
	KVBlockSize int
	// KVCacheBytes are for the KV cache, per device; default: enough for MaxNumSequences full contexts, but at most a
	// quarter of the memory that the host has available, or what weights and workspace leave of nine tenths of a CUDA
	// device's free memory. MemoryLimitBytes lowers that further.
	KVCacheBytes uint64
	// MemoryLimitBytes is a hard limit on weights, KV cache and workspace together, per device; inflight.h says what
	// is not counted.
	MemoryLimitBytes uint64
	// NumThreads is the number of compute threads of the CPU backend; default: one per core.
	NumThreads int
	// MaxQueuedRequests can be accepted and not yet ended; one more gets ErrBusy. Default 4096. A limit on the tokens
	// of a request that wait to be polled is missing here: the engine's own goroutine polls without pause, so that
	// it would pause no request.
	MaxQueuedRequests int
	// Log receives the library's log lines; nil: silence. It is called on goroutines of its own, by several at once,
	// while the engine waits for it: it must return soon and wait for nothing. It must not close its own engine,
	// which would then wait for the call of Close. A panic in it ends the program.
	Log func(level LogLevel, message string)
	// LogLevel is the most detailed level to pass to Log; default LogInfo.
	LogLevel LogLevel
	// Progress hears how many bytes of weights are in place; an error ends the loading. It is called on goroutines of
	// its own while Open waits for it. A panic in it ends the loading, and Open then panics with the same value.
	Progress func(bytesDone, bytesTotal uint64) error
}

// DType is a type that weights are kept in.
type DType int32

// The types of weights.
const (
	// DTypeAuto is bfloat16, on the CPU and on CUDA.
	DTypeAuto = DType(C.IFL_DTYPE_AUTO)
	// DTypeF32 is IEEE single precision, which only the CPU has: the device "auto" then takes the CPU, and "cuda"
	// is refused.
	DTypeF32 = DType(C.IFL_DTYPE_F32)
	// DTypeBF16 is bfloat16.
	DTypeBF16 = DType(C.IFL_DTYPE_BF16)
	// DTypeF16 is IEEE half precision.
	DTypeF16 = DType(C.IFL_DTYPE_F16)
)

// LogLevel is the severity of a log line.
type LogLevel int32

// The severities.
const (
	// LogError: something failed.
	LogError = LogLevel(C.IFL_LOG_ERROR)
	// LogWarn: something is off, but goes on.
	LogWarn = LogLevel(C.IFL_LOG_WARN)
	// LogInfo: milestones of an engine's life.
	LogInfo = LogLevel(C.IFL_LOG_INFO)
	// LogDebug: details of each request.
	LogDebug = LogLevel(C.IFL_LOG_DEBUG)
)

// Plan is what an engine reserves, per device.
type Plan struct {
	// Fits says whether the total fits the memory limit of the options and the memory that is available.
	Fits bool
	// WeightsBytes, KVCacheBytes and WorkspaceBytes are the parts of TotalBytes.
	WeightsBytes, KVCacheBytes, WorkspaceBytes, TotalBytes uint64
	// AvailableBytes are free now; 0 where unknown.
	AvailableBytes uint64
	// NumKVBlocks is the number of blocks in the KV cache, of KVBlockSize tokens each.
	NumKVBlocks, KVBlockSize uint64
	// MaxModelLen is the longest prompt plus output of one request, in tokens.
	MaxModelLen uint64
}

// PlanMemory says what [Open] with the same options would reserve. It reads the model's description but no
// weights. That the plan does not fit is no error.
func PlanMemory(options Options) (Plan, error) {
	if err := checkVersion(); err != nil {
		return Plan{}, err
	}
	var memory runtime.Pinner
	defer memory.Unpin()
	var to C.ifl_engine_options
	if err := options.fill(&to, &memory); err != nil {
		return Plan{}, err
	}
	plan := C.ifl_memory_plan{struct_size: C.uint32_t(unsafe.Sizeof(C.ifl_memory_plan{}))}
	var detail *C.ifl_error
	if err := toError(C.ifl_engine_plan(&to, &plan, &detail), detail); err != nil {
		return Plan{}, err
	}
	return Plan{
		Fits:           plan.fits != 0,
		WeightsBytes:   uint64(plan.weights_bytes),
		KVCacheBytes:   uint64(plan.kv_cache_bytes),
		WorkspaceBytes: uint64(plan.workspace_bytes),
		TotalBytes:     uint64(plan.total_bytes),
		AvailableBytes: uint64(plan.available_bytes),
		NumKVBlocks:    uint64(plan.num_kv_blocks),
		KVBlockSize:    uint64(plan.kv_block_size),
		MaxModelLen:    uint64(plan.max_model_len),
	}, nil
}

// Open loads a model and starts an engine. It takes as long as loading does; ending ctx ends it. Every engine
// must be closed.
func Open(ctx context.Context, options Options) (*Engine, error) {
	if err := contextError(ctx); err != nil {
		return nil, err
	}
	if err := checkVersion(); err != nil {
		return nil, err
	}
	var memory runtime.Pinner
	defer memory.Unpin()
	var to C.ifl_engine_options
	if err := options.fill(&to, &memory); err != nil {
		return nil, err
	}
	load := startLoading(ctx, &options, &to)
	var handle *C.ifl_engine
	var detail *C.ifl_error
	err := toError(C.ifl_engine_create(&to, &handle, &detail), detail)
	if load.leave != nil {
		// There is an engine only where the function was left when all was loaded.
		C.ifl_engine_destroy(handle)
		hosts.Delete(load.id)
		load.leave()
	}
	if err != nil {
		return nil, load.fail(err)
	}
	return newEngine(handle, load.succeed()), nil
}

// checkVersion refuses a library that lacks what this package was compiled with.
func checkVersion() error {
	if got := uint32(C.ifl_version()); !isCompatible(got, C.IFL_VERSION) {
		return &Error{Status: ErrUnsupported, Message: fmt.Sprintf(
			"the library is of version %s and this package needs %s; install that one",
			formatVersion(got), formatVersion(C.IFL_VERSION))}
	}
	return nil
}

// isCompatible says whether what was compiled with a header runs with a library. Before 1.0 a minor version may change
// what the one before had.
func isCompatible(library, header uint32) bool {
	if library/10000 == 0 && library/100 != header/100 {
		return false
	}
	return library >= header && library/10000 == header/10000
}

func (o *Options) fill(to *C.ifl_engine_options, memory *runtime.Pinner) error {
	status := C.ifl_engine_options_init(to, C.uint32_t(unsafe.Sizeof(*to)), nil)
	if status != C.IFL_OK {
		return &Error{Status: Status(status)}
	}
	if o.Model != "" {
		to.model, to.model_len = pinText(o.Model, memory)
	}
	if o.Spec != "" {
		to.spec, to.spec_len = pinText(o.Spec, memory)
	}
	if o.Device != "" {
		to.device, to.device_len = pinText(o.Device, memory)
	}
	var err error
	to.dtype = C.ifl_dtype(o.DType)
	to.max_num_sequences = toUint32("MaxNumSequences", o.MaxNumSequences, &err)
	to.max_batched_tokens = toUint32("MaxBatchedTokens", o.MaxBatchedTokens, &err)
	to.max_model_len = toUint32("MaxModelLen", o.MaxModelLen, &err)
	to.kv_block_size = toUint32("KVBlockSize", o.KVBlockSize, &err)
	to.kv_cache_bytes = C.uint64_t(o.KVCacheBytes)
	to.memory_limit_bytes = C.uint64_t(o.MemoryLimitBytes)
	to.num_threads = toUint32("NumThreads", o.NumThreads, &err)
	to.max_queued_requests = toUint32("MaxQueuedRequests", o.MaxQueuedRequests, &err)
	to.log_level = C.ifl_log_level(o.LogLevel)
	return err
}

// keep stores an error where there is none yet.
func keep(err *error, format string, values ...any) {
	if *err == nil {
		*err = &Error{Status: ErrInvalidArgument, Message: fmt.Sprintf(format, values...)}
	}
}
