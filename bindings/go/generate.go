package inflight

// #include "inflight.h"
import "C"

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"time"
)

// Generate enqueues the request and streams its output; the last chunk has a Result. Where the request fails, the
// last pair has an error. A queue that is full gives [ErrBusy] at once: it does not wait.
//
// The request is enqueued where the loop starts and cancelled where it is left early; ranging twice over the same
// sequence asks twice. The end of ctx ends the request and the loop. Output that the loop does not take is kept in
// memory, at most what MaxTokens and the model's context allow.
func (e *Engine) Generate(ctx context.Context, request Request) iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		defer runtime.KeepAlive(e)
		s, err := e.enqueue(ctx, &request)
		if err != nil {
			yield(Chunk{}, err)
			return
		}
		defer e.streams.abandon(s, e.cancel)
		for {
			select {
			case <-s.ready:
			case <-ctx.Done():
				yield(Chunk{}, contextError(ctx))
				return
			}
			for _, p := range s.take() {
				if !yield(p.chunk, p.err) || p.last {
					return
				}
			}
		}
	}
}

// enqueue hands a request to the engine; its stream must be abandoned in the end.
func (c *core) enqueue(ctx context.Context, request *Request) (*stream, error) {
	if err := contextError(ctx); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	var memory runtime.Pinner
	defer memory.Unpin()
	var to C.ifl_request
	if err := request.fill(&to, &memory); err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		// Rounded up: 0 would be no deadline at all.
		left := (time.Until(deadline) + time.Millisecond - 1) / time.Millisecond
		to.timeout_ms = C.uint64_t(max(1, left))
	}
	s := c.streams.add()
	to.user_data = C.uint64_t(s.number)
	var id C.uint64_t
	var detail *C.ifl_error
	if err := c.toError(C.ifl_engine_enqueue(c.handle, &to, &id, &detail), detail); err != nil {
		c.streams.remove(s)
		return nil, err
	}
	s.requestID = uint64(id)
	return s, nil
}

// cancel asks for a request's end. That the engine has ended already is as good.
func (c *core) cancel(requestID uint64) {
	_ = C.ifl_engine_cancel(c.handle, C.uint64_t(requestID), nil)
}

// contextError is nil while ctx goes on, and otherwise an error that is both the context's and its cause.
func contextError(ctx context.Context) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); err != nil && cause != err {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}
