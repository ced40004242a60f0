//! The encoder on a tiny random BERT that the tests make. Agreement with the real model is an
//! integration test.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{EmbedError, Embedder, MiniLm, MiniLmOptions};
use everstream_kernels::Isa;
use everstream_kv_cache::rng::SplitMix64;

const HIDDEN: usize = 32;
const INNER: usize = 48;
const MAX_PIECES: usize = 16;
const WORDS: [&str; 10] =
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "fox", "red", "runs", "home", "##s"];

fn config() -> Value {
    json!({
        "vocab_size": WORDS.len(), "hidden_size": HIDDEN, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": INNER, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "max_position_embeddings": 32, "type_vocab_size": 2,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0
    })
}

fn tokenizer() -> Value {
    let vocab: serde_json::Map<String, Value> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    json!({
        "version": "1.0",
        // As in the real file: settings of the last training run that must not count.
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
                       "stride": 0},
        "padding": {"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "clean_text": true,
                       "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}
            }
        },
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab}
    })
}

/// Shape and numbers.
type Tensor = (Vec<usize>, Vec<f32>);

fn random(rng: &mut SplitMix64, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    (shape.to_vec(), (0..n).map(|_| rng.signed_unit()).collect())
}

fn save(weights: &HashMap<String, Tensor>, dir: &Path) {
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let data: HashMap<&String, (&[usize], Vec<u8>)> =
        weights.iter().map(|(name, (shape, x))| (name, (&shape[..], bytes(x)))).collect();
    let views = data.iter().map(|(name, (shape, bytes))| {
        (name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    fs_err::write(dir.join("model.safetensors"), file).unwrap();
}

fn weights() -> HashMap<String, Tensor> {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    for (name, rows) in [("word", WORDS.len()), ("position", 32), ("token_type", 2)] {
        shapes.push((format!("embeddings.{name}_embeddings.weight"), vec![rows, HIDDEN]));
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in (0..2).map(|n| format!("encoder.layer.{n}")) {
        for (name, rows, columns) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", INNER, HIDDEN),
            ("output.dense", HIDDEN, INNER),
        ] {
            shapes.push((format!("{layer}.{name}.weight"), vec![rows, columns]));
            shapes.push((format!("{layer}.{name}.bias"), vec![rows]));
        }
        norms.push(format!("{layer}.attention.output.LayerNorm"));
        norms.push(format!("{layer}.output.LayerNorm"));
    }
    for norm in norms {
        shapes.push((format!("{norm}.weight"), vec![HIDDEN]));
        shapes.push((format!("{norm}.bias"), vec![HIDDEN]));
    }
    let mut rng = SplitMix64::new(5);
    shapes.into_iter().map(|(name, shape)| (name, random(&mut rng, &shape))).collect()
}

fn write_json(dir: &Path, name: &str, value: &Value) {
    let path = dir.join(name);
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, value.to_string()).unwrap();
}

/// A folder with everything that belongs in it.
fn tiny_model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_json(dir.path(), "config.json", &config());
    write_json(dir.path(), "tokenizer.json", &tokenizer());
    write_json(dir.path(), "sentence_bert_config.json", &json!({"max_seq_length": MAX_PIECES}));
    write_json(dir.path(), "1_Pooling/config.json", &json!({"pooling_mode_mean_tokens": true}));
    save(&weights(), dir.path());
    dir
}

fn open_error(dir: &TempDir) -> EmbedError {
    MiniLm::open(dir.path(), MiniLmOptions::default()).unwrap_err()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_batch_gives_what_its_texts_give_alone() {
    let dir = tiny_model();
    let model = MiniLm::open(dir.path(), MiniLmOptions::default()).unwrap();
    assert_eq!(model.dim(), HIDDEN);
    let long = "red fox runs home ".repeat(40);
    let texts = ["the fox runs", "", "red", "unknown words, all of them", &long, "red", "the fox"];
    let together = model.embed(&texts).unwrap();
    for (text, embedding) in texts.iter().zip(&together) {
        let alone = model.embed(&[text]).unwrap();
        assert_eq!(&alone[0], embedding, "{text:?}");
        let norm: f32 = embedding.iter().map(|c| c * c).sum();
        assert!((norm - 1.0).abs() < 1e-5);
    }
    assert_eq!(together[2], together[5]);
    assert!(distance(&together[0], &together[6]) > 1e-3);
    assert!(model.embed(&[]).unwrap().is_empty());
}

#[test]
fn texts_are_cut_where_the_model_says() {
    let dir = tiny_model();
    let embed = |n_words: usize| {
        let text = vec!["fox"; n_words].join(" ");
        MiniLm::open(dir.path(), MiniLmOptions::default())
            .unwrap()
            .embed(&[&text])
            .unwrap()
            .swap_remove(0)
    };
    let fitting = MAX_PIECES - 2;
    assert!(distance(&embed(fitting), &embed(fitting - 1)) > 1e-4);
    assert_eq!(embed(fitting), embed(fitting + 1));
}

#[test]
fn files_that_may_be_missing() {
    let dir = tiny_model();
    fs_err::remove_file(dir.path().join("1_Pooling/config.json")).unwrap();
    fs_err::remove_file(dir.path().join("sentence_bert_config.json")).unwrap();
    MiniLm::open(dir.path(), MiniLmOptions::default()).unwrap();
}

#[test]
fn files_that_may_not_be_missing_are_named() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let dir = tiny_model();
        fs_err::remove_file(dir.path().join(name)).unwrap();
        let EmbedError::File(source) = open_error(&dir) else { panic!("{name} is missing") };
        assert!(source.to_string().contains(name), "{source}");
    }
}

