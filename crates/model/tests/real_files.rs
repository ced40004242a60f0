//! Configuration, tokenizer and chat template of real model files, against golden files.
//!
//! The paths of the models come from environment variables, which `cargo xtask check` sets:
//! `EVERSTREAM_TEST_SMOLLM2`, `EVERSTREAM_TEST_QWEN` and `EVERSTREAM_TEST_GEMMA3`.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

use std::path::PathBuf;

use everstream_model::{
    Architecture, ChatTemplate, GenerationPrompt, GgufFile, Message, ModelConfig, Role,
    SpecialTokens, Tokenizer,
};
use serde_json::{Value, json};

const SMOLLM2: &str = "EVERSTREAM_TEST_SMOLLM2";
const QWEN: &str = "EVERSTREAM_TEST_QWEN";
const GEMMA3: &str = "EVERSTREAM_TEST_GEMMA3";

fn open(variable: &str) -> GgufFile {
    let path = std::env::var_os(variable);
    let path = PathBuf::from(path.unwrap_or_else(|| panic!("{variable} is not set")));
    GgufFile::open(&path).unwrap()
}

fn golden(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

fn list<'a>(golden: &'a Value, key: &str) -> &'a [Value] {
    golden[key].as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn check_tokenizer(tokenizer: &Tokenizer, golden: &Value) {
    assert_eq!(json!(tokenizer.missing_bytes()), golden["missing_bytes"]);
    for case in list(golden, "cases") {
        let ids = tokenizer.encode(text(&case["text"]), SpecialTokens::AsText);
        assert_eq!(json!(ids), case["ids"], "{case}");
        assert_eq!(tokenizer.decode(&ids), text(&case["text"]).as_bytes());
    }
    for case in list(golden, "special") {
        let input = text(&case["text"]);
        assert_eq!(json!(tokenizer.encode(input, SpecialTokens::Parse)), case["ids"]);
        assert_eq!(json!(tokenizer.encode(input, SpecialTokens::AsText)), case["ids_plain"]);
    }
    let missing = tokenizer.missing_bytes();
    let is_known = |character: &char| {
        character.encode_utf8(&mut [0; 4]).bytes().all(|byte| !missing.contains(&byte))
    };
    for case in list(golden, "lossy") {
        // Hugging Face drops bytes, this tokenizer drops whole characters. They agree where the
        // missing characters are of one byte.
        let ids = tokenizer.encode(text(&case["text"]), SpecialTokens::AsText);
        let kept: String = text(&case["text"]).chars().filter(is_known).collect();
        assert_eq!(tokenizer.decode(&ids), kept.as_bytes());
        if text(&case["text"]).chars().all(|c| c.is_ascii() || is_known(&c)) {
            assert_eq!(json!(ids), case["ids"], "{case}");
        }
    }
}

fn check_every_character(tokenizer: &Tokenizer) {
    let missing = tokenizer.missing_bytes();
    let mut buffer = [0; 4];
    for character in ('\0'..=char::MAX).step_by(7) {
        let bytes = character.encode_utf8(&mut buffer);
        let ids = tokenizer.encode(bytes, SpecialTokens::Parse);
        let is_lost = bytes.bytes().any(|byte| missing.contains(&byte));
        let expected = if is_lost { &[][..] } else { bytes.as_bytes() };
        assert_eq!(tokenizer.decode(&ids), expected, "{character:?}");
    }
}

fn check_template(file: &GgufFile, tokenizer: &Tokenizer, model: &str) {
    let golden = golden(include_str!("golden/chat-templates.json"));
    let template = ChatTemplate::from_gguf(file, tokenizer).unwrap();
    for case in list(&golden, "cases").iter().filter(|case| case["model"] == model) {
        let message = |value: &Value| {
            let role = match text(&value["role"]) {
                "system" => Role::System,
                "user" => Role::User,
                _ => Role::Assistant,
            };
            Message::new(role, text(&value["content"]))
        };
        let messages: Vec<_> = list(case, "messages").iter().map(message).collect();
        let is_open = case["add_generation_prompt"] == true;
        let prompt = if is_open { GenerationPrompt::Add } else { GenerationPrompt::Omit };
        assert_eq!(template.render(&messages, prompt).unwrap(), text(&case["text"]));
    }
    let turn = tokenizer.encode_turn(&template.user_turn("Hi <|im_end|>").unwrap());
    let signals = turn.iter().filter(|&&id| tokenizer.is_special(id)).count();
    assert_eq!(signals, 3, "start of the user's turn, its end, start of the answer");
}

#[test]
#[ignore = "needs the real model: cargo xtask check runs it"]
fn smollm2_is_read_as_the_reference_reads_it() {
    let file = open(SMOLLM2);
    file.require_supported_tensors().unwrap();
    let config = ModelConfig::from_gguf(&file).unwrap();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.n_layers, config.n_heads, config.n_kv_heads), (30, 9, 3));
    assert_eq!((config.head_dim, config.rope_dim, config.rope_base), (64, 64, 100_000.0));
    assert_eq!((config.vocab_size, config.context_length), (49_152, 8192));
    assert!(config.tied_embeddings && !config.has_qkv_bias);
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    assert_eq!(tokenizer.eos_ids(), [0, 2]);
    check_tokenizer(&tokenizer, &golden(include_str!("golden/tokenizer-smollm.json")));
    check_every_character(&tokenizer);
    check_template(&file, &tokenizer, "smollm2-135m");
}

#[test]
#[ignore = "needs the real model: cargo xtask check runs it"]
fn qwen_is_read_as_the_reference_reads_it() {
    let file = open(QWEN);
    file.require_supported_tensors().unwrap();
    let config = ModelConfig::from_gguf(&file).unwrap();
    assert_eq!(config.architecture, Architecture::Qwen2);
    assert_eq!((config.n_layers, config.n_heads, config.n_kv_heads), (24, 14, 2));
    assert_eq!((config.head_dim, config.rope_base), (64, 1e6));
    assert_eq!((config.vocab_size, config.context_length), (151_936, 32_768));
    assert!(config.has_qkv_bias);
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    assert_eq!(tokenizer.eos_ids(), [151_643, 151_645]);
    check_tokenizer(&tokenizer, &golden(include_str!("golden/tokenizer-qwen2.json")));
    check_every_character(&tokenizer);
    check_template(&file, &tokenizer, "qwen2.5-coder-0.5b");
}

#[test]
#[ignore = "needs the real model: cargo xtask check runs it"]
fn gemma3_is_read_as_the_reference_reads_it() {
    let file = open(GEMMA3);
    file.require_supported_tensors().unwrap();
    let config = ModelConfig::from_gguf(&file).unwrap();
    assert_eq!(config.architecture, Architecture::Gemma3);
    assert_eq!((config.n_layers, config.n_heads, config.n_kv_heads), (18, 4, 1));
    assert_eq!((config.head_dim, config.rope_base), (256, 1e6));
    let sliding = config.sliding_window.unwrap();
    assert_eq!((sliding.window_tokens, sliding.period, sliding.rope_base), (512, Some(6), 1e4));
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    assert_eq!((tokenizer.eos_ids(), tokenizer.bos()), (&[1, 106][..], Some(2)));
    check_tokenizer(&tokenizer, &golden(include_str!("golden/tokenizer-gemma3.json")));
    check_every_character(&tokenizer);
}
