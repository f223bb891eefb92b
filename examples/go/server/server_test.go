package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	inflight "github.com/inflight-engine/inflight/bindings/go"
)

func TestModels(t *testing.T) {
	s := start(t, nil)
	for path, words := range map[string][]string{
		"/v1/models":        {`"object":"list"`, `"id":"parrot"`},
		"/v1/models/parrot": {`"object":"model"`, `"id":"parrot"`},
		"/v1/models/horse":  {"model_not_found"},
		"/v1/horses":        {"there is no GET /v1/horses"},
	} {
		text, _ := io.ReadAll(s.send(t.Context(), "GET", path, "").Body)
		for _, word := range words {
			if !bytes.Contains(text, []byte(word)) {
				t.Errorf("%s: %s has no %s", path, text, word)
			}
		}
	}
}

func TestCompletion(t *testing.T) {
	s := start(t, nil)
	got := s.ask(200, "/v1/completions", `{"model": "parrot", "prompt": "one two", "max_tokens": 50}`)
	if c := got.Choices[0]; c.Text != "one two" || c.FinishReason != "stop" || got.Object != "text_completion" ||
		*got.Usage != (usage{7, 8, 15}) {
		t.Fatalf("%+v %+v", got, got.Usage)
	}
	got = s.ask(200, "/v1/completions", `{"model": "parrot", "prompt": "`+strings.Repeat("x", 50)+`"}`)
	if c := got.Choices[0]; len(c.Text) != defaultCompletionTokens || c.FinishReason != "length" {
		t.Fatalf("%+v", got)
	}
	for prompt, want := range map[string][]string{
		`["a", "b"]`: {"a", "b"}, `[97, 98]`: {"ab"}, `[[97], [98, 99]]`: {"a", "bc"},
	} {
		got := s.ask(200, "/v1/completions", `{"model": "parrot", "n": 2, "prompt": `+prompt+`}`)
		if len(got.Choices) != 2*len(want) {
			t.Fatalf("%+v", got)
		}
		for i, c := range got.Choices {
			if c.Index != i || c.Text != want[i/2] {
				t.Errorf("choice %d of %s is %+v", i, prompt, c)
			}
		}
	}
}

func TestStops(t *testing.T) {
	s := start(t, nil)
	for stop, want := range map[string]string{`" t"`: "one", `["zzz", "w"]`: "one t", `null`: "one two"} {
		got := s.ask(200, "/v1/completions", `{"model": "parrot", "prompt": "one two", "stop": `+stop+`}`)
		if c := got.Choices[0]; c.Text != want || c.FinishReason != "stop" {
			t.Errorf("%s: %+v", stop, c)
		}
	}
}

func TestStreamedCompletion(t *testing.T) {
	s := start(t, func(c *config) { c.options.Device = "echo:500" })
	body := `{"model": "parrot", "prompt": ["grüße", "日本"], "stream": true,
		"stream_options": {"include_usage": true}}`
	events := s.events("/v1/completions", body)
	texts, reasons := [2]string{}, [2]string{}
	for _, event := range events[:len(events)-1] {
		if event.Usage != nil || event.ID != events[0].ID {
			t.Fatalf("%+v", event)
		}
		texts[event.Choices[0].Index] += event.Choices[0].Text
		reasons[event.Choices[0].Index] += event.Choices[0].FinishReason
	}
	last := events[len(events)-1]
	if texts != [2]string{"grüße", "日本"} || reasons != [2]string{"stop", "stop"} ||
		len(last.Choices) != 0 || *last.Usage != (usage{13, 15, 28}) {
		t.Fatalf("%v %v %+v", texts, reasons, last.Usage)
	}
}

