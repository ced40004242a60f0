"""Writes tiny random models, one of each family, so that the tests of the forward pass need no download.

`tiny-llama.gguf`: embedding 256, K-quants, tied embeddings, special tokens first (as SmolLM2).
`tiny-qwen2.gguf`: embedding 64, biases, an output matrix of its own, special tokens last (as Qwen2.5).
All others have an embedding of 64 and Q8_0, and what their family has that these two have not:
`tiny-llama3.gguf`: factors of rotary frequencies, words of Llama 3.
`tiny-qwen3.gguf`: heads larger than their share of the embedding, norms of queries and keys, YaRN.
`tiny-gemma2.gguf`: every second layer with a sliding window of 8 tokens, norms on both sides, soft caps, SentencePiece.
`tiny-gemma3.gguf`: two layers of three with such a window and a rotary base of their own, linear scaling for the third.
`tiny-phi3.gguf`: joined matrices, heads that are rotated in part, LongRoPE, a window in all layers, words of GPT-4o.
`tiny-granite.gguf`: four factors. `tiny-olmo2.gguf`: norms behind only. `tiny-smollm3.gguf`: a fourth layer without rotation.
Between them these tensor types appear: F32, F16, Q4_1, Q5_0, Q8_0, Q4_K, Q6_K.

    python tiny.py OUTPUT_FOLDER
"""

import argparse
import collections
import pathlib
import re

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize

import bpe
from common import sha256, versions

# Of seeds 1 to 15, the one whose greedy output after prose and chat is varied and meets special tokens late.
SEED = 5
N_MERGES = 61
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
N_PIECES = 90
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant'"
    " else message['role']) + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The merges are learned from this.
TEXT = """The river runs through the old town and then out to the sea. In the morning the water is still,
and the boats wait at the shore. There is a man who sells bread and tells everyone the same story:
that one winter the river stood still for a hundred days, and the people walked on it to the other side.
The children never believe him. They ask where the fish went, and what the birds were eating.
He says that the fish were waiting too, and that nothing is ever lost; it is only out of sight.
def count(words):
    total = 0
    for word in words:
        if word:
            total = total + 1
    return total
"""


def learn_merges(n_merges):
    """Byte-pair encoding of the bytes of words."""
    symbols = bpe.byte_symbols()
    pieces = re.findall(r" ?[A-Za-z]+|\d| +(?=[A-Za-z])|\n+|[^\sA-Za-z\d]+| ", TEXT)
    return most_frequent_pairs([tuple(symbols[byte] for byte in piece.encode()) for piece in pieces], n_merges)


def most_frequent_pairs(words, n_merges):
    """Plain byte-pair encoding: merge the most frequent neighbours; ties go to the lesser pair."""
    words, merges = collections.Counter(words), []
    for _ in range(n_merges):
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged = collections.Counter()
        for word, count in words.items():
            merged[merge_word(word, best)] += count
        words = merged
    return merges


def merge_word(word, pair):
    merged, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


def round_to(x, scale, low, high):
    """`x / scale` as whole numbers between `low` and `high`; 0 where the scale is 0."""
    quotient = np.divide(x, scale, out=np.zeros(np.broadcast(x, scale).shape), where=scale != 0)
    return np.clip(np.round(quotient), low, high).astype(np.int64)


def half(x):
    """Rounded to float16, as the number that a reader of the block will see."""
    return x.astype(np.float16).astype(np.float64)


def quantize_q4_k(rows):
    """Blocks of 256: float16 d and dmin, 8 sub-blocks of 32 with 6-bit scale and minimum, 4-bit values.

    144 bytes: d, dmin, 12 bytes of packed scales and minima, 128 bytes of nibbles.
    Value = d * scale * nibble - dmin * minimum.
    """
    x = rows.reshape(-1, 8, 32).astype(np.float64)
    low = np.minimum(x.min(axis=2), 0)
    span = (x.max(axis=2) - low) / 15
    d = half(span.max(axis=1, keepdims=True) / 63)
    dmin = half(-low.min(axis=1, keepdims=True) / 63)
    scale = round_to(span, d, 0, 63)
    minimum = round_to(-low, dmin, 0, 63)
    nibbles = round_to(x + (dmin * minimum)[:, :, None], (d * scale)[:, :, None], 0, 15)

    packed = np.zeros((len(x), 12), dtype=np.int64)
    packed[:, 0:4] = scale[:, 0:4] | (scale[:, 4:8] >> 4) << 6
    packed[:, 4:8] = minimum[:, 0:4] | (minimum[:, 4:8] >> 4) << 6
    packed[:, 8:12] = (scale[:, 4:8] & 15) | (minimum[:, 4:8] & 15) << 4
    pairs = nibbles.reshape(-1, 4, 2, 32)
    quants = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return blocks(rows, [float16_bytes(d), float16_bytes(dmin), packed.astype(np.uint8), quants.astype(np.uint8)])


