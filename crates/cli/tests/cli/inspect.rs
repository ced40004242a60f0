//! `everstream inspect`, also of files that the engine cannot run.

use fs_err as fs;

use crate::rig::{Rig, tiny};

/// Where `needle` ends in `bytes`.
fn end_of(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|part| part == needle).unwrap() + needle.len()
}

#[test]
fn a_file_is_described_without_its_weights() {
    let rig = Rig::new();
    let result = rig.ok(&["inspect", &tiny("tiny-llama"), "--json", "--tensors"]).json();
    assert_eq!(result["supported"], true, "{result}");
    assert_eq!(result["architecture"], "llama");
    assert_eq!(result["config"]["n_layers"], 2);
    assert_eq!(result["config"]["vocab_size"], 320);
    assert_eq!(result["tokenizer"]["pre"], "smollm");
    assert_eq!(result["tokenizer"]["chat_template"], true);
    assert_eq!(result["metadata"]["llama.block_count"], 2);
    let bytes = fs::metadata(tiny("tiny-llama")).unwrap().len();
    assert_eq!(result["file_bytes"], bytes);
    let tensors = result["tensors"].as_array().unwrap();
    assert_eq!(result["weights"]["tensors"], tensors.len());
    let sum = |rows: &serde_json::Value| -> u64 {
        rows.as_array().unwrap().iter().map(|row| row["bytes"].as_u64().unwrap()).sum()
    };
    assert_eq!(sum(&result["tensors"]), sum(&result["weights"]["types"]));
}

#[test]
fn the_memory_of_a_cache_is_that_of_the_formula() {
    let rig = Rig::new();
    let arguments = ["inspect", &tiny("tiny-qwen2"), "--json", "--cache-type", "f32"];
    let sizes = ["--sinks", "4", "--context-tokens", "300", "--window", "512", "--chunk", "256"];
    let result = rig.ok(&[&arguments[..], &sizes].concat()).json();
    let (config, cache) = (&result["config"], &result["cache"]);
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let key_bytes =
        number(&config["n_layers"]) * number(&config["n_kv_heads"]) * number(&config["head_dim"]);
    assert_eq!(cache["kv_bytes_per_token"], 2 * 4 * key_bytes);
    assert_eq!(cache["raw_key_bytes_per_token"], 4 * key_bytes);
    let rows = 4 + 300 + 512 + 256;
    assert_eq!(cache["kv_bytes"], rows * 2 * 4 * key_bytes);
    assert_eq!(cache["raw_key_bytes"], (rows - 4) * 4 * key_bytes);
    assert_eq!(cache["budget_tokens"], 816);
    let tokens = cache["sections"].as_array().unwrap().iter().map(|s| number(&s["tokens"]));
    assert_eq!(tokens.collect::<Vec<_>>(), [4, 0, 300, 512, 256]);

    let sink = [&arguments[..], &sizes, &["--policy", "sink"]].concat();
    let cache = &rig.ok(&sink).json()["cache"];
    assert_eq!(cache["raw_key_bytes"], 0);
    assert_eq!(cache["stored_bytes_per_evicted_token"], 0);
}

#[test]
fn an_unknown_architecture_is_shown_as_far_as_possible() {
    let rig = Rig::new();
    let mut bytes = fs::read(tiny("tiny-llama")).unwrap();
    // After the key come the type of the value and its length.
    let value = end_of(&bytes, b"general.architecture") + 4 + 8;
    bytes[value..value + 5].copy_from_slice(b"mamba");
    let model = rig.file("mamba.gguf", bytes);
    let result = rig.ok(&["inspect", &model, "--json"]).json();
    assert_eq!((&result["supported"], &result["architecture"]), (&false.into(), &"mamba".into()));
    assert!(result["config"].is_null() && result["cache"].is_null(), "{result}");
    assert_eq!(result["metadata"]["llama.block_count"], 2);
    let text = rig.ok(&["inspect", &model]).stdout;
    assert!(text.contains("not supported:") && text.contains("llama.block_count"), "{text}");
    rig.fails(&["generate", "--model", &model, "--prompt", "x"], "architecture `mamba`");
}

#[test]
fn an_unsupported_tensor_type_is_named() {
    let rig = Rig::new();
    let mut bytes = fs::read(tiny("tiny-llama")).unwrap();
    // After the name come the number of dimensions, two dimensions and the type; 16 is IQ2_XXS.
    let ty = end_of(&bytes, b"blk.0.attn_q.weight") + 4 + 2 * 8;
    bytes[ty..ty + 4].copy_from_slice(&16_u32.to_le_bytes());
    let model = rig.file("iq2.gguf", bytes);
    let text = rig.ok(&["inspect", &model, "--tensors"]).stdout;
    assert!(text.contains("type IQ2_XXS, which is not supported"), "{text}");
    assert!(text.contains("policy remember"), "{text}");
    rig.fails(&["generate", "--model", &model, "--prompt", "x"], "IQ2_XXS");
}

#[test]
fn every_list_can_be_asked_for() {
    let rig = Rig::new();
    let ran = rig.ok(&["inspect", &tiny("tiny-qwen2"), "--tensors", "--metadata"]);
    for part in ["blk.1.ffn_down.weight", "tokenizer.ggml.tokens", "together"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    assert_eq!(ran.stderr, "");
}
