package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// program is this example, built once for all tests.
var program string

func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "generate")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(folder, "generate")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		panic(string(out))
	}
	code := m.Run()
	os.RemoveAll(folder)
	os.Exit(code)
}

func generate(t *testing.T, code int, arguments ...string) (stdout, stderr string) {
	t.Helper()
	var out, errors strings.Builder
	command := exec.Command(program, arguments...)
	command.Stdout, command.Stderr = &out, &errors
	_ = command.Run()
	if got := command.ProcessState.ExitCode(); got != code {
		t.Fatalf("exit code %d, want %d: %s%s", got, code, out.String(), errors.String())
	}
	return out.String(), errors.String()
}

func TestOnePromptIsStreamed(t *testing.T) {
	out, _ := generate(t, 0, "--device", "echo", "--prompt", "Hello there!")
	if !regexp.MustCompile(`Hello there!(?s:.*)\n\n\d+ tokens in \d\.\d\d s: the first after .* tokens/s\n$`).MatchString(out) {
		t.Fatal(out)
	}
}

func TestManyRunTogether(t *testing.T) {
	file := filepath.Join(t.TempDir(), "prompts")
	if err := os.WriteFile(file, []byte("first\n\nsecond"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := generate(t, 0, "--device", "echo", "--prompts-file", file, "--many", "5")
	if strings.Count(out, ": first\n") != 3 || strings.Count(out, ": second\n") != 2 ||
		!strings.Contains(out, "5 answers, ") {
		t.Fatal(out)
	}
}

func TestModelAnswers(t *testing.T) {
	path := os.Getenv("INFLIGHT_TEST_MODEL")
	if path == "" {
		path = "../../../.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
	}
	out, _ := generate(t, 0, path, "--prompt", "What is the capital of France?", "--temperature", "0", "--max-tokens", "20")
	if !strings.Contains(out, "Paris") {
		t.Fatal(out)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for _, test := range []struct {
		code      int
		word      string
		arguments []string
	}{
		{2, "which MODEL?", nil},
		{2, "nothing to ask", []string{"--device", "echo"}},
		{2, "many", []string{"--many", "0"}},
		{2, "temperature", []string{"--temperature", "hot"}},
		{2, "a second model", []string{"a", "b"}},
		{2, "no such file", []string{"--prompts-file", "/no/such/file"}},
		{1, "/no/such/model", []string{"/no/such/model", "--prompt", "x"}},
	} {
		if _, got := generate(t, test.code, test.arguments...); !strings.Contains(got, test.word) {
			t.Errorf("%q does not mention %q", got, test.word)
		}
	}
	if out, _ := generate(t, 0, "--help"); out != usage {
		t.Error(out)
	}
}
