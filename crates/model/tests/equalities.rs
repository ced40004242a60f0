//! What must be equal: the engine and a naive run with positions written out, chunks and tokens,
//! one thread and several, a batch and its sequences, what was evicted and recalled and what never
//! left. Nearly all of it bit for bit, since every output is summed in one fixed order.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

mod naive;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use everstream_kernels::Isa;
use everstream_kv_cache::{
    CacheError, EvictionPolicy, KvCache, KvSource, KvType, NeverEvict, Place, RawKeys, SinkWindow,
    TokenPos,
};
use everstream_model::{Arithmetic, ForwardError, Model, ModelOptions, Sequence, Workspace};
use naive::{Step, Stored};

/// Of the largest logit. The engine computes in f32, the naive run in f64, which makes 1.3e-6 after
/// two layers with sums of up to 512 products; a key one position off makes more than 1e-3.
const TOLERANCE: f64 = 1e-5;

/// One of each family.
fn tiny() -> [PathBuf; 10] {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    ["llama", "llama3", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "granite", "olmo2", "smollm3"]
        .map(|family| folder.join(format!("tiny-{family}.gguf")))
}

/// On one thread: tests run side by side, and a tiny model gains nothing from more.
fn open(path: &Path, arithmetic: Arithmetic) -> Model {
    let n_threads = NonZeroUsize::MIN;
    Model::open(path, ModelOptions { arithmetic, n_threads, ..Default::default() }).unwrap()
}

/// Runs a check on all tiny models in both arithmetics.
fn for_each(check: impl Fn(&Model)) {
    for path in tiny() {
        check(&open(&path, Arithmetic::F32));
        check(&open(&path, Arithmetic::Quantized));
    }
}

/// Any tokens, none of them special.
fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 3 + (i * i * 7 + i * 31) % 300).collect()
}

/// One stream.
#[derive(Debug)]
struct Stream<'m> {
    model: &'m Model,
    cache: KvCache,
    ws: Workspace,
}

impl<'m> Stream<'m> {
    fn new(
        model: &'m Model,
        policy: impl EvictionPolicy + 'static,
        (recall, chunk): (usize, usize),
        kv_type: KvType,
    ) -> Self {
        let mut config = model.cache_config(Arc::new(policy), recall, chunk);
        config.kv_type = kv_type;
        config.raw_keys = RawKeys::Keep;
        Self { model, cache: KvCache::new(&config).unwrap(), ws: Workspace::default() }
    }

    /// A stream with `n_sink` + `window_tokens`, no recall, in f16.
    fn sink(model: &'m Model, n_sink: usize, window_tokens: usize, chunk: usize) -> Self {
        Self::new(model, SinkWindow { n_sink, window_tokens }, (0, chunk), KvType::F16)
    }

    /// Reads tokens in the longest possible chunks; the logits of each.
    fn read(&mut self, mut tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut logits = Vec::new();
        while !tokens.is_empty() {
            let n = self.cache.timeline().next_chunk(tokens.len());
            let (chunk, rest) = tokens.split_at(n);
            let sequence = Sequence::new(chunk, &mut self.cache);
            self.model.forward(&mut self.ws, &mut [sequence]).unwrap();
            logits.extend((0..n).map(|i| self.model.logits(&mut self.ws, i..i + 1).to_vec()));
            tokens = rest;
        }
        logits
    }

    fn branch(&self) -> Self {
        Self { model: self.model, cache: self.cache.clone(), ws: Workspace::default() }
    }
}

/// The largest difference, as a fraction of the largest logit of its position.
fn deviation(found: &[Vec<f32>], expected: &[Vec<f64>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let mut worst = 0.0f64;
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for (x, y) in found.iter().zip(expected) {
            let difference = (f64::from(*x) - y).abs() / largest;
            assert!(difference.is_finite());
            worst = worst.max(difference);
        }
    }
    worst
}

fn widened(logits: Vec<Vec<f32>>) -> Vec<Vec<f64>> {
    logits.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect()
}

/// The same steps by the engine, in several chunk sizes, and by the naive run.
fn check_against_naive(n_sink: usize, window_tokens: usize, steps: &[Step]) {
    let n_tokens = steps.iter().map(|s| if let Step::Read(n) = s { *n } else { 0 }).sum();
    let tokens = tokens(n_tokens);
    for path in tiny() {
        let model = open(&path, Arithmetic::F32);
        let (naive, expected) = naive::run(&path, (n_sink, window_tokens), &tokens, steps);
        for chunk in [1, 3, 16] {
            let policy = SinkWindow { n_sink, window_tokens };
            let mut stream = Stream::new(&model, policy, (24, chunk), KvType::F32);
            let mut logits = Vec::new();
            for step in steps {
                match step {
                    Step::Read(n) => {
                        let from = logits.len();
                        logits.extend(stream.read(&tokens[from..from + n]));
                    }
                    Step::Recall(place, ranges) => {
                        let stored = |tokens| Stored { model: &naive, tokens };
                        let stored: Vec<_> = ranges.iter().cloned().map(stored).collect();
                        let sources: Vec<_> = stored.iter().map(|s| s as &dyn KvSource).collect();
                        stream.cache.recall(*place, &sources).unwrap();
                    }
                    Step::EndRecall => stream.cache.end_recall(),
                }
            }
            let worst = deviation(&logits, &expected);
            assert!(worst < TOLERANCE, "{n_sink} + {window_tokens}, chunk {chunk}: {worst:e}");
        }
    }
}

