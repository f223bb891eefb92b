package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	inflight "github.com/inflight-engine/inflight/bindings/go"
)

// job is one HTTP request: some prompts, and some choices of each.
type job struct {
	server   *server
	params   *params
	style    style
	requests []inflight.Request // One for each choice.
	id       string
	created  int64
}

// output is a piece of one choice's output.
type output struct {
	choice int
	chunk  inflight.Chunk
	err    error
}

// usage counts tokens. Prompts count once, however many choices there are of each.
type usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	TotalTokens      int `json:"total_tokens"`
}

func (u *usage) add(j *job, o output) {
	if o.chunk.Result == nil {
		return
	}
	if o.choice%j.params.choices() == 0 {
		u.PromptTokens += o.chunk.Result.NumPromptTokens
	}
	u.CompletionTokens += o.chunk.Result.NumOutputTokens
	u.TotalTokens = u.PromptTokens + u.CompletionTokens
}

func (s *server) completions(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, completionStyle{}, (*params).prompts)
}

func (s *server) chatCompletions(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, chatStyle{}, (*params).chats)
}

// answer is all that the two kinds of request share.
func (s *server) answer(w http.ResponseWriter, r *http.Request, style style,
	prompts func(*params) ([]inflight.Prompt, error)) {
	j, err := s.newJob(r, style, prompts)
	if err != nil {
		writeError(w, err)
		return
	}
	// From here on only the end of the connection is read, and that may take as long as it likes.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	ctx := r.Context()
	if s.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.timeout)
		defer cancel()
	}
	if j.params.Stream {
		j.stream(ctx, w)
	} else {
		j.collect(ctx, w)
	}
}

func (s *server) newJob(r *http.Request, style style, prompts func(*params) ([]inflight.Prompt, error)) (*job, error) {
	p, err := readParams(r)
	if err != nil {
		return nil, err
	}
	if err := s.checkModel(p.Model); err != nil {
		return nil, err
	}
	all, err := prompts(p)
	if err != nil {
		return nil, err
	}
	request, err := p.request()
	if err != nil {
		return nil, err
	}
	if request.Logprobs, err = style.numLogprobs(p); err != nil {
		return nil, err
	}
	j := &job{server: s, params: p, style: style, id: style.prefix() + strings.ToLower(rand.Text()),
		created: time.Now().Unix()}
	for _, prompt := range all {
		for choice := range p.choices() {
			request.Prompt, request.Seed = prompt, p.seed(choice)
			j.requests = append(j.requests, request)
		}
	}
	return j, nil
}

// run has all choices in flight together. The channel is closed when all have ended; the receiver takes everything,
// or ends ctx.
func (j *job) run(ctx context.Context) <-chan output {
	outputs := make(chan output)
	ended := make(chan struct{}, len(j.requests))
	for choice, request := range j.requests {
		go func() {
			defer func() { ended <- struct{}{} }()
			for chunk, err := range j.server.engine.Generate(ctx, request) {
				select {
				case outputs <- output{choice, chunk, err}:
				case <-ctx.Done():
					// The last word, which says what ended it, is still wanted.
					if err == nil {
						continue
					}
					outputs <- output{choice, chunk, err}
				}
			}
		}()
	}
	go func() {
		for range j.requests {
			<-ended
		}
		close(outputs)
	}()
	return outputs
}

// collect answers in one piece.
func (j *job) collect(ctx context.Context, w http.ResponseWriter) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	choices := make([]choice, len(j.requests))
	var used usage
	var failure error
	for o := range j.run(ctx) {
		if o.err != nil && failure == nil {
			failure = o.err
			cancel() // One choice alone is no answer.
		}
		choices[o.choice].add(j, o)
		used.add(j, o)
	}
	if failure != nil {
		writeError(w, failure)
		return
	}
	bodies := make([]any, len(choices))
	for i := range choices {
		bodies[i] = j.style.whole(i, &choices[i])
	}
	body := j.envelope(j.style.object(), bodies)
	body["usage"] = used
	writeJSON(w, http.StatusOK, body)
}

// choice is what one choice has come to so far.
type choice struct {
	text   strings.Builder
	rows   []logprobRow
	reason string
}

func (c *choice) add(j *job, o output) {
	c.text.WriteString(o.chunk.Text)
	c.rows = append(c.rows, j.logprobRows(o.chunk)...)
	if o.chunk.Result != nil {
		c.reason = o.chunk.Result.Reason.String()
	}
}

// envelope is what every response has around its choices.
func (j *job) envelope(object string, choices []any) map[string]any {
	return map[string]any{
		"id": j.id, "object": object, "created": j.created, "model": j.server.modelName,
		"system_fingerprint": "inflight-" + inflight.Version(), "choices": choices,
	}
}

// stream answers with server-sent events. Nothing is sent before the first output, so that a request that is not
// accepted still gets a status of its own.
func (j *job) stream(ctx context.Context, w http.ResponseWriter) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := eventWriter{w: w, control: http.NewResponseController(w)}
	started := make([]bool, len(j.requests))
	var used usage
	var failure error
	for o := range j.run(ctx) {
		if failure != nil {
			continue // The others come to their end.
		}
		if failure = o.err; failure == nil {
			used.add(j, o)
			failure = j.sendPiece(&events, o, &started[o.choice])
		}
		if failure != nil {
			cancel()
		}
	}
	switch {
	case failure == nil:
		j.sendEnd(&events, used)
	case !events.open:
		writeError(w, failure)
	default:
		_ = events.send(toAPIError(failure))
	}
}

func (j *job) sendPiece(events *eventWriter, o output, started *bool) error {
	var piece choice
	piece.add(j, o)
	// Tokens whose text is held back say nothing yet.
	if *started && piece.text.Len() == 0 && len(piece.rows) == 0 && piece.reason == "" {
		return nil
	}
	body := j.envelope(j.style.streamObject(), []any{j.style.piece(o.choice, &piece, !*started)})
	if j.params.StreamOptions.IncludeUsage {
		body["usage"] = nil
	}
	*started = true
	return events.send(body)
}

func (j *job) sendEnd(events *eventWriter, used usage) {
	if j.params.StreamOptions.IncludeUsage {
		body := j.envelope(j.style.streamObject(), []any{})
		body["usage"] = used
		_ = events.send(body)
	}
	_ = events.sendRaw([]byte("[DONE]"))
}

// eventWriter sends server-sent events.
type eventWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	open    bool
}

func (e *eventWriter) send(value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return e.sendRaw(data)
}

func (e *eventWriter) sendRaw(data []byte) error {
	if !e.open {
		header := e.w.Header()
		header.Set("Content-Type", "text/event-stream")
		header.Set("Cache-Control", "no-cache")
		header.Set("X-Accel-Buffering", "no")
		e.open = true
	}
	_ = e.control.SetWriteDeadline(time.Now().Add(ioTimeout))
	if _, err := e.w.Write(append(append([]byte("data: "), data...), "\n\n"...)); err != nil {
		return err
	}
	return e.control.Flush()
}
