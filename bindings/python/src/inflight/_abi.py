"""inflight.h for ctypes: the same names, layouts, numbers and functions. tests/python compares them."""

from __future__ import annotations

import ctypes
import enum
from ctypes import POINTER, c_char_p, c_float, c_int32, c_uint32, c_uint64, c_void_p
from typing import Any

VERSION = 100
"""IFL_VERSION of the header that this file was written from."""
NUL_TERMINATED = 2**64 - 1
MODEL_DEFAULT = -1
RANDOM_SEED = 2**64 - 1
NO_TOKEN = 2**32 - 1


class OpenEnum(enum.IntEnum):
    """Numbers that a newer library may add to: one that is not listed becomes a member that is called so."""

    @classmethod
    def _missing_(cls, value: object) -> OpenEnum | None:
        if not isinstance(value, int):
            return None
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_{value}"
        member._value_ = value
        return member


class Status(OpenEnum):
    """Outcome of a call or of a request."""

    OK = 0
    INVALID_ARGUMENT = 1
    INVALID_HANDLE = 2
    INVALID_STRUCT_SIZE = 3
    INVALID_UTF8 = 4
    UNSUPPORTED = 5
    PROMPT_TOO_LONG = 6
    TEMPLATE_FAILED = 7
    UNKNOWN_REQUEST = 8
    MODEL_NOT_FOUND = 100
    MODEL_IO = 101
    MODEL_INVALID = 102
    MODEL_UNSUPPORTED = 103
    BUSY = 200
    OUT_OF_MEMORY = 201
    DEVICE_OUT_OF_MEMORY = 202
    MEMORY_LIMIT = 203
    DEVICE_UNAVAILABLE = 300
    DEVICE_LOST = 301
    CLOSED = 400
    FORKED = 401
    ABORTED = 402
    NUMERIC_ERROR = 403
    INTERNAL = 900


class Category(OpenEnum):
    """Who can do something about a status."""

    NONE = 0
    ARGUMENT = 1
    MODEL = 2
    RESOURCE = 3
    DEVICE = 4
    LIFECYCLE = 5
    INTERNAL = 6


class Dtype(OpenEnum):
    """Type that weights are kept in."""

    AUTO = 0
    F32 = 1
    BF16 = 2
    F16 = 3


class LogLevel(OpenEnum):
    """Severity of a log line."""

    ERROR = 1
    WARN = 2
    INFO = 3
    DEBUG = 4


class PromptKind(OpenEnum):
    """What the prompt of a request is."""

    TEXT = 1
    USER = 2
    CHAT = 3
    TOKENS = 4


class EventKind(OpenEnum):
    """What an event says."""

    OUTPUT = 1
    FINISHED = 2


class FinishReason(OpenEnum):
    """Why a request ended."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    DEADLINE = 4
    ERROR = 5


class TextFlags(enum.IntFlag):
    """What the tokenizer's calls do besides their work."""

    ADD_SPECIAL = 1
    PARSE_SPECIAL = 2
    SKIP_SPECIAL = 4
    GENERATION_PROMPT = 8


LogCallback = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_void_p, c_uint64)
ProgressCallback = ctypes.CFUNCTYPE(c_int32, c_void_p, c_uint64, c_uint64)


class EngineOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("dtype", c_int32),
        ("model", c_char_p),
        ("model_len", c_uint64),
        ("device", c_char_p),
        ("device_len", c_uint64),
        ("max_num_sequences", c_uint32),
        ("max_batched_tokens", c_uint32),
        ("max_model_len", c_uint32),
        ("kv_block_size", c_uint32),
        ("kv_cache_bytes", c_uint64),
        ("memory_limit_bytes", c_uint64),
        ("num_threads", c_uint32),
        ("max_queued_requests", c_uint32),
        ("max_unread_tokens", c_uint32),
        ("log_level", c_int32),
        ("log", LogCallback),
        ("log_user_data", c_void_p),
        ("progress", ProgressCallback),
        ("progress_user_data", c_void_p),
        ("spec", c_char_p),
        ("spec_len", c_uint64),
    ]


class Request(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("prompt_kind", c_int32),
        ("prompt", c_char_p),
        ("prompt_len", c_uint64),
        ("prompt_tokens", POINTER(c_uint32)),
        ("num_prompt_tokens", c_uint64),
        ("add_special_tokens", c_uint32),
        ("parse_special_tokens", c_uint32),
        ("max_tokens", c_uint32),
        ("min_tokens", c_uint32),
        ("ignore_eos", c_uint32),
        ("priority", c_int32),
        ("timeout_ms", c_uint64),
        ("user_data", c_uint64),
        ("queue", c_void_p),
        ("stop_tokens", POINTER(c_uint32)),
        ("num_stop_tokens", c_uint64),
        ("stop_strings", POINTER(c_char_p)),
        ("stop_string_lens", POINTER(c_uint64)),
        ("num_stop_strings", c_uint64),
        ("temperature", c_float),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("presence_penalty", c_float),
        ("frequency_penalty", c_float),
        ("num_logprobs", c_int32),
        ("seed", c_uint64),
        ("logit_bias_tokens", POINTER(c_uint32)),
        ("logit_bias_values", POINTER(c_float)),
        ("num_logit_biases", c_uint64),
    ]