func TestChat(t *testing.T) {
	s := start(t, nil)
	got := s.ask(200, "/v1/chat/completions", chatBody(""))
	if c := got.Choices[0]; c.Message.Role != "assistant" || !strings.Contains(c.Message.Content, "squawk") ||
		got.Object != "chat.completion" || got.Usage.TotalTokens == 0 {
		t.Fatalf("%+v", got)
	}
	parts := `{"model": "parrot", "messages": [{"role": "developer", "content": "be a bird"},
		{"role": "user", "content": [{"type": "text", "text": "squa"}, {"type": "text", "text": "wk"}]}]}`
	content := s.ask(200, "/v1/chat/completions", parts).Choices[0].Message.Content
	if !strings.Contains(content, "squawk") || !strings.Contains(content, "system") {
		t.Fatal(content)
	}
	got = s.ask(200, "/v1/chat/completions", chatBody(`, "max_tokens": 9, "max_completion_tokens": 3`))
	if got.Usage.CompletionTokens != 3 || got.Choices[0].FinishReason != "length" {
		t.Fatalf("%+v", got)
	}
}

func TestStreamedChat(t *testing.T) {
	s := start(t, func(c *config) { c.options.Device = "echo:500" })
	whole := s.ask(200, "/v1/chat/completions", chatBody("")).Choices[0].Message.Content
	events := s.events("/v1/chat/completions", chatBody(`, "stream": true`))
	text := ""
	for i, event := range events {
		c := event.Choices[0]
		if event.Object != "chat.completion.chunk" || (i == 0) != (c.Delta.Role == "assistant") ||
			(i == len(events)-1) != (c.FinishReason == "stop") {
			t.Fatalf("%d: %+v", i, event)
		}
		text += c.Delta.Content
	}
	if text != whole || len(events) < 3 {
		t.Fatalf("%q in %d events is not %q", text, len(events), whole)
	}
}

