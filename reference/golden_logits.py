"""Writes golden logits of one model: full attention on prompts, StreamingLLM on longer token streams.

Arithmetic: weights dequantized to float32, everything after that in float64, then rounded to 6 significant digits.
`deviation` in the file says how far other arithmetic moves the logits, as a fraction of the largest absolute logit:
`float32` (weights and activations float32) and `int8` (activations rounded to 8 bits in blocks of 32
before each product with a quantized matrix).

    python golden_logits.py tiny MODEL.gguf NAME OUTPUT.json
    python golden_logits.py real MODEL.gguf NAME OUTPUT.json
"""

import argparse
import os

import numpy as np

import bpe
from common import sha256, significant, versions, write_json
from llama import Model, Stream, greedy, log_sum_exp, nll

SEED = 7
DIGITS = 6
STRIDE = 97
N_TOP = 64
TOLERANCE = (
    "maximum absolute difference of logits, as a fraction of the largest absolute logit of that position: "
    "1e-4 for an implementation with float32 activations; see `deviation` for 8-bit activations"
)

TINY_PROMPTS = {
    "prose": "The river was still for a hundred days.",
    "code": "def total(words):\n    return 12 + 3\n",
    "chat": "<|im_start|>user\nnaïve 42?<|im_end|>\n",
}
GEMMA_CHAT = "<bos><start_of_turn>user\nnaïve  42?<end_of_turn>\n\n"

REAL_PROMPTS = {
    "prose": (
        "The lighthouse had been empty for eleven years when the keeper's daughter came back. She found the lamp "
        "wrapped in oilcloth, the brass still bright, and on the table a letter that nobody had opened"
    ),
    "code": (
        "def mean(values):\n    \"\"\"Arithmetic mean of a non-empty list.\"\"\"\n    total = 0.0\n"
        "    for value in values:\n        total += value\n    return total / len(values)\n\n\ndef median(values):\n"
    ),
    "digits and scripts": (
        "On 14.07.2031 the café in Köln sold 1,284 cups at €3.75 each. 価格は三百円です。 "
        "Температура −12 °C, ambiance “très” calme 🙂 x² + y² = 25; total:"
    ),
}

REAL_STREAM = (
    "The ferry crossed twice a day, once with the mail and once with whatever the island had to sell. Nobody "
    "remembered a captain other than Anselm, who steered with one hand and kept the other in his pocket, and who "
    "spoke to the engine in a low voice when the weather turned. In spring he carried seed potatoes and "
    "schoolchildren; in autumn he carried sheep, and then the deck had to be washed with buckets of sea water until "
    "late in the evening. The children learned to read the tide from the colour of the pilings. They knew that a "
    "green line meant an hour to wait, and that a black one meant that the boat would come early and leave "
    "early, with no regard for anyone still running down the hill. One morning in March the boat did not come at "
    "all. The shopkeeper walked to the end of the pier and looked for a long time at the water, which was flat and "
    "grey and had nothing to say. By noon the whole village stood beside her. Someone had a telephone, someone else "
    "had binoculars, and between them they found out that the ferry lay at the other shore with a broken shaft, and "
    "that Anselm was asleep in the wheelhouse."
)


def relative(found, expected):
    """The largest deviation at any position, as a fraction of that position's largest absolute logit."""
    fraction = np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)
    return float(f"{fraction.max():.2g}")


