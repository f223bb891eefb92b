package inflight

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A module holds only what lies in its own folder, so the header is there a second time.
func TestHeaderIsTheLibrarys(t *testing.T) {
	theirs, err := os.ReadFile("../../include/inflight.h")
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile("inflight.h")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(theirs, ours) {
		t.Fatal("bindings/go/inflight.h differs from include/inflight.h; run: go generate")
	}
}

// Numbers and layouts are the header's own, by cgo. What could still drift is what is left out.
func TestEverythingInTheHeaderIsUsed(t *testing.T) {
	header, err := os.ReadFile("inflight.h")
	if err != nil {
		t.Fatal(err)
	}
	sources := ""
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(file, "_test.go") {
			sources += string(text)
		}
	}
	names := []string{}
	for _, pattern := range []string{`(?m)^    (IFL_\w+) = `, `(?m)^\S.*\b(ifl_\w+)\(`, `(?m)^    .*\b(\w+);$`} {
		found := regexp.MustCompile(pattern).FindAllStringSubmatch(string(header), -1)
		if len(found) < 20 {
			t.Fatalf("%s finds %d names only", pattern, len(found))
		}
		for _, match := range found {
			names = append(names, match[1])
		}
	}
	for _, name := range names {
		if !unused[name] && !regexp.MustCompile(`\b`+name+`\b`).MatchString(sources) {
			t.Errorf("%s is in the header but not in the binding", name)
		}
	}
}

// unused is what the binding has no need of: the poller reads one queue without pause, and goroutines replace
// descriptors; a batch is read to its end;
// ids of requests stay inside; an event is the last or it is output.
var unused = map[string]bool{
	"ifl_queue_create": true, "ifl_queue_poll": true, "ifl_queue_fd": true, "ifl_queue_destroy": true,
	"ifl_events_count": true, "ifl_error_code": true, "queue": true, "max_unread_tokens": true, "reserved": true,
	"request_id": true, "IFL_EVENT_OUTPUT": true,
}
