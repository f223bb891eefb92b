"""Between Python's values and the structs of inflight.h."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import operator
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_float, c_int32, c_uint32, c_uint64, c_void_p
from typing import Any, TypeVar

from . import _abi
from ._abi import EventKind, FinishReason, PromptKind
from ._library import call, library, make_exception, text_at
from .types import Chunk, Finish, Logprob, Messages, Prompt, RequestOptions

T = TypeVar("T")

_NUMBERS = {
    "max_tokens": "max_tokens",
    "min_tokens": "min_tokens",
    "priority": "priority",
    "top_k": "top_k",
    "logprobs": "num_logprobs",
    "seed": "seed",
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "add_special_tokens": "add_special_tokens",
    "parse_special_tokens": "parse_special_tokens",
    "ignore_eos": "ignore_eos",
}
"""Options that are one number, and their fields."""

_OTHERS = {"timeout", "stop", "stop_tokens", "logit_bias"}

_LEFT_OUT: dict[str, int] = {
    "temperature": _abi.MODEL_DEFAULT,
    "top_k": _abi.MODEL_DEFAULT,
    "top_p": _abi.MODEL_DEFAULT,
    "repetition_penalty": _abi.MODEL_DEFAULT,
    "logprobs": -1,
    "seed": _abi.RANDOM_SEED,
}
"""Values by which the library knows that an option was left out: nobody can ask for them."""

_LIMITS: dict[Any, tuple[int, int]] = {
    c_uint32: (0, 2**32 - 1),
    c_int32: (-(2**31), 2**31 - 1),
    c_uint64: (0, 2**64 - 1),
}


def set_number(struct: ctypes.Structure, field: str, value: Any, option: str | None = None) -> None:
    """Sets a field, which ctypes alone would cut silently where the value does not fit."""
    option = option or field
    kind = next(kind for name, kind, *_ in struct._fields_ if name == field)
    if kind is c_float:
        number: float = float(value)
    else:
        number = whole(value, option)
        low, high = _LIMITS[kind]
        if not low <= number <= high:
            raise ValueError(f"{option} must be from {low} to {high}, not {value}")
    setattr(struct, field, number)


def whole(value: Any, what: str) -> int:
    """A whole number, also of another package's type."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be a whole number, not {value!r}") from None


def token_array(tokens: Sequence[int], what: str) -> ctypes.Array[c_uint32]:
    """Token ids for the library."""
    ids = [whole(token, what) for token in tokens]
    for token in ids:
        if not 0 <= token < 2**32:
            raise ValueError(f"{what}: a token id is from 0 to {2**32 - 1}, not {token}")
    return (c_uint32 * len(ids))(*ids)


def encode(text: str) -> bytes:
    """UTF-8; lone surrogates are passed on, for the library to refuse."""
    return text.encode("utf-8", "surrogatepass")


class RequestArguments:
    """A request in C, and what its pointers point to."""

    def __init__(self, kind: PromptKind, prompt: Prompt | bytes, options: RequestOptions | Mapping[str, Any]) -> None:
        self.c = _abi.Request()
        call(library().ifl_request_init, byref(self.c), ctypes.sizeof(self.c))
        self.c.prompt_kind = kind
        if isinstance(prompt, str):
            prompt = encode(prompt)
        if isinstance(prompt, bytes):
            self.c.prompt = prompt
            self.c.prompt_len = len(prompt)
        else:
            self.c.prompt_tokens = token_array(prompt, "the prompt")
            self.c.num_prompt_tokens = len(prompt)
        for option, value in options.items():
            if option in _NUMBERS:
                self._set_option(option, value)
            elif option in _OTHERS:
                getattr(self, f"_set_{option}")(value)
            else:
                known = ", ".join(sorted([*_NUMBERS, *_OTHERS]))
                raise TypeError(f"there is no option {option!r}; there are {known}")

    def _set_option(self, option: str, value: Any) -> None:
        set_number(self.c, _NUMBERS[option], value, option)
        if getattr(self.c, _NUMBERS[option]) == _LEFT_OUT.get(option):
            raise ValueError(f"{option} cannot be {value}; leave it out for the default")

    def _set_timeout(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"timeout must be above 0 seconds, not {seconds}; leave it out to wait without end")
        # 0 would stand for no deadline at all.
        if not math.isinf(seconds):
            set_number(self.c, "timeout_ms", math.ceil(seconds * 1000), "timeout")

    def _set_stop(self, stop: str | Sequence[str]) -> None:
        texts = [encode(text) for text in ([stop] if isinstance(stop, str) else stop)]
        self.c.stop_strings = (c_char_p * len(texts))(*texts)
        self.c.stop_string_lens = (c_uint64 * len(texts))(*map(len, texts))
        self.c.num_stop_strings = len(texts)

    def _set_stop_tokens(self, tokens: Sequence[int]) -> None:
        self.c.stop_tokens = token_array(tokens, "stop_tokens")
        self.c.num_stop_tokens = len(tokens)

    def _set_logit_bias(self, biases: Mapping[int, float]) -> None:
        self.c.logit_bias_tokens = token_array(list(biases), "logit_bias")
        self.c.logit_bias_values = (c_float * len(biases))(*biases.values())
        self.c.num_logit_biases = len(biases)


