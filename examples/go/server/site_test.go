package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	inflight "github.com/inflight-engine/inflight/bindings/go"
)

// site is a server that runs, and how tests talk to it.
type site struct {
	*testing.T
	engine *inflight.Engine
	url    string
	key    string
}

// start serves the echo device unless change says otherwise.
func start(t *testing.T, change func(*config)) *site {
	t.Helper()
	c := &config{maxBody: 1 << 20, modelName: "parrot"}
	c.options.Device = "echo"
	if change != nil {
		change(c)
	}
	engine, err := inflight.Open(t.Context(), c.options)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newServer(engine, c, true)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s.handler())
	t.Cleanup(func() {
		web.Close()
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	return &site{T: t, engine: engine, url: web.URL, key: c.apiKey}
}

func (s *site) send(ctx context.Context, method, path, body string) *http.Response {
	s.Helper()
	request, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	if s.key != "" {
		request.Header.Set("Authorization", "Bearer "+s.key)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { response.Body.Close() })
	return response
}

// reply is what tests look at of a response of any kind.
type reply struct {
	ID      string
	Object  string
	Model   string
	Choices []struct {
		Index        int
		Text         string
		FinishReason string `json:"finish_reason"`
		Message      struct{ Role, Content string }
		Delta        struct{ Role, Content string }
		Logprobs     *struct {
			Content []logprobRow
			Tokens  []string
			Top     []map[string]float64 `json:"top_logprobs"`
		}
	}
	Usage *usage
	Error *struct{ Message, Type, Param, Code string }
}

// ask wants a status and decodes the body.
func (s *site) ask(code int, path, body string) (got reply) {
	s.Helper()
	response := s.send(s.Context(), "POST", path, body)
	text, err := io.ReadAll(response.Body)
	if err != nil {
		s.Fatal(err)
	}
	if err := json.Unmarshal(text, &got); err != nil || response.StatusCode != code {
		s.Fatalf("status %d, want %d: %v: %s", response.StatusCode, code, err, text)
	}
	return got
}

// events reads a stream to its end, which must be [DONE].
func (s *site) events(path, body string) (all []reply) {
	s.Helper()
	response := s.send(s.Context(), "POST", path, body)
	if kind := response.Header.Get("Content-Type"); kind != "text/event-stream" {
		s.Fatalf("content type %s", kind)
	}
	done := false
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		data, isData := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case done && lines.Text() != "", !isData && lines.Text() != "":
			s.Fatalf("line %q", lines.Text())
		case data == "[DONE]":
			done = true
		case isData:
			var event reply
			if err := json.Unmarshal([]byte(data), &event); err != nil {
				s.Fatal(err, data)
			}
			all = append(all, event)
		}
	}
	if !done {
		s.Fatal("no [DONE]")
	}
	return all
}

func chatBody(extra string) string {
	return `{"model": "parrot", "messages": [{"role": "user", "content": "squawk"}]` + extra + `}`
}

// waitUntil polls the engine's counters.
func (s *site) waitUntil(what string, done func(inflight.Stats) bool) {
	s.Helper()
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		stats, err := s.engine.Stats()
		if err != nil {
			s.Fatal(err)
		}
		if done(stats) {
			return
		}
		if time.Since(begin) > 20*time.Second {
			s.Fatalf("waited too long until %s: %+v", what, stats)
		}
	}
}
