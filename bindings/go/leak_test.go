package inflight

import (
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
)

// collected counts values that the garbage collector has found unreachable.
type collected struct{ engines, cores, streams atomic.Int32 }

func (c *collected) watch(engine *Engine) {
	runtime.AddCleanup(engine, func(n *atomic.Int32) { n.Add(1) }, &c.engines)
	runtime.AddCleanup(engine.core, func(n *atomic.Int32) { n.Add(1) }, &c.cores)
}

func (c *collected) wait(t *testing.T, engines, streams int32) {
	t.Helper()
	waitUntil(t, "everything is collected", func() bool {
		runtime.GC()
		return c.engines.Load() == engines && c.cores.Load() == engines && c.streams.Load() == streams
	})
}

func TestClosedEnginesAndStreamsAreCollected(t *testing.T) {
	var seen collected
	func() {
		for range 20 {
			engine, err := Open(t.Context(), Options{Device: "echo"})
			if err != nil {
				t.Fatal(err)
			}
			seen.watch(engine)
			for i := range 10 {
				s, err := engine.enqueue(t.Context(), &Request{Prompt: Text(strings.Repeat("x", 200))})
				if err != nil {
					t.Fatal(err)
				}
				runtime.AddCleanup(s, func(n *atomic.Int32) { n.Add(1) }, &seen.streams)
				if i%2 == 0 {
					engine.streams.abandon(s, engine.cancel)
				}
			}
			if err := engine.Close(); err != nil {
				t.Fatal(err)
			}
			if len(engine.streams.active) != 0 {
				t.Fatal("streams are left")
			}
		}
	}()
	seen.wait(t, 20, 200)
	hosts.Range(func(id, _ any) bool {
		t.Errorf("the callbacks of loading %v are left", id)
		return true
	})
}

func TestAnEngineThatIsDroppedIsClosed(t *testing.T) {
	var seen collected
	func() {
		for range 5 {
			engine, err := Open(t.Context(), Options{Device: "echo", Log: func(LogLevel, string) {}})
			if err != nil {
				t.Fatal(err)
			}
			seen.watch(engine)
			askWell(t, engine, Request{Prompt: Text("x")})
		}
	}()
	seen.wait(t, 5, 0)
}

func TestAnEngineInUseIsNotCollected(t *testing.T) {
	engine, err := Open(t.Context(), Options{Device: "echo:1000"})
	if err != nil {
		t.Fatal(err)
	}
	chunks := engine.Generate(t.Context(), Request{Prompt: Text(strings.Repeat("x", 50))})
	engine = nil
	text := ""
	for chunk, err := range chunks {
		if err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		text += chunk.Text
	}
	if len(text) != 50 {
		t.Fatal(text)
	}
}
