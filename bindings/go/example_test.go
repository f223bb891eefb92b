package inflight_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	inflight "github.com/inflight-engine/inflight/bindings/go"
)

// Streams an answer. The device "echo" stands for a model; name one with Options.Model.
func Example() {
	ctx := context.Background()
	engine, err := inflight.Open(ctx, inflight.Options{Device: "echo"})
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	for chunk, err := range engine.Generate(ctx, inflight.Request{Prompt: inflight.Text("Hello!")}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(chunk.Text)
	}
	// Output: Hello!
}

// The last chunk says how the request has ended.
func ExampleEngine_Generate() {
	ctx := context.Background()
	engine, err := inflight.Open(ctx, inflight.Options{Device: "echo"})
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	request := inflight.Request{
		Prompt:      inflight.Text("one two three"),
		Stop:        []string{" three"},
		MaxTokens:   100,
		Temperature: inflight.Float32(0),
	}
	for chunk, err := range engine.Generate(ctx, request) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(chunk.Text)
		if chunk.Result != nil {
			fmt.Printf(" (%v, %d tokens in)", chunk.Result.Reason, chunk.Result.NumPromptTokens)
		}
	}
	// Output: one two (stop, 13 tokens in)
}

// Errors are found with errors.Is, and errors.As has the message.
func ExampleError() {
	_, err := inflight.Open(context.Background(), inflight.Options{Model: "/no/such/model"})
	var failure *inflight.Error
	if errors.Is(err, inflight.ErrModelNotFound) && errors.As(err, &failure) {
		fmt.Println(failure.Status, failure.Status.Retryable())
	}
	// Output: model not found false
}
