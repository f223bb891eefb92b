"""The same engine for asyncio: answers to iterate over with `async for`."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING

from ._convert import RequestArguments, chat_request, text_request
from ._library import has_feature
from .engine import Engine, Queue
from .errors import InflightError
from .types import Chunk, EngineOptions, Finish, Messages, Prompt, RequestOptions

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class AsyncStream:
    """The answer to one request: iterate over its pieces with `async for`. Dropping it cancels what has not ended.

    What the engine produces faster than it is read waits here, at most max_tokens of it. Cancelling the task that
    waits for a piece cancels the request.
    """

    def __init__(self, engine: AsyncEngine, request: RequestArguments) -> None:
        self._engine = engine
        self._waiting: deque[Chunk] = deque()
        self._failure: InflightError | None = None
        self._arrived = asyncio.Event()
        self.finish: Finish | None = None
        """How it ended; None until the iteration has come to the end."""
        self.id = engine._start(self, request)
        self._cancel = weakref.finalize(self, engine._forget, self.id)

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        """The next piece of output. Raises what the request failed with; cancelling and deadlines are no failures."""
        while self.finish is None:
            if self._waiting:
                chunk = self._waiting.popleft()
                if chunk.finish is None:
                    return chunk
                self.finish = chunk.finish
                self._cancel.detach()
                if self.finish.error is not None:
                    raise self.finish.error
            elif self._failure is not None:
                raise self._failure
            else:
                self._arrived.clear()
                try:
                    await self._arrived.wait()
                except asyncio.CancelledError:
                    self._cancel()
                    raise
        raise StopAsyncIteration

    async def text(self) -> str:
        """Waits for the end and returns the text of what has not been iterated over."""
        return "".join([chunk.text async for chunk in self])

    def cancel(self) -> None:
        """Asks for the end within one step; the iteration ends by itself."""
        self._engine.sync.cancel(self.id)

    async def aclose(self) -> None:
        """Cancels the request where it has not ended."""
        self._cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    def _take(self, chunk: Chunk) -> None:
        self._waiting.append(chunk)
        self._arrived.set()

    def _fail(self, failure: InflightError) -> None:
        self._failure = failure
        self._arrived.set()


class AsyncEngine:
    """An engine for one event loop, with the options of Engine. Entering it loads the model in a thread.

        async with AsyncEngine("model.gguf") as engine:
            async for chunk in engine.chat("Why is the sky blue?"):
                print(chunk.text, end="", flush=True)

    One queue serves all answers; its descriptor wakes the loop, or a thread where descriptors cannot. Cancelling the
    task that enters it aborts the loading; `progress` runs on the thread that loads.
    """

    def __init__(self, model: str | os.PathLike[str] = "", **options: Unpack[EngineOptions]) -> None:
        self._model = model
        self._options = options
        self._sync: Engine | None = None
        self._keys = itertools.count(1)
        # Answers that nobody holds any more are cancelled, so they must not be held here.
        self._streams: weakref.WeakValueDictionary[int, AsyncStream] = weakref.WeakValueDictionary()
        self._waker: _DescriptorWaker | _ThreadWaker | None = None

    async def __aenter__(self) -> Self:
        self._sync = await self._load()
        self._queue = self.sync.queue()
        self._waker = _make_waker(self._queue, self)
        return self

    async def _load(self) -> Engine:
        given_up = threading.Event()
        progress = self._options.get("progress")

        def hear(bytes_done: int, bytes_total: int) -> bool | None:
            if given_up.is_set():
                return False
            return progress(bytes_done, bytes_total) if progress is not None else None

        options: EngineOptions = {**self._options, "progress": hear}
        try:
            return await asyncio.to_thread(functools.partial(Engine, self._model, **options))
        finally:
            # A cancelled task leaves the thread behind, which ends at the next progress.
            given_up.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def sync(self) -> Engine:
        """The same engine without asyncio, for what never waits: stats, tokenize, model_info and the like."""
        if self._sync is None:
            raise RuntimeError("the engine is not loaded; enter it first, with `async with`")
        return self._sync

    async def aclose(self) -> None:
        """Ends every request with ClosedError and frees the engine's memory. Closing twice does nothing."""
        if self._waker is None:
            return
        waker, self._waker = self._waker, None
        await asyncio.to_thread(self.sync.close)
        await waker.stop()
        self._queue.close()

    def generate(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> AsyncStream:
        """Continues a text, or token ids, as they stand. Only iterating waits for the model."""
        return AsyncStream(self, text_request(prompt, options))

    def chat(self, messages: Messages, **options: Unpack[RequestOptions]) -> AsyncStream:
        """Answers what a user says, or the last of several messages. Only iterating waits for the model, but the chat
        template is rendered here, which may take up to 50 ms, some messages twice that: see ifl_engine_enqueue."""
        return AsyncStream(self, chat_request(messages, options))

    def _start(self, stream: AsyncStream, request: RequestArguments) -> int:
        key = next(self._keys)
        self._streams[key] = stream
        return self.sync._enqueue(request, self._queue, key)

    def _forget(self, request_id: int) -> None:
        try:
            self.sync.cancel(request_id)
        except InflightError:
            pass  # An engine that has ended has no request left to cancel.

    def _take(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            reader = self._streams.get(chunk.user_data)
            if reader is not None:
                reader._take(chunk)

    def _fail(self, failure: InflightError) -> None:
        """The engine has ended and no event will come any more."""
        for reader in list(self._streams.values()):
            reader._fail(failure)


class _DescriptorWaker:
    """Takes events on the loop whenever the queue's descriptor is readable."""

    def __init__(self, queue: Queue, engine: AsyncEngine) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue = queue
        self._engine = engine
        self._fd = queue.fileno()
        self._loop.add_reader(self._fd, self._drain)

    async def stop(self) -> None:
        """Takes the last events; the engine has been closed."""
        self._drain()
        self._loop.remove_reader(self._fd)

    def _drain(self) -> None:
        try:
            self._engine._take(self._queue.poll(0))
        except InflightError as failure:
            # The descriptor stays readable from now on.
            self._loop.remove_reader(self._fd)
            self._engine._fail(failure)
        except BaseException:
            # What poll keeps where a signal handler raises does not make the descriptor readable.
            self._loop.call_soon(self._drain)
            raise


class _ThreadWaker:
    """Takes events in a thread of its own and hands them to the loop, for loops that cannot wait for descriptors."""

    def __init__(self, queue: Queue, engine: AsyncEngine) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue = queue
        self._engine = engine
        self._thread = threading.Thread(target=self._run, name="inflight-queue", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Waits for the last events; the engine has been closed."""
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            while True:
                chunks = self._queue.poll()
                self._loop.call_soon_threadsafe(self._engine._take, chunks)
        except InflightError as failure:
            self._loop.call_soon_threadsafe(self._engine._fail, failure)
        except RuntimeError:
            pass  # The loop was closed under the engine; nobody is left to tell.


def _make_waker(queue: Queue, engine: AsyncEngine) -> _DescriptorWaker | _ThreadWaker:
    if has_feature("queue-fd"):
        try:
            return _DescriptorWaker(queue, engine)
        except NotImplementedError:
            pass  # Windows' default loop has no readers.
    return _ThreadWaker(queue, engine)