#[test]
fn truncated_files_are_refused() {
    for name in ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"] {
        let dir = tiny_model();
        let path = dir.path().join(name);
        let whole = fs_err::read(&path).unwrap();
        for n_bytes in (0..whole.len()).step_by(1 + whole.len() / 40) {
            fs_err::write(&path, &whole[..n_bytes]).unwrap();
            let error = open_error(&dir);
            assert!(error.to_string().contains(name), "{n_bytes} bytes of {name}: {error}");
        }
    }
}

/// Whatever a flipped byte of the header says, the answer is an error or another valid model.
#[test]
fn a_damaged_header_does_not_panic() {
    let dir = tiny_model();
    let path = dir.path().join("model.safetensors");
    let whole = fs_err::read(&path).unwrap();
    for at in (0..400).chain([whole.len() - 1]) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        fs_err::write(&path, &damaged).unwrap();
        let _ = MiniLm::open(dir.path(), MiniLmOptions::default());
    }
}

#[test]
fn settings_that_cannot_be_right_are_named() {
    for (field, value) in [
        ("hidden_size", 0_u64),
        ("num_attention_heads", 0),
        ("num_attention_heads", 3),
        ("intermediate_size", 40),
        ("num_hidden_layers", 1 << 40),
        ("max_position_embeddings", 0),
        ("type_vocab_size", 0),
        ("vocab_size", 0),
        ("vocab_size", 1 << 40),
        ("pad_token_id", 10),
    ] {
        let dir = tiny_model();
        let mut changed = config();
        changed[field] = json!(value);
        write_json(dir.path(), "config.json", &changed);
        let error = open_error(&dir);
        let is_named = matches!(error, EmbedError::Setting { field: named, .. } if named == field);
        assert!(is_named, "{field} = {value}: {error}");
    }
    let dir = tiny_model();
    let mut changed = config();
    changed["num_attention_heads"] = json!(4);
    write_json(dir.path(), "config.json", &changed);
    let expected = "hidden_size / num_attention_heads";
    assert!(
        matches!(open_error(&dir), EmbedError::Setting { field, found: 8, .. } if field == expected)
    );
}

/// A vocabulary with holes, a template with pieces that no vocabulary has, and one that leaves no room.
#[test]
fn tokenizers_that_do_not_fit_are_refused() {
    let dir = tiny_model();
    let mut changed = tokenizer();
    changed["model"]["vocab"]["fox"] = json!(4_000_000);
    write_json(dir.path(), "tokenizer.json", &changed);
    assert!(matches!(open_error(&dir), EmbedError::Setting { field: "largest id", .. }));

    let mut changed = tokenizer();
    changed["post_processor"]["special_tokens"]["[SEP]"]["ids"] = json!([99_999]);
    write_json(dir.path(), "tokenizer.json", &changed);
    assert!(matches!(open_error(&dir), EmbedError::Pieces { text: 0, n_texts: 1, .. }));

    let mut changed = tokenizer();
    let mut parts = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
    parts.resize(MAX_PIECES + 1, json!({"SpecialToken": {"id": "[SEP]", "type_id": 0}}));
    changed["post_processor"]["single"] = json!(parts);
    write_json(dir.path(), "tokenizer.json", &changed);
    let field = "pieces added to each text";
    assert!(
        matches!(open_error(&dir), EmbedError::Setting { field: f, found: MAX_PIECES, .. } if f == field)
    );
}

