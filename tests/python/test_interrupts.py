"""Signal handlers that raise, as Ctrl-C does: nothing is lost, nothing hangs, nothing is left running."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import unittest
from pathlib import Path
from unittest import mock

import inflight
from inflight import AsyncEngine, Engine, FinishReason, _abi
from inflight._library import library
from test_echo import wait_until

TEXT = "abcdefghij"
REAL_CALLBACK = _abi.ProgressCallback


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def interrupting(name, when=lambda *_: True):
    """Makes a signal handler raise where the library's function returns, once."""
    function = getattr(library(), name)
    has_raised = False

    def call(*arguments):
        nonlocal has_raised
        result = function(*arguments)
        if when(*arguments) and not has_raised:
            has_raised = True
            raise KeyboardInterrupt
        return result

    return mock.patch.object(library(), name, call)


def has_events(_handle, _timeout, events, _error):
    return events._obj.value is not None


def read(stream, texts):
    for chunk in stream:
        texts.append(chunk.text)


class Interrupts(unittest.TestCase):
    def setUp(self):
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))

    def is_interrupted(self, seconds, work, *arguments):
        """Interrupts the work after so many seconds, and says whether it had not ended by then."""
        is_done = False
        timer = threading.Timer(seconds, interrupt)
        try:
            timer.start()
            work(*arguments)
            is_done = True
            time.sleep(30)
        except KeyboardInterrupt:
            return not is_done
        self.fail("no signal came")


class Waiting(Interrupts):
    def engine(self, device):
        engine = Engine(device=device)
        self.addCleanup(engine.close)
        return engine

    def the_rest(self, stream):
        """What comes after an interrupt, read on a thread so that a hang fails the test."""
        texts = []
        thread = threading.Thread(target=read, args=(stream, texts), daemon=True)
        thread.start()
        thread.join(10)
        self.assertFalse(thread.is_alive(), "the iteration hangs")
        self.assertEqual(stream.finish.reason, FinishReason.STOP)
        return "".join(texts)

    def test_no_piece_is_lost(self):
        engine, num_interrupted = self.engine("echo:10000"), 0
        for i in range(20):
            stream, texts = engine.generate(TEXT), []
            num_interrupted += self.is_interrupted(0.015 + 0.004 * i, read, stream, texts)
            self.assertEqual("".join(texts) + self.the_rest(stream), TEXT)
        self.assertGreater(num_interrupted, 10)

    def test_the_end_is_not_lost(self):
        engine = self.engine("echo:10000")
        for i in range(12):
            stream = engine.generate(TEXT)
            self.is_interrupted(0.09 + 0.003 * i, stream.text)
            self.the_rest(stream)

    def test_no_call_of_a_poll_loses_events(self):
        engine = self.engine("echo")
        for raising in (
            interrupting("ifl_queue_poll", has_events),
            interrupting("ifl_events_count"),
            interrupting("ifl_events_get"),
            interrupting("ifl_events_free"),
        ):
            stream, texts = engine.generate(TEXT), []
            with raising:
                with self.assertRaises(KeyboardInterrupt):
                    read(stream, texts)
                self.assertEqual("".join(texts) + self.the_rest(stream), TEXT)

    def test_the_engines_own_queue_loses_nothing(self):
        engine = self.engine("echo")
        engine.enqueue(TEXT)
        with interrupting("ifl_engine_poll", has_events), self.assertRaises(KeyboardInterrupt):
            engine.poll()
        chunks = engine.poll(0)
        self.assertGreater(len(chunks), 0)
        while chunks[-1].finish is None:
            chunks += engine.poll(10)
        self.assertEqual("".join(chunk.text for chunk in chunks), TEXT)

    def test_a_loop_that_goes_on_is_told_the_end(self):
        loop, engine = asyncio.new_event_loop(), AsyncEngine(device="echo")
        self.addCleanup(loop.close)
        loop.run_until_complete(engine.__aenter__())

        async def ask():
            stream = engine.generate(TEXT)
            # The loop sees the whole answer at once, so that nothing makes the descriptor readable again.
            wait_until(lambda: engine.sync.stats.num_running + engine.sync.stats.num_waiting == 0)
            time.sleep(0.05)
            return await stream.text()

        task = loop.create_task(ask())
        with interrupting("ifl_queue_poll", has_events), self.assertRaises(KeyboardInterrupt):
            loop.run_until_complete(task)
        self.assertEqual(loop.run_until_complete(asyncio.wait_for(task, 10)), TEXT)
        loop.run_until_complete(engine.aclose())


