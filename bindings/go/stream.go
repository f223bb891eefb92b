package inflight

// #include "inflight.h"
import "C"

import (
	"context"
	"sync"
	"time"
	"unsafe"
)

// Chunk is a piece of a request's output.
type Chunk struct {
	// Text is what these tokens and earlier ones complete, always whole code points. The texts of a request in
	// a row are its whole text.
	Text string
	// Tokens are the ids of this piece of output; there may be none where text was held back and comes now.
	Tokens []uint32
	// Logprobs has, where they were asked for, one row for each of Tokens: first the token itself, then the
	// likeliest tokens in falling order.
	Logprobs [][]TokenLogprob
	// Result stands in the last chunk only.
	Result *Result
}

// TokenLogprob is the natural logarithm of a token's probability under the model, before penalties, bias and
// temperature.
type TokenLogprob struct {
	Token   uint32
	Logprob float32
}

// Result says how a request has ended.
type Result struct {
	// Reason says why.
	Reason FinishReason
	// NumPromptTokens and NumOutputTokens are the tokens of the prompt and of the whole output.
	NumPromptTokens, NumOutputTokens int
	// Queued is the time to the first step that ran the request; 0 where none did.
	Queued time.Duration
	// FirstToken is the time to the first token; 0 where there was none.
	FirstToken time.Duration
	// Total is the time to the end.
	Total time.Duration
}

// FinishReason says why a request has ended.
type FinishReason int32

// The reasons. Those that are failures stand beside an error.
const (
	// FinishNone: it has not ended.
	FinishNone = FinishReason(C.IFL_FINISH_NONE)
	// FinishStop: an end-of-sequence token, a stop token or a stop string.
	FinishStop = FinishReason(C.IFL_FINISH_STOP)
	// FinishLength: MaxTokens or the context is used up.
	FinishLength = FinishReason(C.IFL_FINISH_LENGTH)
	// FinishCancelled: its context or its loop ended.
	FinishCancelled = FinishReason(C.IFL_FINISH_CANCELLED)
	// FinishDeadline: the deadline of its context passed.
	FinishDeadline = FinishReason(C.IFL_FINISH_DEADLINE)
	// FinishError: it failed.
	FinishError = FinishReason(C.IFL_FINISH_ERROR)
)

// String gives the reason in one word.
func (r FinishReason) String() string {
	names := [...]string{"none", "stop", "length", "cancelled", "deadline", "error"}
	if r < 0 || int(r) >= len(names) {
		return "unknown"
	}
	return names[r]
}

// stream holds the output of one request until its loop takes it.
type stream struct {
	number    uint64 // The request's user_data: its id is known only after its first events may have come.
	requestID uint64

	mu     sync.Mutex
	pieces []piece
	ready  chan struct{} // Holds a value while pieces may wait.
}

// piece is one pair of the sequence that a loop ranges over.
type piece struct {
	chunk Chunk
	err   error
	last  bool
}

func (s *stream) put(p piece) {
	s.mu.Lock()
	s.pieces = append(s.pieces, p)
	s.mu.Unlock()
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

func (s *stream) take() []piece {
	s.mu.Lock()
	defer s.mu.Unlock()
	pieces := s.pieces
	s.pieces = nil
	return pieces
}

// streams are the requests of an engine that somebody still reads, by number.
type streams struct {
	mu     sync.Mutex
	last   uint64
	ended  error // Why no stream gets any more events.
	active map[uint64]*stream
}

func (all *streams) add() *stream {
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.active == nil {
		all.active = make(map[uint64]*stream)
	}
	all.last++
	s := &stream{number: all.last, ready: make(chan struct{}, 1)}
	all.active[s.number] = s
	if all.ended != nil {
		s.put(piece{err: all.ended, last: true})
	}
	return s
}

// remove says whether the stream was still active.
func (all *streams) remove(s *stream) bool {
	all.mu.Lock()
	defer all.mu.Unlock()
	_, active := all.active[s.number]
	delete(all.active, s.number)
	return active
}

// abandon ends what nobody reads any more; a stream whose last piece was delivered has ended already.
func (all *streams) abandon(s *stream, cancel func(requestID uint64)) {
	if all.remove(s) {
		cancel(s.requestID)
	}
}

// deliver copies an event to its stream, if there still is one.
func (all *streams) deliver(event *C.ifl_event) {
	number, last := uint64(event.user_data), event.kind == C.IFL_EVENT_FINISHED
	all.mu.Lock()
	s := all.active[number]
	if last {
		delete(all.active, number)
	}
	all.mu.Unlock()
	if s != nil {
		s.put(toPiece(event))
	}
}

// endAll ends the streams that are left when no more events can come.
func (all *streams) endAll(err error) {
	all.mu.Lock()
	defer all.mu.Unlock()
	all.ended = err
	for _, s := range all.active {
		s.put(piece{err: err, last: true})
	}
	clear(all.active)
}

func (all *streams) err() error {
	all.mu.Lock()
	defer all.mu.Unlock()
	return all.ended
}

func toPiece(event *C.ifl_event) piece {
	p := piece{chunk: Chunk{
		Text:     copyText(event.text, event.text_len),
		Tokens:   copyTokens(event.token_ids, event.num_tokens),
		Logprobs: copyLogprobs(event),
	}}
	if event.kind != C.IFL_EVENT_FINISHED {
		return p
	}
	p.last = true
	p.chunk.Result = &Result{
		Reason:          FinishReason(event.finish_reason),
		NumPromptTokens: int(event.num_prompt_tokens),
		NumOutputTokens: int(event.num_output_tokens),
		Queued:          time.Duration(event.queued_us) * time.Microsecond,
		FirstToken:      time.Duration(event.first_token_us) * time.Microsecond,
		Total:           time.Duration(event.total_us) * time.Microsecond,
	}
	switch event.finish_reason {
	case C.IFL_FINISH_CANCELLED:
		p.err = context.Canceled
	case C.IFL_FINISH_DEADLINE:
		p.err = context.DeadlineExceeded
	case C.IFL_FINISH_ERROR:
		message := copyText(event.message, event.message_len)
		p.err = &Error{Status: Status(event.status), Message: message}
	}
	return p
}

func copyLogprobs(event *C.ifl_event) [][]TokenLogprob {
	if event.num_logprobs == 0 || event.num_tokens == 0 {
		return nil
	}
	width := int(event.num_logprobs)
	num := int(event.num_tokens) * width
	tokens := unsafe.Slice((*uint32)(unsafe.Pointer(event.logprob_tokens)), num)
	values := unsafe.Slice((*float32)(unsafe.Pointer(event.logprobs)), num)
	rows := make([][]TokenLogprob, event.num_tokens)
	for i := range rows {
		for j := i * width; j < (i+1)*width; j++ {
			if tokens[j] != C.IFL_NO_TOKEN {
				rows[i] = append(rows[i], TokenLogprob{Token: tokens[j], Logprob: values[j]})
			}
		}
	}
	return rows
}
