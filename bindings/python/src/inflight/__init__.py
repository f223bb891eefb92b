"""Inflight: LLM inference inside your process.

    import inflight

    with inflight.Engine("model.gguf") as engine:
        for chunk in engine.chat("Why is the sky blue?"):
            print(chunk.text, end="", flush=True)

`AsyncEngine` is the same for asyncio. A failed call raises a subclass of `InflightError`, one for each status. The
library is looked for in the file that INFLIGHT_LIBRARY names, or else in this package and then among the system's.
"""

from ._abi import Category, Dtype, FinishReason, LogLevel, Status
from ._library import PACKAGE_VERSION as __version__
from ._library import has_feature, version
from .aio import AsyncEngine, AsyncStream
from .engine import Engine, Queue, Stream
from .errors import (
    AbortedError,
    ArgumentError,
    BusyError,
    ClosedError,
    DeviceError,
    DeviceLostError,
    DeviceOutOfMemoryError,
    DeviceUnavailableError,
    ForkedError,
    InflightError,
    InternalError,
    InvalidArgumentError,
    InvalidHandleError,
    InvalidStructSizeError,
    InvalidUtf8Error,
    LibraryNotFoundError,
    LifecycleError,
    MemoryLimitError,
    ModelError,
    ModelInvalidError,
    ModelIoError,
    ModelNotFoundError,
    ModelUnsupportedError,
    NumericError,
    OutOfMemoryError,
    PromptTooLongError,
    ResourceError,
    TemplateFailedError,
    UnknownRequestError,
    UnsupportedError,
)
from .types import (
    Chunk,
    EngineLimits,
    EngineOptions,
    Finish,
    Logprob,
    MemoryPlan,
    Message,
    Messages,
    ModelInfo,
    Prompt,
    RequestOptions,
    Stats,
)

__all__ = [
    "AbortedError",
    "ArgumentError",
    "AsyncEngine",
    "AsyncStream",
    "BusyError",
    "Category",
    "Chunk",
    "ClosedError",
    "DeviceError",
    "DeviceLostError",
    "DeviceOutOfMemoryError",
    "DeviceUnavailableError",
    "Dtype",
    "Engine",
    "EngineLimits",
    "EngineOptions",
    "Finish",
    "FinishReason",
    "ForkedError",
    "InflightError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidHandleError",
    "InvalidStructSizeError",
    "InvalidUtf8Error",
    "LibraryNotFoundError",
    "LifecycleError",
    "LogLevel",
    "Logprob",
    "MemoryLimitError",
    "MemoryPlan",
    "Message",
    "Messages",
    "ModelError",
    "ModelInfo",
    "ModelInvalidError",
    "ModelIoError",
    "ModelNotFoundError",
    "ModelUnsupportedError",
    "NumericError",
    "OutOfMemoryError",
    "Prompt",
    "PromptTooLongError",
    "Queue",
    "RequestOptions",
    "ResourceError",
    "Stats",
    "Status",
    "Stream",
    "TemplateFailedError",
    "UnknownRequestError",
    "UnsupportedError",
    "__version__",
    "has_feature",
    "version",
]
