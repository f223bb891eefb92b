#!/usr/bin/env python3
"""Writes tests/golden/token_smollm2.json: token ids and chat prompts of SmolLM2 as transformers makes them.

usage: make_token_golden.py MODEL.gguf OUTPUT.json

Needs transformers with gguf and jinja2, and llama-cpp-python, in another environment if --llama-cpp names its Python:
its ids must equal those of transformers, or the run ends.

transformers converts every byte-level GGUF tokenizer with GPT-2's pre-tokenizer; SmolLM2's own, which its
tokenizer.json has and `tokenizer.ggml.pre = smollm` means, isolates digits first. The script puts that right.
"""
import argparse
import json
import os
import subprocess
import sys

TEXTS = [
    "",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    " leading space",
    "trailing space ",
    "   three   spaces   everywhere   ",
    "\n",
    "\n\n\n",
    " \n \n\t\n ",
    "tabs\tand\t\ttabs",
    "line one\r\nline two\rline three",
    "It's they're we've I'm you'll he'd don't IT'S THEY'LL",
    "2024-11-22 3.14159 1,000,000 0xFF 1e-9",
    "٣٤٥ ½ Ⅷ ① 一二三",
    "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * c[i]; }",
    "SELECT * FROM t WHERE a='b' AND c<>\"d\";",
    "{\"key\": [1, 2, {\"nested\": null}], \"π\": 3.14}",
    "<html><body class=\"x\">&amp;</body></html>",
    "https://example.com/a/b?c=d&e=f#g",
    "email@example.org +1 (555) 010-9999",
    "Zażółć gęślą jaźń",
    "Größe, naïve café, São Tomé",
    "Привет, мир! Как дела?",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "日本語のテキスト、漢字とかな。",
    "你好，世界！今天天气怎么样？",
    "안녕하세요 세계",
    "ไทยไม่มีช่องว่าง",
    "🙂👍🏽👨‍👩‍👧‍👦🇩🇪 emoji",
    "e\u0301 combining, \u200bzero\u200dwidth\ufeff",
    "\u0000\u0001\u001b[31mcontrol\u007f\u0085",
    "\u00a0no-break\u2003em\u3000ideographic",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0010ffff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...---___***~~~```",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "MiXeD CaSe camelCase snake_case kebab-case SCREAMING_CASE",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a<|endoftext|>b<|im_end|><|im_end|>",
    "<|im_end",
    "<|im_end|",
    "|im_end|><repo_name>x<file_sep>",
    "<|<|im_end|>|>",
]

CHATS = [
    [{"role": "user", "content": "Hello!"}],
    [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "2+2?"}],
    [
        {"role": "user", "content": "Name a colour.\n"},
        {"role": "assistant", "content": "  Blue.  "},
        {"role": "user", "content": "Une autre, s'il te plaît 🙂\n\n日本語"},
    ],
    [{"role": "user", "content": ""}],
]

LLAMA_CPP = """
import json, sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
texts = json.load(sys.stdin)
tokenize = lambda text, special: model.tokenize(text.encode(), add_bos=False, special=special)
json.dump([llama_cpp.__version__, [[tokenize(text, special) for special in (True, False)] for text in texts]], sys.stdout)
"""


def compare_with_llama_cpp(python, model, cases):
    texts = json.dumps([case["text"] for case in cases])
    run = subprocess.run([python, "-c", LLAMA_CPP, model], input=texts, capture_output=True, text=True, check=True)
    version, ids = json.loads(run.stdout)
    print("llama-cpp-python", version)
    for case, (special, plain) in zip(cases, ids):
        # llama.cpp ends a text at its first NUL.
        if "\0" not in case["text"] and (special, plain) != (case["ids_special"], case["ids_plain"]):
            sys.exit(f"differs: {case} llama.cpp: {special} {plain}")
    return version


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("--llama-cpp", default=sys.executable, metavar="PYTHON")
    args = parser.parse_args()

    import jinja2
    import tokenizers
    import transformers

    directory, name = os.path.split(os.path.abspath(args.model))
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=name)
    isolate_digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([isolate_digits, byte_level])
    print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__, "jinja2", jinja2.__version__)

    def encode(text, parse_special):
        tokenizer.backend_tokenizer.encode_special_tokens = not parse_special
        return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    cases = []
    for text in TEXTS:
        special, plain = encode(text, True), encode(text, False)
        cases.append({"text": text, "ids_special": special, "ids_plain": plain})
    versions = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    versions["jinja2"] = jinja2.__version__
    versions["llama-cpp-python"] = compare_with_llama_cpp(args.llama_cpp, args.model, cases)

    chats = []
    for messages in CHATS:
        for add_generation_prompt in (False, True):
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
            ids = encode(text, True)
            chats.append(
                {"messages": messages, "add_generation_prompt": add_generation_prompt, "text": text, "ids": ids}
            )
    golden = {
        "command": "tools/make_token_golden.py " + name,
        "versions": versions,
        "vocab_size": len(tokenizer),
        "texts": cases,
        "chats": chats,
    }
    # One case a line, so that a changed id is a changed line.
    lines = {key: [json.dumps(case) for case in golden.pop(key)] for key in ("texts", "chats")}
    with open(args.output, "w", encoding="utf-8") as file:
        head = json.dumps(golden, indent=1)[:-2]
        file.write(head + "".join(f',\n "{key}": [\n  ' + ",\n  ".join(cases) + "\n ]" for key, cases in lines.items()))
        file.write("\n}\n")


if __name__ == "__main__":
    main()
