"""One exception class for each status, under one for each category."""

from __future__ import annotations

from ._abi import Category, Status


class InflightError(Exception):
    """A failed call or request. The text names what is wrong and what to do."""

    category = Category.INTERNAL

    def __init__(self, message: str, status: Status, is_retryable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.is_retryable = is_retryable
        """Whether the same call can succeed later without any change."""

    def __reduce__(self) -> tuple[type[InflightError], tuple[str, Status, bool]]:
        return type(self), (self.message, self.status, self.is_retryable)


class LibraryNotFoundError(OSError):
    """There is no libinflight where it was looked for; the text lists the places."""


class ArgumentError(InflightError, ValueError):
    """The call's arguments are wrong."""

    category = Category.ARGUMENT


class ModelError(InflightError):
    """The model's files are missing or wrong."""

    category = Category.MODEL


class ResourceError(InflightError):
    """Memory or places in a queue are short."""

    category = Category.RESOURCE


class DeviceError(InflightError):
    """The device or its driver."""

    category = Category.DEVICE


class LifecycleError(InflightError):
    """The state of the engine or the request."""

    category = Category.LIFECYCLE


class InternalError(InflightError):
    """A defect in the library, contained; please report it."""


class InvalidArgumentError(ArgumentError):
    """An argument has a value that is not allowed."""


class InvalidHandleError(ArgumentError):
    """The engine or the queue was destroyed."""


class InvalidStructSizeError(ArgumentError):
    """This package and the library do not fit each other."""


class InvalidUtf8Error(ArgumentError):
    """Text that must be UTF-8 is not."""


class UnsupportedError(ArgumentError):
    """This version of the library, or the model, cannot do it."""


class PromptTooLongError(ArgumentError):
    """The prompt, or the prompt and the tokens asked for, can never fit."""


class TemplateFailedError(ArgumentError):
    """The chat template refused the messages."""


class UnknownRequestError(ArgumentError):
    """No request of this id is in flight."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """A file of the model is missing."""


class ModelIoError(ModelError, OSError):
    """A file of the model could not be read."""


class ModelInvalidError(ModelError):
    """A file of the model is malformed."""


class ModelUnsupportedError(ModelError):
    """The model uses something that this version does not implement."""


class BusyError(ResourceError):
    """The bounded queue of requests is full; try again when requests have ended."""


class OutOfMemoryError(ResourceError, MemoryError):
    """Host memory is short."""


class DeviceOutOfMemoryError(ResourceError):
    """Device memory is short."""


class MemoryLimitError(ResourceError):
    """What the options ask for does not fit their memory_limit_bytes."""


class DeviceUnavailableError(DeviceError):
    """There is no such device, or its driver, cuBLASLt or the library's backend for it is missing."""


class DeviceLostError(DeviceError):
    """The device failed fatally; the engine is dead."""


class ClosedError(LifecycleError):
    """The engine is closed, or was closed while the request was in flight."""


class ForkedError(LifecycleError):
    """The engine was made before a fork, by another process."""


class AbortedError(LifecycleError):
    """The progress callback aborted loading."""


class NumericError(LifecycleError):
    """The model gave NaN or infinite logits for this request."""


BY_STATUS: dict[Status, type[InflightError]] = {
    Status.INVALID_ARGUMENT: InvalidArgumentError,
    Status.INVALID_HANDLE: InvalidHandleError,
    Status.INVALID_STRUCT_SIZE: InvalidStructSizeError,
    Status.INVALID_UTF8: InvalidUtf8Error,
    Status.UNSUPPORTED: UnsupportedError,
    Status.PROMPT_TOO_LONG: PromptTooLongError,
    Status.TEMPLATE_FAILED: TemplateFailedError,
    Status.UNKNOWN_REQUEST: UnknownRequestError,
    Status.MODEL_NOT_FOUND: ModelNotFoundError,
    Status.MODEL_IO: ModelIoError,
    Status.MODEL_INVALID: ModelInvalidError,
    Status.MODEL_UNSUPPORTED: ModelUnsupportedError,
    Status.BUSY: BusyError,
    Status.OUT_OF_MEMORY: OutOfMemoryError,
    Status.DEVICE_OUT_OF_MEMORY: DeviceOutOfMemoryError,
    Status.MEMORY_LIMIT: MemoryLimitError,
    Status.DEVICE_UNAVAILABLE: DeviceUnavailableError,
    Status.DEVICE_LOST: DeviceLostError,
    Status.CLOSED: ClosedError,
    Status.FORKED: ForkedError,
    Status.ABORTED: AbortedError,
    Status.NUMERIC_ERROR: NumericError,
    Status.INTERNAL: InternalError,
}

BY_CATEGORY: dict[Category, type[InflightError]] = {
    Category.ARGUMENT: ArgumentError,
    Category.MODEL: ModelError,
    Category.RESOURCE: ResourceError,
    Category.DEVICE: DeviceError,
    Category.LIFECYCLE: LifecycleError,
    Category.INTERNAL: InternalError,
}