class Event(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("kind", c_int32),
        ("request_id", c_uint64),
        ("user_data", c_uint64),
        ("token_ids", POINTER(c_uint32)),
        ("num_tokens", c_uint64),
        # Texts can hold NUL, so they are addresses here and not what ctypes would cut at the first.
        ("text", c_void_p),
        ("text_len", c_uint64),
        ("logprob_tokens", POINTER(c_uint32)),
        ("logprobs", POINTER(c_float)),
        ("num_logprobs", c_uint64),
        ("finish_reason", c_int32),
        ("status", c_int32),
        ("message", c_void_p),
        ("message_len", c_uint64),
        ("num_prompt_tokens", c_uint32),
        ("num_output_tokens", c_uint32),
        ("queued_us", c_uint64),
        ("first_token_us", c_uint64),
        ("total_us", c_uint64),
    ]


class MemoryPlan(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("fits", c_uint32),
        ("weights_bytes", c_uint64),
        ("kv_cache_bytes", c_uint64),
        ("workspace_bytes", c_uint64),
        ("total_bytes", c_uint64),
        ("available_bytes", c_uint64),
        ("num_kv_blocks", c_uint64),
        ("kv_block_size", c_uint64),
        ("max_model_len", c_uint64),
    ]


class Stats(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("num_steps", c_uint64),
        ("num_prompt_tokens", c_uint64),
        ("num_output_tokens", c_uint64),
        ("num_accepted", c_uint64),
        ("num_finished", c_uint64),
        ("num_preemptions", c_uint64),
        ("num_waiting", c_uint64),
        ("num_running", c_uint64),
        ("num_paused", c_uint64),
        ("num_kv_blocks_used", c_uint64),
        ("num_kv_blocks_free", c_uint64),
        ("weights_bytes", c_uint64),
        ("kv_cache_bytes", c_uint64),
        ("workspace_bytes", c_uint64),
    ]


class ModelInfo(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("vocab_size", c_uint32),
        ("max_model_len", c_uint32),
        ("has_chat_template", c_uint32),
    ]


# Handles and objects are opaque addresses.
_handle = c_void_p
_out = POINTER(c_void_p)

FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ifl_status_name": (c_char_p, [c_int32]),
    "ifl_status_category": (c_int32, [c_int32]),
    "ifl_status_is_retryable": (c_uint32, [c_int32]),
    "ifl_error_code": (c_int32, [_handle]),
    "ifl_error_message": (c_void_p, [_handle, POINTER(c_uint64)]),
    "ifl_error_free": (None, [_handle]),
    "ifl_engine_options_init": (c_int32, [POINTER(EngineOptions), c_uint32, _out]),
    "ifl_request_init": (c_int32, [POINTER(Request), c_uint32, _out]),
    "ifl_events_count": (c_uint64, [_handle]),
    "ifl_events_get": (POINTER(Event), [_handle, c_uint64]),
    "ifl_events_free": (None, [_handle]),
    "ifl_engine_create": (c_int32, [POINTER(EngineOptions), _out, _out]),
    "ifl_engine_plan": (c_int32, [POINTER(EngineOptions), POINTER(MemoryPlan), _out]),
    "ifl_engine_enqueue": (c_int32, [_handle, POINTER(Request), POINTER(c_uint64), _out]),
    "ifl_engine_poll": (c_int32, [_handle, c_int32, _out, _out]),
    "ifl_engine_cancel": (c_int32, [_handle, c_uint64, _out]),
    "ifl_engine_stats": (c_int32, [_handle, POINTER(Stats), _out]),
    "ifl_engine_model_info": (c_int32, [_handle, POINTER(ModelInfo), _out]),
    "ifl_engine_eos_tokens": (c_int32, [_handle, _out, _out]),
    "ifl_engine_device": (c_int32, [_handle, _out, _out]),
    "ifl_engine_close": (c_int32, [_handle, _out]),
    "ifl_engine_destroy": (None, [_handle]),
    "ifl_queue_create": (c_int32, [_handle, _out, _out]),
    "ifl_queue_poll": (c_int32, [_handle, c_int32, _out, _out]),
    "ifl_queue_fd": (c_int32, [_handle, POINTER(c_int32), _out]),
    "ifl_queue_destroy": (None, [_handle]),
    "ifl_tokenize": (c_int32, [_handle, c_char_p, c_uint64, c_uint32, _out, _out]),
    "ifl_detokenize": (c_int32, [_handle, POINTER(c_uint32), c_uint64, c_uint32, _out, _out]),
    "ifl_apply_chat_template": (c_int32, [_handle, c_char_p, c_uint64, c_uint32, _out, _out]),
    "ifl_buffer_text": (c_void_p, [_handle, POINTER(c_uint64)]),
    "ifl_buffer_tokens": (POINTER(c_uint32), [_handle, POINTER(c_uint64)]),
    "ifl_buffer_free": (None, [_handle]),
    "ifl_version": (c_uint32, []),
    "ifl_has_feature": (c_uint32, [c_char_p, c_uint64]),
}


def declare(library: ctypes.CDLL) -> None:
    """Gives the library's functions their types."""
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
