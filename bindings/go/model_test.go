package inflight

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// openModel opens SmolLM2-135M-Instruct, which scripts/setup.sh fetches.
func openModel(t *testing.T, options Options) *Engine {
	t.Helper()
	options.Model, options.Device = modelPath(t), "cpu"
	return open(t, options)
}

func modelPath(t *testing.T) string {
	t.Helper()
	path := os.Getenv("INFLIGHT_TEST_MODEL")
	if path == "" {
		path = "../../.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; run scripts/setup.sh or set INFLIGHT_TEST_MODEL", err)
	}
	return path
}

func TestModelAnswers(t *testing.T) {
	engine := openModel(t, Options{})
	greedy := Request{Prompt: User("What is the capital of France?"), MaxTokens: 12, Temperature: Float32(0)}
	alone := askWell(t, engine, greedy)
	if !strings.Contains(alone.text, "Paris") {
		t.Fatal(alone.text)
	}
	t.Run("UTF-8 that is split over tokens", func(t *testing.T) {
		request := Request{Prompt: Text("🙂🦀🙂🦀🙂🦀"), MaxTokens: 24, Temperature: Float32(0)}
		got := askWell(t, engine, request)
		if whole, err := engine.Detokenize(got.tokens, true); err != nil || whole != got.text {
			t.Fatalf("%q, whole %q, %v", got.text, whole, err)
		}
	})
	t.Run("stop strings", func(t *testing.T) {
		request := greedy
		request.Stop = []string{"aris"}
		if got := askWell(t, engine, request); !strings.HasSuffix(got.text, "P") || got.result.Reason != FinishStop {
			t.Fatal(got)
		}
	})
	t.Run("together as alone", func(t *testing.T) {
		var waiting sync.WaitGroup
		for range 16 {
			waiting.Go(func() {
				if got := ask(t.Context(), engine, greedy); got.err != nil || got.text != alone.text {
					t.Error(got)
				}
			})
		}
		waiting.Wait()
	})
	t.Run("seed and logprobs", func(t *testing.T) {
		request := Request{Prompt: User("Tell a story."), MaxTokens: 10, Temperature: Float32(1), Seed: Uint64(3)}
		request.Logprobs = Int(3)
		first, second := askWell(t, engine, request), askWell(t, engine, request)
		if first.text != second.text || len(first.rows) != len(first.tokens) || len(first.rows[0]) != 4 {
			t.Fatal(first, second)
		}
	})
}

func TestModelIsCancelledAndRefused(t *testing.T) {
	t.Run("cancel and deadline", func(t *testing.T) {
		engine := openModel(t, Options{})
		long := Request{Prompt: User("Tell a long story."), MaxTokens: 500, IgnoreEOS: true}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		wantError(t, ask(ctx, engine, long).err, context.DeadlineExceeded)
		for chunk, err := range engine.Generate(t.Context(), long) {
			if err != nil {
				t.Fatal(err)
			}
			if chunk.Text != "" {
				break
			}
		}
		waitUntilIdle(t, engine)
	})
	t.Run("busy", func(t *testing.T) {
		// A request that has ended keeps its place until its last event is polled, so no other has run here.
		engine := openModel(t, Options{MaxQueuedRequests: 40})
		ctx, cancel := context.WithCancel(t.Context())
		var waiting sync.WaitGroup
		long := Request{Prompt: Text("a"), MaxTokens: 500, IgnoreEOS: true}
		for range 40 {
			waiting.Go(func() { wantError(t, ask(ctx, engine, long).err, context.Canceled) })
		}
		waitUntil(t, "all are in", func() bool {
			stats, err := engine.Stats()
			return err == nil && stats.NumAccepted == 40
		})
		wantError(t, ask(ctx, engine, long).err, ErrBusy)
		cancel()
		waiting.Wait()
	})
}

func TestLoadingCanBeEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	_, err := Open(ctx, Options{Model: modelPath(t), Device: "cpu", Progress: func(done, total uint64) error {
		calls++
		if total == 0 || done > total {
			t.Error(done, total)
		}
		cancel()
		return nil
	}})
	// The first call cancels the context, the second sees it; a model of few calls may be loaded by then.
	if calls == 0 || (err != nil && !errors.Is(err, context.Canceled)) {
		t.Fatal(calls, err)
	}
	why := errors.New("enough")
	_, err = Open(t.Context(), Options{Model: modelPath(t), Device: "cpu", Progress: func(_, _ uint64) error {
		return why
	}})
	wantError(t, err, why)
	wantError(t, err, ErrAborted)
}

func TestClosingWhileAModelRuns(t *testing.T) {
	engine := openModel(t, Options{})
	var waiting sync.WaitGroup
	for range 8 {
		waiting.Go(func() {
			got := ask(t.Context(), engine, Request{Prompt: User("Count."), MaxTokens: 1000, IgnoreEOS: true})
			wantError(t, got.err, ErrClosed)
		})
	}
	waitUntil(t, "it runs", func() bool {
		stats, err := engine.Stats()
		return err == nil && stats.NumOutputTokens > 8
	})
	if err := engine.Close(); err != nil {
		t.Fatal(err)
	}
	waiting.Wait()
	checkClosed(t, engine)
}