#[test]
fn windows_equal_naive_attention_at_positions_in_the_cache() {
    for (n_sink, window) in [(0, 1), (0, 12), (1, 5), (4, 1), (4, 12), (4, 100)] {
        check_against_naive(n_sink, window, &[Step::Read(50)]);
    }
}

#[test]
fn recalls_equal_naive_attention_at_positions_in_the_cache() {
    for place in [Place::Near, Place::Between] {
        let recall = Step::Recall(place, vec![16..21, 6..10]);
        check_against_naive(4, 16, &[Step::Read(40), recall, Step::Read(10)]);
    }
}

#[test]
fn after_a_recall_ends_the_gap_is_closed() {
    for place in [Place::Near, Place::Between] {
        let recall = Step::Recall(place, vec![6..10, 20..23]);
        let steps = [Step::Read(40), recall, Step::Read(7), Step::EndRecall, Step::Read(12)];
        check_against_naive(4, 16, &steps);
    }
}

#[test]
fn a_recall_that_the_window_has_passed_stands_between() {
    let recall = Step::Recall(Place::Near, vec![6..10, 20..23]);
    let steps = [Step::Read(40), recall, Step::Read(30), Step::EndRecall, Step::Read(6)];
    check_against_naive(4, 12, &steps);
    check_against_naive(0, 5, &steps);
}

#[test]
fn several_turns_with_recalls_in_one_window() {
    let mut steps = vec![Step::Read(50)];
    for (turn, place) in
        [Place::Near, Place::Near, Place::Between, Place::Near].into_iter().enumerate()
    {
        steps.push(Step::Recall(place, vec![6..10, 4 * turn + 10..5 * turn + 13]));
        steps.extend([Step::Read(5), Step::EndRecall]);
    }
    steps.push(Step::Read(4));
    check_against_naive(4, 24, &steps);
}

#[test]
fn chunks_equal_token_by_token() {
    for_each(|model| {
        let tokens = tokens(70);
        for (n_sink, window) in [(4, 12), (0, 7), (4, 100)] {
            let one = Stream::sink(model, n_sink, window, 1).read(&tokens);
            for chunk in [2, 7, 64] {
                assert_eq!(
                    Stream::sink(model, n_sink, window, chunk).read(&tokens),
                    one,
                    "{chunk}"
                );
            }
        }
    });
}

#[test]
fn a_budget_above_the_length_equals_dense() {
    for_each(|model| {
        let tokens = tokens(40);
        let policy = NeverEvict { n_sink: 0, max_tokens: 40 };
        let dense = Stream::new(model, policy, (0, 16), KvType::F16).read(&tokens);
        for (n_sink, window) in [(0, 39), (4, 36), (4, 200)] {
            assert_eq!(Stream::sink(model, n_sink, window, 16).read(&tokens), dense);
        }
    });
}

/// All instruction sets and several numbers of threads, decoding and prefilling.
#[test]
fn threads_and_instruction_sets_change_no_bit() {
    for path in tiny() {
        for arithmetic in [Arithmetic::F32, Arithmetic::Quantized] {
            let run = |n_threads, isa| {
                let n_threads = NonZeroUsize::new(n_threads).unwrap();
                let options = ModelOptions { n_threads, isa, arithmetic };
                let model = Model::open(&path, options).unwrap();
                [1, 16].map(|chunk| Stream::sink(&model, 4, 12, chunk).read(&tokens(33)))
            };
            let expected = run(1, Isa::detect());
            assert_eq!(expected[0], expected[1]);
            for n_threads in [2, 3] {
                assert_eq!(run(n_threads, Isa::detect()), expected, "{n_threads} threads");
            }
            for isa in Isa::available() {
                assert_eq!(run(2, isa), expected, "{isa}");
            }
        }
    }
}

