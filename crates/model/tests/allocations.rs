//! A decode step takes no memory from the system.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use everstream_kv_cache::{KvCache, SinkWindow};
use everstream_model::{Model, ModelOptions, Sequence, Workspace};

/// Past the window, where a ring has turned and tokens leave: nothing grows any more. On one thread, since
/// the counter sees its own only; workers run the same tasks.
#[test]
fn a_decode_step_allocates_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for family in ["llama", "qwen2", "gemma3", "phi3", "olmo2"] {
        let options = ModelOptions { n_threads: NonZeroUsize::MIN, ..Default::default() };
        let model = Model::open(&folder.join(format!("tiny-{family}.gguf")), options).unwrap();
        let policy = Arc::new(SinkWindow { n_sink: 4, window_tokens: 40 });
        let mut cache = KvCache::new(&model.cache_config(policy, 0, 16)).unwrap();
        let mut ws = Workspace::default();
        let mut step = |token: u32| {
            model.forward(&mut ws, &mut [Sequence::new(&[token], &mut cache)]).unwrap();
            assert!(model.logits(&mut ws, 0..1)[0].is_finite());
        };
        (0..200).for_each(|i| step(3 + i % 300));
        let counted = allocation_counter::measure(|| (0..100).for_each(|i| step(3 + i % 300)));
        assert_eq!(counted.count_total, 0, "{family}: {} bytes", counted.bytes_total);
    }
}
