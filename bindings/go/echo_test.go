package inflight

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"
)

// openEcho opens an engine that answers with the prompt; the options' Device may name a slower one.
func openEcho(t *testing.T, options Options) *Engine {
	t.Helper()
	if options.Device == "" {
		options.Device = "echo"
	}
	return open(t, options)
}

func open(t *testing.T, options Options) *Engine {
	t.Helper()
	engine, err := Open(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	return engine
}

// answer is all that came of a request.
type answer struct {
	text   string
	tokens []uint32
	rows   [][]TokenLogprob
	chunks int
	result *Result
	err    error
}

func ask(ctx context.Context, engine *Engine, request Request) (got answer) {
	for chunk, err := range engine.Generate(ctx, request) {
		if got.result != nil || got.err != nil {
			panic("a chunk came after the last")
		}
		if !utf8.ValidString(chunk.Text) {
			panic(fmt.Sprintf("%q is not whole code points", chunk.Text))
		}
		got.text += chunk.Text
		got.tokens = append(got.tokens, chunk.Tokens...)
		got.rows = append(got.rows, chunk.Logprobs...)
		got.chunks++
		got.result, got.err = chunk.Result, err
	}
	return got
}

func askWell(t *testing.T, engine *Engine, request Request) answer {
	t.Helper()
	got := ask(t.Context(), engine, request)
	if got.err != nil || got.result == nil {
		t.Fatalf("error %v, result %v", got.err, got.result)
	}
	return got
}

func wantError(t *testing.T, err, want error, words ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Fatalf("%q does not mention %q", err, word)
		}
	}
}

func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	for start := time.Now(); !done(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatal("waited too long until " + what)
		}
	}
}

func waitUntilIdle(t *testing.T, engine *Engine) {
	t.Helper()
	waitUntil(t, "every request has ended", func() bool {
		stats, err := engine.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return stats.NumFinished == stats.NumAccepted && stats.NumRunning+stats.NumWaiting == 0
	})
}

func TestAPromptIsStreamedBack(t *testing.T) {
	engine := openEcho(t, Options{Device: "echo:1000"})
	const prompt = "The quick brown fox"
	got := askWell(t, engine, Request{Prompt: Text(prompt)})
	if got.text != prompt || got.chunks < 2 || got.result.Reason != FinishStop {
		t.Fatalf("%+v", got)
	}
	if got.result.NumPromptTokens != len(prompt) || got.result.NumOutputTokens != len(prompt)+1 ||
		len(got.tokens) != len(prompt)+1 || got.tokens[0] != 'T' {
		t.Fatalf("%+v %+v", got, got.result)
	}
	if r := got.result; r.Total < 19*time.Millisecond || r.FirstToken > r.Total || r.Queued > r.FirstToken {
		t.Fatalf("%+v", r)
	}
}

func TestPromptsOfEveryKind(t *testing.T) {
	engine := openEcho(t, Options{})
	info, err := engine.ModelInfo()
	if err != nil || !info.HasChatTemplate || info.VocabSize < 257 || info.MaxModelLen < 1 {
		t.Fatal(info, err)
	}
	if got := askWell(t, engine, Request{Prompt: Tokens{'a', 'b'}}); got.text != "ab" {
		t.Fatal(got)
	}
	for _, empty := range []Prompt{Text(""), Tokens{}, Tokens(nil)} {
		wantError(t, ask(t.Context(), engine, Request{Prompt: empty}).err, ErrInvalidArgument, "prompt")
	}
	for _, prompt := range []Prompt{
		User("say \"hi\"\n"),
		Chat{{Role: "user", Content: "say \"hi\"\n"}},
		ChatJSON(`[{"role": "user", "content": "say \"hi\"\n"}]`),
	} {
		if got := askWell(t, engine, Request{Prompt: prompt}); !strings.Contains(got.text, "say \"hi\"\n") {
			t.Fatal(prompt, got)
		}
	}
}

func TestTextIsWholeCodePoints(t *testing.T) {
	engine := openEcho(t, Options{Device: "echo:500"})
	const prompt = "grüß dich 日本 🙂!"
	if got := askWell(t, engine, Request{Prompt: Text(prompt)}); got.text != prompt || len(got.tokens) != len(prompt)+1 {
		t.Fatal(got)
	}
	if got := askWell(t, engine, Request{Prompt: Tokens{'a', 0xff, 'b', 0xe6}}); got.text != "a\ufffdb\ufffd" {
		t.Fatal(got)
	}
	const withNUL = "a\x00b"
	if got := askWell(t, engine, Request{Prompt: Text(withNUL)}); got.text != withNUL {
		t.Fatal(got)
	}
}

