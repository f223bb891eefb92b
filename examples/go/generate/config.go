package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	inflight "github.com/inflight-engine/inflight/bindings/go"
)

const usage = `usage: generate MODEL [options]

MODEL is a model directory in Hugging Face layout or a GGUF file.

  --prompt TEXT        what to ask; may be given several times
  --prompts-file FILE  ask every line of FILE as well
  --many N             ask N times together, taking the prompts in turn
  --max-tokens N       longest answer in tokens (default 256)
  --temperature T      0 for the likeliest answer (default: what the model recommends)
  --device NAME        auto (default), cpu, cuda, cuda:0, or echo, which needs no model
  --help               show this text

One prompt is streamed. Several are enqueued at once and shown as they end.
`

// config is what the command line asks for.
type config struct {
	model, device string
	prompts       []string
	numRequests   int
	maxTokens     int
	temperature   *float32
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

func exitCode(err error) int {
	if errors.As(err, new(usageError)) {
		return 2
	}
	return 1
}

// parse gives no config where only help was asked for.
func parse(arguments []string) (*config, error) {
	c := &config{maxTokens: 256}
	flags := flag.NewFlagSet("generate", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&c.device, "device", "", "")
	flags.Func("prompt", "", func(text string) error {
		c.prompts = append(c.prompts, text)
		return nil
	})
	flags.Func("prompts-file", "", c.readPrompts)
	flags.Func("many", "", func(text string) error { return parseCount(text, &c.numRequests) })
	flags.Func("max-tokens", "", func(text string) error { return parseCount(text, &c.maxTokens) })
	flags.Func("temperature", "", c.parseTemperature)
	for len(arguments) > 0 {
		err := flags.Parse(arguments)
		if errors.Is(err, flag.ErrHelp) {
			fmt.Print(usage)
			return nil, nil
		}
		if err != nil {
			return nil, usageError{fmt.Errorf("%w\nTry generate --help", err)}
		}
		arguments = flags.Args()
		if len(arguments) == 0 {
			break
		}
		if c.model != "" {
			return nil, usageError{fmt.Errorf("a second model: %s\nTry generate --help", arguments[0])}
		}
		c.model, arguments = arguments[0], arguments[1:]
	}
	return c, c.check()
}

func (c *config) check() error {
	if c.model == "" && !strings.HasPrefix(c.device, "echo") {
		return usageError{errors.New("which MODEL?\nTry generate --help")}
	}
	if len(c.prompts) == 0 {
		return usageError{errors.New("nothing to ask; give --prompt or --prompts-file\nTry generate --help")}
	}
	if c.numRequests == 0 {
		c.numRequests = len(c.prompts)
	}
	return nil
}

func parseCount(text string, to *int) error {
	number, err := strconv.Atoi(text)
	if err != nil || number < 1 || number > 1000000 {
		return errors.New("not a number from 1 to 1000000")
	}
	*to = number
	return nil
}

func (c *config) parseTemperature(text string) error {
	number, err := strconv.ParseFloat(text, 32)
	if err != nil || math.IsNaN(number) || number < 0 || number > 100 {
		return errors.New("not a number from 0 to 100")
	}
	c.temperature = inflight.Float32(float32(number))
	return nil
}

func (c *config) readPrompts(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		if lines.Text() != "" {
			c.prompts = append(c.prompts, lines.Text())
		}
	}
	return lines.Err()
}

// request gives the one of this number; the prompts are taken in turn.
func (c *config) request(info inflight.ModelInfo, number int) inflight.Request {
	prompt := c.prompts[number%len(c.prompts)]
	request := inflight.Request{MaxTokens: c.maxTokens, Temperature: c.temperature, Prompt: inflight.Text(prompt)}
	if info.HasChatTemplate {
		request.Prompt = inflight.User(prompt)
	}
	return request
}
