"""Finds and loads libinflight, and turns its failures into exceptions."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from ctypes import byref, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from . import _abi
from ._abi import Category, Status
from .errors import BY_CATEGORY, BY_STATUS, InflightError, InternalError, LibraryNotFoundError

ENVIRONMENT = "INFLIGHT_LIBRARY"
_SONAME = f"libinflight.so.{_abi.VERSION // 10000}"


def candidates() -> list[tuple[str, str]]:
    """Files to try in turn, each with where it comes from."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return [(chosen, f"the environment variable {ENVIRONMENT}")]
    package = Path(__file__).resolve().parent
    found = [(str(package / name), "the package") for name in (_SONAME, "libinflight.so")]
    # A bare name is looked up in LD_LIBRARY_PATH and where the system keeps libraries.
    return [*found, (_SONAME, "LD_LIBRARY_PATH and the system's folders")]


@functools.cache
def library() -> ctypes.CDLL:
    """The library, loaded at the first use. A failure is not remembered."""
    tried = []
    for path, origin in candidates():
        try:
            loaded = ctypes.CDLL(path)
        except OSError as error:
            tried.append(f"  {path} ({origin}): {error}")
            continue
        _check_version(loaded, path)
        _abi.declare(loaded)
        return loaded
    raise LibraryNotFoundError(
        "the Inflight library was not found; tried\n"
        + "\n".join(tried)
        + f"\nInstall a wheel that contains it, or set {ENVIRONMENT} to the path of {_SONAME}."
    )


def _check_version(loaded: ctypes.CDLL, path: str) -> None:
    version = loaded.ifl_version()
    # Before 1.0 a minor version may break what the one before promised.
    is_same_series = version // 100 == _abi.VERSION // 100 or version // 10000 == _abi.VERSION // 10000 > 0
    if not is_same_series or version < _abi.VERSION:
        raise LibraryNotFoundError(
            f"{path} is version {_version_text(version)}, but this package needs {_version_text(_abi.VERSION)} "
            f"or a later one that is compatible; set {ENVIRONMENT} to the path of another"
        )


def _version_text(version: int) -> str:
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


PACKAGE_VERSION = _version_text(_abi.VERSION)
"""The version of this package, whose header and wheel have the same."""


def version() -> str:
    """The version of the library that is loaded, which can be later than the package's, __version__."""
    return _version_text(library().ifl_version())


def has_feature(name: str) -> bool:
    """Whether the library was built with a feature: "cpu" or "cuda" (whether the machine has such a device is another
    question), "echo", "gguf", "safetensors", or "queue-fd" (Queue.fileno). A name that it does not know gives False.
    """
    data = name.encode("utf-8", "surrogatepass")
    return bool(library().ifl_has_feature(data, len(data)))


def text_at(address: int | None, num_bytes: int) -> str:
    """UTF-8 from the library."""
    return ctypes.string_at(address, num_bytes).decode() if address and num_bytes else ""


def make_exception(status: int, message: str) -> InflightError:
    """The exception of a status that is not OK."""
    library_ = library()
    by_category = BY_CATEGORY.get(Category(library_.ifl_status_category(status)), InternalError)
    kind = BY_STATUS.get(Status(status), by_category)
    name = library_.ifl_status_name(status).decode()
    return kind(f"{name}: {message}", Status(status), bool(library_.ifl_status_is_retryable(status)))


def call(function: Callable[..., int], *arguments: Any) -> None:
    """Calls a function whose last parameter is the error, and raises where it fails."""
    error = c_void_p()
    status = function(*arguments, byref(error))
    if status:
        raise _take_error(status, error)


def _take_error(status: int, error: c_void_p) -> InflightError:
    library_ = library()
    length = c_uint64()
    message = text_at(library_.ifl_error_message(error, byref(length)), length.value)
    library_.ifl_error_free(error)
    return make_exception(status, message)


def take_text(function: Callable[..., int], *arguments: Any) -> str:
    """Calls a function that gives a buffer of text."""
    buffer, length = c_void_p(), c_uint64()
    try:
        call(function, *arguments, byref(buffer))
        return text_at(library().ifl_buffer_text(buffer, byref(length)), length.value)
    finally:
        library().ifl_buffer_free(buffer)


def take_tokens(function: Callable[..., int], *arguments: Any) -> list[int]:
    """Calls a function that gives a buffer of token ids."""
    buffer, length = c_void_p(), c_uint64()
    try:
        call(function, *arguments, byref(buffer))
        tokens = library().ifl_buffer_tokens(buffer, byref(length))
        return list(tokens[: length.value]) if length.value else []
    finally:
        library().ifl_buffer_free(buffer)
