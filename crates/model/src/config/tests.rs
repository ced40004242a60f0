use super::*;
use crate::gguf::{GgmlType, GgufBuilder, GgufValue};

/// The smallest `llama` file that has a configuration.
fn llama() -> GgufBuilder {
    let mut file = GgufBuilder::new();
    file.set("general.architecture", "llama")
        .set("llama.block_count", 2u32)
        .set("llama.embedding_length", 64u32)
        .set("llama.attention.head_count", 4u32)
        .set("llama.attention.head_count_kv", 2u32)
        .set("llama.feed_forward_length", 128u32)
        .set("llama.context_length", 2048u32)
        .set("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .set("tokenizer.ggml.tokens", vec!["a".to_owned(); 3])
        .tensor("token_embd.weight", GgmlType::F32, &[64, 3], vec![0; 64 * 3 * 4]);
    file
}

fn read(file: &GgufBuilder) -> Result<ModelConfig, LoadError> {
    ModelConfig::from_gguf(&GgufFile::from_bytes(file.build(), "m").unwrap())
}

/// The message when `key` of the smallest file is `value`.
fn refusal(key: &str, value: impl Into<GgufValue>) -> String {
    let mut file = llama();
    file.set(key, value);
    read(&file).unwrap_err().to_string()
}

#[test]
fn a_small_file_has_the_shape_it_says() {
    let config = read(&llama()).unwrap();
    let expected = ModelConfig {
        architecture: Architecture::Llama,
        name: "llama".to_owned(),
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 16,
        embedding_dim: 64,
        ffn_dim: 128,
        vocab_size: 3,
        context_length: 2048,
        rope_base: 10_000.0,
        rope_dim: 16,
        rope_scaling: RopeScaling::None,
        no_rope_period: None,
        sliding_window: None,
        embedding_scale: 1.0,
        attention_scale: 0.25,
        attention_cap: None,
        residual_scale: 1.0,
        logit_divisor: 1.0,
        logit_cap: None,
        activation: Activation::Silu,
        norm_eps: 1e-5,
        tied_embeddings: true,
        has_qkv_bias: false,
        qk_norm: QkNorm::None,
        norms: Norms::Before,
    };
    assert_eq!(config, expected);
    assert_eq!((config.q_dim(), config.kv_dim()), (64, 32));
}

#[test]
fn the_tiny_models_are_read() {
    let llama = include_bytes!("../../tests/golden/tiny-llama.gguf");
    let file = GgufFile::from_bytes(llama.to_vec(), "tiny-llama.gguf").unwrap();
    file.require_supported_tensors().unwrap();
    let config = ModelConfig::from_gguf(&file).unwrap();
    assert_eq!(config.architecture.rope_pairs(), RopePairs::Adjacent);
    assert_eq!((config.head_dim, config.vocab_size), (64, 320));
    assert!(config.tied_embeddings && !config.has_qkv_bias);

    let qwen2 = include_bytes!("../../tests/golden/tiny-qwen2.gguf");
    let file = GgufFile::from_bytes(qwen2.to_vec(), "tiny-qwen2.gguf").unwrap();
    file.require_supported_tensors().unwrap();
    let config = ModelConfig::from_gguf(&file).unwrap();
    assert_eq!(config.architecture.rope_pairs(), RopePairs::Halves);
    assert_eq!((config.head_dim, config.rope_base), (16, 1e6));
    assert!(!config.tied_embeddings && config.has_qkv_bias);

    let gemma3 = include_bytes!("../../tests/golden/tiny-gemma3.gguf");
    let file = GgufFile::from_bytes(gemma3.to_vec(), "tiny-gemma3.gguf").unwrap();
    let config = ModelConfig::from_gguf(&file).unwrap();
    let sliding = SlidingWindow { window_tokens: 8, period: Some(2), rope_base: 1e4 };
    assert_eq!((config.sliding_window, config.rope_base), (Some(sliding), 1e6));
    assert_eq!((config.embedding_scale, config.activation), (8.0, Activation::GeluTanh));
    assert_eq!((config.qk_norm, config.norms), (QkNorm::Head, Norms::Both));
}

#[test]
fn architectures_that_are_not_built_in_are_named_with_those_that_are() {
    assert_eq!(
        refusal("general.architecture", "gpt\n2"),
        "m: architecture `gpt\\n2` is not supported; supported are: llama, qwen2, qwen3, gemma2, \
         gemma3, phi3, granite, olmo2, smollm3"
    );
}

#[test]
fn sizes_out_of_range_are_refused_with_key_and_value() {
    assert_eq!(
        refusal("llama.block_count", 0u32),
        "m: metadata key `llama.block_count` is 0, but must be from 1 to 1024"
    );
    for (key, value) in [
        ("llama.block_count", 1025),
        ("llama.embedding_length", 0),
        ("llama.embedding_length", 1 << 20),
        ("llama.embedding_length", 66),
        ("llama.embedding_length", 4),
        ("llama.embedding_length", 4 * 514),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count_kv", 0),
        ("llama.attention.head_count_kv", 3),
        ("llama.attention.key_length", 15),
        ("llama.attention.key_length", 1024),
        ("llama.attention.value_length", 8),
        ("llama.feed_forward_length", 0),
        ("llama.context_length", 0),
        ("llama.rope.dimension_count", 15),
        ("llama.rope.dimension_count", 18),
    ] {
        let message = refusal(key, value);
        let start = format!("m: metadata key `{key}` is {value}, but must be ");
        assert!(message.starts_with(&start), "{key} {value}: {message}");
    }
    for (key, value) in [
        ("llama.rope.freq_base", 0.0),
        ("llama.rope.freq_base", f32::NAN),
        ("llama.rope.freq_base", f32::INFINITY),
        ("llama.rope.scaling.factor", 0.5),
        ("llama.rope.scaling.factor", f32::NAN),
        ("llama.rope.scale_linear", f32::INFINITY),
        ("llama.attn_logit_softcapping", f32::NAN),
        ("llama.logit_scale", -1.0),
        ("llama.attention.layer_norm_rms_epsilon", 0.0),
        ("llama.attention.layer_norm_rms_epsilon", f32::NAN),
    ] {
        let message = refusal(key, value);
        assert!(message.contains(key), "{key} {value}: {message}");
    }
}

#[test]
fn missing_and_mistyped_keys_are_named() {
    let mut file = llama();
    file.unset("llama.feed_forward_length");
    let message = read(&file).unwrap_err().to_string();
    assert_eq!(message, "m: metadata key `llama.feed_forward_length` is missing");
    let message = refusal("llama.attention.head_count_kv", vec![1, 2]);
    assert!(message.ends_with("but is array of i32"), "{message}");
}

#[test]
fn vocabulary_and_embedding_must_have_one_length() {
    let message = refusal("tokenizer.ggml.tokens", vec!["a".to_owned(); 4]);
    assert!(message.contains("a list of 4"), "{message}");
    let mut file = llama();
    file.unset("tokenizer.ggml.tokens");
    assert_eq!(read(&file).unwrap().vocab_size, 3);
}

#[test]
fn features_that_would_silently_change_the_result_are_refused() {
    assert_eq!(
        refusal("llama.rope.scaling.type", "dynamic"),
        "m: rope scaling is not supported (`llama.rope.scaling.type` is `dynamic`); choose another \
         model"
    );
    assert!(refusal("llama.expert_count", 8u32).contains("mixture of experts"));
    assert!(refusal("llama.attention.sliding_window", 4096u32).contains("sliding-window"));
}

#[test]
fn features_that_are_switched_off_are_accepted() {
    let mut file = llama();
    file.set("llama.rope.scaling.type", "none")
        .set("llama.rope.scaling.factor", 8.0)
        .set("llama.expert_count", 0u32);
    assert_eq!(read(&file).unwrap().rope_scaling, RopeScaling::None);
}

#[test]
fn linear_scaling_divides_the_frequencies() {
    for (key, ty) in
        [("llama.rope.scaling.factor", Some("linear")), ("llama.rope.scale_linear", None)]
    {
        let mut file = llama();
        file.set(key, 8.0);
        if let Some(ty) = ty {
            file.set("llama.rope.scaling.type", ty);
        }
        assert_eq!(read(&file).unwrap().rope_scaling, RopeScaling::Linear(8.0), "{key}");
    }
}