#[test]
fn a_batch_equals_its_sequences() {
    for_each(|model| {
        let streams = || [20, 3, 9].map(|window| Stream::sink(model, 4, window, 16));
        let prompts: [&[u32]; 3] = [&tokens(30)[..25], &tokens(41)[11..40], &tokens(9)];
        let mut alone = streams();
        let mut together = streams();
        let rounds: [[usize; 3]; 4] = [[1, 9, 3], [16, 2, 1], [1, 1, 1], [2, 16, 1]];
        let mut at = [0; 3];
        for sizes in rounds {
            let parts = [0, 1, 2].map(|s| &prompts[s][at[s]..at[s] + sizes[s]]);
            let expected: Vec<_> =
                alone.iter_mut().zip(parts).flat_map(|(s, part)| s.read(part)).collect();
            let caches = together.iter_mut().map(|s| &mut s.cache);
            let mut batch: Vec<_> =
                caches.zip(parts).map(|(cache, tokens)| Sequence::new(tokens, cache)).collect();
            let mut ws = Workspace::default();
            model.forward(&mut ws, &mut batch).unwrap();
            let found = model.logits(&mut ws, 0..sizes.iter().sum());
            assert_eq!(found, expected.concat());
            at = [0, 1, 2].map(|s| at[s] + sizes[s]);
        }
    });
}

/// Un-rotated rows of a cache.
struct Copied {
    n_tokens: usize,
    /// `[n_layers][n_kv_heads]`: keys and values.
    rows: Vec<Vec<(Vec<f32>, Vec<f32>)>>,
}

impl Copied {
    fn of(stream: &Stream<'_>, from: u64, to: u64) -> Self {
        let c = stream.model.config();
        let n_tokens = (to - from) as usize;
        let rows = |layer, head| {
            let (mut k, mut v) =
                (vec![0.0; n_tokens * c.head_dim], vec![0.0; n_tokens * c.head_dim]);
            let range = TokenPos(from)..TokenPos(to);
            stream.cache.read_raw(&range, layer, head, &mut k, &mut v).unwrap();
            (k, v)
        };
        let heads = |layer| (0..c.n_kv_heads).map(|head| rows(layer, head)).collect();
        Self { n_tokens, rows: (0..c.n_layers).map(heads).collect() }
    }
}

impl KvSource for Copied {
    fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    fn read(&self, layer: usize, kv_head: usize, keys: &mut [f32], values: &mut [f32]) {
        let (k, v) = &self.rows[layer][kv_head];
        keys.copy_from_slice(k);
        values.copy_from_slice(v);
    }
}

/// The recalled keys take the very positions that they had, and sums run in stream order: the same
/// operations on the same numbers. Only f16 differs, whose keys are rounded once more before they
/// are rotated again.
#[test]
fn evicted_and_recalled_equals_never_evicted() {
    for path in tiny() {
        for (arithmetic, tolerance) in [(Arithmetic::F32, 3e-3), (Arithmetic::Quantized, 0.1)] {
            let model = &open(&path, arithmetic);
            let tokens = tokens(70);
            for (kv_type, n_sink) in [(KvType::F32, 4), (KvType::F32, 11), (KvType::F16, 4)] {
                for evicts in [false, true] {
                    let new = || match evicts {
                        true => {
                            let policy = SinkWindow { n_sink, window_tokens: 70 };
                            Stream::new(model, policy, (32, 16), kv_type)
                        }
                        false => {
                            let policy = NeverEvict { n_sink, max_tokens: 70 };
                            Stream::new(model, policy, (32, 16), kv_type)
                        }
                    };
                    let (mut whole, mut cut) = (new(), new());
                    whole.read(&tokens[..40]);
                    cut.read(&tokens[..40]);
                    let parts = [Copied::of(&cut, n_sink as u64, 20), Copied::of(&cut, 20, 31)];
                    cut.cache.recall(Place::Between, &[&parts[0], &parts[1]]).unwrap();
                    cut.cache.hide_before(TokenPos(31));
                    assert_eq!(cut.cache.sections().window, 9);
                    let (found, expected) = (cut.read(&tokens[40..]), whole.read(&tokens[40..]));
                    if kv_type == KvType::F32 {
                        assert_eq!(found, expected);
                    } else {
                        // Rounding K and V to f16 on the way; 8-bit inputs step over it in jumps.
                        let worst = deviation(&found, &widened(expected));
                        assert!(worst < tolerance, "{worst:e}");
                    }
                }
            }
        }
    }
}

