package inflight

// #include "inflight.h"
import "C"

import (
	"encoding/json"
	"runtime"
	"unsafe"
)

// Request says what to generate. Only Prompt is required; the zero value of every other field is its default.
// Numbers whose default differs from 0 are pointers, which [Float32], [Int] and [Uint64] make.
type Request struct {
	// Prompt is a [Text], a [User], a [Chat], a [ChatJSON] or [Tokens].
	Prompt Prompt
	// OmitSpecialTokens leaves out what the model expects around a Text, such as a first token.
	OmitSpecialTokens bool
	// ParseSpecialTokens lets a Text spell special tokens. Not for untrusted text.
	ParseSpecialTokens bool
	// MaxTokens is the most tokens to produce; 0: until the context is full.
	MaxTokens int
	// MinTokens is the number of tokens before which only MaxTokens, the context and errors end the output.
	MinTokens int
	// IgnoreEOS goes on after the model's end-of-sequence tokens.
	IgnoreEOS bool
	// Priority: higher runs first; equal ones run in order of arrival.
	Priority int32
	// StopTokens end the output, besides the model's own. They are reported but give no text.
	StopTokens []uint32
	// Stop strings end the output. The text ends before the match, which may lie across tokens.
	Stop []string
	// Temperature in [0, 100]; 0 always takes the likeliest token. Nil: what generation_config.json recommends where
	// it says do_sample, else 0; 0 for every GGUF file.
	Temperature *float32
	// TopK samples among so many likeliest tokens only; 0: off. Nil: what the model recommends.
	TopK *int
	// TopP samples among the likeliest tokens that together reach this probability; 1: off. Nil: what the
	// model recommends.
	TopP *float32
	// MinP drops tokens less likely than MinP times the likeliest, in [0, 1]; 0: off.
	MinP float32
	// RepetitionPenalty in (0, 100]; 1: off. Nil: what the model recommends.
	RepetitionPenalty *float32
	// PresencePenalty in [-100, 100] is subtracted from the logits of tokens in the output so far.
	PresencePenalty float32
	// FrequencyPenalty in [-100, 100] is the same, for each time that a token is in the output.
	FrequencyPenalty float32
	// Logprobs is the number of alternatives, 0 to 20, to report with the log-probability of each token. Nil:
	// no log-probabilities.
	Logprobs *int
	// Seed: the same seed, model and device give the same tokens, on a CUDA device where the same requests run beside
	// it. Nil: a fresh one.
	Seed *uint64
	// LogitBias is added to the logits of these tokens.
	LogitBias map[uint32]float32
}

// Prompt is what a request starts from: a [Text], a [User], a [Chat], a [ChatJSON] or [Tokens].
type Prompt interface {
	set(request *C.ifl_request, memory *runtime.Pinner) error
}

// Text is a prompt to continue as it stands.
type Text string

// User is what a user says to a chat model; the model's chat template is put around it.
type User string

// Chat is a conversation, which the model's chat template renders. Content cannot spell special tokens.
type Chat []Message

// Message is one message of a [Chat].
type Message struct {
	// Role is "system", "user", "assistant", or another that the model's template knows.
	Role string `json:"role"`
	// Content is the text.
	Content string `json:"content"`
}

// ChatJSON is a conversation as a JSON array, for messages with more fields than [Message] has.
type ChatJSON []byte

// Tokens is a prompt as token ids.
type Tokens []uint32

// Float32 gives a pointer to v, for optional fields of a [Request].
func Float32(v float32) *float32 { return &v }

// Int gives a pointer to v, for optional fields of a [Request].
func Int(v int) *int { return &v }

// Uint64 gives a pointer to v, for optional fields of a [Request].
func Uint64(v uint64) *uint64 { return &v }

func (p Text) set(request *C.ifl_request, memory *runtime.Pinner) error {
	setText(request, C.IFL_PROMPT_TEXT, string(p), memory)
	return nil
}

func (p User) set(request *C.ifl_request, memory *runtime.Pinner) error {
	setText(request, C.IFL_PROMPT_USER, string(p), memory)
	return nil
}

func (p Chat) set(request *C.ifl_request, memory *runtime.Pinner) error {
	// A nil conversation is an empty one, not null.
	text, err := json.Marshal(append([]Message{}, p...))
	if err != nil {
		return &Error{Status: ErrInvalidArgument, Message: err.Error()}
	}
	return ChatJSON(text).set(request, memory)
}

func (p ChatJSON) set(request *C.ifl_request, memory *runtime.Pinner) error {
	setText(request, C.IFL_PROMPT_CHAT, string(p), memory)
	return nil
}

func (p Tokens) set(request *C.ifl_request, memory *runtime.Pinner) error {
	request.prompt_kind = C.IFL_PROMPT_TOKENS
	request.prompt_tokens = pinTokens(p, memory)
	request.num_prompt_tokens = C.uint64_t(len(p))
	return nil
}

func setText(request *C.ifl_request, kind C.ifl_prompt_kind, text string, memory *runtime.Pinner) {
	request.prompt_kind = kind
	request.prompt, request.prompt_len = pinText(text, memory)
}