def text_request(prompt: Prompt, options: RequestOptions) -> RequestArguments:
    """A request that continues a text or token ids."""
    return RequestArguments(PromptKind.TEXT if isinstance(prompt, str) else PromptKind.TOKENS, prompt, options)


def chat_request(messages: Messages, options: RequestOptions) -> RequestArguments:
    """A request that the model's chat template is put around."""
    if isinstance(messages, str):
        return RequestArguments(PromptKind.USER, messages, options)
    return RequestArguments(PromptKind.CHAT, encode_messages(messages), options)


def encode_messages(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """Chat messages as the library reads them."""
    return encode(json.dumps([dict(message) for message in messages], ensure_ascii=False))


def poll(function: Any, handle: c_void_p, timeout_ms: int, kept: list[Chunk]) -> list[Chunk]:
    """Takes the events that wait; the library's memory is given back before this returns.

    An exception of a signal handler is raised where a call returns, and the events have left the library's queue by
    then: they are added to `kept`.
    """
    library_ = library()
    events = c_void_p()
    chunks: list[Chunk] = []
    try:
        try:
            call(function, handle, timeout_ms, byref(events))
            chunks = _make_chunks(events)
        except BaseException:
            chunks = _make_chunks(events)
            raise
        finally:
            library_.ifl_events_free(events)
    except BaseException:
        kept += chunks
        raise
    return chunks


def _make_chunks(events: c_void_p) -> list[Chunk]:
    library_ = library()
    num_events = library_.ifl_events_count(events)
    return [_make_chunk(library_.ifl_events_get(events, index).contents) for index in range(num_events)]


def _make_chunk(event: _abi.Event) -> Chunk:
    finish = _make_finish(event) if event.kind == EventKind.FINISHED else None
    tokens = event.token_ids[: event.num_tokens] if event.num_tokens else []
    text = text_at(event.text, event.text_len)
    return Chunk(event.request_id, event.user_data, text, tokens, _make_logprobs(event), finish)


def _make_logprobs(event: _abi.Event) -> list[list[Logprob]] | None:
    if not event.num_logprobs:
        return None
    rows = []
    for start in range(0, event.num_tokens * event.num_logprobs, event.num_logprobs):
        row = range(start, start + event.num_logprobs)
        pairs = [(event.logprob_tokens[index], event.logprobs[index]) for index in row]
        rows.append([Logprob(token, logprob) for token, logprob in pairs if token != _abi.NO_TOKEN])
    return rows


def _make_finish(event: _abi.Event) -> Finish:
    message = text_at(event.message, event.message_len)
    return Finish(
        reason=FinishReason(event.finish_reason),
        error=make_exception(event.status, message) if event.status else None,
        num_prompt_tokens=event.num_prompt_tokens,
        num_output_tokens=event.num_output_tokens,
        queued=event.queued_us / 1e6,
        first_token=event.first_token_us / 1e6,
        total=event.total_us / 1e6,
    )


def fill(kind: type[T], struct: ctypes.Structure, function: Any, *arguments: Any) -> T:
    """Calls a function that fills a struct, as a dataclass with the same names."""
    struct.struct_size = ctypes.sizeof(struct)
    call(function, *arguments, byref(struct))
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = getattr(struct, field.name)
        values[field.name] = bool(value) if field.type == "bool" else value
    return kind(**values)
