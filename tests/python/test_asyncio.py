"""The asyncio flavour on the echo engine, woken by the queue's descriptor and by a thread."""

from __future__ import annotations

import asyncio
import gc
import unittest
from unittest import mock

import inflight
from inflight import AsyncEngine, FinishReason

LONG = "x" * 2000


async def wait_until(condition, seconds=10.0):
    for _ in range(int(seconds * 1000)):
        if condition():
            return True
        await asyncio.sleep(0.001)
    return condition()


class WithDescriptor(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        # The test class turns on a mode that prints every turn of the loop that takes long.
        asyncio.get_running_loop().set_debug(False)

    async def test_streams(self):
        async with AsyncEngine(device="echo:5000") as engine:
            stream = engine.generate("Grüße 🎉 in pieces")
            texts = [chunk.text async for chunk in stream]
            self.assertEqual("".join(texts), "Grüße 🎉 in pieces")
            self.assertGreater(len(texts), 1)
            self.assertEqual(stream.finish.reason, FinishReason.STOP)
            self.assertEqual([chunk async for chunk in stream], [])
            self.assertIn("hi", await engine.chat([{"role": "user", "content": "hi"}]).text())
            self.assertEqual(await engine.generate("one, two", stop=",").text(), "one")

    async def test_the_loop_goes_on(self):
        async with AsyncEngine(device="echo:5000") as engine:
            num_turns = 0

            async def turn():
                nonlocal num_turns
                while True:
                    num_turns += 1
                    await asyncio.sleep(0.002)

            turning = asyncio.ensure_future(turn())
            await engine.generate("x" * 40).text()
            turning.cancel()
            self.assertGreater(num_turns, 20)

    async def test_a_thousand_at_once(self):
        async with AsyncEngine(device="echo") as engine:

            async def ask(i):
                return await engine.generate(f"answer {i}").text()

            answers = await asyncio.gather(*(ask(i) for i in range(1000)))
            self.assertEqual(answers, [f"answer {i}" for i in range(1000)])

    async def test_cancel_and_deadline(self):
        async with AsyncEngine(device="echo:5000") as engine:
            stream = engine.generate(LONG)
            async for _ in stream:
                stream.cancel()
            self.assertEqual(stream.finish.reason, FinishReason.CANCELLED)
            stream = engine.generate(LONG, timeout=0.04)
            self.assertLess(len(await stream.text()), 2000)
            self.assertEqual(stream.finish.reason, FinishReason.DEADLINE)

    async def test_a_cancelled_task_cancels_its_request(self):
        async with AsyncEngine(device="echo:2000") as engine:
            task = asyncio.ensure_future(engine.generate(LONG).text())
            await asyncio.sleep(0.05)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertTrue(await wait_until(lambda: engine.sync.stats.num_finished == 1))
            self.assertLess(engine.sync.stats.num_output_tokens, 2000)

    async def test_what_nobody_reads_is_cancelled(self):
        async with AsyncEngine(device="echo:2000") as engine:
            engine.generate(LONG)
            gc.collect()
            self.assertTrue(await wait_until(lambda: engine.sync.stats.num_finished == 1))
            async with engine.generate(LONG) as stream:
                await stream.__anext__()
            self.assertTrue(await wait_until(lambda: engine.sync.stats.num_finished == 2))
            self.assertLess(engine.sync.stats.num_output_tokens, 2000)

    async def test_busy_and_errors(self):
        async with AsyncEngine(device="echo:5000", max_queued_requests=1) as engine:
            first = engine.generate(LONG)
            with self.assertRaises(inflight.BusyError):
                engine.generate("second")
            first.cancel()
            self.assertLess(len(await first.text()), 2000)
            with self.assertRaisesRegex(inflight.InvalidArgumentError, "top_p"):
                engine.generate("x", top_p=2.0)
        with self.assertRaises(inflight.ModelNotFoundError):
            async with AsyncEngine("/nonexistent", device="cpu"):
                pass

    async def test_use_before_entering(self):
        engine = AsyncEngine(device="echo")
        for use in (lambda: engine.generate("x"), lambda: engine.chat("x"), lambda: engine.sync):
            with self.assertRaisesRegex(RuntimeError, "async with"):
                use()
        await engine.aclose()
        async with engine:
            self.assertEqual(await engine.generate("x").text(), "x")

    async def test_close_in_flight(self):
        engine = await AsyncEngine(device="echo:5000").__aenter__()
        streams = [engine.generate(LONG) for _ in range(3)]
        readers = [asyncio.ensure_future(stream.text()) for stream in streams[:2]]
        await asyncio.sleep(0.03)
        await engine.aclose()
        await engine.aclose()
        for ended in await asyncio.gather(*readers, return_exceptions=True):
            self.assertIsInstance(ended, inflight.ClosedError)
        with self.assertRaises(inflight.ClosedError):
            await streams[2].text()
        with self.assertRaises(inflight.ClosedError):
            engine.generate("x")

    async def test_an_engine_that_ends_tells_who_reads(self):
        async with AsyncEngine(device="echo:5000") as engine:
            stream = engine.generate(LONG)
            engine.sync.close()
            with self.assertRaises(inflight.ClosedError):
                await asyncio.wait_for(stream.text(), 10)


class WithThread(WithDescriptor):
    """The same where the library has no descriptors."""

    def setUp(self):
        patch = mock.patch("inflight.aio._DescriptorWaker", side_effect=NotImplementedError)
        patch.start()
        self.addCleanup(patch.stop)
