#!/usr/bin/env python3
"""Measure llama.cpp on a GGUF file and print one JSON object.

Times a prompt, greedy decoding of one sequence after it, and greedy decoding of several sequences in one batch, all
at the same depth, with flash attention and without: either wins somewhere. Each figure is the best of some runs. Only model calls and the choice of the largest logit are in
the times; no tokenizer, no text.

Needs: pip install llama-cpp-python==0.3.36
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import random
import sys
import time

import llama_cpp
import numpy

DEFAULT_MODEL = ".cache/models/SmolLM2-135M-Instruct.BF16.gguf"


@llama_cpp.llama_log_callback
def ignore_log(_level, _text, _user_data):
    """llama.cpp writes to stderr otherwise."""


FLASH_ATTENTION = {
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


class Session:
    """A loaded model with a context for `num_sequences` sequences."""

    def __init__(self, arguments: argparse.Namespace, num_sequences: int, flash_attention: str):
        model_path = arguments.model
        max_batch = max(arguments.prompt_len, num_sequences)
        self.num_sequences = num_sequences
        self.model = llama_cpp.llama_model_load_from_file(
            model_path.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise SystemExit(f"{model_path}: llama.cpp cannot load it")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_sequences * (arguments.prompt_len + arguments.decode_len)
        params.n_seq_max = num_sequences
        params.n_batch = params.n_ubatch = max_batch
        params.n_threads = params.n_threads_batch = arguments.threads
        params.flash_attn_type = FLASH_ATTENTION[flash_attention]
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot make a context of {params.n_ctx} tokens")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(max_batch, 0, 1)

    def cut(self, depth: int) -> None:
        """Forgets every sequence's tokens from position `depth` on."""
        memory = llama_cpp.llama_get_memory(self.context)
        for sequence in range(self.num_sequences):
            llama_cpp.llama_memory_seq_rm(memory, sequence, depth, -1)

    def run(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Runs (sequence, position, token, wants_logits) rows; returns the best next token of those that want it."""
        self.batch.n_tokens = len(rows)
        for index, (sequence, position, token, wants_logits) in enumerate(rows):
            self.batch.token[index] = token
            self.batch.pos[index] = position
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = sequence
            self.batch.logits[index] = wants_logits
        status = llama_cpp.llama_decode(self.context, self.batch)
        if status != 0:
            raise SystemExit(f"llama_decode fails with {status}")
        return [self.best_token(index) for index, row in enumerate(rows) if row[3]]

    def best_token(self, index: int) -> int:
        """The token with the largest logit of batch row `index`."""
        logits = llama_cpp.llama_get_logits_ith(self.context, index)
        address = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        return int(numpy.ctypeslib.as_array(address, (self.vocab_size,)).argmax())

    def run_prompt(self, sequence: int, tokens: list[int]) -> int:
        """Runs a whole prompt as one batch and returns the next token."""
        last = len(tokens) - 1
        return self.run([(sequence, position, token, position == last) for position, token in enumerate(tokens)])[0]

    def close(self) -> None:
        """Frees everything."""
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def time_prompt(session: Session, prompt: list[int]) -> float:
    """Seconds for one prompt in an empty context."""
    session.cut(0)
    start = time.perf_counter()
    session.run_prompt(0, prompt)
    return time.perf_counter() - start


def time_decode(session: Session, tokens: list[int], depth: int, num_steps: int) -> float:
    """Seconds for `num_steps` steps of all sequences, which go on with `tokens` at position `depth`."""
    session.cut(depth)
    start = time.perf_counter()
    for position in range(depth, depth + num_steps):
        tokens = session.run([(sequence, position, token, True) for sequence, token in enumerate(tokens)])
    return time.perf_counter() - start


def best_of(arguments: argparse.Namespace, num_sequences: int, flash_attention: str) -> tuple[float, float]:
    """Least seconds, of all runs, of one prompt and of decoding `num_sequences` sequences."""
    depth = arguments.prompt_len
    session = Session(arguments, num_sequences, flash_attention)
    generator = random.Random(0)
    prompts = [[generator.randrange(session.vocab_size) for _ in range(depth)] for _ in range(num_sequences)]
    # The first pass also pages the weights in.
    session.run_prompt(0, prompts[0][:16])
    prompt_s = min(time_prompt(session, prompts[0]) for _ in range(arguments.runs))
    session.cut(0)
    tokens = [session.run_prompt(sequence, prompt) for sequence, prompt in enumerate(prompts)]
    decode_s = min(time_decode(session, tokens, depth, arguments.decode_len) for _ in range(arguments.runs))
    session.close()
    return prompt_s, decode_s


def measure(arguments: argparse.Namespace, flash_attention: str) -> dict[str, float]:
    """Tokens per second of prompt, decode and batched decode."""
    prompt_s, decode_s = best_of(arguments, 1, flash_attention)
    _, batch_s = best_of(arguments, arguments.sequences, flash_attention)
    return {
        "prompt_tokens_per_s": round(arguments.prompt_len / prompt_s, 1),
        "decode_tokens_per_s": round(arguments.decode_len / decode_s, 1),
        "batch_decode_tokens_per_s": round(arguments.sequences * arguments.decode_len / batch_s, 1),
    }


def cpu_name() -> str:
    """The CPU's name and how many of its cores this machine has."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0] if names else 'unknown'}, {os.cpu_count()} cores"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help="GGUF file (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads (%(default)s)")
    parser.add_argument("--prompt-len", type=int, default=512, help="tokens in a prompt (%(default)s)")
    parser.add_argument("--decode-len", type=int, default=64, help="tokens to decode after it (%(default)s)")
    parser.add_argument("--sequences", type=int, default=16, help="sequences in the batched run (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs to take the best of (%(default)s)")
    parser.add_argument(
        "--flash-attention", nargs="+", choices=FLASH_ATTENTION, default=list(FLASH_ATTENTION),
        help="settings to measure (%(default)s)",
    )
    arguments = parser.parse_args()
    if not os.path.isfile(arguments.model):
        print(f"{arguments.model}: no such file; tools/make_bf16_gguf.py makes it", file=sys.stderr)
        return 1

    llama_cpp.llama_log_set(ignore_log, None)
    llama_cpp.llama_backend_init()
    measured = {setting: measure(arguments, setting) for setting in arguments.flash_attention}
    figures = next(iter(measured.values())).keys()
    report = {
        "engine": f"llama.cpp (llama-cpp-python {importlib.metadata.version('llama-cpp-python')})",
        "system_info": llama_cpp.llama_print_system_info().decode().strip(),
        "cpu": cpu_name(),
        "threads": arguments.threads,
        "model": os.path.basename(arguments.model),
        "model_bytes": os.path.getsize(arguments.model),
        "prompt_len": arguments.prompt_len,
        "decode_len": arguments.decode_len,
        "num_sequences": arguments.sequences,
        "flash_attention": measured,
        "best": {figure: max(values[figure] for values in measured.values()) for figure in figures},
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
