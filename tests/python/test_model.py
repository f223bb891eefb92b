"""The binding on a real model."""

from __future__ import annotations

import asyncio
import os
import unittest

from inflight import AsyncEngine, Engine, FinishReason

QUESTION = "Count from one to ten in words."
GREEDY = {"temperature": 0, "max_tokens": 32}


class Model(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.progress = []
        cls.engine = Engine(
            os.environ["INFLIGHT_TEST_MODEL"], device="cpu", progress=lambda *bytes: cls.progress.append(bytes)
        )
        cls.addClassCleanup(cls.engine.close)

    def test_streams(self):
        stream = self.engine.chat(QUESTION, **GREEDY)
        chunks = list(stream)
        text = "".join(chunk.text for chunk in chunks)
        tokens = [token for chunk in chunks for token in chunk.tokens]
        self.assertGreater(len(tokens), 8)
        self.assertEqual(stream.finish.num_output_tokens, len(tokens))
        self.assertEqual(self.engine.detokenize(tokens, skip_special=True), text)
        self.assertEqual(self.engine.chat([{"role": "user", "content": QUESTION}], **GREEDY).text(), text)

    def test_stops_before_a_string_that_spans_tokens(self):
        whole = self.engine.chat(QUESTION, **GREEDY).text()
        stop = whole[len(whole) // 2 :][:9]
        stream = self.engine.chat(QUESTION, stop=stop, **GREEDY)
        self.assertEqual(stream.text(), whole[: whole.index(stop)])
        self.assertEqual(stream.finish.reason, FinishReason.STOP)

    def test_cancel_and_deadline(self):
        stream = self.engine.chat(QUESTION, max_tokens=2000, ignore_eos=True)
        for number, _ in enumerate(stream):
            if number == 3:
                stream.cancel()
        self.assertEqual(stream.finish.reason, FinishReason.CANCELLED)
        self.assertLess(stream.finish.num_output_tokens, 2000)
        stream = self.engine.chat(QUESTION, max_tokens=2000, ignore_eos=True, timeout=0.1)
        stream.text()
        self.assertEqual(stream.finish.reason, FinishReason.DEADLINE)

    def test_logprobs_and_seed(self):
        chunks = list(self.engine.generate("The capital of France is", logprobs=3, temperature=0, max_tokens=4))
        for row in (row for chunk in chunks for row in chunk.logprobs):
            values = [entry.logprob for entry in row]
            self.assertTrue(len(row) >= 3 and max(values) == values[0] <= 0)

        def ask(seed):
            return self.engine.chat(QUESTION, temperature=1.5, seed=seed, max_tokens=12).text()

        self.assertEqual(ask(7), ask(7))
        self.assertNotEqual(ask(7), ask(8))

    def test_a_thousand_at_once(self):
        streams = [self.engine.generate("The", temperature=0, max_tokens=1) for _ in range(1000)]
        for stream in streams:
            stream.text()
            self.assertEqual((stream.finish.reason, stream.finish.num_output_tokens), (FinishReason.LENGTH, 1))

    def test_progress_and_abort(self):
        self.assertEqual(self.progress[-1][0], self.progress[-1][1])
        with self.assertRaisesRegex(RuntimeError, "enough"):
            Engine(os.environ["INFLIGHT_TEST_MODEL"], device="cpu", progress=self.give_up)

    def give_up(self, *_):
        raise RuntimeError("enough")

    def test_asyncio(self):
        async def ask():
            async with AsyncEngine(os.environ["INFLIGHT_TEST_MODEL"], device="cpu") as engine:
                return await asyncio.gather(*(engine.chat(QUESTION, **GREEDY).text() for _ in range(4)))

        answers = asyncio.run(ask())
        self.assertEqual([len(answer) > 8 for answer in answers], [True] * 4, answers)
