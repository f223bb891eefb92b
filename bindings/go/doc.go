// Package inflight runs large language models inside the process: it is a thin layer over the C library
// libinflight, whose engine batches all requests in flight on threads of its own.
//
// Open an [Engine], then range over [Engine.Generate]:
//
//	engine, err := inflight.Open(ctx, inflight.Options{Model: "models/SmolLM2-135M-Instruct.Q4_1.gguf"})
//	if err != nil {
//		return err
//	}
//	defer engine.Close()
//	for chunk, err := range engine.Generate(ctx, inflight.Request{Prompt: inflight.User("Hello")}) {
//		if err != nil {
//			return err
//		}
//		fmt.Print(chunk.Text)
//	}
//
// # Contexts
//
// The context of [Engine.Generate] is the request's: ending it ends the request, and its deadline is the
// engine's as well, so that a request whose time is over takes no place in the batch. A loop that is left early
// cancels its request.
//
// # Errors
//
// A failure is an [*Error] with a [Status] and a message that names what is wrong. The constants such as
// [ErrBusy] are statuses to be used with errors.Is; errors.As gives the message. Requests that their context
// ends give [context.Canceled] or [context.DeadlineExceeded].
//
// # Goroutines
//
// Everything may be called by any number of goroutines at once. Each engine has one goroutine of its own, which
// takes the events of all requests from the library and hands each to its loop.
//
// # Finding the library
//
// By default programs are linked with the shared library in target/release of the repository that this package
// lies in. For a library that is installed elsewhere, name its folder:
//
//	CGO_LDFLAGS="-L/opt/inflight/lib -Wl,-rpath,/opt/inflight/lib" go build
//
// With the tag inflight_static the library becomes part of the program, which then needs no other file:
//
//	go build -tags inflight_static
//
// # Tests without a model
//
// The device "echo" needs no model and answers with the prompt, one token for each byte.
package inflight

//go:generate cp ../../include/inflight.h inflight.h
