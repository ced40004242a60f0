"""Compares `llama.py` with the `transformers` package: full attention on every tiny model, in float64.

The weights come from the GGUF file, dequantized; only names, and the orders and offsets that GGUF's converter
changes, are translated. Random tokens, longer than any sliding window, so that every layer misses some.

    python check_transformers.py MODEL.gguf ...
"""

import argparse

import numpy as np
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llama import Model

TOLERANCE = 2e-5
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def config(model):
    settings = dict(
        vocab_size=len(model.fields["tokenizer.ggml.tokens"]),
        hidden_size=model.embedding,
        intermediate_size=model.setting("feed_forward_length"),
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads,
        num_key_value_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        rms_norm_eps=float(model.eps),
        tie_word_embeddings="output.weight" not in model.tensors,
        attn_implementation="eager",
    )
    theta = float(model.setting("rope.freq_base"))
    if model.is_gemma:
        settings |= dict(
            query_pre_attn_scalar=model.head_dim,
            sliding_window=model.sliding_window,
            layer_types=[
                "sliding_attention" if model.is_sliding(layer) else "full_attention" for layer in range(model.n_layers)
            ],
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": theta},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        )
    else:
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    return FAMILIES[model.arch][0](**settings)


def neighbours_to_halves(rows, head_dim):
    """Undoes the order in which GGUF's converter writes the rows of q and k of `llama` models."""
    return rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def state(model):
    """All weights under the names of `transformers`, in float64."""
    weights = {}
    for name in model.tensors:
        value = model.weight(name).astype(np.float64)
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            if model.neighbour_pairs and part in ("attn_q", "attn_k"):
                value = neighbours_to_halves(value, model.head_dim)
            names = GEMMA_NAMES if model.is_gemma else LAYER_NAMES
            name = f"model.layers.{layer}.{names[part]}.{kind}"
        else:
            part = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}[stem]
            name = f"{part}.{kind}"
        # GGUF holds the factor, `transformers` what is added to 1.
        if model.is_gemma and stem.endswith("norm"):
            value = value - 1
        weights[name] = torch.from_numpy(value)
    return weights


def check(path):
    ours = Model(path)
    theirs = FAMILIES[ours.arch][1](config(ours)).double().eval()
    missing, unexpected = theirs.load_state_dict(state(ours), strict=False)
    assert not unexpected and all(name == "lm_head.weight" for name in missing), (missing, unexpected)
    n_vocab = len(ours.fields["tokenizer.ggml.tokens"])
    tokens = np.random.default_rng(7).integers(0, n_vocab, 60)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)[None]).logits[0].double().numpy()
    difference = np.abs(ours.logits(tokens) - expected).max(axis=1) / np.abs(expected).max(axis=1)
    print(f"{path}: {ours.arch}, largest difference {difference.max():.1e} of the largest logit")
    assert difference.max() < TOLERANCE


def main():
    parser = argparse.ArgumentParser(description="Compares the reference with transformers.")
    parser.add_argument("models", nargs="+")
    for path in parser.parse_args().models:
        check(path)


if __name__ == "__main__":
    main()
