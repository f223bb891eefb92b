package inflight

// #include "inflight.h"
//
// extern void inflightLog(uintptr_t id, ifl_log_level level, char *message, uint64_t length);
// extern int32_t inflightProgress(uintptr_t id, uint64_t done, uint64_t total);
//
// static void log_to_go(void *id, ifl_log_level level, const char *message, uint64_t length)
// {
//     inflightLog((uintptr_t)id, level, (char *)message, length);
// }
//
// static int32_t progress_to_go(void *id, uint64_t done, uint64_t total)
// {
//     return inflightProgress((uintptr_t)id, done, total);
// }
//
// static inline void set_log(ifl_engine_options *options, uintptr_t id)
// {
//     options->log = log_to_go;
//     options->log_user_data = (void *)id;
// }
//
// static inline void set_progress(ifl_engine_options *options, uintptr_t id)
// {
//     options->progress = progress_to_go;
//     options->progress_user_data = (void *)id;
// }
import "C"

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// host is what the library calls back to. The library knows it by a number and not by an address, so that a log
// line that comes late, after its engine's end, finds nobody and does no harm.
type host struct {
	id       uintptr
	ctx      context.Context
	log      func(level LogLevel, message string)
	progress func(bytesDone, bytesTotal uint64) error
	// aborted is why loading was ended. The library calls the progress function while Open waits for it.
	aborted error
	// leave leaves Open as the progress function was left, where that did not return.
	leave func()
}

var (
	hosts      sync.Map // id to *host
	lastHostID atomic.Uintptr
)

// startLoading registers the callbacks of the options, and the context as one that may end the loading.
func startLoading(ctx context.Context, options *Options, to *C.ifl_engine_options) *host {
	h := &host{id: lastHostID.Add(1), ctx: ctx, log: options.Log, progress: options.Progress}
	hosts.Store(h.id, h)
	if h.log != nil {
		C.set_log(to, C.uintptr_t(h.id))
	}
	if h.progress != nil || ctx.Done() != nil {
		C.set_progress(to, C.uintptr_t(h.id))
	}
	return h
}

// call runs a function of the host's on a goroutine of its own and waits for it. On the library's own stack a panic, or
// a [runtime.Goexit] such as t.Fatal's, would drop the library's frames without ending what they hold. A panic ends the
// program; nothing goes on meanwhile.
func call(f func()) {
	done := make(chan struct{})
	go func() {
		defer func() {
			if value := recover(); value != nil {
				panic(value)
			}
			close(done)
		}()
		f()
	}()
	<-done
}

// watch runs f and gives what leaves a goroutine as f was left, or nil where f returned.
func watch(f func()) (leave func()) {
	call(func() {
		completed := false
		defer func() {
			if completed {
				return
			}
			// Nil where it is no panic: a panic(nil) has a value of its own.
			if value := recover(); value != nil {
				leave = func() { panic(value) }
			} else {
				leave = runtime.Goexit
			}
		}()
		f()
		completed = true
	})
	return leave
}

// fail gives the error of an engine that was not created: the host's own where it ended the loading.
func (h *host) fail(err error) error {
	hosts.Delete(h.id)
	if h.aborted != nil {
		return fmt.Errorf("%w: %w", err, h.aborted)
	}
	return err
}

// succeed gives what remains to be done when the engine has ended.
func (h *host) succeed() (end func()) {
	h.ctx, h.progress = nil, nil
	if h.log == nil {
		hosts.Delete(h.id)
		return func() {}
	}
	return func() { hosts.Delete(h.id) }
}

//export inflightLog
func inflightLog(id C.uintptr_t, level C.ifl_log_level, message *C.char, length C.uint64_t) {
	if h, ok := hosts.Load(uintptr(id)); ok {
		text := C.GoStringN(message, C.int(length))
		call(func() { h.(*host).log(LogLevel(level), text) })
	}
}

//export inflightProgress
func inflightProgress(id C.uintptr_t, done, total C.uint64_t) C.int32_t {
	value, ok := hosts.Load(uintptr(id))
	if !ok {
		return 0
	}
	h := value.(*host)
	if h.aborted == nil {
		h.aborted = contextError(h.ctx)
	}
	if h.aborted == nil && h.leave == nil && h.progress != nil {
		h.leave = watch(func() { h.aborted = h.progress(uint64(done), uint64(total)) })
	}
	if h.aborted != nil || h.leave != nil {
		return 1
	}
	return 0
}