func TestStops(t *testing.T) {
	engine := openEcho(t, Options{})
	got := askWell(t, engine, Request{Prompt: Text("one two three"), Stop: []string{"never", "o th"}})
	if got.text != "one tw" || got.result.Reason != FinishStop {
		t.Fatal(got)
	}
	got = askWell(t, engine, Request{Prompt: Text("one two"), StopTokens: []uint32{'w'}})
	if got.text != "one t" {
		t.Fatal(got)
	}
	got = askWell(t, engine, Request{Prompt: Text("one two"), MaxTokens: 3})
	if got.text != "one" || got.result.Reason != FinishLength || got.result.NumOutputTokens != 3 {
		t.Fatal(got)
	}
	got = askWell(t, engine, Request{Prompt: Text("ab"), MaxTokens: 5, IgnoreEOS: true})
	if len(got.tokens) != 5 {
		t.Fatal(got)
	}
}

func TestLogprobs(t *testing.T) {
	engine := openEcho(t, Options{})
	got := askWell(t, engine, Request{Prompt: Text("abc"), Logprobs: Int(2)})
	if len(got.rows) != len(got.tokens) {
		t.Fatal(got)
	}
	for i, row := range got.rows {
		if len(row) < 1 || row[0].Token != got.tokens[i] || row[0].Logprob > 0 {
			t.Fatal(i, row)
		}
	}
}

func TestEveryFieldArrives(t *testing.T) {
	engine := openEcho(t, Options{})
	full := Request{
		Prompt: Text("abc"), OmitSpecialTokens: true, ParseSpecialTokens: true, MaxTokens: 4, MinTokens: 1,
		Priority: -3, StopTokens: []uint32{1}, Stop: []string{"x"}, Temperature: Float32(0.5), TopK: Int(3),
		TopP: Float32(0.5), MinP: 0.1, RepetitionPenalty: Float32(1.1), PresencePenalty: 1, FrequencyPenalty: 1,
		Logprobs: Int(0), Seed: Uint64(7), LogitBias: map[uint32]float32{1: 2, 3: -4},
	}
	if got := askWell(t, engine, full); got.text != "abc" {
		t.Fatal(got)
	}
	// The library names the field that it refuses, which shows that this number reached that field.
	for word, change := range map[string]func(*Request){
		"temperature":        func(r *Request) { r.Temperature = Float32(101) },
		"top_p":              func(r *Request) { r.TopP = Float32(1.5) },
		"min_p":              func(r *Request) { r.MinP = 2 },
		"repetition_penalty": func(r *Request) { r.RepetitionPenalty = Float32(-2) },
		"presence_penalty":   func(r *Request) { r.PresencePenalty = 101 },
		"frequency_penalty":  func(r *Request) { r.FrequencyPenalty = 102 },
		"logprobs":           func(r *Request) { r.Logprobs = Int(21) },
		"logit_bias":         func(r *Request) { r.LogitBias = map[uint32]float32{1 << 30: 1} },
		"stop token":         func(r *Request) { r.StopTokens = []uint32{1 << 30} },
		"stop_strings":       func(r *Request) { r.Stop = []string{""} },
		"MaxTokens":          func(r *Request) { r.MaxTokens = -1 },
		"MinTokens":          func(r *Request) { r.MinTokens = 1 << 40 },
		"TopK":               func(r *Request) { r.TopK = Int(-1) },
		"Temperature":        func(r *Request) { r.Temperature = Float32(-1) },
		"Prompt":             func(r *Request) { r.Prompt = nil },
	} {
		request := full
		change(&request)
		wantError(t, ask(t.Context(), engine, request).err, ErrInvalidArgument, word)
	}
}

func TestErrorsSayWhatIsWrong(t *testing.T) {
	_, err := Open(t.Context(), Options{Model: "/no/such/model"})
	wantError(t, err, ErrModelNotFound, "/no/such/model", "model not found")
	var failure *Error
	if !errors.As(err, &failure) || failure.Status.Category() != CategoryModel || failure.Status.Retryable() {
		t.Fatal(failure)
	}
	_, err = Open(t.Context(), Options{Model: "x", Device: "abacus"})
	wantError(t, err, ErrInvalidArgument, "abacus")
	_, err = Open(t.Context(), Options{Device: "echo", NumThreads: -1})
	wantError(t, err, ErrInvalidArgument, "NumThreads")

	engine := openEcho(t, Options{MaxModelLen: 64})
	wantError(t, ask(t.Context(), engine, Request{Prompt: Text("\xff")}).err, ErrInvalidUTF8)
	wantError(t, ask(t.Context(), engine, Request{Prompt: Text(strings.Repeat("x", 100))}).err, ErrPromptTooLong, "64")
	wantError(t, ask(t.Context(), engine, Request{Prompt: ChatJSON("{")}).err, ErrInvalidArgument)
	if got := Status(12345).Error(); got != "unknown status" {
		t.Fatal(got)
	}
	if !ErrBusy.Retryable() || ErrBusy.Category() != CategoryResource {
		t.Fatal("busy is a shortage that passes")
	}
}