def quantize_q6_k(rows):
    """Blocks of 256: 16 sub-blocks of 16 with an 8-bit signed scale, 6-bit values less 32, float16 d.

    210 bytes: 128 of low nibbles, 64 of high bit pairs, 16 scales, d. Value = d * scale * (value - 32).
    In each half of 128 values, four runs of 32 share their bytes.
    """
    x = rows.reshape(-1, 16, 16).astype(np.float64)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=2, keepdims=True), axis=2)[:, :, 0]
    span = extreme / -32
    d = half(np.abs(span).max(axis=1, keepdims=True) / 127)
    scale = round_to(span, d, -128, 127)
    values = round_to(x, (d * scale)[:, :, None], -32, 31) + 32

    run = values.reshape(-1, 2, 4, 32)
    low = np.concatenate([run[:, :, 0] & 15 | (run[:, :, 2] & 15) << 4,
                          run[:, :, 1] & 15 | (run[:, :, 3] & 15) << 4], axis=2).reshape(-1, 128)
    high = sum(run[:, :, i] >> 4 << 2 * i for i in range(4)).reshape(-1, 64)
    return blocks(rows, [low.astype(np.uint8), high.astype(np.uint8),
                         scale.astype(np.int8).view(np.uint8), float16_bytes(d)])


def float16_bytes(column):
    return column.astype(np.float16).view(np.uint8)


def blocks(rows, parts):
    return np.concatenate(parts, axis=1).reshape(len(rows), -1)


def to_type(rows, kind):
    own = {Type.Q4_K: quantize_q4_k, Type.Q6_K: quantize_q6_k}
    data = own[kind](rows) if kind in own else quantize(rows, kind)
    error = np.abs(dequantize(data, kind) - rows).max() / np.abs(rows).max()
    bound = {"F32": 0, "F16": 1e-3, "Q8_0": 6e-3, "Q6_K": 3e-2, "Q5_0": 7e-2, "Q4_K": 1e-1, "Q4_1": 1e-1}[kind.name]
    assert error <= bound, (kind.name, error)
    return data


def learn_pieces(n_merges):
    """Tokens of SentencePiece's BPE, best first: the merges of words with their space, then single characters."""
    words = [tuple(word) for word in re.findall(" ?[^ \n]+", TEXT)]
    pieces = [a + b for a, b in most_frequent_pairs(words, n_merges)]
    pieces += sorted(set(TEXT) - {"\n"})
    return [piece.replace(" ", "\u2581") for piece in pieces]


