package inflight

// #include "inflight.h"
import "C"

import (
	"fmt"
	"runtime"
	"slices"
	"unsafe"
)

// TokenizeOptions say what [Engine.Tokenize] does besides its work.
type TokenizeOptions struct {
	// AddSpecial adds what the model expects around a text, such as a first token.
	AddSpecial bool
	// ParseSpecial lets the text spell special tokens. Not for untrusted text.
	ParseSpecial bool
}

// Tokenize gives the token ids of a text.
func (e *Engine) Tokenize(text string, options TokenizeOptions) ([]uint32, error) {
	defer runtime.KeepAlive(e)
	if err := e.check(); err != nil {
		return nil, err
	}
	var memory runtime.Pinner
	defer memory.Unpin()
	start, length := pinText(text, &memory)
	flags := C.ifl_text_flags(0)
	if options.AddSpecial {
		flags |= C.IFL_TEXT_ADD_SPECIAL
	}
	if options.ParseSpecial {
		flags |= C.IFL_TEXT_PARSE_SPECIAL
	}
	var buffer *C.ifl_buffer
	var detail *C.ifl_error
	err := e.toError(C.ifl_tokenize(e.handle, start, length, flags, &buffer, &detail), detail)
	return takeTokens(buffer), err
}

// Detokenize gives the text of token ids. Bytes that are not UTF-8 become U+FFFD.
func (e *Engine) Detokenize(tokens []uint32, skipSpecial bool) (string, error) {
	defer runtime.KeepAlive(e)
	if err := e.check(); err != nil {
		return "", err
	}
	var memory runtime.Pinner
	defer memory.Unpin()
	flags := C.ifl_text_flags(0)
	if skipSpecial {
		flags = C.IFL_TEXT_SKIP_SPECIAL
	}
	var buffer *C.ifl_buffer
	var detail *C.ifl_error
	start := pinTokens(tokens, &memory)
	status := C.ifl_detokenize(e.handle, start, C.uint64_t(len(tokens)), flags, &buffer, &detail)
	err := e.toError(status, detail)
	return takeText(buffer), err
}

// ApplyChatTemplate gives the text that the model's chat template makes of messages, with the start of the
// assistant's answer. Requests need no such call: they take a [Chat] themselves.
func (e *Engine) ApplyChatTemplate(messages Chat) (string, error) {
	defer runtime.KeepAlive(e)
	if err := e.check(); err != nil {
		return "", err
	}
	var memory runtime.Pinner
	defer memory.Unpin()
	var request C.ifl_request
	if err := messages.set(&request, &memory); err != nil {
		return "", err
	}
	var buffer *C.ifl_buffer
	var detail *C.ifl_error
	status := C.ifl_apply_chat_template(e.handle, request.prompt, request.prompt_len,
		C.IFL_TEXT_GENERATION_PROMPT, &buffer, &detail)
	err := e.toError(status, detail)
	return takeText(buffer), err
}

// EOSTokens are the model's end-of-sequence tokens.
func (e *Engine) EOSTokens() ([]uint32, error) {
	defer runtime.KeepAlive(e)
	if err := e.check(); err != nil {
		return nil, err
	}
	var buffer *C.ifl_buffer
	var detail *C.ifl_error
	err := e.toError(C.ifl_engine_eos_tokens(e.handle, &buffer, &detail), detail)
	return takeTokens(buffer), err
}

// Device is what the engine runs on, such as "cpu"; what "auto" has become.
func (e *Engine) Device() (string, error) {
	defer runtime.KeepAlive(e)
	if err := e.check(); err != nil {
		return "", err
	}
	var buffer *C.ifl_buffer
	var detail *C.ifl_error
	err := e.toError(C.ifl_engine_device(e.handle, &buffer, &detail), detail)
	return takeText(buffer), err
}

// Version is the library's, such as "0.1.0".
func Version() string { return formatVersion(uint32(C.ifl_version())) }

// HasFeature says whether this build of the library has a feature: "cpu" and "cuda" (backends), "echo" (the
// device without weights), "gguf" and "safetensors" (model formats), "queue-fd" (descriptors of queues, which this
// package has no need of).
func HasFeature(name string) bool {
	var memory runtime.Pinner
	defer memory.Unpin()
	start, length := pinText(name, &memory)
	return C.ifl_has_feature(start, length) != 0
}

func formatVersion(number uint32) string {
	return fmt.Sprintf("%d.%d.%d", number/10000, number/100%100, number%100)
}

// takeText copies a buffer's text and frees the buffer, which may be NULL.
func takeText(buffer *C.ifl_buffer) string {
	defer C.ifl_buffer_free(buffer)
	var length C.uint64_t
	text := C.ifl_buffer_text(buffer, &length)
	return copyText(text, length)
}

func takeTokens(buffer *C.ifl_buffer) []uint32 {
	defer C.ifl_buffer_free(buffer)
	var length C.uint64_t
	tokens := C.ifl_buffer_tokens(buffer, &length)
	return copyTokens(tokens, length)
}

func copyText(text *C.char, length C.uint64_t) string {
	if length == 0 {
		return ""
	}
	return string(unsafe.Slice((*byte)(unsafe.Pointer(text)), length))
}

func copyTokens(tokens *C.uint32_t, length C.uint64_t) []uint32 {
	if length == 0 {
		return nil
	}
	return slices.Clone(unsafe.Slice((*uint32)(unsafe.Pointer(tokens)), length))
}
