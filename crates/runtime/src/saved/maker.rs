//! Says of a model what its keys and values depend on.

use everstream_memory::Maker;
use everstream_model::{Model, RopeScaling};
use sha2::{Digest, Sha256};

/// The maker of a model's keys and values.
///
/// Cost: hashes all weights, about a second per 2 GB.
pub(crate) fn maker(model: &Model) -> Maker {
    Maker {
        model: model.config().name.clone(),
        weights: weights(model),
        tokenizer: tokenizer(model),
        layout: layout(model),
    }
}

fn weights(model: &Model) -> [u8; 32] {
    let mut hash = Sha256::new();
    for (name, info) in model.gguf().tensors() {
        let data = model.gguf().tensor_data(info);
        add(&mut hash, name.as_bytes());
        add(&mut hash, data);
    }
    hash.finalize().into()
}

fn tokenizer(model: &Model) -> [u8; 32] {
    let (tokenizer, mut hash) = (model.tokenizer(), Sha256::new());
    for id in 0..tokenizer.vocab_size() as u32 {
        add(&mut hash, tokenizer.token_bytes(id));
    }
    if let Ok(Some(merges)) = model.gguf().find_arr_str("tokenizer.ggml.merges") {
        merges.for_each(|merge| add(&mut hash, merge));
    } else if let Ok(Some(scores)) = model.gguf().find_arr_scalar("tokenizer.ggml.scores") {
        scores.for_each(|score| add(&mut hash, format!("{score:?}").as_bytes()));
    }
    hash.finalize().into()
}

fn layout(model: &Model) -> [u8; 32] {
    let c = model.config();
    let mut hash = Sha256::new();
    add(&mut hash, c.architecture.name().as_bytes());
    for dim in [c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.embedding_dim, c.rope_dim] {
        hash.update((dim as u64).to_le_bytes());
    }
    hash.update(c.rope_base.to_le_bytes());
    hash.update(c.norm_eps.to_le_bytes());
    // Only where there are some, so that what older versions stored remains valid.
    if let Some(sliding) = c.sliding_window {
        hash.update((sliding.window_tokens as u64).to_le_bytes());
        hash.update((sliding.period.unwrap_or(0) as u64).to_le_bytes());
        hash.update(sliding.rope_base.to_le_bytes());
    }
    for (name, value, usual) in [
        ("embedding_scale", c.embedding_scale, 1.0),
        ("residual_scale", c.residual_scale, 1.0),
        ("attention_scale", c.attention_scale, 1.0 / (c.head_dim as f32).sqrt()),
        ("attention_cap", c.attention_cap.unwrap_or(0.0), 0.0),
        ("no_rope_period", c.no_rope_period.unwrap_or(0) as f32, 0.0),
    ] {
        if value != usual {
            add(&mut hash, name.as_bytes());
            hash.update(value.to_le_bytes());
        }
    }
    if c.rope_scaling != RopeScaling::None {
        add(&mut hash, format!("{:?}", c.rope_scaling).as_bytes());
    }
    hash.finalize().into()
}

/// With its length, so that two parts cannot be taken for others.
fn add(hash: &mut Sha256, part: &[u8]) {
    hash.update((part.len() as u64).to_le_bytes());
    hash.update(part);
}
