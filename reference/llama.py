"""The reference forward pass: Llama-like models from GGUF, in numpy, written to be read.

Independent of the Rust code: it shares no line and no library with it,
so that an error has to be made twice to stay hidden.

Weights are dequantized to float32 by the `gguf` package. Activations, sums and softmax are in `dtype`:
float64 by default, so that the reference has no rounding worth mentioning; float32 for speed.

What families differ in stands in `Model.__init__`; `check_transformers.py` compares all of them with the
`transformers` package. GGUF's converter permutes the rows of q and k of `llama`, `granite` and `smollm3`, so that rotary
pairs are neighbours: elements 2i and 2i+1; of all others they are i and i + half of what is rotated.

Shapes: `n` tokens, `h` query heads, `g` key/value heads, `d` head_dim, `e` embedding, `f` feed-forward.

    python llama.py MODEL.gguf --prompt TEXT --n-tokens 12
"""

import argparse

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

import bpe


def visible_tokens(n, sinks=0, window=None):
    """For each of `n` tokens: the tokens it sees, oldest first, itself last.

    StreamingLLM (arXiv:2309.17453): the first `sinks` and the last `window` past tokens.
    Without a window: full attention.
    """
    if window is None:
        return [np.arange(t + 1) for t in range(n)]
    return [
        np.array([*range(min(sinks, t)), *range(max(sinks, t - window), t), t])
        for t in range(n)
    ]


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def log_sum_exp(logits):
    """Over the last axis, in float64."""
    logits = logits.astype(np.float64)
    top = logits.max(axis=-1)
    return top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))


def nll(logits, tokens):
    """`-log p(tokens[t] | tokens[..t])` for t = 1..n, from `logits` `[n, vocabulary]`."""
    return log_sum_exp(logits[:-1]) - logits[np.arange(len(tokens) - 1), tokens[1:]]


def round_to_int8(x):
    """What kernels with 8-bit activations see: blocks of 32 along a row, one float16 scale each."""
    blocks = x.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    whole = np.round(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0))
    return (whole * scale.astype(np.float16).astype(x.dtype)).reshape(x.shape)


FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "granite", "olmo2", "smollm3")