class Builder:
    def __init__(self, path, arch, name, special_first, pre, settings):
        self.path, self.settings = path, settings
        # Of the first two families the first letter.
        self.random = np.random.default_rng([SEED, *(arch[:1] if arch in ("llama", "qwen2") else name).encode()])
        self.writer = writer = GGUFWriter(path, arch)
        writer.add_name(name)
        writer.add_context_length(2048)
        writer.add_block_count(settings["n_layers"])
        writer.add_embedding_length(settings["embedding"])
        writer.add_feed_forward_length(settings["feed_forward"])
        writer.add_head_count(settings["n_heads"])
        writer.add_head_count_kv(settings["n_kv_heads"])
        writer.add_rope_freq_base(settings["freq_base"])
        writer.add_layer_norm_rms_eps(settings["eps"])
        self.head_dim = settings.get("head_dim", settings["embedding"] // settings["n_heads"])
        if "head_dim" in settings:
            writer.add_key_length(self.head_dim)
            writer.add_value_length(self.head_dim)
        for key, value in settings.get("more", {}).items():
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(f"{arch}.{key}", value)
        if pre == "default":
            self.add_sentencepiece()
        else:
            self.add_tokenizer(special_first, pre)
        if name == "tiny llama":
            writer.add_vocab_size(self.n_vocab)
            writer.add_rope_dimension_count(settings["embedding"] // settings["n_heads"])

    def add_tokenizer(self, special_first, pre):
        merges = learn_merges(N_MERGES)
        normal = [*bpe.byte_symbols().values(), *(a + b for a, b in merges)]
        tokens = SPECIAL + normal if special_first else normal + SPECIAL
        end_of_text, start, end = (tokens.index(token) for token in SPECIAL)
        self.n_vocab = len(tokens)
        writer = self.writer
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([CONTROL if token in SPECIAL else NORMAL for token in tokens])
        writer.add_token_merges([f"{a} {b}" for a, b in merges])
        writer.add_bos_token_id(start if special_first else end_of_text)
        writer.add_eos_token_id(end)
        writer.add_pad_token_id(end if special_first else end_of_text)
        writer.add_add_bos_token(False)
        writer.add_chat_template(CHAT_TEMPLATE)

    def add_sentencepiece(self):
        control = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
        fixed = ["\n", "\n\n", "\n\n\n", "  ", "   "]
        byte = [f"<0x{value:02X}>" for value in range(256)]
        pieces = learn_pieces(N_PIECES)
        tokens = control + fixed + byte + pieces
        self.n_vocab = len(tokens)
        writer = self.writer
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores([-1000.0] * (len(tokens) - len(pieces)) + [-float(i) for i in range(len(pieces))])
        writer.add_token_types([CONTROL] * len(control) + [USER_DEFINED] * len(fixed) + [BYTE] * 256 + [NORMAL] * len(pieces))
        writer.add_bos_token_id(tokens.index("<bos>"))
        writer.add_eos_token_id(tokens.index("<eos>"))
        writer.add_unk_token_id(tokens.index("<unk>"))
        writer.add_pad_token_id(tokens.index("<pad>"))
        writer.add_add_bos_token(True)
        writer.add_add_space_prefix(False)
        writer.add_chat_template(GEMMA_TEMPLATE)

    def matrix(self, name, kind, n_out, n_in, gain):
        """Random rows such that an input with mean square 1 gives an output with mean square gain²."""
        rows = (self.random.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in)).astype(np.float32)
        self.writer.add_tensor(f"{name}.weight", to_type(rows, kind), raw_dtype=kind)

    def vector(self, name, n, mean, spread):
        values = (mean + spread * self.random.standard_normal(n)).astype(np.float32)
        self.writer.add_tensor(name, values)

    def layer(self, i, kinds, with_biases=False, qk_norms=None, norms_before=True, norms_behind=False, joined=False):
        """`kinds`: tensor types of q, k, v, attention output, gate, up, down."""
        e, f = self.settings["embedding"], self.settings["feed_forward"]
        e_q = self.head_dim * self.settings["n_heads"]
        e_kv = self.head_dim * self.settings["n_kv_heads"]
        # Larger queries and keys would make the logits chaotic: 1.6 doubles the effect of any rounding.
        shapes = {"attn_q": (e_q, e, 1.2), "attn_k": (e_kv, e, 1.2), "attn_v": (e_kv, e, 1.5),
                  "attn_output": (e, e_q, 1.5), "ffn_gate": (f, e, 1.5), "ffn_up": (f, e, 1.5), "ffn_down": (e, f, 1.5)}
        if joined:
            shapes = {"attn_qkv": (e_q + 2 * e_kv, e, 1.2), "attn_output": (e, e_q, 1.5),
                      "ffn_up": (2 * f, e, 1.5), "ffn_down": (e, f, 1.5)}
        if norms_before:
            self.vector(f"blk.{i}.attn_norm.weight", e, 1, 0.1)
            self.vector(f"blk.{i}.ffn_norm.weight", e, 1, 0.1)
        if qk_norms is not None:
            sizes = {"head": (self.head_dim, self.head_dim), "row": (e_q, e_kv)}[qk_norms]
            self.vector(f"blk.{i}.attn_q_norm.weight", sizes[0], 1.2, 0.1)
            self.vector(f"blk.{i}.attn_k_norm.weight", sizes[1], 1.2, 0.1)
        if norms_behind:
            self.vector(f"blk.{i}.post_attention_norm.weight", e, 1.5, 0.1)
            self.vector(f"blk.{i}.post_ffw_norm.weight", e, 1.5, 0.1)
        for (name, shape), kind in zip(shapes.items(), kinds):
            self.matrix(f"blk.{i}.{name}", kind, *shape)
            if with_biases and name in ("attn_q", "attn_k", "attn_v"):
                self.vector(f"blk.{i}.{name}.bias", shape[0], 0, 0.4)

    def finish(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        print(f"wrote {self.path}, {pathlib.Path(self.path).stat().st_size} bytes, SHA-256 {sha256(self.path)}")


def tiny_llama(path):
    builder = Builder(path, "llama", "tiny llama", special_first=True, pre="smollm", settings=dict(
        n_layers=2, embedding=256, feed_forward=512, n_heads=4, n_kv_heads=2, freq_base=10000.0, eps=1e-5))
    # Tied: its rows are also the output matrix.
    builder.matrix("token_embd", Type.Q6_K, builder.n_vocab, 256, 3.5)
    builder.layer(0, [Type.Q4_K, Type.Q4_K, Type.Q6_K, Type.Q4_K, Type.Q4_K, Type.Q6_K, Type.Q6_K])
    builder.layer(1, [Type.Q6_K, Type.Q8_0, Type.Q4_1, Type.Q4_1, Type.Q4_1, Type.Q4_K, Type.Q4_K])
    builder.vector("output_norm.weight", 256, 1, 0.1)
    builder.finish()


def tiny_qwen2(path):
    builder = Builder(path, "qwen2", "tiny qwen2", special_first=False, pre="qwen2", settings=dict(
        n_layers=2, embedding=64, feed_forward=160, n_heads=4, n_kv_heads=2, freq_base=1000000.0, eps=1e-6))
    builder.matrix("token_embd", Type.Q5_0, builder.n_vocab, 64, 4.0)
    builder.layer(0, [Type.Q5_0, Type.Q5_0, Type.Q8_0, Type.Q5_0, Type.Q4_1, Type.F16, Type.Q5_0], with_biases=True)
    builder.layer(1, [Type.F16, Type.F32, Type.Q8_0, Type.Q4_1, Type.Q8_0, Type.Q5_0, Type.F32], with_biases=True)
    builder.vector("output_norm.weight", 64, 1, 0.1)
    builder.matrix("output", Type.Q8_0, builder.n_vocab, 64, 3.0)
    builder.finish()


def small(path, arch, name, pre, n_layers=2, embedding_gain=4.0, output_norm=1.0, n_kv_heads=2, freq_base=10000.0,
          head_dim=None, more={}, tensors={}, **layer):
    """A model of the other families; `more`: metadata of its own, `tensors`: vectors of its own."""
    settings = dict(n_layers=n_layers, embedding=64, feed_forward=96, n_heads=4, n_kv_heads=n_kv_heads,
                    freq_base=freq_base, eps=1e-6, more=more) | ({"head_dim": head_dim} if head_dim else {})
    builder = Builder(path, arch, name, special_first=False, pre=pre, settings=settings)
    builder.matrix("token_embd", Type.Q8_0, builder.n_vocab, 64, embedding_gain)
    for name, values in tensors.items():
        builder.writer.add_tensor(name, np.array(values, dtype=np.float32))
    for i in range(n_layers):
        builder.layer(i, [Type.Q8_0] * 7, **layer)
    builder.vector("output_norm.weight", 64, output_norm, output_norm / 10)
    builder.finish()


def llama3_factors(dim, base, factor, low, high, original):
    """As `transformers` has them: long waves are stretched, short ones not, those between in part."""
    wave = 2 * np.pi * base ** (np.arange(0, dim, 2) / dim)
    smooth = np.clip((original / wave - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def others(folder):
    small(folder / "tiny-llama3.gguf", "llama", "tiny llama3", "llama-bpe", more={"rope.dimension_count": 16},
          tensors={"rope_freqs.weight": llama3_factors(16, 10000.0, 8.0, 1.0, 4.0, 32)})
    small(folder / "tiny-qwen3.gguf", "qwen3", "tiny qwen3", "qwen2", head_dim=32, qk_norms="head", freq_base=1000000.0,
          more={"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32})
    # Embeddings are scaled by 8 on the way in; larger rows would leave nothing to the layers.
    gemma = dict(pre="default", n_layers=3, embedding_gain=0.5, output_norm=7.0, head_dim=32, norms_behind=True)
    small(folder / "tiny-gemma2.gguf", "gemma2", "tiny gemma2", **gemma, more={
        "attention.sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 15.0})
    small(folder / "tiny-gemma3.gguf", "gemma3", "tiny gemma3", **gemma, n_kv_heads=1, qk_norms="head", freq_base=1000000.0,
          more={"attention.sliding_window": 8, "attention.sliding_window_pattern": 2,
                "rope.scaling.type": "linear", "rope.scaling.factor": 8.0})
    small(folder / "tiny-phi3.gguf", "phi3", "tiny phi3", "gpt-4o", joined=True,
          more={"rope.dimension_count": 12, "rope.scaling.original_context_length": 1024,
                "rope.scaling.attn_factor": 1.0 + 1 / 16, "attention.sliding_window": 24},
          tensors={"rope_factors_short.weight": 1 + np.arange(6) / 8, "rope_factors_long.weight": 1 + np.arange(6)})
    small(folder / "tiny-granite.gguf", "granite", "tiny granite", "refact", embedding_gain=0.7, output_norm=5.0, more={
        "rope.dimension_count": 16, "attention.scale": 0.3, "embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 0.7})
    small(folder / "tiny-olmo2.gguf", "olmo2", "tiny olmo2", "dbrx", qk_norms="row", norms_before=False, norms_behind=True,
          freq_base=500000.0)
    small(folder / "tiny-smollm3.gguf", "smollm3", "tiny smollm3", "smaug-bpe", n_layers=5, more={"rope.dimension_count": 16})


def main():
    parser = argparse.ArgumentParser(description="Writes a tiny model of each family.")
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    print(f"seed {SEED}, versions {versions('numpy', 'gguf')}")
    tiny_llama(folder / "tiny-llama.gguf")
    tiny_qwen2(folder / "tiny-qwen2.gguf")
    others(folder)


if __name__ == "__main__":
    main()
