// Command generate asks a model: it streams one answer to the terminal, or runs many prompts together and shows
// each answer as it ends.
//
//	go run ./generate MODEL --prompt "Why is the sky blue?"
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	inflight "github.com/inflight-engine/inflight/bindings/go"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(exitCode(err))
	}
}

func run(ctx context.Context, arguments []string) error {
	config, err := parse(arguments)
	if err != nil || config == nil {
		return err
	}
	engine, err := inflight.Open(ctx, inflight.Options{Model: config.model, Device: config.device})
	if err != nil {
		return err
	}
	defer engine.Close()
	info, err := engine.ModelInfo()
	if err != nil {
		return err
	}
	if config.numRequests == 1 {
		return streamOne(ctx, engine, config.request(info, 0))
	}
	return runMany(ctx, engine, config, info)
}

// streamOne shows an answer as it comes.
func streamOne(ctx context.Context, engine *inflight.Engine, request inflight.Request) error {
	for chunk, err := range engine.Generate(ctx, request) {
		fmt.Print(chunk.Text)
		if err != nil {
			return err
		}
		showResult(chunk.Result)
	}
	return nil
}

// showResult tells the speed, once there is a result.
func showResult(result *inflight.Result) {
	if result == nil {
		return
	}
	fmt.Printf("\n\n%d tokens in %.2f s", result.NumOutputTokens, result.Total.Seconds())
	if result.NumOutputTokens > 1 {
		fmt.Printf(": the first after %.2f s, then %.1f tokens/s", result.FirstToken.Seconds(),
			float64(result.NumOutputTokens-1)/(result.Total-result.FirstToken).Seconds())
	}
	fmt.Println()
}

// answer is one request's whole output.
type answer struct {
	number int
	text   string
	result inflight.Result
	err    error
}

// runMany has all requests in flight together and shows each answer as it ends.
func runMany(ctx context.Context, engine *inflight.Engine, config *config, info inflight.ModelInfo) error {
	answers := make(chan answer)
	start := time.Now()
	var asking sync.WaitGroup
	for number := range config.numRequests {
		asking.Go(func() { answers <- collect(ctx, engine, config.request(info, number), number) })
	}
	fmt.Printf("%d prompts are in flight together.\n\n", config.numRequests)
	numTokens, numFailed := 0, 0
	for range config.numRequests {
		got := <-answers
		numTokens += got.result.NumOutputTokens
		if got.err != nil {
			numFailed++
		}
		config.showAnswer(got)
	}
	asking.Wait()
	elapsed := time.Since(start).Seconds()
	fmt.Printf("%d answers, %d tokens in %.2f s: %.1f tokens/s together\n", config.numRequests, numTokens, elapsed,
		float64(numTokens)/elapsed)
	if numFailed > 0 {
		return fmt.Errorf("%d requests failed", numFailed)
	}
	return nil
}

// collect takes an answer to its end, and tries again while the bounded queue is full.
func collect(ctx context.Context, engine *inflight.Engine, request inflight.Request, number int) answer {
	for {
		got := answer{number: number}
		for chunk, err := range engine.Generate(ctx, request) {
			got.text += chunk.Text
			got.err = err
			if chunk.Result != nil {
				got.result = *chunk.Result
			}
		}
		if !errors.Is(got.err, inflight.ErrBusy) {
			return got
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *config) showAnswer(got answer) {
	fmt.Printf("--- prompt %d, %d tokens in %.2f s: %s\n", got.number+1, got.result.NumOutputTokens,
		got.result.Total.Seconds(), c.prompts[got.number%len(c.prompts)])
	switch {
	case got.err != nil:
		fmt.Printf("(failed: %v)\n\n", got.err)
	case got.text == "":
		fmt.Print("(no text)\n\n")
	default:
		fmt.Printf("%s\n\n", got.text)
	}
}
