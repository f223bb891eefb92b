//go:build browser

package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	inflight "github.com/inflight-engine/inflight/bindings/go"
)

// browser is a headless Chromium, driven by the WebDriver protocol of chromedriver.
type browser struct {
	*testing.T
	session string // URL
}

func openBrowser(t *testing.T) *browser {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	driver := exec.Command("chromedriver", fmt.Sprintf("--port=%d", port))
	if err := driver.Start(); err != nil {
		t.Fatalf("%v; install it with scripts/setup.sh --bindings server", err)
	}
	t.Cleanup(func() { _ = driver.Process.Kill(); _ = driver.Wait() })
	b := &browser{T: t, session: fmt.Sprintf("http://127.0.0.1:%d", port)}
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if response, err := http.Get(b.session + "/status"); err == nil {
			response.Body.Close()
			break
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatal("chromedriver does not answer")
		}
	}
	arguments := []string{"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--window-size=900,700", "--user-data-dir=" + t.TempDir()}
	created := b.command("POST", "/session", map[string]any{"capabilities": map[string]any{
		"alwaysMatch": map[string]any{"goog:chromeOptions": map[string]any{"args": arguments},
			"goog:loggingPrefs": map[string]string{"browser": "ALL"}}}})
	b.session += "/session/" + created.(map[string]any)["sessionId"].(string)
	t.Cleanup(func() { b.command("DELETE", "", nil) })
	return b
}

// command sends one command of the protocol and gives its value.
func (b *browser) command(method, path string, body any) any {
	b.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		b.Fatal(err)
	}
	if method != "POST" {
		data = nil
	}
	// Not the test's own context, which has ended when the browser is closed.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, b.session+path, bytes.NewReader(data))
	if err != nil {
		b.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		b.Fatal(err)
	}
	defer response.Body.Close()
	var reply struct{ Value any }
	if err := json.NewDecoder(response.Body).Decode(&reply); err != nil || response.StatusCode != 200 {
		b.Fatalf("%s %s: %v %v", method, path, reply.Value, err)
	}
	return reply.Value
}

func (b *browser) run(script string) any {
	b.Helper()
	return b.command("POST", "/execute/sync", map[string]any{"script": script, "args": []any{}})
}

// element finds what a selector names, as a person could: it is then clicked or typed into.
func (b *browser) element(selector string) string {
	b.Helper()
	found := b.command("POST", "/element", map[string]string{"using": "css selector", "value": selector})
	for _, id := range found.(map[string]any) {
		return "/element/" + id.(string)
	}
	b.Fatal("no " + selector)
	return ""
}

func (b *browser) click(selector string) {
	b.Helper()
	b.command("POST", b.element(selector)+"/click", map[string]any{})
}

func (b *browser) typeInto(selector, text string) {
	b.Helper()
	b.command("POST", b.element(selector)+"/value", map[string]any{"text": text})
}

func (b *browser) text(selector string) string {
	b.Helper()
	return b.run(`return [...document.querySelectorAll("` + selector + `")].map((e) => e.textContent).join("|")`).(string)
}

func (b *browser) waitUntil(what string, done func() bool) {
	b.Helper()
	for begin := time.Now(); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			b.Fatalf("waited too long until %s: %s", what, b.text("#log"))
		}
	}
}

// picture stores what the page looks like, where INFLIGHT_SCREENSHOTS names a folder.
func (b *browser) picture(name string) {
	b.Helper()
	folder := os.Getenv("INFLIGHT_SCREENSHOTS")
	if folder == "" {
		return
	}
	data, err := base64.StdEncoding.DecodeString(b.command("GET", "/screenshot", nil).(string))
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, name+".png"), data, 0o600); err != nil {
		b.Fatal(err)
	}
}

// checkConsole fails where the page has logged an error, such as one against its own policy.
func (b *browser) checkConsole() {
	b.Helper()
	for _, entry := range b.command("POST", "/se/log", map[string]string{"type": "browser"}).([]any) {
		line := entry.(map[string]any)
		if message := line["message"].(string); line["level"] == "SEVERE" && !strings.Contains(message, "favicon") {
			b.Error(message)
		}
	}
}

func TestChatInABrowser(t *testing.T) {
	s := start(t, func(c *config) { c.options.Device = "echo:20000" })
	b := openBrowser(t)
	b.command("POST", "/url", map[string]string{"url": s.url})
	b.waitUntil("the model is named", func() bool { return b.text("#model") == "parrot" })

	question := "Say <b>this</b> again: " + strings.Repeat("la ", 60)
	b.typeInto("#text", question)
	b.click("#send")
	b.waitUntil("text arrives", func() bool { return len(b.text(".assistant")) > 5 })
	before := len(b.text(".assistant"))
	b.waitUntil("more text arrives", func() bool { return len(b.text(".assistant")) > before+5 })
	if speed := b.text("#speed"); !strings.Contains(speed, "tokens/s") {
		t.Error(speed)
	}
	b.picture("streaming")
	b.click("#stop")
	s.waitUntil("the request has ended", func(stats inflight.Stats) bool { return stats.NumFinished == 1 })
	stopped := b.text(".assistant")
	if len(stopped) > 180 {
		t.Errorf("it was not stopped: %q", stopped)
	}
	b.waitUntil("the page is ready again", func() bool {
		return b.run(`return document.getElementById("stop").hidden`).(bool)
	})

	b.typeInto("#text", "hi\uE007") // The Enter key.
	b.waitUntil("an answer ends by itself", func() bool {
		stats, err := s.engine.Stats()
		return err == nil && stats.NumFinished == 2
	})
	b.waitUntil("the whole conversation was sent", func() bool {
		_, answer, _ := strings.Cut(b.text(".assistant"), "|")
		return strings.Contains(answer, stopped) && strings.Contains(answer, "hi")
	})
	b.picture("done")
	b.click("#clear")
	if left := b.text(".message"); left != "" {
		t.Error(left)
	}
	b.checkConsole()
}

func TestThePageAsksForTheKey(t *testing.T) {
	s := start(t, func(c *config) { c.apiKey = "sesame" })
	b := openBrowser(t)
	b.command("POST", "/url", map[string]string{"url": s.url})
	b.waitUntil("it says so", func() bool { return strings.Contains(b.text(".error"), "API key") })
	b.typeInto("#key", "sesame\t")
	b.waitUntil("the model is named", func() bool { return b.text("#model") == "parrot" })
	b.typeInto("#text", "knock knock")
	b.click("#send")
	b.waitUntil("an answer comes", func() bool { return strings.Contains(b.text(".assistant"), "knock knock") })
}
