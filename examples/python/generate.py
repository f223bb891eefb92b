#!/usr/bin/env python3
"""Asks a model: streams one answer to the terminal, or runs many prompts together and shows each answer as it ends.

    PYTHONPATH=bindings/python/src INFLIGHT_LIBRARY=target/release/libinflight.so python3 examples/python/generate.py
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import NoReturn

import inflight

USAGE = """\
usage: generate MODEL [options]

MODEL is a model directory in Hugging Face layout or a GGUF file.

  --prompt TEXT        what to ask; may be given several times
  --prompts-file FILE  ask every line of FILE as well
  --many N             ask N times together, taking the prompts in turn
  --max-tokens N       longest answer in tokens (default 256)
  --temperature T      0 for the likeliest answer (default: what the model recommends)
  --device NAME        auto (default), cpu, cuda, cuda:0, or echo, which needs no model
  --help               show this text

One prompt is streamed. Several are enqueued at once and shown as they end.
"""


@dataclasses.dataclass
class Config:
    """What the command line asks for."""

    model: str | None = None
    device: str = ""
    prompts: list[str] = dataclasses.field(default_factory=list)
    num_requests: int = 0
    options: inflight.RequestOptions = dataclasses.field(
        default_factory=lambda: inflight.RequestOptions(max_tokens=256)
    )


def fail(what: str, why: object) -> NoReturn:
    sys.stdout.flush()
    print(f"generate: {what}: {why}", file=sys.stderr)
    sys.exit(1)


def fail_usage(what: str) -> NoReturn:
    print(f"generate: {what}\nTry generate --help.", file=sys.stderr)
    sys.exit(2)


def read_prompts(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return [line for line in file.read().split("\n") if line]
    except OSError as error:
        fail(path, error.strerror)


def parse_count(option: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and 0 < int(value) <= 1000000):
        fail_usage(f"not a number from 1 to 1000000: {option}")
    return int(value)


def parse_temperature(option: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        fail_usage(f"not a number from 0 to 100: {option}")
    return number


def parse_option(to: Config, option: str, value: str) -> None:
    if option == "--prompt":
        to.prompts.append(value)
    elif option == "--prompts-file":
        to.prompts += read_prompts(value)
    elif option == "--many":
        to.num_requests = parse_count(option, value)
    elif option == "--max-tokens":
        to.options["max_tokens"] = parse_count(option, value)
    elif option == "--temperature":
        to.options["temperature"] = parse_temperature(option, value)
    elif option == "--device":
        to.device = value
    else:
        fail_usage(f"unknown option {option}")


def parse(arguments: list[str]) -> Config:
    parsed = Config()
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--help", "-h"):
            print(USAGE, end="")
            sys.exit(0)
        if argument.startswith("--"):
            value = next(rest, None)
            if value is None:
                fail_usage(f"a value is missing after {argument}")
            parse_option(parsed, argument, value)
        elif parsed.model is not None:
            fail_usage(f"a second model: {argument}")
        else:
            parsed.model = argument
    if parsed.model is None and not parsed.device.startswith("echo"):
        fail_usage("which MODEL?")
    if not parsed.prompts:
        fail_usage("nothing to ask; give --prompt or --prompts-file")
    parsed.num_requests = parsed.num_requests or len(parsed.prompts)
    return parsed


def stream_one(engine: inflight.Engine, config: Config) -> None:
    ask = engine.chat if engine.model_info.has_chat_template else engine.generate
    answer = ask(config.prompts[0], **config.options)
    for chunk in answer:
        print(chunk.text, end="", flush=True)
    print()
    end = answer.finish
    assert end is not None
    speed = ""
    if end.num_output_tokens > 1:
        rate = (end.num_output_tokens - 1) / (end.total - end.first_token)
        speed = f": the first after {end.first_token:.2f} s, then {rate:.1f} tokens/s"
    print(f"\n{end.num_output_tokens} tokens in {end.total:.2f} s{speed}")


class Crowd:
    """Many requests that run together."""

    def __init__(self, engine: inflight.Engine, config: Config) -> None:
        self.engine = engine
        self.config = config
        self.texts = [""] * config.num_requests
        self.num_ended = self.num_failed = self.num_tokens = 0

    def prompt(self, number: int) -> str:
        return self.config.prompts[number % len(self.config.prompts)]

    def enqueue_all(self) -> None:
        has_template = self.engine.model_info.has_chat_template
        enqueue = self.engine.enqueue_chat if has_template else self.engine.enqueue
        number = 0
        while number < self.config.num_requests:
            try:
                enqueue(self.prompt(number), user_data=number, **self.config.options)
                number += 1
            except inflight.BusyError:  # The bounded queue is full: make room, then try again.
                self.take_events()

    def take_events(self) -> None:
        for chunk in self.engine.poll():
            self.texts[chunk.user_data] += chunk.text
            if chunk.finish is not None:
                self.show(chunk.user_data, chunk.finish)

    def show(self, number: int, end: inflight.Finish) -> None:
        self.num_ended += 1
        self.num_tokens += end.num_output_tokens
        print(f"--- prompt {number + 1}, {end.num_output_tokens} tokens in {end.total:.2f} s: {self.prompt(number)}")
        if end.error is not None:
            self.num_failed += 1
            print(f"(failed: {end.error})\n", flush=True)
        else:
            print(f"{self.texts[number] or '(no text)'}\n", flush=True)

    def run(self) -> bool:
        start = time.monotonic()
        self.enqueue_all()
        print(f"{self.config.num_requests - self.num_ended} prompts are in flight together.\n")
        while self.num_ended < self.config.num_requests:
            self.take_events()
        elapsed = time.monotonic() - start
        rate = self.num_tokens / elapsed
        print(f"{self.num_ended} answers, {self.num_tokens} tokens in {elapsed:.2f} s: {rate:.1f} tokens/s together")
        return self.num_failed == 0


def main() -> int:
    config = parse(sys.argv[1:])
    try:
        engine = inflight.Engine(config.model or "", device=config.device)
    except inflight.InflightError as error:
        fail("the model cannot be loaded", error)
    with engine:
        try:
            if config.num_requests > 1:
                return 0 if Crowd(engine, config).run() else 1
            stream_one(engine, config)
        except inflight.InflightError as error:
            fail("the request failed", error)
    return 0


if __name__ == "__main__":
    # Arguments that are not UTF-8 are for the library to refuse.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(main())
