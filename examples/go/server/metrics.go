package main

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	inflight "github.com/inflight-engine/inflight/bindings/go"
)

// metrics gives the engine's counters in Prometheus' text format.
func (s *server) metrics(w http.ResponseWriter, _ *http.Request) {
	stats, err := s.engine.Stats()
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	for _, m := range []struct {
		name, kind, help string
		value            uint64
	}{
		{"inflight_steps_total", "counter", "Steps run.", stats.NumSteps},
		{"inflight_prompt_tokens_total", "counter", "Prompt tokens run.", stats.NumPromptTokens},
		{"inflight_output_tokens_total", "counter", "Tokens produced.", stats.NumOutputTokens},
		{"inflight_requests_accepted_total", "counter", "Requests accepted.", stats.NumAccepted},
		{"inflight_requests_finished_total", "counter", "Requests ended.", stats.NumFinished},
		{"inflight_preemptions_total", "counter", "Requests put back for want of KV blocks.", stats.NumPreemptions},
		{"inflight_requests_waiting", "gauge", "Requests that wait to run.", stats.NumWaiting},
		{"inflight_requests_running", "gauge", "Requests in the running batch.", stats.NumRunning},
		{"inflight_requests_paused", "gauge", "Requests that wait for their reader.", stats.NumPaused},
		{"inflight_kv_blocks_used", "gauge", "KV blocks in use.", stats.NumKVBlocksUsed},
		{"inflight_kv_blocks_free", "gauge", "KV blocks free.", stats.NumKVBlocksFree},
		{"inflight_weights_bytes", "gauge", "Bytes of weights.", stats.WeightsBytes},
		{"inflight_kv_cache_bytes", "gauge", "Bytes of the KV cache.", stats.KVCacheBytes},
		{"inflight_workspace_bytes", "gauge", "Bytes of activations and workspace.", stats.WorkspaceBytes},
	} {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %d\n", m.name, m.help, m.name, m.kind, m.name, m.value)
	}
	fmt.Fprintf(w, "# HELP inflight_info The library.\n# TYPE inflight_info gauge\ninflight_info{version=%q} 1\n",
		inflight.Version())
	s.responses.write(w)
}

// responseCounts counts responses by their HTTP status.
type responseCounts struct {
	mu     sync.Mutex
	counts [600]uint64
}

func (c *responseCounts) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		recorder := &statusRecorder{ResponseWriter: w, code: http.StatusOK}
		// That of an earlier response on the same connection is over.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
		next.ServeHTTP(recorder, r)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.counts[recorder.code]++
	})
}

func (c *responseCounts) write(w http.ResponseWriter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprint(w, "# HELP inflight_http_responses_total Responses by HTTP status.\n"+
		"# TYPE inflight_http_responses_total counter\n")
	for code, num := range c.counts {
		if num > 0 {
			fmt.Fprintf(w, "inflight_http_responses_total{code=\"%d\"} %d\n", code, num)
		}
	}
}

// statusRecorder remembers the status of a response.
type statusRecorder struct {
	http.ResponseWriter
	code int
}

func (r *statusRecorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

// Unwrap is how http.ResponseController finds what it controls.
func (r *statusRecorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