/// Rows that are computed again in the recalled section are those of a stream that begins with the
/// sinks and goes on with them; wherever they stand afterwards, they are rotated from there.
#[test]
fn rows_computed_again_are_those_of_a_stream_behind_the_sinks() {
    for_each(|model| {
        let tokens = tokens(60);
        let policy = || SinkWindow { n_sink: 4, window_tokens: 16 };
        let recalled = [&tokens[10..20], &tokens[25..29]].concat();
        let mut twin = Stream::new(model, policy(), (16, 64), KvType::F32);
        twin.read(&[&tokens[..4], &recalled].concat());
        let computed = Copied::of(&twin, 4, 18);
        for (place, chunk) in [(Place::Near, 3), (Place::Near, 16), (Place::Between, 5)] {
            let mut stream = Stream::new(model, policy(), (16, 16), KvType::F32);
            stream.read(&tokens[..40]);
            let mut expected = stream.branch();
            expected.cache.recall(place, &[&computed]).unwrap();
            stream.cache.open_recall(14).unwrap();
            for rows in (0..14).collect::<Vec<_>>().chunks(chunk) {
                let tokens: Vec<u32> = rows.iter().map(|&row| recalled[row]).collect();
                let sequence = Sequence::recalled(&tokens, rows, &mut stream.cache);
                model.forward(&mut stream.ws, &mut [sequence]).unwrap();
            }
            assert_eq!(stream.cache.next(), TokenPos(40));
            if place == Place::Near {
                stream.cache.move_near();
            }
            assert_eq!(stream.read(&tokens[40..50]), expected.read(&tokens[40..50]));
            stream.cache.end_recall();
            expected.cache.end_recall();
            assert_eq!(stream.read(&tokens[50..]), expected.read(&tokens[50..]));
        }
    });
}

#[test]
fn only_what_is_recalled_behind_the_sinks_is_computed_again() {
    let model = &open(&tiny()[0], Arithmetic::F32);
    let policy = SinkWindow { n_sink: 4, window_tokens: 16 };
    let mut stream = Stream::new(model, policy, (8, 16), KvType::F32);
    let again = |stream: &mut Stream<'_>, rows: &[usize]| {
        let tokens = vec![7; rows.len()];
        let sequence = Sequence::recalled(&tokens, rows, &mut stream.cache);
        model.forward(&mut stream.ws, &mut [sequence])
    };
    let refused =
        |row, n_tokens| Err(ForwardError::Cache(CacheError::NotRecalled { row, n_tokens }));
    stream.read(&tokens(20));
    assert_eq!(again(&mut stream, &[0]), refused(0, 0));
    stream.cache.open_recall(5).unwrap();
    assert_eq!(again(&mut stream, &[3, 5]), refused(5, 5));
    assert_eq!(again(&mut stream, &[3, 2]), refused(2, 5));
    assert_eq!(again(&mut stream, &[2, 2]), refused(2, 5));
    assert_eq!(again(&mut stream, &[0, 1, 2, 3, 4]), Ok(()));
    stream.cache.move_near();
    assert_eq!(again(&mut stream, &[0]), refused(0, 0));
    assert_eq!(stream.cache.next(), TokenPos(20));
}

#[test]
fn a_branch_continues_as_the_original() {
    for_each(|model| {
        let tokens = tokens(60);
        let policy = SinkWindow { n_sink: 4, window_tokens: 20 };
        let mut original = Stream::new(model, policy, (8, 16), KvType::F16);
        original.read(&tokens[..30]);
        let copied = Copied::of(&original, 6, 12);
        original.cache.recall(Place::Near, &[&copied]).unwrap();
        original.read(&tokens[30..35]);
        let mut branch = original.branch();
        let mut other = original.branch();
        other.read(&tokens[..25]);
        assert_eq!(branch.read(&tokens[35..]), original.read(&tokens[35..]));
    });
}

#[test]
fn a_batch_that_is_refused_changes_no_stream() {
    for_each(|model| {
        let tokens = tokens(40);
        let new =
            || Stream::new(model, SinkWindow { n_sink: 4, window_tokens: 9 }, (8, 16), KvType::F32);
        let (mut a, mut b) = (new(), new());
        a.read(&tokens[..20]);
        let copied = Copied::of(&a, 5, 10);
        a.cache.recall(Place::Near, &[&copied]).unwrap();
        a.read(&tokens[20..29]);
        let mut expected = a.branch();
        let unknown = [3, model.config().vocab_size as u32];
        for (bad, is_cache) in [(&unknown[..], false), (&tokens[..17], true), (&[], true)] {
            let mut batch =
                [Sequence::new(&tokens[29..31], &mut a.cache), Sequence::new(bad, &mut b.cache)];
            let error = model.forward(&mut a.ws, &mut batch).unwrap_err();
            match error {
                ForwardError::Cache(CacheError::ChunkTooLong { .. }) => assert!(is_cache),
                ForwardError::UnknownToken { .. } => assert!(!is_cache),
                other => panic!("{other}"),
            }
            assert_eq!((a.cache.next(), b.cache.next()), (TokenPos(29), TokenPos(0)));
        }
        assert_eq!(a.read(&tokens[29..]), expected.read(&tokens[29..]));
    });
}
