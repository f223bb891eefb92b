"""Times llama.cpp on a GGUF file: a prompt of 512 tokens, then decoding at that depth, best of three.

Usage: python benches/llama_cpp.py MODEL.gguf [THREADS]     (needs llama-cpp-python)
"""

import sys
import time

from llama_cpp import Llama

PROMPT_LEN = 512
DECODE_LEN = 32


def main():
    num_threads = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    llama = Llama(
        sys.argv[1],
        n_ctx=2 * PROMPT_LEN,
        n_batch=PROMPT_LEN,
        n_ubatch=PROMPT_LEN,
        n_threads=num_threads,
        n_threads_batch=num_threads,
        verbose=False,
    )
    prompt = [(i * 7919 + 13) % 49000 for i in range(PROMPT_LEN)]
    prompt_s = decode_s = float("inf")
    for _ in range(3):
        llama.reset()
        start = time.perf_counter()
        llama.eval(prompt)
        prompt_s = min(prompt_s, time.perf_counter() - start)
        start = time.perf_counter()
        for i in range(DECODE_LEN):
            llama.eval([i * 31])
        decode_s = min(decode_s, (time.perf_counter() - start) / DECODE_LEN)
    print(f"prompt {PROMPT_LEN / prompt_s:.1f} tok/s ({prompt_s * 1e3:.0f} ms)")
    print(f"decode {1 / decode_s:.1f} tok/s ({decode_s * 1e3:.2f} ms)")


if __name__ == "__main__":
    main()
