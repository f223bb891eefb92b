package main

import (
	"encoding/json"
	"math"
	"unicode/utf8"

	inflight "github.com/inflight-engine/inflight/bindings/go"
)

// Most alternatives of a token that a request may ask for.
const maxLogprobs = 20

// style is what tells the two kinds of request apart.
type style interface {
	prefix() string
	object() string
	streamObject() string
	numLogprobs(p *params) (*int, error)
	// whole is a choice in a response of one piece; piece is a part of it in a stream.
	whole(index int, c *choice) any
	piece(index int, c *choice, first bool) any
}

type chatStyle struct{}

func (chatStyle) prefix() string       { return "chatcmpl-" }
func (chatStyle) object() string       { return "chat.completion" }
func (chatStyle) streamObject() string { return "chat.completion.chunk" }

// numLogprobs: logprobs says whether, top_logprobs how many alternatives.
func (chatStyle) numLogprobs(p *params) (*int, error) {
	var wanted bool
	if len(p.Logprobs) > 0 && json.Unmarshal(p.Logprobs, &wanted) != nil {
		return nil, invalid("logprobs", "logprobs must be true or false")
	}
	if !wanted {
		if p.TopLogprobs != nil && *p.TopLogprobs > 0 {
			return nil, invalid("top_logprobs", "top_logprobs needs logprobs to be true")
		}
		return nil, nil
	}
	num := 0
	if p.TopLogprobs != nil {
		num = *p.TopLogprobs
	}
	if num < 0 || num > maxLogprobs {
		return nil, invalid("top_logprobs", "top_logprobs is %d; it must be from 0 to %d", num, maxLogprobs)
	}
	return &num, nil
}

func (chatStyle) whole(index int, c *choice) any {
	return map[string]any{
		"index":         index,
		"message":       map[string]any{"role": "assistant", "content": c.text.String(), "refusal": nil},
		"logprobs":      chatLogprobs(c.rows),
		"finish_reason": c.reason,
	}
}

func (chatStyle) piece(index int, c *choice, first bool) any {
	delta := map[string]any{}
	if first {
		delta["role"] = "assistant"
	}
	if first || c.text.Len() > 0 {
		delta["content"] = c.text.String()
	}
	return map[string]any{
		"index": index, "delta": delta, "logprobs": chatLogprobs(c.rows), "finish_reason": orNull(c.reason),
	}
}

type completionStyle struct{}

func (completionStyle) prefix() string       { return "cmpl-" }
func (completionStyle) object() string       { return "text_completion" }
func (completionStyle) streamObject() string { return "text_completion" }

// numLogprobs: logprobs says how many alternatives.
func (completionStyle) numLogprobs(p *params) (*int, error) {
	var num *int
	if len(p.Logprobs) > 0 && json.Unmarshal(p.Logprobs, &num) != nil {
		return nil, invalid("logprobs", "logprobs must be a whole number")
	}
	if num != nil && (*num < 0 || *num > maxLogprobs) {
		return nil, invalid("logprobs", "logprobs is %d; it must be from 0 to %d", *num, maxLogprobs)
	}
	return num, nil
}

func (completionStyle) whole(index int, c *choice) any {
	return map[string]any{
		"index": index, "text": c.text.String(), "logprobs": completionLogprobs(c.rows),
		"finish_reason": orNull(c.reason),
	}
}

func (s completionStyle) piece(index int, c *choice, _ bool) any { return s.whole(index, c) }

func orNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// tokenLogprob is a token as clients see it. Bytes are null where the token is a part of a code point, whose bytes
// its text does not show.
type tokenLogprob struct {
	Token   string  `json:"token"`
	Logprob float64 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

// logprobRow is a token of the output and its likeliest alternatives.
type logprobRow struct {
	tokenLogprob
	TopLogprobs []tokenLogprob `json:"top_logprobs"`
}

// logprobRows leaves out the token that ends the answer, which is no part of it.
func (j *job) logprobRows(chunk inflight.Chunk) []logprobRow {
	var rows []logprobRow
	for _, entries := range chunk.Logprobs {
		if len(entries) == 0 || j.server.eosTokens[entries[0].Token] {
			continue
		}
		row := logprobRow{tokenLogprob: j.describe(entries[0]), TopLogprobs: []tokenLogprob{}}
		for _, entry := range entries[1:] {
			row.TopLogprobs = append(row.TopLogprobs, j.describe(entry))
		}
		rows = append(rows, row)
	}
	return rows
}

func (j *job) describe(entry inflight.TokenLogprob) tokenLogprob {
	// A token of the engine's own always has a text, unless the engine is closed by now.
	text, _ := j.server.engine.Detokenize([]uint32{entry.Token}, false)
	// JSON has no infinity; this is what OpenAI's API gives for what is out of the question.
	described := tokenLogprob{Token: text, Logprob: math.Max(float64(entry.Logprob), -9999)}
	for _, c := range text {
		if c == utf8.RuneError {
			return described
		}
	}
	described.Bytes = make([]int, len(text))
	for i, b := range []byte(text) {
		described.Bytes[i] = int(b)
	}
	return described
}

func chatLogprobs(rows []logprobRow) any {
	if rows == nil {
		return nil
	}
	return map[string]any{"content": rows, "refusal": nil}
}

// completionLogprobs is the older form: arrays beside each other.
func completionLogprobs(rows []logprobRow) any {
	if rows == nil {
		return nil
	}
	tokens, values, tops := []string{}, []float64{}, []map[string]float64{}
	for _, row := range rows {
		tokens = append(tokens, row.Token)
		values = append(values, row.Logprob)
		top := map[string]float64{}
		for _, entry := range row.TopLogprobs {
			top[entry.Token] = entry.Logprob
		}
		tops = append(tops, top)
	}
	return map[string]any{"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}
}
