package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"

	inflight "github.com/inflight-engine/inflight/bindings/go"
)

const (
	// Most choices of one request, over all its prompts.
	maxChoices = 128
	// Most stop strings of one request.
	maxStopStrings = 16
	// Tokens of a completion that does not say how many, as in OpenAI's API. Chats go on until they end.
	defaultCompletionTokens = 16
)

// params is the body of both kinds of request. Fields that are not listed are ignored, as OpenAI's own servers do;
// those that would change the answer and are not implemented are listed to be refused.
type params struct {
	Model         string   `json:"model"`
	N             *int     `json:"n"`
	MaxTokens     *int     `json:"max_tokens"`
	Temperature   *float32 `json:"temperature"`
	TopP          *float32 `json:"top_p"`
	Stop          texts    `json:"stop"`
	Seed          *int64   `json:"seed"`
	Stream        bool     `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	PresencePenalty  float32            `json:"presence_penalty"`
	FrequencyPenalty float32            `json:"frequency_penalty"`
	LogitBias        map[string]float32 `json:"logit_bias"`
	Logprobs         json.RawMessage    `json:"logprobs"`
	ResponseFormat   struct {
		Type string `json:"type"`
	} `json:"response_format"`

	// Of completions.
	Prompt json.RawMessage `json:"prompt"`
	Suffix string          `json:"suffix"`
	Echo   bool            `json:"echo"`
	BestOf *int            `json:"best_of"`

	// Of chat completions.
	Messages            []message         `json:"messages"`
	MaxCompletionTokens *int              `json:"max_completion_tokens"`
	TopLogprobs         *int              `json:"top_logprobs"`
	Tools               []json.RawMessage `json:"tools"`
	Functions           []json.RawMessage `json:"functions"`
}

// message is a chat message; templates may know fields that this server does not.
type message map[string]json.RawMessage

// texts is one string or several.
type texts []string

func (t *texts) UnmarshalJSON(data []byte) error {
	var one string
	if err := json.Unmarshal(data, &one); err == nil {
		if one != "" {
			*t = texts{one}
		}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(t))
}

// readParams reads a body that is exactly one JSON object.
func readParams(r *http.Request) (*params, error) {
	p := &params{}
	body := json.NewDecoder(r.Body)
	if err := body.Decode(p); err != nil {
		var mismatch *json.UnmarshalTypeError
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			return nil, err
		case errors.As(err, &mismatch):
			return nil, invalid(mismatch.Field, "%s cannot be a %s", mismatch.Field, mismatch.Value)
		default:
			return nil, invalid("", "the body is not valid JSON: %v", err)
		}
	}
	if _, err := body.Token(); !errors.Is(err, io.EOF) {
		return nil, invalid("", "the body goes on after its JSON object")
	}
	return p, p.check()
}

func (p *params) check() error {
	for name, given := range map[string]bool{
		"suffix": p.Suffix != "", "echo": p.Echo, "tools": len(p.Tools) > 0, "functions": len(p.Functions) > 0,
		"best_of":         p.BestOf != nil && *p.BestOf != p.choices(),
		"response_format": p.ResponseFormat.Type != "" && p.ResponseFormat.Type != "text",
	} {
		if given {
			return invalid(name, "%s is not supported by this server", name)
		}
	}
	if p.choices() < 1 || p.choices() > maxChoices {
		return invalid("n", "n is %d; it must be from 1 to %d", p.choices(), maxChoices)
	}
	if len(p.Stop) > maxStopStrings {
		return invalid("stop", "there are %d stop strings; at most %d are allowed", len(p.Stop), maxStopStrings)
	}
	for name, number := range map[string]*int{"max_tokens": p.MaxTokens, "max_completion_tokens": p.MaxCompletionTokens} {
		if number != nil && *number < 1 {
			return invalid(name, "%s is %d; it must be above 0", name, *number)
		}
	}
	// The engine allows more than the API promises.
	for name, number := range map[string]float32{
		"temperature": orZero(p.Temperature), "presence_penalty": p.PresencePenalty,
		"frequency_penalty": p.FrequencyPenalty,
	} {
		if least := map[bool]float32{true: 0, false: -2}[name == "temperature"]; number < least || number > 2 {
			return invalid(name, "%s is %v; it must be from %v to 2", name, number, least)
		}
	}
	return nil
}

func orZero(number *float32) float32 {
	if number == nil {
		return 0
	}
	return *number
}

func (p *params) choices() int {
	if p.N == nil {
		return 1
	}
	return *p.N
}

// request is what the parameters mean to the engine, all but the prompt.
func (p *params) request() (inflight.Request, error) {
	request := inflight.Request{
		Temperature: p.Temperature, TopP: p.TopP, Stop: p.Stop,
		PresencePenalty: p.PresencePenalty, FrequencyPenalty: p.FrequencyPenalty,
	}
	if p.MaxTokens != nil {
		request.MaxTokens = *p.MaxTokens
	}
	if p.MaxCompletionTokens != nil {
		request.MaxTokens = *p.MaxCompletionTokens
	}
	if len(p.LogitBias) > 0 {
		request.LogitBias = make(map[uint32]float32, len(p.LogitBias))
	}
	for key, value := range p.LogitBias {
		token, err := strconv.ParseUint(key, 10, 32)
		if err != nil {
			return request, invalid("logit_bias", "logit_bias has the key %q, which is not a token id", key)
		}
		request.LogitBias[uint32(token)] = value
	}
	return request, nil
}

// seed is that of one choice: choices of one request differ, and the same request gives the same ones. The highest
// bit is left out, since the largest number stands for a random seed.
func (p *params) seed(choice int) *uint64 {
	if p.Seed == nil {
		return nil
	}
	return inflight.Uint64((uint64(*p.Seed) + uint64(choice)) & math.MaxInt64)
}

// prompts are those of a completion: a text, token ids, or several of either.
func (p *params) prompts() ([]inflight.Prompt, error) {
	var one string
	var tokens []uint32
	var several []string
	var severalTokens [][]uint32
	prompts := []inflight.Prompt{}
	if p.MaxTokens == nil {
		p.MaxTokens = inflight.Int(defaultCompletionTokens)
	}
	switch {
	case json.Unmarshal(p.Prompt, &one) == nil && string(p.Prompt) != "null":
		prompts = append(prompts, inflight.Text(one))
	case json.Unmarshal(p.Prompt, &tokens) == nil && len(tokens) > 0:
		prompts = append(prompts, inflight.Tokens(tokens))
	case json.Unmarshal(p.Prompt, &several) == nil:
		for _, text := range several {
			prompts = append(prompts, inflight.Text(text))
		}
	case json.Unmarshal(p.Prompt, &severalTokens) == nil:
		for _, tokens := range severalTokens {
			prompts = append(prompts, inflight.Tokens(tokens))
		}
	}
	if len(prompts) == 0 {
		return nil, invalid("prompt", "prompt must be a text, an array of texts, of token ids, or of arrays of those")
	}
	if len(prompts)*p.choices() > maxChoices {
		return nil, invalid("prompt", "%d prompts of %d choices each are more than %d", len(prompts), p.choices(), maxChoices)
	}
	return prompts, nil
}

// chats is the conversation in the form that templates know: with content as one text.
func (p *params) chats() ([]inflight.Prompt, error) {
	if len(p.Messages) == 0 {
		return nil, invalid("messages", "messages must have at least one message")
	}
	for i, m := range p.Messages {
		if m == nil {
			return nil, invalid("messages", "messages[%d] is null", i)
		}
		var role string
		if err := json.Unmarshal(m["role"], &role); err != nil || role == "" {
			return nil, invalid("messages", "messages[%d] has no role", i)
		}
		if role == "developer" { // The newer name, which few templates know.
			m["role"] = json.RawMessage(`"system"`)
		}
		if err := m.joinContent(i); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(p.Messages)
	return []inflight.Prompt{inflight.ChatJSON(text)}, err
}

// joinContent makes one text of content that comes in parts.
func (m message) joinContent(index int) error {
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	content, text := m["content"], ""
	if content == nil || json.Unmarshal(content, &text) == nil {
		return nil
	}
	if err := json.Unmarshal(content, &parts); err != nil {
		return invalid("messages", "messages[%d].content is neither a text nor parts", index)
	}
	for _, part := range parts {
		if part.Type != "text" {
			return invalid("messages", "messages[%d].content has a part of type %q; only text is supported", index, part.Type)
		}
		text += part.Text
	}
	joined, err := json.Marshal(text)
	m["content"] = joined
	return err
}

func isTimeout(err error) bool   { return errors.Is(err, context.DeadlineExceeded) }
func isCancelled(err error) bool { return errors.Is(err, context.Canceled) }
