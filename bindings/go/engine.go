package inflight

// #include "inflight.h"
//
// #cgo noescape ifl_engine_enqueue
// #cgo noescape ifl_engine_poll
// #cgo noescape ifl_events_get
// #cgo nocallback ifl_events_get
// #cgo noescape ifl_events_free
// #cgo nocallback ifl_events_free
import "C"

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// closeMax is how long Close takes at most; where the library has taken all of it, each of the steps that follow
// still gets closeGrace.
const (
	closeMax   = 2 * time.Second
	closeGrace = 100 * time.Millisecond
)

// Engine runs the requests of one model. All methods may be called by any number of goroutines at once.
type Engine struct {
	*core
}

// core is all of an engine but the value that its users hold: the poller keeps core alive, so that an Engine
// that is dropped without Close can still be noticed.
type core struct {
	handle  *C.ifl_engine // A key, not an address; a stale one is harmless.
	streams streams
	closing atomic.Bool
	close   sync.Once
	drained chan struct{} // Closed when the poller has ended.
	endHost func()
}

func newEngine(handle *C.ifl_engine, endHost func()) *Engine {
	c := &core{handle: handle, drained: make(chan struct{}), endHost: endHost}
	go c.poll()
	e := &Engine{core: c}
	// Dropping an engine is a mistake of the host, but its memory is large enough to be given back all the same.
	// Cleanups share one goroutine, which must not wait for the engine's threads.
	runtime.AddCleanup(e, func(c *core) { go c.shut() }, c)
	return e
}

// Close ends every request with [ErrClosed], stops the engine and frees its memory. It returns within about 2
// seconds, when all is done; loops that read from the engine then get what is left and the error. Closing twice,
// or by several goroutines at once, does no harm. A Log function that does not return meanwhile, as one that closes
// its own engine cannot, makes it take that long and keeps its thread.
func (e *Engine) Close() error {
	defer runtime.KeepAlive(e)
	return e.shut()
}

func (c *core) shut() (err error) {
	c.closing.Store(true)
	c.close.Do(func() {
		var detail *C.ifl_error
		started := time.Now()
		// The handle has to outlive the poller, which takes the last events of the requests. They do not come where
		// a log function does not return.
		err = toError(C.ifl_engine_close(c.handle, &detail), detail)
		if err == nil && !endsBy(started.Add(closeMax), c.drained) {
			c.streams.endAll(c.check())
		}
		destroyed := make(chan struct{})
		go func() {
			defer close(destroyed)
			C.ifl_engine_destroy(c.handle)
		}()
		// The library waits anew for a step or a log function that it has waited for already.
		endsBy(started.Add(closeMax), destroyed)
		c.endHost()
	})
	return err
}

// endsBy waits for done until a time, or for closeGrace where that is nearly over, and says whether done came.
func endsBy(deadline time.Time, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-time.After(max(time.Until(deadline), closeGrace)):
		return false
	}
}

// poll hands the events of all requests to their streams until the engine has ended and no event is left.
func (c *core) poll() {
	defer close(c.drained)
	for {
		var batch *C.ifl_events
		var detail *C.ifl_error
		if err := c.toError(C.ifl_engine_poll(c.handle, -1, &batch, &detail), detail); err != nil {
			c.streams.endAll(err)
			return
		}
		for i := C.uint64_t(0); ; i++ {
			event := C.ifl_events_get(batch, i)
			if event == nil {
				break
			}
			c.streams.deliver(event)
		}
		C.ifl_events_free(batch)
	}
}

// check gives the error of a call on a closed engine.
func (c *core) check() error {
	if c.closing.Load() {
		return &Error{Status: ErrClosed, Message: "the engine is closed"}
	}
	return nil
}

// toError is toError for calls that may have been overtaken by Close, which ends the handle.
func (c *core) toError(status C.ifl_status, detail *C.ifl_error) error {
	err := toError(status, detail)
	if status == C.IFL_INVALID_HANDLE && c.closing.Load() {
		return c.check()
	}
	return err
}

