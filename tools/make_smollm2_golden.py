"""Writes tests/golden/smollm2_greedy.json: greedy continuations by transformers in float32.

The weights are those of the GGUF file, dequantised by transformers itself. Each step records the gap between
the two largest logits, so that a test in a lower precision can tell a near-tie from an error.

Needs the packages torch, transformers, gguf and accelerate.
"""

import argparse
import json
import pathlib
import sys

import torch
import transformers

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Water boils at 100 degrees Celsius because",
    "Ein kleiner Hund läuft über die Straße und",
    "List three reasons why the sky is blue:\n1.",
    "<|im_start|>user\nExplain what a hash table is in two sentences.<|im_end|>\n<|im_start|>assistant\n",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55,",
]


def greedy(model, prompt_ids, num_tokens):
    """Continues `prompt_ids` by `num_tokens` arg-max tokens, whatever they are, with a cache."""
    token_ids, gaps = [], []
    inputs, cache = torch.tensor([prompt_ids]), None
    for _ in range(num_tokens):
        output = model(inputs, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        values, indexes = output.logits[0, -1].topk(2)
        token_ids.append(int(indexes[0]))
        gaps.append(round(float(values[0] - values[1]), 6))
        inputs = indexes[:1].reshape(1, 1)
    return token_ids, gaps


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--num-tokens", type=int, default=64)
    parser.add_argument("--output", type=pathlib.Path, default="tests/golden/smollm2_greedy.json")
    arguments = parser.parse_args()

    directory, name = str(arguments.gguf.parent), arguments.gguf.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, gguf_file=name, dtype=torch.float32)
    model.eval()

    cases = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            token_ids, gaps = greedy(model, prompt_ids, arguments.num_tokens)
            text = tokenizer.decode(token_ids)
            cases.append(
                dict(prompt=prompt, prompt_ids=prompt_ids, token_ids=token_ids, top2_gaps=gaps, text=text)
            )
            print(f"{min(gaps):9.6f} smallest gap: {prompt!r} -> {text!r}", file=sys.stderr)

    golden = dict(
        command=f"python tools/make_smollm2_golden.py {name}",
        model=name,
        dtype="float32",
        versions=dict(torch=torch.__version__, transformers=transformers.__version__),
        cases=cases,
    )
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    arguments.output.write_text(compact_arrays(text) + "\n", encoding="utf-8")


def compact_arrays(text):
    """Puts each innermost array of numbers of indented JSON on one line."""
    import re

    return re.sub(r"\[([^\[\]{}\"]*)\]", lambda match: "[" + " ".join(match[1].split()) + "]", text)


if __name__ == "__main__":
    main()
