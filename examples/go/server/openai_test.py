"""Talks to the server with OpenAI's own Python package, and ends with a line "N passed, N failed".

usage: openai_test.py SERVER MODEL
    SERVER   the program
    MODEL    SmolLM2-135M-Instruct
"""

import asyncio
import contextlib
import re
import subprocess
import sys
import time
import traceback
import urllib.request

import openai

KEY = "sesame"


@contextlib.contextmanager
def serving(*arguments):
    """A server that runs; gives its address."""
    command = [sys.argv[1], "--listen", "127.0.0.1:0", "--model-name", "test", "--api-key", KEY, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"listening.*url=(\S+)", line):
                yield found[1]
                break
        else:
            raise RuntimeError("the server did not start: " + "".join(lines))
    finally:
        process.terminate()
        process.stderr.read()
        if process.wait(timeout=30) != 0:
            raise RuntimeError(f"the server ended with code {process.returncode}")


def client_of(url, kind=openai.OpenAI, **options):
    return kind(base_url=url + "/v1", api_key=KEY, timeout=60, **{"max_retries": 0, **options})


def metric(url, name):
    request = urllib.request.Request(url + "/metrics", headers={"Authorization": "Bearer " + KEY})
    text = urllib.request.urlopen(request).read().decode()
    return int(re.search(rf"^{name} (\d+)$", text, re.MULTILINE)[1])


def wait_until(what, done):
    start = time.monotonic()
    while not done():
        assert time.monotonic() - start < 20, "waited too long until " + what
        time.sleep(0.01)


def say(text):
    return [{"role": "user", "content": text}]


def test_models(echo, _model):
    assert [model.id for model in client_of(echo).models.list()] == ["test"]
    assert client_of(echo).models.retrieve("test").id == "test"


def test_chat(_echo, model):
    answer = client_of(model).chat.completions.create(
        model="test", messages=say("What is the capital of France?"), temperature=0, max_completion_tokens=12)
    assert "Paris" in answer.choices[0].message.content, answer
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_streamed_chat_is_the_whole_one(_echo, model):
    question = dict(model="test", messages=say("Tell me about birds."), temperature=0, max_tokens=24)
    whole = client_of(model).chat.completions.create(**question)
    text, usage = "", None
    stream = client_of(model).chat.completions.create(**question, stream=True, stream_options={"include_usage": True})
    for chunk in stream:
        usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
    assert text == whole.choices[0].message.content and usage == whole.usage, (text, usage, whole)


def test_seed_n_and_stop(_echo, model):
    def ask():
        answer = client_of(model).completions.create(
            model="test", prompt="Once upon a time", seed=3, n=2, temperature=1, max_tokens=12, stop=["."])
        return [choice.text for choice in answer.choices]

    first = ask()
    assert first == ask() and first[0] != first[1], first


def test_logprobs(_echo, model):
    answer = client_of(model).chat.completions.create(
        model="test", messages=say("Hi"), logprobs=True, top_logprobs=3, max_tokens=4, temperature=0)
    rows = answer.choices[0].logprobs.content
    assert "".join(row.token for row in rows).strip() == answer.choices[0].message.content.strip(), answer
    assert all(len(row.top_logprobs) == 3 and row.logprob == row.top_logprobs[0].logprob for row in rows), rows


def test_errors(echo, _model):
    with contextlib.suppress(openai.NotFoundError):
        client_of(echo).completions.create(model="horse", prompt="a")
        raise AssertionError("a model that does not exist answers")
    try:
        client_of(echo).completions.create(model="test", prompt="a", temperature=9)
        raise AssertionError("a temperature of 9 passes")
    except openai.BadRequestError as error:
        assert error.param == "temperature" and "from 0 to 2" in error.message, error
    with contextlib.suppress(openai.AuthenticationError):
        openai.OpenAI(base_url=echo + "/v1", api_key="wrong", max_retries=0).models.list()
        raise AssertionError("a wrong key passes")


def test_64_streams_at_once(echo, model):
    async def ask(client, number, answers):
        stream = await client.chat.completions.create(
            model="test", messages=say(f"number {number}"), max_tokens=24, temperature=0, stream=True)
        async for chunk in stream:
            answers[number] += chunk.choices[0].delta.content or ""

    async def ask_all(url):
        answers = [""] * 64
        async with client_of(url, openai.AsyncOpenAI) as client:
            await asyncio.gather(*(ask(client, number, answers) for number in range(64)))
        return answers

    assert all(asyncio.run(ask_all(model)))
    for number, text in enumerate(asyncio.run(ask_all(echo))):
        assert re.search(rf"\bnumber {number}\b", text), text


def test_leaving_a_stream_ends_it(_echo, _model):
    with serving("--device", "echo:5000") as url:
        with client_of(url).completions.create(
                model="test", prompt="x" * 2000, max_tokens=2000, stream=True) as stream:
            next(iter(stream))
        wait_until("the request has ended", lambda: metric(url, "inflight_requests_finished_total") == 1)
        assert metric(url, "inflight_output_tokens_total") < 1000


def test_a_full_queue_is_retried(_echo, _model):
    with serving("--device", "echo:5000", "--max-queued-requests", "1") as url:
        first = client_of(url).completions.create(model="test", prompt="x" * 200, max_tokens=200, stream=True)
        try:
            client_of(url).completions.create(model="test", prompt="a")
            raise AssertionError("the queue is not full")
        except openai.RateLimitError as error:
            assert error.response.headers["retry-after"] == "1" and error.code == "rate_limit_exceeded"
        # The package waits for as long as it is told, and tries again.
        again = client_of(url, max_retries=10).completions.create(model="test", prompt="abc", max_tokens=9)
        assert again.choices[0].text == "abc" and len(list(first)) > 10


def main():
    failed = 0
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    with serving("--device", "echo:200") as echo, serving("--model", sys.argv[2], "--device", "cpu") as model:
        for name, test in tests:
            try:
                test(echo, model)
                print("ok     ", name)
            except Exception:
                failed += 1
                print("FAILED ", name)
                traceback.print_exc(file=sys.stdout)
    print(f"{len(tests) - failed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
