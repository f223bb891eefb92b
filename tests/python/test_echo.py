"""The binding on the echo engine, whose tokens are bytes: what the binding itself does, exactly."""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import unittest
from unittest import mock

import inflight
from inflight import Engine, FinishReason, Status

LONG = "x" * 2000


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


class Echo(unittest.TestCase):
    def engine(self, device="echo", **options):
        engine = Engine(device=device, **options)
        self.addCleanup(engine.close)
        return engine

    def test_streams(self):
        stream = self.engine("echo:5000").generate("a prompt comes back in pieces")
        chunks = list(stream)
        self.assertEqual("".join(chunk.text for chunk in chunks), "a prompt comes back in pieces")
        self.assertGreater(len(chunks), 1)
        # The last token ends the sequence and has no text.
        tokens = [token for chunk in chunks for token in chunk.tokens]
        self.assertEqual(bytes(tokens[:-1]), b"a prompt comes back in pieces")
        self.assertTrue(all(chunk.request_id == stream.id and chunk.finish is None for chunk in chunks))
        self.assertEqual(stream.finish.reason, FinishReason.STOP)
        self.assertEqual((stream.finish.num_prompt_tokens, stream.finish.num_output_tokens), (29, 30))
        self.assertTrue(0 < stream.finish.first_token <= stream.finish.total)
        self.assertEqual(list(stream), [])

    def test_code_points_stay_whole(self):
        prompt = "Grüße 🎉€!"
        chunks = list(self.engine("echo:50").generate(prompt))
        self.assertEqual("".join(chunk.text for chunk in chunks), prompt)
        self.assertNotIn("\ufffd", "".join(chunk.text for chunk in chunks))
        with self.assertRaises(inflight.InvalidUtf8Error):
            self.engine().generate("\ud800")

    def test_text_with_nul(self):
        self.assertEqual(self.engine().generate("a\0b").text(), "a\0b")

    def test_stops(self):
        engine = self.engine()
        stream = engine.generate("one, two. Three", stop=["zero", ". T"])
        self.assertEqual((stream.text(), stream.finish.reason), ("one, two", FinishReason.STOP))
        self.assertEqual(engine.generate("one, two. Three", stop=",").text(), "one")
        self.assertEqual(engine.generate("one, two. Three", stop_tokens=[ord(".")]).text(), "one, two")
        stream = engine.generate("one, two. Three", max_tokens=5)
        self.assertEqual((stream.text(), stream.finish.reason), ("one, ", FinishReason.LENGTH))

    def test_prompts(self):
        engine = self.engine()
        self.assertEqual(engine.generate([104, 105]).text(), "hi")
        self.assertIn("hi", engine.chat("hi").text())
        messages = [{"role": "system", "content": "line\nline"}, {"role": "user", "content": 'say "hi" \\ \x01 ü'}]
        answer = engine.chat(messages).text()
        self.assertIn("line\nline", answer)
        self.assertIn('say "hi" \\ \x01 ü', answer)
        self.assertEqual(engine.chat([{"role": "user", "content": "hi"}]).text(), engine.chat("hi").text())
        self.assertIn("<|im_start|>user", engine.apply_chat_template(messages))
        with self.assertRaisesRegex(inflight.InvalidArgumentError, "role"):
            engine.chat([{"no role": "user"}])

    def test_logprobs(self):
        chunks = list(self.engine().generate("abc", logprobs=2))
        self.assertEqual(sum(len(chunk.logprobs) for chunk in chunks), 4)
        for chunk in chunks:
            self.assertEqual([row[0].token for row in chunk.logprobs], chunk.tokens)
        self.assertTrue(all(chunk.logprobs is None for chunk in self.engine().generate("abc")))

    def test_cancel(self):
        stream = self.engine("echo:5000").generate(LONG)
        length = 0
        for chunk in stream:
            length += len(chunk.text)
            stream.cancel()
            stream.cancel()
        self.assertTrue(0 < length < 2000)
        self.assertEqual(stream.finish.reason, FinishReason.CANCELLED)
        self.assertIsNone(stream.finish.error)

    def test_cancel_from_another_thread(self):
        stream = self.engine("echo:5000").generate(LONG)
        timer = threading.Timer(0.05, stream.cancel)
        timer.start()
        self.assertLess(len(stream.text()), 2000)
        timer.join()
        self.assertEqual(stream.finish.reason, FinishReason.CANCELLED)

    def test_what_nobody_reads_is_cancelled(self):
        engine = self.engine("echo:1000")
        engine.generate(LONG)
        gc.collect()
        self.assertTrue(wait_until(lambda: engine.stats.num_finished == 1))
        with engine.generate(LONG) as stream:
            next(stream)
        self.assertTrue(wait_until(lambda: engine.stats.num_finished == 2))
        self.assertLess(engine.stats.num_output_tokens, 2000)
        stream.close()
        self.assertEqual((list(stream), stream.finish), ([], None))

    def test_closing_a_stream_ends_its_iteration(self):
        engine, length = self.engine("echo:1000"), 0
        stream = engine.generate(LONG)
        for chunk in stream:
            length += len(chunk.text)
            stream.close()
        self.assertTrue(0 < length < 2000)
        stream = engine.generate(LONG)
        timer = threading.Timer(0.05, stream.close)
        timer.start()
        self.assertLess(len(stream.text()), 2000)
        timer.join()
        self.assertTrue(wait_until(lambda: engine.stats.num_finished == 2))

    def test_deadline(self):
        stream = self.engine("echo:5000").generate(LONG, timeout=0.04)
        self.assertLess(len(stream.text()), 2000)
        self.assertEqual(stream.finish.reason, FinishReason.DEADLINE)
        self.assertGreaterEqual(stream.finish.total, 0.04)

    def test_busy(self):
        engine = self.engine("echo:5000", max_queued_requests=2)
        first, second = engine.generate(LONG), engine.generate(LONG)
        with self.assertRaises(inflight.BusyError) as caught:
            engine.generate("third")
        self.assertTrue(caught.exception.is_retryable)
        self.assertEqual(caught.exception.category, inflight.Category.RESOURCE)
        for stream in (first, second):
            stream.cancel()
            self.assertLess(len(stream.text()), 2000)
        self.assertEqual(engine.generate("third").text(), "third")

    def test_a_thousand_at_once(self):
        engine = self.engine()
        streams = [engine.generate(f"answer {i}") for i in range(1000)]
        for i in reversed(range(1000)):
            self.assertEqual(streams[i].text(), f"answer {i}")
        self.assertEqual(engine.stats.num_finished, 1000)

    def test_a_thousand_from_many_threads(self):
        engine, wrong = self.engine(), []

        def ask(first):
            for i in range(first, 1000, 8):
                if engine.generate(f"answer {i}").text() != f"answer {i}":
                    wrong.append(i)

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual((wrong, engine.stats.num_finished), ([], 1000))

    def test_one_queue_for_many(self):
        engine = self.engine("echo:100")
        with engine.queue() as queue:
            self.assertEqual(queue.poll(0), [])
            texts, num_ended = [""] * 50, 0
            for i in range(50):
                engine.enqueue(f"number {i}", queue=queue, user_data=i)
            while num_ended < 50:
                self.assertTrue(select.select([queue.fileno()], [], [], 10)[0])
                for chunk in queue.poll(0):
                    texts[chunk.user_data] += chunk.text
                    num_ended += chunk.finish is not None
        self.assertEqual(texts, [f"number {i}" for i in range(50)])
        engine.enqueue_chat("own", user_data=7)
        self.assertEqual({chunk.user_data for chunk in engine.poll()}, {7})
        queue.close()
        with self.assertRaises(inflight.InvalidHandleError):
            queue.poll(0)

    def test_poll_waits_for_as_long_as_it_is_told(self):
        start = time.monotonic()
        self.assertEqual(self.engine().poll(0.25), [])
        self.assertTrue(0.25 <= time.monotonic() - start < 2)

    def test_close_in_flight(self):
        engine = self.engine("echo:5000")
        stream = engine.generate(LONG)
        next(stream)
        engine.close()
        with self.assertRaises(inflight.ClosedError) as caught:
            stream.text()
        self.assertTrue(str(caught.exception).startswith("closed: "))
        self.assertEqual(stream.finish.reason, FinishReason.ERROR)
        self.assertEqual(list(stream), [])

    def test_close_while_other_threads_read(self):
        engine, raised = self.engine("echo:2000"), []

        def read(stream):
            try:
                stream.text()
            except inflight.ClosedError as error:
                raised.append(error)

        threads = [threading.Thread(target=read, args=(engine.generate(LONG),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        engine.close()
        for thread in threads:
            thread.join()
        self.assertEqual(len(raised), 4)

    def test_the_last_events_can_be_polled_after_close(self):
        engine = self.engine("echo:1000")
        ids = [engine.enqueue("x" * 500) for _ in range(3)]
        self.assertTrue(wait_until(lambda: engine.stats.num_output_tokens > 10))
        engine.close()
        chunks = engine.poll()
        ends = [chunk for chunk in chunks if chunk.finish is not None]
        self.assertEqual(sorted(chunk.request_id for chunk in ends), ids)
        self.assertTrue(all(isinstance(chunk.finish.error, inflight.ClosedError) for chunk in ends))
        self.assertGreater(len("".join(chunk.text for chunk in chunks)), 0)
        for _ in range(2):
            with self.assertRaises(inflight.ClosedError):
                engine.poll()

    def test_close_while_another_thread_polls(self):
        for _ in range(50):
            engine, ended, raised = self.engine("echo:100"), [], []

            def poll():
                try:
                    while True:
                        ended.extend(chunk.request_id for chunk in engine.poll() if chunk.finish is not None)
                except inflight.InflightError as error:
                    raised.append(type(error))

            thread = threading.Thread(target=poll)
            thread.start()
            ids = [engine.enqueue(LONG) for _ in range(3)]
            time.sleep(0.002)
            engine.close()
            thread.join()
            self.assertEqual((sorted(ended), raised), (ids, [inflight.ClosedError]))

    def test_use_after_close(self):
        engine = self.engine()
        engine.close()
        engine.close()
        for use in (
            lambda: engine.generate("x"),
            engine.queue,
            lambda: engine.poll(0),
            lambda: engine.stats,
            lambda: engine.tokenize("x"),
        ):
            with self.assertRaises(inflight.ClosedError):
                use()

    def test_engines_and_queues_go_with_their_objects(self):
        before = (num_threads(), num_descriptors())
        for _ in range(20):
            engine = Engine(device="echo")
            engine.generate("x").text()
            engine.queue().fileno()
            finalizer = engine._destroy
            del engine
            gc.collect()
            self.assertFalse(finalizer.alive)
        self.assertTrue(wait_until(lambda: num_threads() <= before[0] and num_descriptors() <= before[1]))
        # An answer keeps its engine.
        stream = Engine(device="echo").generate("kept")
        gc.collect()
        self.assertEqual(stream.text(), "kept")

    def test_errors_have_classes_and_texts(self):
        engine = self.engine()
        for options, expected in (({"top_p": 2.0}, "top_p"), ({"temperature": -3}, "temperature")):
            with self.assertRaisesRegex(inflight.InvalidArgumentError, expected) as caught:
                engine.generate("x", **options)
            self.assertIsInstance(caught.exception, ValueError)
        with self.assertRaisesRegex(inflight.ModelNotFoundError, "/nonexistent") as caught:
            Engine("/nonexistent", device="cpu")
        self.assertIsInstance(caught.exception, FileNotFoundError)
        self.assertEqual(caught.exception.status, Status.MODEL_NOT_FOUND)
        with self.assertRaisesRegex(inflight.InvalidArgumentError, "warp"):
            Engine("model", device="warp")
        copy = pickle.loads(pickle.dumps(caught.exception))
        self.assertEqual((type(copy), str(copy)), (type(caught.exception), str(caught.exception)))

    def test_every_status_has_a_class(self):
        for status in Status:
            if status != Status.OK:
                error = inflight._library.make_exception(status, "text")
                self.assertIs(type(error), inflight.errors.BY_STATUS[status])
                self.assertEqual(error.category, inflight._library.library().ifl_status_category(status))
                self.assertIsInstance(error, inflight.errors.BY_CATEGORY[error.category])
        self.assertIs(type(inflight._library.make_exception(7777, "new")), inflight.InternalError)

    def test_options_are_checked_before_ctypes_cuts_them(self):
        engine = self.engine()
        for options in ({"max_tokens": -1}, {"max_tokens": 2**32}, {"priority": 2**31}, {"timeout": 0}, {"seed": -1}):
            with self.assertRaises(ValueError):
                engine.generate("x", **options)
        # The numbers that stand for options left out.
        for options in ({"temperature": -1}, {"top_k": -1}, {"top_p": -1.0}, {"repetition_penalty": -1}):
            with self.assertRaisesRegex(ValueError, "leave it out"):
                engine.generate("x", **options)
        for options in ({"logprobs": -1}, {"seed": 2**64 - 1}):
            with self.assertRaisesRegex(ValueError, "leave it out"):
                engine.generate("x", **options)
        for options in ({"max_tokns": 1}, {"max_tokens": 1.5}, {"stop": 5}):
            with self.assertRaises(TypeError):
                engine.generate("x", **options)
        for prompt in ([2**32], [-1]):
            with self.assertRaises(ValueError):
                engine.generate(prompt)
        with self.assertRaises(TypeError):
            engine.generate([1.5])

        class Whole:
            def __index__(self):
                return 104

        self.assertEqual(engine.generate([Whole(), 105], max_tokens=Whole()).text(), "hi")
        with self.assertRaises(TypeError):
            Engine(device="echo", max_sequences=1)
        self.assertEqual(engine.generate("x", timeout=float("inf"), temperature=1, logit_bias={1: 0.5}).text(), "x")

    def test_questions_about_the_engine(self):
        engine = self.engine()
        self.assertEqual(engine.tokenize("hi"), [104, 105])
        self.assertEqual(engine.detokenize([104, 105]), "hi")
        self.assertEqual((engine.tokenize(""), engine.detokenize([])), ([], ""))
        self.assertEqual(engine.device, "echo")
        self.assertTrue(engine.model_info.has_chat_template)
        self.assertTrue(all(token < engine.model_info.vocab_size for token in engine.eos_tokens))
        self.assertIs(Engine.plan(device="echo").fits, True)

    def test_log(self):
        lines = []
        engine = self.engine(log=lambda level, line: lines.append((level, line)), log_level=inflight.LogLevel.DEBUG)
        engine.generate("x").text()
        engine.close()
        self.assertGreater(len(lines), 0)
        self.assertTrue(all(isinstance(level, inflight.LogLevel) and line for level, line in lines))

    def test_interrupt_while_waiting(self):
        signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        start = time.monotonic()
        with self.assertRaises(KeyboardInterrupt):
            self.engine().poll(10)
        self.assertLess(time.monotonic() - start, 2)

    def test_fork(self):
        engine = self.engine()
        child = os.fork()
        if child == 0:
            try:
                engine.generate("x")
            except inflight.ForkedError:
                os._exit(0)
            finally:
                os._exit(1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertEqual(engine.generate("parent").text(), "parent")


class Library(unittest.TestCase):
    def run_python(self, code, **environment):
        environment = {**os.environ, **environment}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    def test_the_error_lists_where_it_was_looked_for(self):
        code = "import inflight; inflight.Engine(device='echo')"
        chosen = self.run_python(code, INFLIGHT_LIBRARY="/nonexistent/libinflight.so.0")
        self.assertIn("LibraryNotFoundError", chosen.stderr)
        self.assertIn("/nonexistent/libinflight.so.0 (the environment variable INFLIGHT_LIBRARY)", chosen.stderr)
        with mock.patch.dict(os.environ):
            os.environ.pop("INFLIGHT_LIBRARY", None)
            origins = [origin for _, origin in inflight._library.candidates()]
        self.assertEqual(origins[0], "the package")
        self.assertIn("LD_LIBRARY_PATH", origins[-1])

    def test_an_engine_that_is_left_open_does_not_hinder_the_exit(self):
        code = "import inflight; e = inflight.Engine(device='echo:1000'); s = e.generate('x' * 2000); next(s)"
        ended = self.run_python(code, INFLIGHT_LIBRARY=inflight._library.library()._name)
        self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (0, "", ""))

    def test_version_and_features(self):
        number = inflight._library.library().ifl_version()
        self.assertEqual(inflight.version(), f"{number // 10000}.{number // 100 % 100}.{number % 100}")
        self.assertRegex(inflight.__version__, r"^\d+\.\d+\.\d+$")
        self.assertTrue(inflight.has_feature("echo"))
        self.assertFalse(any(inflight.has_feature(name) for name in ("teleport", "", "echo\0", "\ud800")))

    def test_another_version_is_refused(self):
        with self.assertRaisesRegex(inflight.LibraryNotFoundError, "0.2.0"):
            inflight._library._check_version(FakeLibrary(200), "/somewhere")
        inflight._library._check_version(FakeLibrary(101), "/somewhere")


class FakeLibrary:
    def __init__(self, version):
        self.version = version

    def ifl_version(self):
        return self.version


def num_threads():
    return len(os.listdir("/proc/self/task"))


def num_descriptors():
    return len(os.listdir("/proc/self/fd"))
