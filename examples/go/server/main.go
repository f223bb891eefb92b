// Command server serves one model over HTTP with the interface of OpenAI's API, and a chat page at /.
//
//	go run ./server --model models/SmolLM2-135M-Instruct.Q4_1.gguf
//
// It listens on the loopback interface unless told otherwise. The variable INFLIGHT_API_KEY sets a key that clients
// must send as a bearer token.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	inflight "github.com/inflight-engine/inflight/bindings/go"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

// config is what the command line asks for.
type config struct {
	options   inflight.Options
	listen    string
	modelName string
	apiKey    string
	maxBody   int64
	timeout   time.Duration
	grace     time.Duration
}

func parse(arguments []string) (*config, error) {
	c := &config{}
	flags := flag.NewFlagSet("server", flag.ContinueOnError)
	flags.StringVar(&c.options.Model, "model", "", "`path` of a model directory in Hugging Face layout, or of a GGUF file")
	flags.StringVar(&c.modelName, "model-name", "", "`name` of the model for clients (default: that of the file)")
	flags.StringVar(&c.options.Device, "device", "auto", "`device`: auto, cpu, cuda, cuda:0, or echo")
	flags.IntVar(&c.options.MaxNumSequences, "max-num-sequences", 0, "sequences in one step (0: the engine's choice)")
	flags.IntVar(&c.options.MaxModelLen, "max-model-len", 0, "longest prompt plus answer in tokens (0: the model's)")
	flags.IntVar(&c.options.MaxQueuedRequests, "max-queued-requests", 0, "requests that may be in flight before clients "+
		"get 429 (0: the engine's choice)")
	flags.Uint64Var(&c.options.MemoryLimitBytes, "memory-limit-bytes", 0, "limit on weights, cache and workspace "+
		"(0: none)")
	flags.StringVar(&c.listen, "listen", "127.0.0.1:8080", "`address` to listen on; :8080 is every interface")
	flags.StringVar(&c.apiKey, "api-key", "", "`key` that clients must send (default: $INFLIGHT_API_KEY, which other "+
		"users of the machine cannot see)")
	flags.Int64Var(&c.maxBody, "max-body-bytes", 1<<20, "largest request body")
	flags.DurationVar(&c.timeout, "timeout", 0, "longest time for one request (0: none)")
	flags.DurationVar(&c.grace, "grace", 10*time.Second, "time that requests in flight get when the server is stopped")
	flags.SetOutput(io.Discard)
	err := flags.Parse(arguments)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(os.Stdout)
		flags.PrintDefaults()
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w; see --help", err)
	case flags.NArg() > 0:
		return nil, fmt.Errorf("unknown argument %s; see --help", flags.Arg(0))
	case c.options.Model == "" && !strings.HasPrefix(c.options.Device, "echo"):
		return nil, errors.New("which model? Give --model; see --help")
	}
	if c.apiKey == "" {
		c.apiKey = os.Getenv("INFLIGHT_API_KEY")
	}
	if c.modelName == "" {
		c.modelName = filepath.Base(c.options.Model)
		if c.options.Model == "" {
			c.modelName = c.options.Device
		}
	}
	return c, nil
}

func run(ctx context.Context, arguments []string) error {
	c, err := parse(arguments)
	if err != nil {
		return err
	}
	// The port comes first: that it is taken should not be told after a minute of loading.
	listener, err := net.Listen("tcp", c.listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	c.options.Log = logLine
	engine, err := inflight.Open(ctx, c.options)
	if err != nil {
		return err
	}
	defer engine.Close()
	s, err := newServer(engine, c, isLoopback(listener.Addr()))
	if err != nil {
		return err
	}
	slog.Info("listening", "url", "http://"+listener.Addr().String(), "model", c.modelName, "key", c.apiKey != "")
	return s.serve(ctx, listener, c.grace)
}

// serve answers until ctx ends; then requests in flight have the grace period to end by themselves.
func (s *server) serve(ctx context.Context, listener net.Listener, grace time.Duration) error {
	requests, cancelRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelRequests()
	web := &http.Server{
		Handler:           s.handler(),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    1 << 16,
	}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	slog.Info("stopping", "grace", grace)
	s.stopping.Store(true)
	// Requests that are still in flight after the grace period are ended, and have a moment to say so.
	timer := time.AfterFunc(grace, cancelRequests)
	defer timer.Stop()
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace+5*time.Second)
	defer cancel()
	return web.Shutdown(patience)
}

func logLine(level inflight.LogLevel, message string) {
	levels := map[inflight.LogLevel]slog.Level{
		inflight.LogError: slog.LevelError, inflight.LogWarn: slog.LevelWarn, inflight.LogInfo: slog.LevelInfo,
	}
	slog.Log(context.Background(), levels[level], message)
}

func isLoopback(address net.Addr) bool {
	tcp, ok := address.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