// Err is nil while the engine runs, and otherwise why it has ended: [ErrClosed] after Close, or what a fatal error of
// its device was, after which nothing but Close is left to do.
func (e *Engine) Err() error {
	if err := e.check(); err != nil {
		return err
	}
	return e.streams.err()
}

// Stats are counters since the engine was opened, and gauges of the moment.
type Stats struct {
	// NumSteps counts steps run.
	NumSteps uint64
	// NumPromptTokens counts prompt tokens run, again after a preemption included.
	NumPromptTokens uint64
	// NumOutputTokens counts tokens sampled, those discarded because their request had ended included.
	NumOutputTokens uint64
	// NumAccepted and NumFinished count requests.
	NumAccepted, NumFinished uint64
	// NumPreemptions counts requests put back to the waiting line for want of KV blocks.
	NumPreemptions uint64
	// NumWaiting, NumRunning and NumPaused are the requests in these states now.
	NumWaiting, NumRunning, NumPaused uint64
	// NumKVBlocksUsed and NumKVBlocksFree are the blocks of the KV cache now.
	NumKVBlocksUsed, NumKVBlocksFree uint64
	// WeightsBytes, KVCacheBytes and WorkspaceBytes are the memory that the engine holds.
	WeightsBytes, KVCacheBytes, WorkspaceBytes uint64
}

// Stats gives a snapshot; it does not wait for the engine.
func (e *Engine) Stats() (Stats, error) {
	defer runtime.KeepAlive(e)
	if err := e.check(); err != nil {
		return Stats{}, err
	}
	got := C.ifl_stats{struct_size: C.uint32_t(unsafe.Sizeof(C.ifl_stats{}))}
	var detail *C.ifl_error
	if err := e.toError(C.ifl_engine_stats(e.handle, &got, &detail), detail); err != nil {
		return Stats{}, err
	}
	return Stats{
		NumSteps:        uint64(got.num_steps),
		NumPromptTokens: uint64(got.num_prompt_tokens),
		NumOutputTokens: uint64(got.num_output_tokens),
		NumAccepted:     uint64(got.num_accepted),
		NumFinished:     uint64(got.num_finished),
		NumPreemptions:  uint64(got.num_preemptions),
		NumWaiting:      uint64(got.num_waiting),
		NumRunning:      uint64(got.num_running),
		NumPaused:       uint64(got.num_paused),
		NumKVBlocksUsed: uint64(got.num_kv_blocks_used),
		NumKVBlocksFree: uint64(got.num_kv_blocks_free),
		WeightsBytes:    uint64(got.weights_bytes),
		KVCacheBytes:    uint64(got.kv_cache_bytes),
		WorkspaceBytes:  uint64(got.workspace_bytes),
	}, nil
}

// ModelInfo is what a loaded model is.
type ModelInfo struct {
	// VocabSize: token ids are below it.
	VocabSize int
	// MaxModelLen is the longest prompt plus output of one request, in tokens.
	MaxModelLen int
	// HasChatTemplate says whether prompts may be a User, a Chat or a ChatJSON.
	HasChatTemplate bool
}

// ModelInfo says what the loaded model is.
func (e *Engine) ModelInfo() (ModelInfo, error) {
	defer runtime.KeepAlive(e)
	if err := e.check(); err != nil {
		return ModelInfo{}, err
	}
	got := C.ifl_model_info{struct_size: C.uint32_t(unsafe.Sizeof(C.ifl_model_info{}))}
	var detail *C.ifl_error
	if err := e.toError(C.ifl_engine_model_info(e.handle, &got, &detail), detail); err != nil {
		return ModelInfo{}, err
	}
	return ModelInfo{
		VocabSize:       int(got.vocab_size),
		MaxModelLen:     int(got.max_model_len),
		HasChatTemplate: got.has_chat_template != 0,
	}, nil
}
