"""What requests are made of, and what comes back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Union

from ._abi import Dtype, FinishReason, LogLevel

if TYPE_CHECKING:
    from .errors import InflightError

Message = Mapping[str, Any]
"""A chat message, such as {"role": "user", "content": "Hello"}."""

Prompt = Union[str, Sequence[int]]
"""Text to continue, or token ids."""

Messages = Union[str, Sequence[Message]]
"""What a user says, or the messages of a chat."""


class EngineLimits(TypedDict, total=False):
    """Sizes of an engine; 0 means "choose for me"."""

    max_num_sequences: int
    """Sequences that can be in one step."""
    max_batched_tokens: int
    """Tokens that one step runs at most, over all sequences."""
    max_model_len: int
    """Longest prompt plus output of one request in tokens. A KV cache of fewer tokens lowers it: MemoryPlan and
    ModelInfo tell what it has become."""
    kv_block_size: int
    """Tokens in a block of the KV cache, a multiple of 16."""
    kv_cache_bytes: int
    """Bytes for the KV cache, per device. By default enough for max_num_sequences full contexts, but at most a quarter
    of the memory that the host has available, or what weights and workspace leave of nine tenths of a CUDA device's
    free memory; memory_limit_bytes lowers that further."""
    memory_limit_bytes: int
    """Hard limit in bytes on weights, KV cache and workspace together, per device; inflight.h says what is not
    counted."""
    num_threads: int
    """Compute threads of the CPU backend."""
    max_queued_requests: int
    """Requests that can be accepted and not yet read to their ends; one more raises BusyError."""
    max_unread_tokens: int
    """Tokens of one request that may wait to be read before that request is paused."""


class EngineOptions(EngineLimits, total=False):
    """All options of an engine but the model."""

    spec: str | os.PathLike[str]
    """A model_spec.json under any name, in place of what the model says of its architecture."""
    device: str
    """ "auto" (the default), "cpu", "cuda", "cuda:0", "cuda:0,1" (more than one: not supported yet), or "echo", which
    answers with the prompt."""
    dtype: Dtype
    """Type to keep weights and KV cache in; by default bfloat16. F32 is of the CPU alone."""
    log: Callable[[LogLevel, str], object] | None
    """Gets a level and a line, on threads of the engine."""
    log_level: LogLevel
    """Most detailed level to pass to log."""
    progress: Callable[[int, int], bool | None] | None
    """Gets the bytes of weights that are loaded and those in all; aborts by returning False or raising. Runs on another
    thread than the main one."""


class RequestOptions(TypedDict, total=False):
    """Options of one request. What is left out gets the default of inflight.h."""

    add_special_tokens: bool
    """The tokenizer adds what the model expects around a text; True by default."""
    parse_special_tokens: bool
    """The text may spell special tokens; not for untrusted text."""
    max_tokens: int
    """Most tokens to produce; by default until the context is full."""
    min_tokens: int
    """Tokens before which only max_tokens, cancellation and errors end the output."""
    ignore_eos: bool
    """Do not stop at the model's end-of-sequence tokens."""
    priority: int
    """Higher runs first."""
    timeout: float
    """Seconds after which the request ends with FinishReason.DEADLINE."""
    stop: str | Sequence[str]
    """Strings that end the output; the text ends before the match."""
    stop_tokens: Sequence[int]
    """Tokens that end the output, besides the model's own."""
    temperature: float
    """0 to 100; 0 always takes the likeliest token. By default what generation_config.json recommends where it says
    do_sample, else 0; 0 for every GGUF file."""
    top_k: int
    """Samples among the top_k likeliest tokens only; 0: off."""
    top_p: float
    """Samples among the likeliest tokens that together reach this probability only, in (0, 1]."""
    min_p: float
    """Drops tokens less likely than min_p times the likeliest."""
    repetition_penalty: float
    """Divides positive and multiplies negative logits of tokens that have occurred."""
    presence_penalty: float
    """Subtracted from the logits of tokens in the output so far."""
    frequency_penalty: float
    """Subtracted from the logits of tokens once for each time they are in the output so far."""
    logprobs: int
    """Alternatives to report with the log-probability of each token, 0 to 20."""
    seed: int
    """The same seed, model and device give the same tokens, on a CUDA device where the same requests run beside it."""
    logit_bias: Mapping[int, float]
    """Numbers to add to the logits of tokens."""


@dataclasses.dataclass(frozen=True)
class Logprob:
    """A token and the natural logarithm of its probability under the model."""

    token: int
    logprob: float


@dataclasses.dataclass(frozen=True)
class Finish:
    """How a request ended. Times are in seconds from the moment that it was handed in."""

    reason: FinishReason
    error: InflightError | None
    num_prompt_tokens: int
    num_output_tokens: int
    queued: float
    """Time to the first step that ran the request; 0 where none did."""
    first_token: float
    """Time to the first token; 0 where there was none."""
    total: float


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A piece of output, or the end of a request."""

    request_id: int
    user_data: int
    text: str
    """Whole code points. The pieces of one request in a row are the whole text."""
    tokens: list[int]
    logprobs: list[list[Logprob]] | None
    """For each of tokens the token itself and then the likeliest ones; None where none were asked for."""
    finish: Finish | None
    """How the request ended; None in a piece of output. Answers that are iterated over keep it for themselves."""


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes that an engine reserves, per device."""

    fits: bool
    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    total_bytes: int
    available_bytes: int
    """Bytes that are free now; 0 where unknown."""
    num_kv_blocks: int
    kv_block_size: int
    max_model_len: int


@dataclasses.dataclass(frozen=True)
class Stats:
    """Counters since the engine was created, and gauges of the moment."""

    num_steps: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_accepted: int
    num_finished: int
    num_preemptions: int
    num_waiting: int
    num_running: int
    num_paused: int
    num_kv_blocks_used: int
    num_kv_blocks_free: int
    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a loaded model is."""

    vocab_size: int
    max_model_len: int
    has_chat_template: bool