func TestCancellingTheContextEndsTheRequest(t *testing.T) {
	engine := openEcho(t, Options{Device: "echo:2000"})
	why := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	text, err := "", error(nil)
	for chunk, e := range engine.Generate(ctx, Request{Prompt: Text(strings.Repeat("x", 3000))}) {
		text, err = text+chunk.Text, e
		if len(text) > 3 {
			cancel(why)
		}
	}
	wantError(t, err, context.Canceled)
	wantError(t, err, why)
	if len(text) > 1000 {
		t.Fatal("it went on")
	}
	waitUntilIdle(t, engine)
	wantError(t, ask(ctx, engine, Request{Prompt: Text("x")}).err, context.Canceled)
}

func TestLeavingTheLoopCancels(t *testing.T) {
	engine := openEcho(t, Options{Device: "echo:2000"})
	for chunk, err := range engine.Generate(t.Context(), Request{Prompt: Text(strings.Repeat("x", 3000))}) {
		if err != nil {
			t.Fatal(err)
		}
		if chunk.Text != "" {
			break
		}
	}
	waitUntilIdle(t, engine)
	if stats, _ := engine.Stats(); stats.NumAccepted != 1 || stats.NumOutputTokens > 1000 {
		t.Fatalf("%+v", stats)
	}
}

func TestDeadline(t *testing.T) {
	engine := openEcho(t, Options{Device: "echo:2000"})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	got := ask(ctx, engine, Request{Prompt: Text(strings.Repeat("x", 3000))})
	wantError(t, got.err, context.DeadlineExceeded)
	if took := time.Since(start); took < 40*time.Millisecond || took > 5*time.Second || got.text == "" {
		t.Fatal(took, got.text)
	}
	waitUntilIdle(t, engine)
	// The engine has a deadline of its own: a context that does not tell is ended all the same.
	silent := silentDeadline{t.Context(), time.Now().Add(30 * time.Millisecond)}
	got = ask(silent, engine, Request{Prompt: Text(strings.Repeat("x", 3000))})
	wantError(t, got.err, context.DeadlineExceeded)
	if got.result == nil || got.result.Reason != FinishDeadline || got.result.NumOutputTokens == 0 {
		t.Fatalf("%+v", got.result)
	}
}

// silentDeadline names a deadline but is never done.
type silentDeadline struct {
	context.Context
	at time.Time
}

func (c silentDeadline) Deadline() (time.Time, bool) { return c.at, true }

func TestAFullQueueIsBusy(t *testing.T) {
	engine := openEcho(t, Options{Device: "echo:5000", MaxQueuedRequests: 2})
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	for range 2 {
		waiting.Go(func() {
			wantError(t, ask(ctx, engine, Request{Prompt: Text(strings.Repeat("x", 4000))}).err, context.Canceled)
		})
	}
	waitUntil(t, "both requests are in", func() bool {
		stats, err := engine.Stats()
		return err == nil && stats.NumAccepted == 2
	})
	wantError(t, ask(t.Context(), engine, Request{Prompt: Text("x")}).err, ErrBusy, "2")
	cancel()
	waiting.Wait()
	waitUntil(t, "the poller has made room", func() bool {
		return ask(t.Context(), engine, Request{Prompt: Text("x")}).err == nil
	})
	if err := engine.Err(); err != nil {
		t.Fatal(err)
	}
}

func TestAThousandStreamsAtOnce(t *testing.T) {
	engine := openEcho(t, Options{})
	var waiting sync.WaitGroup
	var cancelled atomic.Int32
	for i := range 1000 {
		waiting.Go(func() {
			prompt := fmt.Sprintf("%d:%s", i, strings.Repeat("日本語", i%20))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%10 == 3 {
				go cancel()
			}
			got := ask(ctx, engine, Request{Prompt: Text(prompt)})
			if errors.Is(got.err, context.Canceled) && i%10 == 3 {
				cancelled.Add(1)
			} else if got.err != nil || got.text != prompt {
				t.Errorf("request %d: %q, %v", i, got.text, got.err)
			}
		})
	}
	waiting.Wait()
	waitUntilIdle(t, engine)
	stats, err := engine.Stats()
	if err != nil || stats.NumAccepted < 900 || stats.NumAccepted+uint64(cancelled.Load()) < 1000 {
		t.Fatalf("%+v %v", stats, err)
	}
}