func TestLogprobs(t *testing.T) {
	s := start(t, nil)
	chat := s.ask(200, "/v1/chat/completions", chatBody(`, "logprobs": true, "top_logprobs": 2`))
	text := ""
	for _, row := range chat.Choices[0].Logprobs.Content {
		text += row.Token
		if row.Logprob > 0 || len(row.Bytes) != len(row.Token) || len(row.TopLogprobs) > 2 {
			t.Fatalf("%+v", row)
		}
	}
	if !strings.Contains(text, "squawk") {
		t.Fatal(text)
	}
	got := s.ask(200, "/v1/completions", `{"model": "parrot", "prompt": "abc", "logprobs": 1}`).Choices[0].Logprobs
	if strings.Join(got.Tokens, "") != "abc" || len(got.Top) != 3 {
		t.Fatalf("%+v", got)
	}
	streamed := 0
	body := `{"model": "parrot", "prompt": "abc", "logprobs": 1, "stream": true}`
	for _, event := range s.events("/v1/completions", body) {
		if l := event.Choices[0].Logprobs; l != nil {
			streamed += len(l.Tokens)
		}
	}
	if streamed != 3 {
		t.Fatal(streamed)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	s := start(t, func(c *config) { c.options.MaxModelLen = 128; c.maxBody = 4096 })
	completion := func(extra string) string { return `{"model": "parrot", "prompt": "a"` + extra + `}` }
	chat := func(messages string) string { return `{"model": "parrot", "messages": ` + messages + `}` }
	for _, test := range []struct {
		code       int
		param      string
		word, body string
	}{
		{400, "", "not valid JSON", `{`},
		{400, "", "goes on", completion("") + "{}"},
		{400, "n", "string", completion(`, "n": "two"`)},
		{400, "n", "from 1 to 128", completion(`, "n": 0`)},
		{400, "prompt", "more than 128", `{"model": "parrot", "prompt": ["a", "b"], "n": 100}`},
		{400, "prompt", "prompt must be", `{"model": "parrot"}`},
		{400, "prompt", "prompt must be", `{"model": "parrot", "prompt": [1.5]}`},
		{400, "max_tokens", "above 0", completion(`, "max_tokens": 0`)},
		{400, "temperature", "from 0 to 2", completion(`, "temperature": 3`)},
		{400, "presence_penalty", "from -2 to 2", completion(`, "presence_penalty": -3`)},
		{400, "", "top_p", completion(`, "top_p": 2`)},
		{400, "logit_bias", "not a token id", completion(`, "logit_bias": {"x": 1}`)},
		{400, "", "vocabulary", completion(`, "logit_bias": {"99999": 1}`)},
		{400, "stop", "at most 16", completion(`, "stop": [` + strings.Repeat(`"x",`, 16) + `"y"]`)},
		{400, "logprobs", "from 0 to 20", completion(`, "logprobs": 21`)},
		{400, "suffix", "not supported", completion(`, "suffix": "x"`)},
		{404, "model", "parrot", `{"model": "horse", "prompt": "a"}`},
		{413, "", "4096", completion(`, "user": "` + strings.Repeat("x", 5000) + `"`)},
		{400, "", "128", `{"model": "parrot", "prompt": "` + strings.Repeat("x", 300) + `"}`},
		{400, "messages", "at least one", chat(`[]`)},
		{400, "messages", "null", chat(`[null]`)},
		{400, "messages", "no role", chat(`[{"content": "x"}]`)},
		{400, "messages", "image_url", chat(`[{"role": "user", "content": [{"type": "image_url"}]}]`)},
		{400, "messages", "neither", chat(`[{"role": "user", "content": 7}]`)},
		{400, "tools", "not supported", chatBody(`, "tools": [{}]`)},
		{400, "response_format", "not supported", chatBody(`, "response_format": {"type": "json_object"}`)},
		{400, "top_logprobs", "needs logprobs", chatBody(`, "top_logprobs": 2`)},
	} {
		path := "/v1/completions"
		if strings.Contains(test.body, `"messages"`) {
			path = "/v1/chat/completions"
		}
		got := s.ask(test.code, path, test.body).Error
		if got == nil || got.Param != test.param || !strings.Contains(got.Message, test.word) || got.Type == "" {
			t.Errorf("%s: %+v", test.body, got)
		}
	}
}

func TestKey(t *testing.T) {
	s := start(t, func(c *config) { c.apiKey = "sesame" })
	s.ask(200, "/v1/completions", `{"model": "parrot", "prompt": "a"}`)
	for _, key := range []string{"", "sesam", "sesame2", "SESAME"} {
		s.key = key
		if got := s.ask(401, "/v1/completions", `{"model": "parrot", "prompt": "a"}`); got.Error.Code != "invalid_api_key" {
			t.Fatal(got)
		}
		for path, code := range map[string]int{"/v1/models": 401, "/metrics": 401, "/healthz": 200, "/": 200} {
			if got := s.send(t.Context(), "GET", path, "").StatusCode; got != code {
				t.Errorf("%s gives %d", path, got)
			}
		}
	}
}

func TestOtherSitesAreKeptOut(t *testing.T) {
	s := start(t, nil)
	for host, code := range map[string]int{"evil.example": 403, "localhost:80": 200, "127.0.0.1": 200, "[::1]:1": 200} {
		request, _ := http.NewRequest("GET", s.url+"/v1/models", nil)
		request.Host = host
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != code {
			t.Errorf("%s gives %d", host, response.StatusCode)
		}
	}
	body := strings.NewReader(`{"model": "parrot", "prompt": "a"}`)
	response, err := http.Post(s.url+"/v1/completions", "text/plain", body)
	if err != nil || response.StatusCode != http.StatusUnsupportedMediaType {
		t.Fatal(response, err)
	}
	response.Body.Close()
}

func slow(c *config) { c.options.Device = "echo:5000" }

func longBody(extra string) string {
	return `{"model": "parrot", "max_tokens": 2000, "prompt": "` + strings.Repeat("x", 2000) + `"` + extra + `}`
}

func TestAClientThatLeavesEndsItsRequests(t *testing.T) {
	s := start(t, slow)
	for _, extra := range []string{`, "n": 3`, `, "n": 3, "stream": true`} {
		ctx, cancel := context.WithCancel(t.Context())
		request, _ := http.NewRequestWithContext(ctx, "POST", s.url+"/v1/completions", strings.NewReader(longBody(extra)))
		request.Header.Set("Content-Type", "application/json")
		left := make(chan error)
		go func() {
			response, err := http.DefaultClient.Do(request)
			if err == nil {
				_, err = io.Copy(io.Discard, response.Body)
				response.Body.Close()
			}
			left <- err
		}()
		s.waitUntil("they run", func(stats inflight.Stats) bool { return stats.NumRunning == 3 })
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		s.waitUntil("they have ended", func(stats inflight.Stats) bool { return stats.NumFinished == stats.NumAccepted })
	}
}

func TestAFullQueueIs429(t *testing.T) {
	s := start(t, func(c *config) { slow(c); c.options.MaxQueuedRequests = 2 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.send(ctx, "POST", "/v1/completions", longBody(`, "n": 2, "stream": true`))
	for _, extra := range []string{"", `, "stream": true`} {
		response := s.send(t.Context(), "POST", "/v1/completions", longBody(extra))
		text, _ := io.ReadAll(response.Body)
		if response.StatusCode != 429 || response.Header.Get("Retry-After") != "1" ||
			!bytes.Contains(text, []byte("rate_limit_exceeded")) {
			t.Fatal(response.Status, string(text))
		}
	}
	// Three do not fit together: one that is refused ends the others.
	if got := s.ask(429, "/v1/completions", longBody(`, "n": 3`)); got.Error.Type != "requests" {
		t.Fatal(got)
	}
	cancel()
	s.waitUntil("all have ended", func(stats inflight.Stats) bool { return stats.NumFinished == stats.NumAccepted })
	s.ask(200, "/v1/completions", `{"model": "parrot", "prompt": "a"}`)
}

func TestTimeout(t *testing.T) {
	s := start(t, func(c *config) { slow(c); c.timeout = 100 * time.Millisecond })
	if got := s.ask(504, "/v1/completions", longBody("")); got.Error.Code != "timeout" {
		t.Fatal(got)
	}
	response := s.send(t.Context(), "POST", "/v1/completions", longBody(`, "stream": true`))
	text, _ := io.ReadAll(response.Body)
	if response.StatusCode != 200 || !bytes.Contains(text, []byte(`data: {"error":`)) ||
		bytes.Contains(text, []byte("[DONE]")) {
		t.Fatal(response.Status, string(text))
	}
}

func TestMetrics(t *testing.T) {
	s := start(t, nil)
	s.ask(200, "/v1/completions", `{"model": "parrot", "prompt": "abc"}`)
	s.ask(404, "/v1/completions", `{"model": "horse", "prompt": "abc"}`)
	// A token that is sampled while its request ends counts as well: the number is not always the same.
	lines := []string{
		"# TYPE inflight_output_tokens_total counter", "inflight_output_tokens_total ", "inflight_prompt_tokens_total 3",
		"inflight_requests_accepted_total 1", "inflight_requests_running 0", `inflight_http_responses_total{code="200"} `,
		`inflight_http_responses_total{code="404"} 1`,
	}
	// A response is counted when its client has it already.
	for begin := time.Now(); len(lines) > 0; time.Sleep(time.Millisecond) {
		text, _ := io.ReadAll(s.send(t.Context(), "GET", "/metrics", "").Body)
		lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(string(text), "\n"+line) })
		if len(lines) > 0 && time.Since(begin) > 10*time.Second {
			t.Fatalf("no lines %q in\n%s", lines, text)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	s := start(t, nil)
	var waiting sync.WaitGroup
	for i := range 64 {
		waiting.Go(func() {
			text := fmt.Sprintf("bird %d", i)
			body := `{"model": "parrot", "prompt": "` + text + `", "stream": true}`
			got := ""
			for _, event := range s.events("/v1/completions", body) {
				got += event.Choices[0].Text
			}
			if got != text {
				t.Errorf("%q is not %q", got, text)
			}
		})
	}
	waiting.Wait()
}

func TestShutdown(t *testing.T) {
	for _, grace := range []time.Duration{20 * time.Millisecond, 10 * time.Second} {
		engine, err := inflight.Open(t.Context(), inflight.Options{Device: "echo:2000"})
		if err != nil {
			t.Fatal(err)
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server, err := newServer(engine, &config{modelName: "parrot", maxBody: 1 << 20}, true)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- server.serve(ctx, listener, grace) }()
		s := &site{T: t, engine: engine, url: "http://" + listener.Addr().String()}
		body := `{"model": "parrot", "max_tokens": 300, "stream": true, "prompt": "` + strings.Repeat("x", 300) + `"}`
		response := s.send(t.Context(), "POST", "/v1/completions", body)
		cancel()
		text, err := io.ReadAll(response.Body)
		// What has the time ends well, what has not is told.
		want := map[bool]string{true: "[DONE]", false: "the server is stopping"}[grace > time.Second]
		if err != nil || !bytes.Contains(text, []byte(want)) {
			t.Errorf("%v: %v, %q", grace, err, text)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestHealth(t *testing.T) {
	s := start(t, nil)
	if got := s.send(t.Context(), "GET", "/healthz", "").StatusCode; got != 200 {
		t.Fatal(got)
	}
	s.engine.Close()
	if got := s.send(t.Context(), "GET", "/healthz", "").StatusCode; got != 503 {
		t.Fatal(got)
	}
	s.ask(503, "/v1/completions", `{"model": "parrot", "prompt": "a"}`)
}

func TestPage(t *testing.T) {
	response := start(t, nil).send(t.Context(), "GET", "/", "")
	text, _ := io.ReadAll(response.Body)
	if !bytes.Contains(text, []byte("<script>")) || bytes.Contains(text, []byte("://")) {
		t.Error("the page is there and names no other site")
	}
	if policy := response.Header.Get("Content-Security-Policy"); strings.Count(policy, "'sha256-") != 2 {
		t.Error(policy)
	}
}

func TestCommandLine(t *testing.T) {
	t.Setenv("INFLIGHT_API_KEY", "from the environment")
	c, err := parse([]string{"--model", "/models/bird.gguf"})
	if err != nil || c.modelName != "bird.gguf" || c.listen != "127.0.0.1:8080" || c.apiKey != "from the environment" {
		t.Fatalf("%+v %v", c, err)
	}
	for _, mistake := range [][]string{{"stray"}, {"--device", "echo", "stray"}, {"--grace", "x"}, {}} {
		if _, err := parse(mistake); err == nil || !strings.Contains(err.Error(), "--help") {
			t.Fatal(mistake, err)
		}
	}
	if err := run(t.Context(), []string{"--model", "/no/such/model", "--listen", "127.0.0.1:0"}); err == nil {
		t.Fatal("a missing model passes")
	}
}

func TestModelAnswers(t *testing.T) {
	path := os.Getenv("INFLIGHT_TEST_MODEL")
	if path == "" {
		path = "../../../.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
	}
	s := start(t, func(c *config) { c.options.Model, c.options.Device = path, "cpu" })
	body := `{"model": "parrot", "messages": [{"role": "user", "content": "What is the capital of France?"}],
		"temperature": 0, "max_tokens": 12}`
	if text := s.ask(200, "/v1/chat/completions", body).Choices[0].Message.Content; !strings.Contains(text, "Paris") {
		t.Fatal(text)
	}
	body = `{"model": "parrot", "prompt": "Once", "temperature": 1, "seed": -7, "n": 3, "max_tokens": 8}`
	first, second := s.ask(200, "/v1/completions", body), s.ask(200, "/v1/completions", body)
	different := false
	for i := range 3 {
		if first.Choices[i].Text != second.Choices[i].Text {
			t.Error("the same seed gives another text")
		}
		different = different || first.Choices[i].Text != first.Choices[0].Text
	}
	if !different {
		t.Error("choices are all the same")
	}
	biased := s.ask(200, "/v1/completions", `{"model": "parrot", "prompt": "a", "temperature": 0, "max_tokens": 3,
		"logit_bias": {"100": 1000}, "logprobs": 2}`)
	if tokens := biased.Choices[0].Logprobs.Tokens; len(tokens) != 3 || tokens[0] != tokens[2] {
		t.Error(tokens)
	}
}
