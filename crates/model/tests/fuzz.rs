//! Damaged model files of all kinds: they are refused or they run, and nothing panics.
//!
//! Mutations are drawn by seed, so a failure names the file that caused it. `cargo xtask soak
//! tests` runs many more of them than the gate.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use everstream_kv_cache::{KvCache, SinkWindow};
use everstream_model::{GgufFile, Model, ModelOptions, Sequence, SpecialTokens, Workspace};

const FILES: [&[u8]; 10] = [
    include_bytes!("golden/tiny-llama.gguf"),
    include_bytes!("golden/tiny-llama3.gguf"),
    include_bytes!("golden/tiny-qwen2.gguf"),
    include_bytes!("golden/tiny-qwen3.gguf"),
    include_bytes!("golden/tiny-gemma2.gguf"),
    include_bytes!("golden/tiny-gemma3.gguf"),
    include_bytes!("golden/tiny-phi3.gguf"),
    include_bytes!("golden/tiny-granite.gguf"),
    include_bytes!("golden/tiny-olmo2.gguf"),
    include_bytes!("golden/tiny-smollm3.gguf"),
];

/// Numbers at which lengths, counts and offsets go wrong.
const NUMBERS: [u64; 10] =
    [0, 1, 31, 255, 1 << 16, 1 << 31, u32::MAX as u64, 1 << 62, u64::MAX - 31, u64::MAX];

struct Mutated {
    bytes: Vec<u8>,
    rng: fastrand::Rng,
}

impl Mutated {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let bytes = FILES[rng.usize(..FILES.len())].to_vec();
        let mut file = Self { bytes, rng };
        for _ in 0..=file.rng.usize(..4) {
            file.mutate();
        }
        file
    }

    /// A place in the file, mostly in its head, where the structure is.
    fn place(&mut self) -> usize {
        let end =
            if self.rng.u8(..4) > 0 { self.bytes.len().min(40_000) } else { self.bytes.len() };
        self.rng.usize(..end.max(1))
    }

    fn mutate(&mut self) {
        let at = self.place();
        let len = self.rng.usize(1..64).min(self.bytes.len().saturating_sub(at));
        match self.rng.u8(..6) {
            0 => self.bytes[at..at + len.min(1)].iter_mut().for_each(|b| *b ^= 1 << (at % 8)),
            1 => {
                let number = NUMBERS[self.rng.usize(..NUMBERS.len())].to_le_bytes();
                let n = len.min([4, 8][self.rng.usize(..2)]);
                self.bytes[at..at + n].copy_from_slice(&number[..n]);
            }
            2 => self.rng.fill(&mut self.bytes[at..at + len]),
            3 => self.bytes.truncate(at.max(1)),
            4 => drop(self.bytes.drain(at..at + len)),
            _ => {
                let copy = self.bytes[at..at + len].to_vec();
                let to = self.place();
                self.bytes.splice(to..to, copy);
            }
        }
    }
}

/// Opens a file and, if it is taken, reads some text with it. Returns whether it was taken.
fn open_and_run(bytes: Vec<u8>) -> bool {
    let Ok(gguf) = GgufFile::from_bytes(bytes, "damaged") else { return false };
    let options = ModelOptions { n_threads: NonZeroUsize::MIN, ..Default::default() };
    let Ok(model) = Model::from_gguf(gguf, options) else { return false };
    let mut tokens = model.tokenizer().encode("A key, 42 boats.\n", SpecialTokens::AsText);
    tokens.truncate(8);
    let policy = Arc::new(SinkWindow { n_sink: 1, window_tokens: 4 });
    let mut cache = KvCache::new(&model.cache_config(policy, 0, 8)).unwrap();
    if !tokens.is_empty() {
        let (mut ws, n) = (Workspace::default(), tokens.len());
        let batch = &mut [Sequence::new(&tokens, &mut cache)];
        model.forward(&mut ws, batch).unwrap();
        model.logits(&mut ws, n - 1..n);
    }
    let _ = model.template().user_turn("Who?");
    true
}

fn run(seeds: impl Iterator<Item = u64>) {
    let (mut n_taken, mut n_refused) = (0, 0);
    for seed in seeds {
        println!("seed {seed}");
        match open_and_run(Mutated::new(seed).bytes) {
            true => n_taken += 1,
            false => n_refused += 1,
        }
    }
    println!("{n_taken} files taken, {n_refused} refused");
    assert!(n_taken > 0 && n_refused > n_taken / 10);
}

#[test]
fn damaged_files_are_refused_or_run() {
    run(0..400);
}

#[test]
#[ignore = "takes minutes: cargo xtask soak tests runs it"]
fn soak_damaged_files_are_refused_or_run() {
    let end = Instant::now() + Duration::from_secs(300);
    run((1_000_000..).take_while(|_| Instant::now() < end));
}
