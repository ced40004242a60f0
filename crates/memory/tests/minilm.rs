//! The real all-MiniLM-L6-v2 against sentence-transformers.

use std::path::{Path, PathBuf};

use everstream_memory::{Embedder, MiniLm, MiniLmOptions};
use serde::Deserialize;

/// What `reference/golden_minilm.py` wrote.
#[derive(Deserialize)]
struct Golden {
    tolerance: f32,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    text: String,
    embedding: Vec<f32>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/minilm.json");
    let bytes = fs_err::read(path).expect("the golden file is committed");
    serde_json::from_slice(&bytes).expect("the golden file is JSON")
}

fn model() -> MiniLm {
    let dir = std::env::var_os("EVERSTREAM_TEST_MINILM")
        .expect("EVERSTREAM_TEST_MINILM names the folder of all-MiniLM-L6-v2");
    MiniLm::open(&PathBuf::from(dir), MiniLmOptions::default()).expect("the folder holds the model")
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Both sides compute in f32 and sum in another order; components are about 0.05 large.
#[test]
#[ignore = "needs the real model: cargo xtask check runs it"]
fn agrees_with_sentence_transformers() {
    let (golden, model) = (golden(), model());
    assert_eq!(golden.sentences.len(), 50);
    assert_eq!(model.dim(), 384);
    let texts: Vec<&str> = golden.sentences.iter().map(|s| s.text.as_str()).collect();
    let together = model.embed(&texts).unwrap();
    let mut worst = (0.0_f32, 0.0_f32);
    for (sentence, embedding) in golden.sentences.iter().zip(&together) {
        let difference = largest_difference(embedding, &sentence.embedding);
        assert!(difference <= golden.tolerance, "{difference}: {:?}", sentence.text);
        let alone = model.embed(&[&sentence.text]).unwrap();
        let of_batch = largest_difference(&alone[0], embedding);
        assert!(of_batch == 0.0, "{of_batch}: {:?}", sentence.text);
        worst = (worst.0.max(difference), worst.1.max(of_batch));
    }
    println!("largest difference: {:e} from the reference, {:e} by batching", worst.0, worst.1);
}