class Golden:
    def __init__(self, path, name, real):
        self.path, self.real = path, real
        self.model = Model(path)
        self.with_special = bpe.from_gguf(self.model.fields)
        self.content = {
            "script": "reference/golden_logits.py",
            "versions": versions("numpy", "gguf", "tokenizers"),
            "seed": SEED,
            "model": name,
            "file": os.path.basename(path),
            "sha256": sha256(path),
            "arithmetic": "weights dequantized to float32; activations, sums and softmax in float64",
            "significant_digits": DIGITS,
            "tolerance": TOLERANCE,
        }

    def encode(self, text):
        return bpe.encode(self.with_special, text)

    def sample(self, logits, positions):
        """What is stored of `logits` `[n, vocabulary]`: all of it, or the top and every 97th."""
        rows = logits[positions]
        stored = {"positions": [int(p) for p in positions], "log_sum_exp": significant(log_sum_exp(rows), DIGITS)}
        if not self.real:
            return stored | {"logits": significant(rows, DIGITS)}
        indices = [
            sorted({*range(0, len(row), STRIDE), *np.argpartition(row, -N_TOP)[-N_TOP:].tolist()}) for row in rows
        ]
        return stored | {
            "argmax": rows.argmax(axis=1).tolist(),
            "max_abs": significant(np.abs(rows).max(axis=1), DIGITS),
            "indices": indices,
            "logits": [significant(row[chosen], DIGITS) for row, chosen in zip(rows, indices)],
        }

    def prompt(self, name, text):
        tokens = self.encode(text)
        logits = self.model.logits(tokens)
        n = len(tokens)
        if self.real:
            positions = np.array([0, n // 3, 2 * n // 3, n - 1])
        elif self.content["model"] in ("tiny-llama", "tiny-qwen2"):
            positions = np.arange(n)
        else:
            positions = np.arange(n - 1, -1, -5)[::-1]
        return {"name": name, "text": text, "tokens": tokens} | self.sample(logits, positions)

    def stream(self, tokens, sinks, window, positions, text=None):
        logits = self.model.logits(tokens, sinks, window)
        if not self.real:
            one_by_one = Stream(self.model, sinks, window)
            check = np.stack([one_by_one.step(token) for token in tokens])
            assert np.abs(logits - check).max() < 1e-9, "the two formulations of StreamingLLM disagree"
        losses = nll(logits, tokens)
        entry = {"sinks": sinks, "window": window, "tokens": tokens}
        if text is not None:
            entry["text"] = text
        print(f"stream {sinks} + {window}: {len(tokens)} tokens, perplexity {np.exp(losses.mean()):.2f}")
        return entry | self.sample(logits, positions) | {
            "nll": significant(losses, DIGITS),
            "perplexity": float(f"{np.exp(losses.mean()):.6g}"),
        }

    def deviation(self, tokens):
        expected = self.model.logits(tokens)
        return {
            "float32": relative(Model(self.path, dtype=np.float32).logits(tokens), expected),
            "int8": relative(Model(self.path, int8_activations=True).logits(tokens), expected),
        }

    def greedy(self, text, n_tokens):
        tokens = self.encode(text)
        chosen, leads = greedy(self.model, tokens, n_tokens)
        generated = self.with_special.decode(chosen, skip_special_tokens=False)
        print("greedy:", repr(text + generated))
        return {"prompt": tokens, "tokens": chosen, "leads": significant(np.array(leads), 3)}


def tiny(golden):
    texts = TINY_PROMPTS | ({"chat": GEMMA_CHAT} if golden.model.is_gemma else {})
    prompts = [golden.prompt(name, text) for name, text in texts.items()]
    n_vocab = len(golden.model.fields["tokenizer.ggml.tokens"])
    tokens = np.random.default_rng(SEED).integers(0, n_vocab, 60).tolist()
    golden.content["deviation"] = golden.deviation(tokens)
    golden.content["prompts"] = prompts
    golden.content["streams"] = [
        # Position 16 is the first that misses a token: 4 sinks, 12 past tokens, itself.
        golden.stream(tokens, 4, 12, [3, 15, 16, 17, 30, 45, 59]),
        golden.stream(tokens, 0, 12, [11, 12, 13, 30, 59]),
        golden.stream(tokens, 4, 100, [30, 59]),
    ]
    golden.content["greedy"] = [golden.greedy(text, 16) for text in texts.values()]


def real(golden):
    golden.content["indices_are"] = f"every {STRIDE}th token and the {N_TOP} most likely ones, ascending"
    golden.content["deviation"] = golden.deviation(golden.encode(REAL_PROMPTS["prose"]))
    golden.content["prompts"] = [golden.prompt(name, text) for name, text in REAL_PROMPTS.items()]
    tokens = golden.encode(REAL_STREAM)
    n = len(tokens)
    golden.content["streams"] = [golden.stream(tokens, 4, 60, [70, n // 2, n - 1], REAL_STREAM)]
    golden.content["greedy"] = [golden.greedy("The capital of France is", 16)]


def main():
    parser = argparse.ArgumentParser(description="Writes golden logits of one model.")
    parser.add_argument("kind", choices=["tiny", "real"])
    parser.add_argument("model")
    parser.add_argument("name")
    parser.add_argument("output")
    arguments = parser.parse_args()
    golden = Golden(arguments.model, arguments.name, arguments.kind == "real")
    (real if golden.real else tiny)(golden)
    write_json(arguments.output, golden.content)


if __name__ == "__main__":
    main()
