"""The sentence encoder beside ONNX Runtime: the same weights, texts and threads, taking turns.

    pip install onnxruntime onnx torch transformers
    cargo build --release --package everstream-memory --example embed_speed
    python3 reference/onnx_speed.py FOLDER-OF-MINILM TEXT [THREADS]

TEXT is cut into pieces of some 64 tokens. Both sides tokenize, run the network and take the mean. ONNX
Runtime gets texts sorted by length in batches of 32, padded, all its graph optimizations on.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime
import torch
from transformers import AutoModel, AutoTokenizer

ROUNDS = 9
TEXTS = 128
BATCH = 32


class States(torch.nn.Module):
    """The last states, by position of the inputs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state


def main():
    folder, book = sys.argv[1:3]
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    words = open(book, encoding="utf-8").read().split()
    texts = [" ".join(words[i : i + 50]) for i in range(0, TEXTS * 50, 50)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = tokenizer(["a first text", "another one"], return_tensors="pt", padding=True)
    path = tempfile.mkdtemp() + "/minilm.onnx"
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "texts", 1: "pieces"} for name in names + ["states"]}
    torch.onnx.export(
        States(model),
        tuple(inputs[name] for name in names),
        path,
        input_names=names,
        output_names=["states"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def theirs():
        start = time.perf_counter()
        order = sorted(range(TEXTS), key=lambda i: len(texts[i]))
        embeddings = np.zeros((TEXTS, 384), np.float32)
        for first in range(0, TEXTS, BATCH):
            batch = order[first : first + BATCH]
            encoded = tokenizer([texts[i] for i in batch], return_tensors="np", padding=True)
            feed = {name: encoded[name].astype(np.int64) for name in names}
            (states,) = session.run(None, feed)
            mask = encoded["attention_mask"][:, :, None].astype(np.float32)
            means = (states * mask).sum(1) / mask.sum(1)
            embeddings[batch] = means / np.linalg.norm(means, axis=1, keepdims=True)
        return time.perf_counter() - start, embeddings

    program = ["target/release/examples/embed_speed", folder, str(threads)]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True) as process:
        process.stdin.write(json.dumps(texts) + "\n")

        def ours():
            process.stdin.write("go\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            return answer["seconds"], np.array(answer["embeddings"], np.float32)

        pairs = []
        for i in range(ROUNDS + 1):
            results = {}
            for side in (ours, theirs) if i % 2 else (theirs, ours):
                # Threads of a side spin for a moment after their work.
                time.sleep(0.2)
                results[side] = side()
            (a, x), (b, y) = results[ours], results[theirs]
            pairs.append((a, b))
        process.stdin.close()
    pieces = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    print(f"{TEXTS} texts, {np.mean(pieces):.1f} pieces each, {threads} threads, {ROUNDS} rounds")
    print(f"largest difference of a component: {np.abs(x - y).max():.1e}")
    print("| | ms a text, median (smallest..largest) |\n|---|---|")
    for name, times in zip(["Everstream", f"ONNX Runtime {onnxruntime.__version__}"], zip(*pairs[1:])):
        ms = [1000 * t / TEXTS for t in times]
        print(f"| {name} | {statistics.median(ms):.2f} ({min(ms):.2f}..{max(ms):.2f}) |")
    ratios = [b / a for a, b in pairs[1:]]
    print(f"times faster: {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})")


if __name__ == "__main__":
    main()