class Model:
    def __init__(self, path, dtype=np.float64, int8_activations=False):
        reader = GGUFReader(path)
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.dtype = dtype
        self.int8_activations = int8_activations
        self.kept = {}

        self.arch = arch = self.fields["general.architecture"]
        if arch not in FAMILIES:
            raise ValueError(f"unknown architecture {arch!r}")
        self.neighbour_pairs = arch in ("llama", "granite", "smollm3")
        self.is_gemma = arch in ("gemma2", "gemma3")
        self.n_layers = self.setting("block_count")
        self.n_heads = self.setting("attention.head_count")
        self.n_kv_heads = self.setting("attention.head_count_kv")
        self.embedding = self.setting("embedding_length")
        self.feed_forward_size = self.setting("feed_forward_length")
        self.head_dim = self.setting("attention.key_length", self.embedding // self.n_heads)
        self.rotated = self.setting("rope.dimension_count", self.head_dim)
        self.eps = self.setting("attention.layer_norm_rms_epsilon")

        # Factors and caps.
        self.embedding_scale = np.sqrt(self.embedding) if self.is_gemma else self.setting("embedding_scale", 1.0)
        self.attention_scale = self.setting("attention.scale", 1 / np.sqrt(self.head_dim))
        self.residual_scale = self.setting("residual_scale", 1.0)
        self.logit_divisor = self.setting("logit_scale", 1.0)
        self.score_cap = self.setting("attn_logit_softcapping", 0.0)
        self.logit_cap = self.setting("final_logit_softcapping", 0.0)

        # Layers that see the last places of the cache only: all but every so many.
        self.sliding_window = self.setting("attention.sliding_window", 0)
        period = {"gemma2": 2, "gemma3": 6}.get(arch, self.n_layers + 1)
        self.sliding_period = self.setting("attention.sliding_window_pattern", period)

        base = self.setting("rope.freq_base", 10000.0)
        self.frequencies, self.magnitude = self.scaled(self.rotary_frequencies(base), base)
        own_base = self.setting("rope.freq_base_swa", 10000.0) if arch == "gemma3" else base
        self.sliding_frequencies = self.rotary_frequencies(own_base) if own_base != base else self.frequencies

    def rotary_frequencies(self, base):
        """In float32, as models are trained with; angles are in float64."""
        exponent = np.arange(0, self.rotated, 2, dtype=np.float32) / np.float32(self.rotated)
        return (np.float32(1) / np.float32(base) ** exponent).astype(np.float64)

    def scaled(self, frequencies, base):
        """Frequencies of models that were trained on longer texts later, and what rotated components are multiplied by."""
        for name in ("rope_freqs.weight", "rope_factors_short.weight"):
            if name in self.tensors:
                return frequencies / self.weight(name), self.setting("rope.scaling.attn_factor", 1.0)
        kind = self.setting("rope.scaling.type", "none")
        if kind == "none":
            return frequencies, 1.0
        factor = self.setting("rope.scaling.factor")
        if kind == "linear":
            return frequencies / factor, 1.0
        if kind != "yarn":
            raise ValueError(f"rotary scaling {kind!r}")
        # YaRN (arXiv:2309.00071): by how often a pair turns within the original context.
        original = self.setting("rope.scaling.original_context_length")
        pair_of = lambda turns: self.rotated * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(base))
        low, high = max(np.floor(pair_of(32)), 0), min(np.ceil(pair_of(1)), self.rotated - 1)
        ramp = np.clip((np.arange(self.rotated // 2) - low) / max(high - low, 0.001), 0, 1)
        return frequencies * (1 - ramp) + frequencies / factor * ramp, 0.1 * np.log(factor) + 1

    def is_sliding(self, layer):
        return self.sliding_window > 0 and (layer + 1) % self.sliding_period != 0

    def is_rotated(self, layer):
        return self.arch != "smollm3" or (layer + 1) % 4 != 0

    def setting(self, name, default=None):
        value = self.fields.get(f"{self.arch}.{name}", default)
        if value is None:
            raise ValueError(f"{self.arch}.{name} is missing")
        return value

    def weight(self, name):
        """`[out, in]` (or `[out]`). Kept as float32, handed out as `dtype`."""
        if name not in self.kept:
            tensor = self.tensors[name]
            self.kept[name] = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        return self.kept[name].astype(self.dtype, copy=False)

    def embed(self, tokens):
        """`[n]` to `[n, e]`; dequantizes the rows in question only."""
        tensor = self.tensors["token_embd.weight"]
        x = dequantize(tensor.data[np.asarray(tokens)], tensor.tensor_type).astype(self.dtype)
        return x * self.dtype(self.embedding_scale)

    def linear(self, x, name):
        """`[n, in]` to `[n, out]`, with the bias if there is one."""
        if self.int8_activations and self.tensors[f"{name}.weight"].tensor_type.name.startswith("Q"):
            x = round_to_int8(x)
        y = x @ self.weight(f"{name}.weight").T
        return y + self.weight(f"{name}.bias") if f"{name}.bias" in self.tensors else y

    def rms_norm(self, x, name):
        """`x` itself, where the family has no such norm."""
        if f"{name}.weight" not in self.tensors:
            return x
        mean_square = np.square(x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.eps) * self.weight(f"{name}.weight")

    def rotate(self, x, positions, layer):
        """Rotary embedding of `x` `[n, heads, d]`, row i at `positions[i]`."""
        if not self.is_rotated(layer):
            return x
        frequencies = self.sliding_frequencies if self.is_sliding(layer) else self.frequencies
        angle = np.asarray(positions, dtype=np.float64)[:, None] * frequencies  # [n, pairs]
        cos = (np.cos(angle) * self.magnitude).astype(self.dtype)[:, None]
        sin = (np.sin(angle) * self.magnitude).astype(self.dtype)[:, None]
        half = self.rotated // 2
        first = slice(0, self.rotated, 2) if self.neighbour_pairs else slice(0, half)
        second = slice(1, self.rotated, 2) if self.neighbour_pairs else slice(half, self.rotated)
        a, b = x[..., first], x[..., second]
        rotated = x.copy()
        rotated[..., first] = a * cos - b * sin
        rotated[..., second] = a * sin + b * cos
        return rotated

    def attend_one(self, q, keys, values, layer):
        """One query over a cache: `q` `[h, d]`, raw `keys` and `values` `[m, g, d]`; the last row is its own.

        Keys and query are rotated at their place inside the cache, 0 to m-1.
        """
        m = len(keys)
        keys = self.rotate(keys, range(m), layer)
        q = self.rotate(q[None], [m - 1], layer)[0]
        if self.is_sliding(layer):
            keys, values = keys[-self.sliding_window :], values[-self.sliding_window :]
        q = q.reshape(self.n_kv_heads, -1, self.head_dim)  # [g, h/g, d]: neighbours share a key head
        scores = np.einsum("gqd,mgd->gqm", q, keys) * self.dtype(self.attention_scale)
        if self.score_cap:
            scores = self.score_cap * np.tanh(scores / self.score_cap)
        return np.einsum("gqm,mgd->gqd", softmax(scores), values).reshape(-1)

    def project(self, x, layer):
        """Raw (un-rotated) q `[n, h, d]`, k and v `[n, g, d]`."""
        x = self.rms_norm(x, f"blk.{layer}.attn_norm")
        q_size, kv_size = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        if self.arch == "phi3":
            q, k, v = np.split(self.linear(x, f"blk.{layer}.attn_qkv"), [q_size, q_size + kv_size], axis=1)
        else:
            q, k, v = (self.linear(x, f"blk.{layer}.attn_{part}") for part in "qkv")
        if self.arch == "olmo2":
            q, k = self.rms_norm(q, f"blk.{layer}.attn_q_norm"), self.rms_norm(k, f"blk.{layer}.attn_k_norm")
        q, k, v = (y.reshape(len(x), -1, self.head_dim) for y in (q, k, v))
        if self.arch != "olmo2":
            q, k = self.rms_norm(q, f"blk.{layer}.attn_q_norm"), self.rms_norm(k, f"blk.{layer}.attn_k_norm")
        return q, k, v

    def add(self, x, y, norm):
        """The residual stream after a half of a layer."""
        return x + self.rms_norm(y, norm) * self.dtype(self.residual_scale)

    def attention_output(self, x, seen, layer):
        y = self.linear(seen, f"blk.{layer}.attn_output")
        return self.add(x, y, f"blk.{layer}.post_attention_norm")

    def feed_forward(self, x, layer):
        """SwiGLU; of Gemma GeGLU, with the approximation by tanh."""
        y = self.rms_norm(x, f"blk.{layer}.ffn_norm")
        if self.arch == "phi3":
            gate, up = np.split(self.linear(y, f"blk.{layer}.ffn_up"), 2, axis=1)
        else:
            gate, up = self.linear(y, f"blk.{layer}.ffn_gate"), self.linear(y, f"blk.{layer}.ffn_up")
        if self.is_gemma:
            inner = np.sqrt(2 / np.pi).astype(self.dtype) * (gate + 0.044715 * gate**3)
            active = 0.5 * gate * (1 + np.tanh(inner))
        else:
            active = gate / (1 + np.exp(-gate))
        y = self.linear(active * up, f"blk.{layer}.ffn_down")
        return self.add(x, y, f"blk.{layer}.post_ffw_norm")

    def output(self, x):
        """Hidden states `[n, e]` to logits `[n, vocabulary]`."""
        name = "output" if "output.weight" in self.tensors else "token_embd"
        logits = self.linear(self.rms_norm(x, "output_norm"), name) / self.dtype(self.logit_divisor)
        return self.logit_cap * np.tanh(logits / self.logit_cap) if self.logit_cap else logits

    def logits(self, tokens, sinks=0, window=None):
        """All positions at once: `[n]` to `[n, vocabulary]`.

        With a window: the same numbers as [`Stream`], layer by layer instead of token by token.
        That is exact, because a token's key in a layer depends only on what that token saw.
        """
        visible = visible_tokens(len(tokens), sinks, window)
        x = self.embed(tokens)
        for layer in range(self.n_layers):
            q, k, v = self.project(x, layer)
            seen = [self.attend_one(q[t], k[rows], v[rows], layer) for t, rows in enumerate(visible)]
            x = self.attention_output(x, np.stack(seen), layer)
            x = self.feed_forward(x, layer)
        return self.output(x)


class Stream:
    """StreamingLLM as its paper describes it: one token at a time, a bounded cache of raw keys."""

    def __init__(self, model, sinks, window):
        self.model, self.sinks, self.window = model, sinks, window
        empty = np.zeros((0, model.n_kv_heads, model.head_dim), dtype=model.dtype)
        self.keys = [empty] * model.n_layers
        self.values = [empty] * model.n_layers

    def step(self, token):
        """Appends `token`; the logits `[vocabulary]` of the next one. Evicts afterwards."""
        model = self.model
        x = model.embed([token])
        for layer in range(model.n_layers):
            q, k, v = model.project(x, layer)
            self.keys[layer] = np.concatenate([self.keys[layer], k])
            self.values[layer] = np.concatenate([self.values[layer], v])
            seen = model.attend_one(q[0], self.keys[layer], self.values[layer], layer)
            x = model.attention_output(x, seen[None], layer)
            x = model.feed_forward(x, layer)
        if len(self.keys[0]) > self.sinks + self.window:
            self.keys = [np.delete(keys, self.sinks, axis=0) for keys in self.keys]
            self.values = [np.delete(values, self.sinks, axis=0) for values in self.values]
        return model.output(x)[0]


def greedy(model, prompt, n_tokens):
    """The `n_tokens` most likely tokens after `prompt`, and each one's lead in logits over its runner-up."""
    stream = Stream(model, 0, len(prompt) + n_tokens)
    for token in prompt:
        logits = stream.step(token)
    chosen, leads = [], []
    for _ in range(n_tokens):
        second, first = np.argsort(logits)[-2:]
        chosen.append(int(first))
        leads.append(float(logits[first] - logits[second]))
        logits = stream.step(first)
    return chosen, leads


def main():
    parser = argparse.ArgumentParser(description="Greedy continuation, as a check that the forward pass is right.")
    parser.add_argument("model")
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--n-tokens", type=int, default=12)
    arguments = parser.parse_args()
    model = Model(arguments.model, dtype=np.float32)
    tokenizer = bpe.from_gguf(model.fields)
    prompt = bpe.encode(tokenizer, arguments.prompt)
    continuation, leads = greedy(model, prompt, arguments.n_tokens)
    print(prompt, continuation)
    print(repr(tokenizer.decode(prompt + continuation)), f"smallest lead {min(leads):.3f}")


if __name__ == "__main__":
    main()
