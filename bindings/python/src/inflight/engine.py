"""Engines, queues, and answers to iterate over."""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from ctypes import byref, c_int32, c_uint64, c_void_p
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _abi, _convert
from ._abi import Dtype, LogLevel, Status, TextFlags
from ._convert import RequestArguments, chat_request, encode, encode_messages, fill, text_request, token_array
from ._library import call, library, take_text, take_tokens, text_at
from .errors import AbortedError, ClosedError, InflightError
from .types import (
    Chunk,
    EngineLimits,
    Finish,
    MemoryPlan,
    Message,
    Messages,
    ModelInfo,
    Prompt,
    RequestOptions,
    Stats,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_SLICE_MS = 100
"""The main thread's waiting is cut into slices of so many milliseconds: signals are handled there, between calls."""
_LONGEST_MS = 2**31 - 1

_log_callbacks: list[Any] = []
"""The library may be in a log callback for longer than destroying an engine waits, so none is ever freed."""


class Queue:
    """A completion queue: the events of requests that name it come here and not to the engine's own."""

    def __init__(self, engine: Engine) -> None:
        self._handle = c_void_p()
        self._kept: list[Chunk] = []
        # Before the call, at whose return a signal handler can raise; destroying no queue does nothing.
        self._destroy = weakref.finalize(self, library().ifl_queue_destroy, self._handle)
        call(library().ifl_queue_create, engine._live, byref(self._handle))

    def poll(self, timeout: float | None = None) -> list[Chunk]:
        """Takes every event that waits. Waits for one at most `timeout` seconds, without it for as long as it takes.

        Raises ClosedError, or what ended the engine, once the engine has ended and the queue is empty. Events that a
        KeyboardInterrupt meets come with the next call.
        """
        return _poll_in_slices(library().ifl_queue_poll, self._handle, timeout, self._kept)

    def fileno(self) -> int:
        """A descriptor that is readable while events wait; it belongs to the queue.

        Events that a poll had when Ctrl-C came wait for the next poll without it: poll once more before waiting.
        """
        fd = c_int32()
        call(library().ifl_queue_fd, self._handle, byref(fd))
        return fd.value

    def close(self) -> None:
        """Drops the events in it and cancels the requests that name it. Closing twice does nothing."""
        self._destroy()
        self._kept.clear()

    @property
    def _is_open(self) -> bool:
        return self._destroy.alive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Stream:
    """The answer to one request: iterate over its pieces. Dropping or closing it cancels what has not ended."""

    def __init__(self, engine: Engine, request: RequestArguments) -> None:
        self._engine = engine  # Kept alive for as long as its answer is read.
        self._queue = Queue(engine)
        try:
            self.id = engine._enqueue(request, self._queue)
        except BaseException:
            self._queue.close()
            raise
        self._waiting: list[Chunk] = []
        self.finish: Finish | None = None
        """How it ended; None until the iteration has come to the end, and where it was closed before."""

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        """The next piece of output. Raises what the request failed with; cancelling and deadlines are no failures."""
        while self.finish is None and self._queue._is_open:
            waiting = self._waiting
            if not waiting:
                self._wait()
                continue
            chunk = waiting[-1]
            if chunk.finish is None:
                # Not by pop, at whose return a signal handler could raise.
                del waiting[-1]
                return chunk
            self.finish = chunk.finish
            self._queue.close()
            if self.finish.error is not None:
                raise self.finish.error
        raise StopIteration

    def _wait(self) -> None:
        try:
            self._waiting = self._queue.poll()[::-1]
        except InflightError:
            if self._queue._is_open:
                raise
            # Another thread has closed the stream meanwhile, which ends the iteration.

    def text(self) -> str:
        """Waits for the end and returns the text of what has not been iterated over."""
        return "".join(chunk.text for chunk in self)

    def cancel(self) -> None:
        """Asks for the end within one step, from any thread; the iteration ends by itself."""
        self._engine.cancel(self.id)

    def close(self) -> None:
        """Cancels the request, and frees what waits to be read; the iteration is at its end then."""
        self._queue.close()
        self._waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Engine:
    """A loaded model and the threads that run it. Any thread may use it at any time.

    `model` is a model directory in Hugging Face layout or a GGUF file; `spec` is a file as inflight.spec writes it,
    under any name, which describes the architecture in place of what the model says of it. `device` is "auto" (the
    default), "cpu", "cuda", "cuda:0", "cuda:0,1" (more than one: not supported yet) or "echo", which needs no model and
    answers with the prompt. The other options are those of ifl_engine_options, where 0 means "choose for me". `log`
    gets a LogLevel and a line, on threads of the engine; `progress` gets the bytes of weights that are loaded and those
    in all, and aborts loading by returning False or raising.

    On the main thread Ctrl-C aborts loading, with KeyboardInterrupt: the model is loaded on a thread of its own there,
    and `progress` runs on that. Elsewhere it runs on the thread that makes the engine.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "",
        *,
        spec: str | os.PathLike[str] = "",
        device: str = "auto",
        dtype: Dtype = Dtype.AUTO,
        log: Callable[[LogLevel, str], object] | None = None,
        log_level: LogLevel = LogLevel.INFO,
        progress: Callable[[int, int], bool | None] | None = None,
        **limits: Unpack[EngineLimits],
    ) -> None:
        options = _make_options(model, spec, device, dtype, limits)
        if log is not None:
            options.log_level = log_level
            options.log = _make_log_callback(log)
        self._handle = c_void_p()
        self._kept: list[Chunk] = []
        self._closing = threading.RLock()
        # Before the call, as in Queue.
        self._destroy = weakref.finalize(self, library().ifl_engine_destroy, self._handle)
        try:
            _create(options, self._handle, progress)
        except BaseException:
            self._destroy()
            raise

    @staticmethod
    def plan(
        model: str | os.PathLike[str] = "",
        *,
        spec: str | os.PathLike[str] = "",
        device: str = "auto",
        dtype: Dtype = Dtype.AUTO,
        **limits: Unpack[EngineLimits],
    ) -> MemoryPlan:
        """What an engine with the same options would reserve. Reads no weights."""
        options = _make_options(model, spec, device, dtype, limits)
        return fill(MemoryPlan, _abi.MemoryPlan(), library().ifl_engine_plan, byref(options))

    def generate(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> Stream:
        """Continues a text, or token ids, as they stand. Only iterating waits for the model."""
        return Stream(self, text_request(prompt, options))

    def chat(self, messages: Messages, **options: Unpack[RequestOptions]) -> Stream:
        """Answers what a user says, or the last of several messages. Only iterating waits for the model, but the chat
        template is rendered here, which may take up to 50 ms, some messages twice that: see ifl_engine_enqueue."""
        return Stream(self, chat_request(messages, options))

    def enqueue(
        self, prompt: Prompt, *, queue: Queue | None = None, user_data: int = 0, **options: Unpack[RequestOptions]
    ) -> int:
        """generate without a Stream: the answer comes as events of poll, or of a queue. Returns the request's id."""
        return self._enqueue(text_request(prompt, options), queue, user_data)

    def enqueue_chat(
        self, messages: Messages, *, queue: Queue | None = None, user_data: int = 0, **options: Unpack[RequestOptions]
    ) -> int:
        """chat without a Stream: the answer comes as events of poll, or of a queue. Returns the request's id."""
        return self._enqueue(chat_request(messages, options), queue, user_data)

    def _enqueue(self, request: RequestArguments, queue: Queue | None, user_data: int = 0) -> int:
        request_id = c_uint64()
        request.c.queue = queue._handle.value if queue is not None else None
        _convert.set_number(request.c, "user_data", user_data)
        call(library().ifl_engine_enqueue, self._live, byref(request.c), byref(request_id))
        return request_id.value

    def queue(self) -> Queue:
        """A further queue."""
        return Queue(self)

    def poll(self, timeout: float | None = None) -> list[Chunk]:
        """Takes every event that waits in the engine's own queue, as Queue.poll does; the last ones after close."""
        try:
            return _hand_out(self._kept) or _poll_in_slices(library().ifl_engine_poll, self._live, timeout, self._kept)
        except InflightError:
            # Where another thread is in close, that takes the last events.
            with self._closing:
                chunks = _hand_out(self._kept)
            if chunks:
                return chunks
            if not self._destroy.alive:
                raise _closed_error() from None
            raise

    def cancel(self, request_id: int) -> None:
        """Asks for a request's end within one step. Cancelling twice, or what has ended, does nothing."""
        call(library().ifl_engine_cancel, self._live, request_id)

    @property
    def stats(self) -> Stats:
        """A snapshot of the engine's counters and gauges."""
        return fill(Stats, _abi.Stats(), library().ifl_engine_stats, self._live)

    @property
    def model_info(self) -> ModelInfo:
        """What the loaded model is."""
        return fill(ModelInfo, _abi.ModelInfo(), library().ifl_engine_model_info, self._live)

    @property
    def eos_tokens(self) -> list[int]:
        """The model's end-of-sequence tokens."""
        return take_tokens(library().ifl_engine_eos_tokens, self._live)

    @property
    def device(self) -> str:
        """The device that the engine runs on; what "auto" has become."""
        return take_text(library().ifl_engine_device, self._live)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of a text, which may spell special tokens only where `parse_special` says so."""
        data = encode(text)
        flags = TextFlags.ADD_SPECIAL * add_special | TextFlags.PARSE_SPECIAL * parse_special
        return take_tokens(library().ifl_tokenize, self._live, data, len(data), flags)

    def detokenize(self, tokens: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of token ids. Bytes that are not UTF-8 become U+FFFD."""
        array = token_array(tokens, "tokens")
        flags = TextFlags.SKIP_SPECIAL * skip_special
        return take_text(library().ifl_detokenize, self._live, array, len(tokens), flags)

    def apply_chat_template(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> str:
        """The text that the model's chat template makes of chat messages. Requests need no such call."""
        data = encode_messages(messages)
        flags = TextFlags.GENERATION_PROMPT * generation_prompt
        return take_text(library().ifl_apply_chat_template, self._live, data, len(data), flags)

    def close(self) -> None:
        """Ends every request with ClosedError and frees the engine's memory. Closing twice does nothing.

        The requests' last events can still be polled, after which polling raises ClosedError.
        """
        with self._closing:
            try:
                if self._destroy.alive:
                    self._keep_last_events()
            finally:
                self._destroy()

    def _keep_last_events(self) -> None:
        """Stops the engine and takes what waits in its own queue, which goes with the engine."""
        try:
            call(library().ifl_engine_close, self._handle)
            while chunks := _convert.poll(library().ifl_engine_poll, self._handle, 0, self._kept):
                self._kept += chunks
        except InflightError:
            pass  # The queue is empty, or the engine is another process's.

    @property
    def _live(self) -> c_void_p:
        """The handle, for calls that need the engine to be there."""
        if not self._destroy.alive:
            raise _closed_error()
        return self._handle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _make_options(
    model: str | os.PathLike[str], spec: str | os.PathLike[str], device: str, dtype: Dtype, limits: EngineLimits
) -> _abi.EngineOptions:
    options = _abi.EngineOptions()
    call(library().ifl_engine_options_init, byref(options), ctypes.sizeof(options))
    if model:
        options.model = encode(os.fspath(model))
        options.model_len = len(options.model)
    if spec:
        options.spec = encode(os.fspath(spec))
        options.spec_len = len(options.spec)
    if device:
        options.device = encode(device)
        options.device_len = len(options.device)
    options.dtype = dtype
    for name, value in limits.items():
        if name not in EngineLimits.__annotations__:
            raise TypeError(f"there is no option {name!r}; there are {', '.join(EngineLimits.__annotations__)}")
        _convert.set_number(options, name, value)
    return options


def _make_log_callback(log: Callable[[LogLevel, str], object]) -> Any:
    def write(_: Any, level: int, message: int, length: int) -> None:
        log(LogLevel(level), text_at(message, length))

    callback = _abi.LogCallback(write)
    _log_callbacks.append(callback)
    return callback


def _closed_error() -> ClosedError:
    return ClosedError("closed: the engine was closed", Status.CLOSED)


def _create(options: _abi.EngineOptions, handle: c_void_p, progress: Callable[[int, int], bool | None] | None) -> None:
    """Makes the engine of a handle, which stays NULL, or is destroyed by whoever sees it last, where that fails."""
    given_up = threading.Event()
    raised: list[BaseException] = []
    options.progress = _make_progress_callback(progress, given_up, raised)

    def create() -> None:
        call(library().ifl_engine_create, byref(options), byref(handle))
        if given_up.is_set():
            library().ifl_engine_destroy(handle)

    try:
        if threading.current_thread() is threading.main_thread():
            _run_interruptibly(create, given_up)
        else:
            create()
    except AbortedError:
        if raised:
            raise raised[0] from None
        raise


def _run_interruptibly(work: Callable[[], None], given_up: threading.Event) -> None:
    """Does work that takes long for the main thread, whose signals are handled between calls, on another one.

    An exception of a signal handler sets `given_up`, at which the work ends, and is raised when it has ended.
    """
    failures: list[BaseException] = []
    # Thread.join would take a thread for ended where a signal handler raises in it.
    done = threading.Event()

    def run() -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)
        finally:
            done.set()

    # Not a daemon: one that calls back into Python while the interpreter ends would end the process.
    thread = threading.Thread(target=run, name="inflight-load")
    try:
        thread.start()
        _wait_in_slices(done)
    except BaseException:
        given_up.set()
        if thread.ident is not None:
            _wait_in_slices(done)
        raise
    if failures:
        raise failures.pop()


def _wait_in_slices(done: threading.Event) -> None:
    while not done.wait(_SLICE_MS / 1000):
        pass


def _make_progress_callback(
    progress: Callable[[int, int], bool | None] | None, given_up: threading.Event, raised: list[BaseException]
) -> Any:
    def hear(_: Any, bytes_done: int, bytes_total: int) -> int:
        try:
            return int(given_up.is_set() or (progress is not None and progress(bytes_done, bytes_total) is False))
        except BaseException as error:
            # No exception may leave a callback; it is raised again where loading has returned.
            raised.append(error)
            return 1

    return _abi.ProgressCallback(hear)


def _hand_out(kept: list[Chunk]) -> list[Chunk]:
    # No call stands between the two, so that no signal handler can raise there.
    chunks, kept[:] = kept[:], []
    return chunks


def _poll_in_slices(function: Any, handle: c_void_p, timeout: float | None, kept: list[Chunk]) -> list[Chunk]:
    if kept:
        return _hand_out(kept)
    end = math.inf if timeout is None else time.monotonic() + timeout
    longest_ms = _SLICE_MS if threading.current_thread() is threading.main_thread() else _LONGEST_MS
    while True:
        left_ms = (end - time.monotonic()) * 1000
        slice_ms = max(0, math.ceil(left_ms) if left_ms < longest_ms else longest_ms)
        chunks = _convert.poll(function, handle, slice_ms, kept)
        if chunks or left_ms <= slice_ms:
            return chunks