// fill translates the request into the library's, which is read before memory is unpinned.
func (r *Request) fill(to *C.ifl_request, memory *runtime.Pinner) error {
	if status := C.ifl_request_init(to, C.uint32_t(unsafe.Sizeof(*to)), nil); status != C.IFL_OK {
		return &Error{Status: Status(status)}
	}
	if r.Prompt == nil {
		return &Error{Status: ErrInvalidArgument, Message: "Prompt is nil; set it to a Text, User, Chat or Tokens"}
	}
	if err := r.Prompt.set(to, memory); err != nil {
		return err
	}
	var err error
	to.add_special_tokens = flag(!r.OmitSpecialTokens)
	to.parse_special_tokens = flag(r.ParseSpecialTokens)
	to.max_tokens = toUint32("MaxTokens", r.MaxTokens, &err)
	to.min_tokens = toUint32("MinTokens", r.MinTokens, &err)
	to.ignore_eos = flag(r.IgnoreEOS)
	to.priority = C.int32_t(r.Priority)
	r.fillSampling(to, &err)
	r.fillStops(to, memory)
	r.fillBias(to, memory)
	return err
}

func (r *Request) fillSampling(to *C.ifl_request, err *error) {
	to.min_p = C.float(r.MinP)
	to.presence_penalty = C.float(r.PresencePenalty)
	to.frequency_penalty = C.float(r.FrequencyPenalty)
	if r.Temperature != nil {
		to.temperature = explicit("Temperature", *r.Temperature, err)
	}
	if r.TopP != nil {
		to.top_p = explicit("TopP", *r.TopP, err)
	}
	if r.RepetitionPenalty != nil {
		to.repetition_penalty = explicit("RepetitionPenalty", *r.RepetitionPenalty, err)
	}
	if r.TopK != nil {
		to.top_k = C.int32_t(toUint32("TopK", *r.TopK, err))
	}
	if r.Logprobs != nil {
		to.num_logprobs = C.int32_t(toUint32("Logprobs", *r.Logprobs, err))
	}
	if r.Seed != nil {
		to.seed = C.uint64_t(*r.Seed)
	}
}

func (r *Request) fillStops(to *C.ifl_request, memory *runtime.Pinner) {
	to.stop_tokens = pinTokens(r.StopTokens, memory)
	to.num_stop_tokens = C.uint64_t(len(r.StopTokens))
	if len(r.Stop) == 0 {
		return
	}
	texts := make([]*C.char, len(r.Stop))
	lengths := make([]C.uint64_t, len(r.Stop))
	for i, stop := range r.Stop {
		texts[i], lengths[i] = pinText(stop, memory)
	}
	memory.Pin(&texts[0])
	memory.Pin(&lengths[0])
	to.stop_strings, to.stop_string_lens = &texts[0], &lengths[0]
	to.num_stop_strings = C.uint64_t(len(r.Stop))
}

func (r *Request) fillBias(to *C.ifl_request, memory *runtime.Pinner) {
	if len(r.LogitBias) == 0 {
		return
	}
	tokens := make([]uint32, 0, len(r.LogitBias))
	values := make([]C.float, 0, len(r.LogitBias))
	for token, value := range r.LogitBias {
		tokens = append(tokens, token)
		values = append(values, C.float(value))
	}
	memory.Pin(&values[0])
	to.logit_bias_tokens, to.logit_bias_values = pinTokens(tokens, memory), &values[0]
	to.num_logit_biases = C.uint64_t(len(tokens))
}

// pinText lends Go's memory to the library until memory is unpinned.
func pinText(text string, memory *runtime.Pinner) (*C.char, C.uint64_t) {
	if text == "" {
		// Not NULL, which would be no text at all; the library reads none of it.
		return (*C.char)(unsafe.Pointer(&emptyText)), 0
	}
	start := unsafe.StringData(text)
	memory.Pin(start)
	return (*C.char)(unsafe.Pointer(start)), C.uint64_t(len(text))
}

var emptyText byte

func pinTokens(tokens []uint32, memory *runtime.Pinner) *C.uint32_t {
	if len(tokens) == 0 {
		return nil
	}
	start := &tokens[0]
	memory.Pin(start)
	return (*C.uint32_t)(unsafe.Pointer(start))
}

func flag(on bool) C.uint32_t {
	if on {
		return 1
	}
	return 0
}

// toUint32 keeps the first error: what does not fit the library's type would otherwise become another number.
func toUint32(field string, value int, err *error) C.uint32_t {
	if value < 0 || value > 1<<31-1 {
		keep(err, "%s is %d; it must be from 0 to %d", field, value, 1<<31-1)
		return 0
	}
	return C.uint32_t(value)
}

// explicit refuses the number that stands for the model's own recommendation.
func explicit(field string, value float32, err *error) C.float {
	if value == C.IFL_MODEL_DEFAULT {
		keep(err, "%s is %v; leave it nil for the model's own", field, value)
	}
	return C.float(value)
}
