package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Whatever a body holds, it becomes requests or an error that blames the client.
func FuzzBody(f *testing.F) {
	for _, body := range []string{
		`{"model": "parrot", "prompt": "a", "n": 2, "stop": ["x"], "seed": -1, "logit_bias": {"1": 2}, "logprobs": 3}`,
		`{"model": "parrot", "prompt": [[1], [2, 3]], "stop": null, "stream": true, "stream_options": {}}`,
		`{"model": "parrot", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "logprobs": true}`,
		`{"messages": [null, {}]}`, `{"n": 1e99}`, `[]`, `null`, `"`, `{"prompt": [[[]]]}`, `{"stop": {}, "n": -1}`,
	} {
		f.Add(body, true)
		f.Add(body, false)
	}
	s := &server{modelName: "parrot"}
	f.Fuzz(func(t *testing.T, body string, isChat bool) {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		kind, prompts := style(completionStyle{}), (*params).prompts
		if isChat {
			kind, prompts = chatStyle{}, (*params).chats
		}
		j, err := s.newJob(r, kind, prompts)
		var failure *apiError
		switch {
		case err == nil && (len(j.requests) == 0 || len(j.requests) > maxChoices):
			t.Fatalf("%d requests", len(j.requests))
		case err != nil && !(errors.As(err, &failure) && failure.Code >= 400 && failure.Code < 500):
			t.Fatal(err)
		}
	})
}