def is_loading():
    return any(name.startswith("ifl-load") for name in engine_threads())


def engine_threads():
    names = []
    for file in Path("/proc/self/task").glob("*/comm"):
        try:
            names.append(file.read_text().strip())
        except OSError:
            pass  # The thread has ended meanwhile.
    return [name for name in names if name.startswith("ifl-")]


def slow_loads(seconds):
    """Makes every progress of loading take so many seconds, of which a model has hundreds."""

    def make(hear):
        def hear_slowly(*arguments):
            time.sleep(seconds)
            return hear(*arguments)

        return REAL_CALLBACK(hear_slowly)

    return mock.patch.object(_abi, "ProgressCallback", make)


class Loading(Interrupts):
    def load(self, **options):
        return Engine(os.environ["INFLIGHT_TEST_MODEL"], device="cpu", num_threads=1, max_num_sequences=2, **options)

    def assert_no_thread_is_left(self):
        self.assertTrue(wait_until(lambda: engine_threads() == self.threads_before), engine_threads())

    def setUp(self):
        super().setUp()
        # Those that loaded for the test before may be about to end.
        self.assertTrue(wait_until(lambda: not is_loading()), engine_threads())
        self.threads_before = engine_threads()

    def test_an_interrupt_ends_it(self):
        with slow_loads(0.01):
            self.assertTrue(self.is_interrupted(0.2, self.load))
        self.assert_no_thread_is_left()

    def test_an_interrupt_ends_it_with_progress(self):
        calls = []

        def hear(*bytes):
            calls.append(bytes)
            if len(calls) == 3:
                threading.Timer(0.02, interrupt).start()

        with slow_loads(0.01), self.assertRaises(KeyboardInterrupt):
            self.load(progress=hear)
        self.assert_no_thread_is_left()
        self.assertLess(len(calls), 100)

    def test_two_interrupts_do_not_wait_for_it(self):
        def raise_and_come_again(*_):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            threading.Timer(0.2, interrupt).start()
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, raise_and_come_again)
        with slow_loads(2):
            self.assertTrue(self.is_interrupted(0.2, self.load))
            loading = [thread for thread in threading.enumerate() if thread.name == "inflight-load"]
        self.assertEqual(len(loading), 1)
        loading[0].join()
        self.assert_no_thread_is_left()

    def test_an_interrupt_after_its_end_leaves_no_engine(self):
        create = library().ifl_engine_create

        def create_and_interrupt(*arguments):
            status = create(*arguments)
            interrupt()
            time.sleep(0.3)
            return status

        with mock.patch.object(library(), "ifl_engine_create", create_and_interrupt):
            with self.assertRaises(KeyboardInterrupt):
                Engine(device="echo")
        self.assert_no_thread_is_left()

    def test_what_progress_raises_is_raised(self):
        def fail(*_):
            raise RuntimeError("enough")

        for raised in (self.load_failure(progress=fail), self.on_a_thread(lambda: self.load_failure(progress=fail))):
            self.assertEqual((type(raised), str(raised)), (RuntimeError, "enough"))
        self.assertIsInstance(self.load_failure(progress=lambda *_: False), inflight.AbortedError)
        self.assert_no_thread_is_left()

    def load_failure(self, **options):
        with self.assertRaises(Exception) as caught:
            self.load(**options)
        return caught.exception

    def on_a_thread(self, work):
        results = []
        thread = threading.Thread(target=lambda: results.append(work()))
        thread.start()
        thread.join()
        return results[0]

    def test_cancelling_the_task_that_enters_ends_it(self):
        failures, calls = [], []

        def make_engine(*arguments, **options):
            try:
                return Engine(*arguments, **options)
            except BaseException as failure:
                failures.append(type(failure))
                raise

        async def enter():
            model = os.environ["INFLIGHT_TEST_MODEL"]
            engine = AsyncEngine(model, device="cpu", num_threads=1, progress=lambda *bytes: calls.append(bytes))
            entering = asyncio.ensure_future(engine.__aenter__())
            while not calls:
                await asyncio.sleep(0.01)
            entering.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await entering
            with self.assertRaisesRegex(RuntimeError, "not loaded"):
                engine.generate("x")

        with slow_loads(0.01), mock.patch("inflight.aio.Engine", make_engine):
            asyncio.run(enter())  # It waits for the thread that loads.
        self.assertEqual(failures, [inflight.AbortedError])
        self.assertLess(len(calls), 100)
        self.assert_no_thread_is_left()