#[test]
fn other_networks_are_refused() {
    for (field, value) in [("hidden_act", "relu"), ("position_embedding_type", "relative_key")] {
        let dir = tiny_model();
        let mut changed = config();
        changed[field] = json!(value);
        write_json(dir.path(), "config.json", &changed);
        assert!(matches!(open_error(&dir), EmbedError::Unsupported { .. }), "{field}");
    }
}

/// A larger model has its names behind a prefix, and weights may be stored in fewer bits.
#[test]
fn names_may_have_a_prefix_and_a_missing_tensor_is_named() {
    let dir = tiny_model();
    let embed = || {
        let model = MiniLm::open(dir.path(), MiniLmOptions::default()).unwrap();
        model.embed(&["the red fox"]).unwrap()
    };
    let expected = embed();
    let prefixed = |(name, tensor)| (format!("bert.{name}"), tensor);
    save(&weights().into_iter().map(prefixed).collect(), dir.path());
    assert_eq!(embed(), expected);

    let mut weights = weights();
    weights.remove("encoder.layer.0.output.dense.bias");
    save(&weights, dir.path());
    let error = std::error::Error::source(&open_error(&dir)).unwrap().to_string();
    assert!(error.contains("encoder.layer.0.output.dense.bias"), "{error}");
}

#[test]
fn threads_and_instruction_sets_give_the_same_bits() {
    let dir = tiny_model();
    let texts = ["the fox runs", "", "red", "the red fox runs home"];
    let embed = |options| MiniLm::open(dir.path(), options).unwrap().embed(&texts).unwrap();
    let one = MiniLmOptions { n_threads: NonZeroUsize::MIN, isa: Isa::scalar() };
    let expected = embed(one);
    for isa in Isa::available() {
        for n_threads in 1..4 {
            let n_threads = NonZeroUsize::new(n_threads).unwrap();
            assert_eq!(embed(MiniLmOptions { n_threads, isa }), expected, "{isa} {n_threads}");
        }
    }
}

#[test]
fn sequences_that_the_model_cannot_hold_are_refused() {
    for max in [0, 2, 33] {
        let dir = tiny_model();
        write_json(dir.path(), "sentence_bert_config.json", &json!({"max_seq_length": max}));
        assert!(matches!(open_error(&dir), EmbedError::Setting { field: "max_seq_length", .. }));
    }
}

#[test]
fn files_that_do_not_fit_each_other_are_refused() {
    let dir = tiny_model();
    let mut changed = config();
    changed["intermediate_size"] = json!(INNER + 16);
    write_json(dir.path(), "config.json", &changed);
    assert!(matches!(open_error(&dir), EmbedError::Tensor { .. }));

    let dir = tiny_model();
    let mut changed = config();
    changed["vocab_size"] = json!(WORDS.len() - 1);
    write_json(dir.path(), "config.json", &changed);
    assert!(matches!(open_error(&dir), EmbedError::Setting { field: "largest id", .. }));
}

#[test]
fn another_pooling_is_refused() {
    let dir = tiny_model();
    write_json(dir.path(), "1_Pooling/config.json", &json!({"pooling_mode_cls_token": true}));
    assert!(matches!(open_error(&dir), EmbedError::Pooling { .. }));
}

#[test]
fn weights_that_are_not_numbers_are_refused() {
    let dir = tiny_model();
    let mut weights = weights();
    let name = "encoder.layer.1.output.dense.bias";
    weights.insert(name.to_owned(), (vec![HIDDEN], vec![f32::NAN; HIDDEN]));
    save(&weights, dir.path());
    assert!(matches!(open_error(&dir), EmbedError::NotFinite { text: 0, n_texts: 1 }));
}