func TestCloseIsIdempotentAndSafeWhileStreamsRun(t *testing.T) {
	engine := openEcho(t, Options{Device: "echo:2000"})
	var waiting sync.WaitGroup
	var num atomic.Int32
	for range 50 {
		waiting.Go(func() {
			got := ask(t.Context(), engine, Request{Prompt: Text(strings.Repeat("x", 4000))})
			if errors.Is(got.err, ErrClosed) {
				num.Add(1)
			}
		})
	}
	waitUntil(t, "all are in", func() bool {
		stats, err := engine.Stats()
		return err == nil && stats.NumAccepted == 50
	})
	for range 4 {
		waiting.Go(func() {
			if err := engine.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	waiting.Wait()
	if num.Load() != 50 {
		t.Fatalf("%d of 50 streams ended with ErrClosed", num.Load())
	}
	checkClosed(t, engine)
}

func checkClosed(t *testing.T, engine *Engine) {
	t.Helper()
	calls := map[string]func() error{
		"Generate":  func() error { return ask(t.Context(), engine, Request{Prompt: Text("x")}).err },
		"Err":       func() error { return engine.Err() },
		"Stats":     func() error { _, err := engine.Stats(); return err },
		"ModelInfo": func() error { _, err := engine.ModelInfo(); return err },
		"Tokenize":  func() error { _, err := engine.Tokenize("x", TokenizeOptions{}); return err },
		"Detokenize": func() error {
			_, err := engine.Detokenize([]uint32{65}, false)
			return err
		},
		"ApplyChatTemplate": func() error { _, err := engine.ApplyChatTemplate(nil); return err },
		"EOSTokens":         func() error { _, err := engine.EOSTokens(); return err },
		"Device":            func() error { _, err := engine.Device(); return err },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if err := engine.Close(); err != nil {
		t.Error(err)
	}
}

func TestTokenizing(t *testing.T) {
	engine := openEcho(t, Options{})
	tokens, err := engine.Tokenize("hé", TokenizeOptions{})
	if err != nil || !slices.Equal(tokens, []uint32{'h', 0xc3, 0xa9}) {
		t.Fatal(tokens, err)
	}
	if text, err := engine.Detokenize(tokens, false); err != nil || text != "hé" {
		t.Fatal(text, err)
	}
	if tokens, err := engine.Tokenize("", TokenizeOptions{}); err != nil || len(tokens) != 0 {
		t.Fatal(tokens, err)
	}
	_, err = engine.Detokenize([]uint32{1 << 30}, false)
	wantError(t, err, ErrInvalidArgument)
	text, err := engine.ApplyChatTemplate(Chat{{Role: "user", Content: "hi"}})
	if err != nil || !strings.Contains(text, "hi") {
		t.Fatal(text, err)
	}
	if device, err := engine.Device(); err != nil || device != "echo" {
		t.Fatal(device, err)
	}
	if eos, err := engine.EOSTokens(); err != nil || len(eos) == 0 {
		t.Fatal(eos, err)
	}
}

func TestLogLinesArrive(t *testing.T) {
	var num atomic.Int32
	var last atomic.Value
	engine := openEcho(t, Options{LogLevel: LogDebug, Log: func(level LogLevel, message string) {
		if level < LogError || level > LogDebug || message == "" {
			t.Errorf("level %d, message %q", level, message)
		}
		last.Store(message)
		num.Add(1)
	}})
	askWell(t, engine, Request{Prompt: Text("x")})
	engine.Close()
	if num.Load() == 0 {
		t.Fatal("no line came")
	}
	before := num.Load()
	askWell(t, openEcho(t, Options{}), Request{Prompt: Text("x")})
	if num.Load() != before {
		t.Fatal("a line of another engine came: ", last.Load())
	}
}

func TestLibrary(t *testing.T) {
	if Version() == "" || !HasFeature("echo") || HasFeature("teleport") || HasFeature("") {
		t.Fatal(Version())
	}
	plan, err := PlanMemory(Options{Device: "echo", MemoryLimitBytes: 1})
	if err != nil || plan.Fits || plan.TotalBytes == 0 || plan.MaxModelLen == 0 {
		t.Fatalf("%+v %v", plan, err)
	}
	_, err = PlanMemory(Options{Model: ".", Device: "cpu", Spec: "no_such_spec.json"})
	wantError(t, err, ErrModelNotFound, "no_such_spec.json")
}
