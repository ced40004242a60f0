//! A tiny model, small settings and a text for the tests of this crate.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use everstream_runtime::memory::{BlockSizes, Embedder, Gate, HashEmbedder, Nearest, Neighbours};
use everstream_runtime::model::{Model, ModelOptions};
use everstream_runtime::{Policy, RecallConfig, Session, SessionConfig};

/// The tiny model `qwen2` or `llama`, on one thread: tests run side by side.
pub(crate) fn tiny(family: &str) -> Arc<Model> {
    tiny_with(family, ModelOptions { n_threads: NonZeroUsize::MIN, ..Default::default() })
}

pub(crate) fn tiny_with(family: &str, options: ModelOptions) -> Arc<Model> {
    let name = format!("../model/tests/golden/tiny-{family}.gguf");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    Arc::new(Model::open(&path, options).unwrap())
}

/// 4 + 64 + 96 tokens, chunks of 32, blocks of about 24 tokens; everything found is recalled.
pub(crate) fn small(policy: Policy) -> SessionConfig {
    let sizes = BlockSizes::new(8, 24, 40).unwrap();
    SessionConfig {
        policy,
        window_tokens: 96,
        context_tokens: 64,
        chunk_tokens: 32,
        recall: RecallConfig {
            gate: Gate::OPEN,
            sizes,
            strategy: Arc::new(Nearest),
            max_blocks: 4,
            neighbours: Neighbours::NONE,
            window: None,
            ..Default::default()
        },
        ..Default::default()
    }
}

pub(crate) fn embedder() -> Option<Arc<dyn Embedder>> {
    Some(Arc::new(HashEmbedder))
}

pub(crate) fn session(model: &Arc<Model>, config: SessionConfig) -> Session {
    Session::new(Arc::clone(model), embedder(), config).unwrap()
}

/// About `n_bytes` of short sentences. One of them, near the start, has words of its own.
pub(crate) fn story(n_bytes: usize) -> String {
    let mut text = String::new();
    for day in 1.. {
        if text.len() >= n_bytes {
            break;
        }
        let boat = ["red", "old", "long", "slow", "blue"][day * day % 5];
        let place = ["the mill", "the far shore", "a bridge", "the sea", "our garden"][day % 5];
        text += &format!("On day {day} the {boat} boat went to {place}.");
        text += if day % 6 == 0 { "\n\n" } else { "\n" };
        if day == 9 {
            text += "Captain Vasquez hid the emerald compass under floorboards.\n";
        }
    }
    text
}
