package inflight

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// numThreads counts the library's threads in this process.
func numThreads(t *testing.T) (num int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/comm")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		// A thread that has ended meanwhile has no name.
		if name, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(name), "ifl-") {
			num++
		}
	}
	return num
}

// checkNothingIsLeft waits until the engines before have ended, which a collection may have to close.
func checkNothingIsLeft(t *testing.T) {
	t.Helper()
	waitUntil(t, "the library's threads have ended", func() bool {
		runtime.GC()
		return numThreads(t) == 0
	})
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil || strings.Contains(string(maps), filepath.Base(modelPath(t))) {
		t.Fatal("the model's file is still mapped: ", err)
	}
	hosts.Range(func(id, _ any) bool {
		t.Errorf("the callbacks of loading %v are left", id)
		return true
	})
}

func TestAPanicInProgressLeavesNothing(t *testing.T) {
	for range 3 {
		calls := 0
		got := func() (value any) {
			defer func() { value = recover() }()
			Open(t.Context(), Options{Model: modelPath(t), Device: "cpu", Progress: func(_, _ uint64) error {
				calls++
				panic("a defect of the host")
			}})
			return nil
		}()
		if got != "a defect of the host" || calls != 1 {
			t.Fatalf("Open panicked with %v after %d calls", got, calls)
		}
	}
	checkNothingIsLeft(t)
}

func TestAGoexitInProgressEndsTheGoroutineOfOpen(t *testing.T) {
	returned, deferred := false, false
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { deferred = true }()
		Open(t.Context(), Options{Model: modelPath(t), Device: "cpu", Progress: func(_, _ uint64) error {
			runtime.Goexit()
			return nil
		}})
		returned = true
	}()
	<-done
	if returned || !deferred {
		t.Fatal(returned, deferred)
	}
	checkNothingIsLeft(t)
}

func TestAPanicInLogEndsTheProgram(t *testing.T) {
	const variable = "INFLIGHT_TEST_PANIC_IN_LOG"
	if os.Getenv(variable) != "" {
		defer func() {
			if recover() != nil {
				println("it was recovered")
			}
		}()
		Open(t.Context(), Options{Device: "echo", Log: func(LogLevel, string) { panic("a defect of the host") }})
		time.Sleep(20 * time.Second)
		println("it went on")
		return
	}
	command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAPanicInLogEndsTheProgram$")
	command.Env = append(os.Environ(), variable+"=1")
	said, err := command.CombinedOutput()
	// The trace leads to the host's function.
	for _, word := range []string{"panic: a defect of the host", "callbacks_test.go"} {
		if err == nil || !strings.Contains(string(said), word) {
			t.Fatalf("no %q in: %s, %v", word, said, err)
		}
	}
	if strings.Contains(string(said), "it was recovered") || strings.Contains(string(said), "it went on") {
		t.Fatal(string(said))
	}
}

func TestAGoexitInLogEndsTheCallAlone(t *testing.T) {
	engine := openEcho(t, Options{LogLevel: LogDebug, Log: func(LogLevel, string) { runtime.Goexit() }})
	if got := askWell(t, engine, Request{Prompt: Text("abc")}); got.text != "abc" {
		t.Fatal(got)
	}
}

// receive takes a value that has to come within 5 seconds.
func receive[T any](t *testing.T, what string, from <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-time.After(5 * time.Second):
		t.Fatal("waited too long until " + what)
	}
	return value
}

func TestCloseReturnsWhileLogBlocks(t *testing.T) {
	blocked, release := make(chan struct{}, 100), make(chan struct{})
	defer close(release)
	engine, err := Open(t.Context(), Options{
		Device: "echo", LogLevel: LogDebug,
		Log: func(level LogLevel, _ string) {
			if level == LogDebug {
				blocked <- struct{}{}
				<-release
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- ask(t.Context(), engine, Request{Prompt: Text("abc")}).err }()
	<-blocked
	closed := make(chan error)
	go func() { closed <- engine.Close() }()
	if err := receive(t, "Close returns", closed); err != nil {
		t.Fatal(err)
	}
	wantError(t, receive(t, "the loop ends", ended), ErrClosed)
	checkClosed(t, engine)
}

func TestCloseInLogReturns(t *testing.T) {
	var engine *Engine
	opened, closed := make(chan struct{}), make(chan error, 100)
	engine, err := Open(t.Context(), Options{
		Device: "echo", LogLevel: LogDebug,
		Log: func(level LogLevel, _ string) {
			if level == LogDebug {
				<-opened
				closed <- engine.Close()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	close(opened)
	go ask(t.Context(), engine, Request{Prompt: Text("abc")})
	if err := receive(t, "Close returns", closed); err != nil {
		t.Fatal(err)
	}
	checkClosed(t, engine)
}

func TestVersionsOfOneSeriesAreCompatible(t *testing.T) {
	for _, c := range []struct {
		library, header uint32
		want            bool
	}{
		{100, 100, true}, {101, 100, true}, {100, 101, false}, {200, 100, false}, {100, 200, false},
		{10000, 100, false}, {10000, 10000, true}, {10203, 10000, true}, {10000, 10100, false}, {20000, 10000, false},
	} {
		if isCompatible(c.library, c.header) != c.want {
			t.Errorf("library %s, header %s", formatVersion(c.library), formatVersion(c.header))
		}
	}
}
