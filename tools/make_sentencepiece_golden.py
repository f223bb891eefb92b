#!/usr/bin/env python3
"""Writes tests/golden/token_sentencepiece.json: a small random SentencePiece vocabulary with ties among its scores,
and the token ids that llama.cpp gives for texts.

usage: make_sentencepiece_golden.py OUTPUT.json [--gguf PYTHON] [--llama-cpp PYTHON]

The options name Pythons that have gguf and llama-cpp-python, where this one has not.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

WRITE_GGUF = """
import json, sys, gguf
vocabulary = json.load(sys.stdin)
writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_context_length(64)
writer.add_embedding_length(8)
writer.add_block_count(1)
writer.add_feed_forward_length(8)
writer.add_head_count(1)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_tokenizer_model("llama")
writer.add_token_list(vocabulary["tokens"])
writer.add_token_scores(vocabulary["scores"])
writer.add_token_types(vocabulary["types"])
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_unk_token_id(0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""

LLAMA_CPP = """
import json, sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
tokenize = lambda text, special: model.tokenize(text.encode(), add_bos=False, special=special)
cases = [{"text": text, "ids_special": tokenize(text, True), "ids_plain": tokenize(text, False)} for text in json.load(sys.stdin)]
json.dump({"version": llama_cpp.__version__, "cases": cases}, sys.stdout)
"""


def make_vocabulary(rng):
    tokens = [("<unk>", 2, 0.0), ("<s>", 3, 0.0), ("</s>", 3, 0.0)]
    tokens += [(f"<0x{byte:02X}>", 6, 0.0) for byte in range(256)]
    tokens += [("<tool>", 4, 0.0), ("\n\n", 4, 0.0)]
    pieces = set("▁abcdé日")
    while len(pieces) < 300:
        left, right = rng.choice(sorted(pieces)), rng.choice(sorted(pieces))
        if len(left + right) <= 7:
            pieces.add(left + right)
    # Few distinct scores, so that many merges tie.
    tokens += [(piece, 1, -float(rng.randrange(1, 40))) for piece in sorted(pieces)]
    return {key: [token[index] for token in tokens] for index, key in enumerate(("tokens", "types", "scores"))}


def make_texts(rng):
    atoms = ["a", "b", "c", "d", "é", "日", " ", "  ", "▁", "x", "🙂", "\n", "\n\n", "</s>", "<s>", "<tool>", "<0x41>"]
    texts = ["", " ", "a", " a", "abcd", "</s>", "a</s> b<tool> c", "<tool><tool>a", "\n\n\na"]
    texts += ["".join(rng.choices("abcd ", k=40)) for _ in range(40)]
    return texts + ["".join(rng.choices(atoms, k=rng.randrange(1, 25))) for _ in range(80)]


def run(python, code, *arguments, stdin):
    command = [python, "-c", code, *arguments]
    return subprocess.run(command, input=json.dumps(stdin), capture_output=True, text=True, check=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--gguf", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--llama-cpp", default=sys.executable, metavar="PYTHON")
    args = parser.parse_args()
    rng = random.Random(20240607)
    vocabulary, texts = make_vocabulary(rng), make_texts(rng)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "vocabulary.gguf")
        run(args.gguf, WRITE_GGUF, path, stdin=vocabulary)
        result = json.loads(run(args.llama_cpp, LLAMA_CPP, path, stdin=texts))
    print("llama-cpp-python", result["version"])
    head = {"command": "tools/make_sentencepiece_golden.py", "versions": {"llama-cpp-python": result["version"]}}
    head.update(vocabulary)
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    cases = ",\n  ".join(json.dumps(case) for case in result["cases"])
    with open(args.output, "w", encoding="utf-8") as file:
        file.write("{\n" + ",\n".join(lines) + f',\n "texts": [\n  {cases}\n ]\n}}\n')


if __name__ == "__main__":
    main()
