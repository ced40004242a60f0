"""Compares `llama.py` with the `transformers` package: full attention on every tiny model, in float64.

The weights come from the GGUF file, dequantized; only names, and the orders and offsets that GGUF's converter
changes, are translated. Random tokens, longer than any sliding window, so that every layer misses some.

    python check_transformers.py MODEL.gguf ...
"""

import argparse

import numpy as np
import torch
import transformers

from llama import Model

TOLERANCE = 2e-5
CLASSES = {
    "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma2", "gemma3": "Gemma3", "phi3": "Phi3",
    "granite": "Granite", "olmo2": "Olmo2", "smollm3": "SmolLM3",
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
PHI_NAMES = LAYER_NAMES | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
OLMO_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}
GEMMA_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


NAMES = {"phi3": PHI_NAMES, "olmo2": OLMO_NAMES, "gemma2": GEMMA_NAMES, "gemma3": GEMMA_NAMES}


def rope_parameters(model):
    theta = float(model.setting("rope.freq_base"))
    parameters = {"rope_type": "default", "rope_theta": theta}
    kind = model.setting("rope.scaling.type", "none")
    if kind != "none":
        parameters |= {"rope_type": kind, "factor": float(model.setting("rope.scaling.factor"))}
        if kind == "yarn":
            parameters["original_max_position_embeddings"] = model.setting("rope.scaling.original_context_length")
    if "rope_freqs.weight" in model.tensors:
        # What `tiny.py` made its factors of.
        parameters |= {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                       "original_max_position_embeddings": 32}
    if model.arch == "phi3":
        parameters |= {
            "rope_type": "longrope",
            "short_factor": model.weight("rope_factors_short.weight").tolist(),
            "long_factor": model.weight("rope_factors_long.weight").tolist(),
            "attention_factor": float(model.setting("rope.scaling.attn_factor")),
            "original_max_position_embeddings": model.setting("rope.scaling.original_context_length"),
            "partial_rotary_factor": model.rotated / model.head_dim,
        }
    return parameters


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
    if model.arch == "gemma3":
        settings["rope_parameters"] = {
            "full_attention": rope_parameters(model),
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
    else:
        settings["rope_parameters"] = rope_parameters(model)
    if model.is_gemma:
        settings |= dict(
            query_pre_attn_scalar=model.head_dim,
            sliding_window=model.sliding_window,
            layer_types=[
                "sliding_attention" if model.is_sliding(layer) else "full_attention" for layer in range(model.n_layers)
            ],
        )
    if model.arch == "gemma2":
        settings |= dict(attn_logit_softcapping=model.score_cap, final_logit_softcapping=model.logit_cap)
    if model.arch == "phi3":
        settings |= dict(
            original_max_position_embeddings=model.setting("rope.scaling.original_context_length"),
            max_position_embeddings=16 * model.setting("rope.scaling.original_context_length"),
            partial_rotary_factor=model.rotated / model.head_dim,
            sliding_window=model.sliding_window,
            pad_token_id=0,
        )
    if model.arch == "granite":
        settings |= dict(
            embedding_multiplier=float(model.embedding_scale),
            attention_multiplier=float(model.attention_scale),
            residual_multiplier=float(model.residual_scale),
            logits_scaling=float(model.logit_divisor),
        )
    if model.arch == "smollm3":
        settings |= dict(pad_token_id=0, no_rope_layers=[int(model.is_rotated(layer)) for layer in range(model.n_layers)])
    name = "Gemma3TextConfig" if model.arch == "gemma3" else f"{CLASSES[model.arch]}Config"
    return getattr(transformers, name)(**settings)


def neighbours_to_halves(rows, head_dim):
    """Undoes the order in which GGUF's converter writes the rows of q and k of `llama` models."""
    return rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def state(model):
    """All weights under the names of `transformers`, in float64."""
    weights = {}
    for name in model.tensors:
        if name.startswith("rope_"):
            continue
        value = model.weight(name).astype(np.float64)
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            if model.neighbour_pairs and part in ("attn_q", "attn_k"):
                value = neighbours_to_halves(value, model.head_dim)
            name = f"model.layers.{layer}.{NAMES.get(model.arch, LAYER_NAMES)[part]}.{kind}"
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
    theirs = getattr(transformers, f"{CLASSES[ours.arch]}ForCausalLM")(config(ours)).double().eval()
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
