//! A session from outside: what it reads is stored, what it recalls was evicted, what it generates
//! stops where it should, and what it refuses leaves it usable.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

mod common;

use std::ops::ControlFlow::{self, Break, Continue};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{embedder, session, small, story, tiny};
use everstream_runtime::kv_cache::{KvCache, RawKeys, SinkWindow, TokenPos};
use everstream_runtime::memory::{Block, EmbedError, Embedder, HashEmbedder, Role};
use everstream_runtime::model::{
    GgufFile, Model, ModelOptions, Sequence, SpecialTokens, Workspace,
};
use everstream_runtime::{
    GenerateOptions, Origin, Policy, SamplerConfig, Session, SessionError, StopReason,
};

fn ingest(session: &mut Session, text: &str) {
    session.ingest(text, Origin::file("story.txt"), &mut |_, _, _| Continue(())).unwrap();
}

fn ignore(_: &str) -> ControlFlow<()> {
    Continue(())
}

/// All stored blocks, in stream order.
fn blocks(session: &mut Session) -> Vec<Arc<Block>> {
    let n_found = session.search("boat", 10_000).unwrap().len();
    let memory = session.memory().unwrap();
    assert_eq!(memory.metas().len(), n_found, "every block can be found");
    (0..n_found).map(|order| memory.block(order).unwrap()).collect()
}

#[test]
fn every_token_after_the_sinks_is_in_one_block_or_open() {
    for family in ["qwen2", "llama"] {
        let model = tiny(family);
        let mut session = session(&model, small(Policy::Remember));
        let text = story(3000);
        ingest(&mut session, &text);
        let tokens = model.tokenizer().encode(&text, SpecialTokens::AsText);
        assert_eq!(session.n_tokens(), tokens.len() as u64);
        let mut next = TokenPos(4);
        for block in blocks(&mut session) {
            let range = block.range();
            assert_eq!(range.start, next);
            assert!((8..=40).contains(&block.tokens().len()));
            let expected = &tokens[range.start.0 as usize..range.end.0 as usize];
            assert_eq!(block.tokens(), expected);
            assert_eq!(block.text().as_bytes(), model.tokenizer().decode(expected));
            assert_eq!(block.role(), Role::Document);
            next = range.end;
        }
        // The turn has ended, so only a rest that is too short for a block is open.
        assert!((0..8).contains(&(session.n_tokens() - next.0)));
        assert_eq!(session.memory().unwrap().metas().last().unwrap().range.end, next);
        assert_eq!(session.evicted(), TokenPos(4)..TokenPos(session.n_tokens() - 96));
    }
}

/// The same tokens through a bare cache, in the same chunks.
#[test]
fn stored_keys_and_values_are_those_of_the_cache() {
    let model = tiny("llama");
    let c = model.config();
    let (text, head_dim) = (story(900), c.head_dim);
    let mut session = session(&model, small(Policy::Remember));
    ingest(&mut session, &text);
    let blocks = blocks(&mut session);
    assert!(blocks.len() > 10);

    let policy = Arc::new(SinkWindow { n_sink: 4, window_tokens: 96 });
    let mut config = model.cache_config(policy, 0, 32);
    config.raw_keys = RawKeys::Keep;
    let (mut cache, mut ws) = (KvCache::new(&config).unwrap(), Workspace::default());
    let mut waiting = blocks.iter().peekable();
    let tokens = model.tokenizer().encode(&text, SpecialTokens::AsText);
    for tokens in tokens.chunks(32) {
        model.forward(&mut ws, &mut [Sequence::new(tokens, &mut cache)]).unwrap();
        while let Some(block) = waiting.next_if(|b| b.range().end <= cache.next()) {
            let n = block.tokens().len();
            for (layer, head) in
                (0..c.n_layers).flat_map(|l| (0..c.n_kv_heads).map(move |h| (l, h)))
            {
                let new = || vec![0.0; n * head_dim];
                let (mut keys, mut values, mut k, mut v) = (new(), new(), new(), new());
                cache.read_raw(&block.range(), layer, head, &mut keys, &mut values).unwrap();
                block.kv().keys(layer, head, 0..n).copy_to(&mut k);
                block.kv().values(layer, head, 0..n).copy_to(&mut v);
                assert_eq!((k, v), (keys, values));
            }
        }
    }
    assert!(waiting.next().is_none());
}

#[test]
fn only_what_was_evicted_is_recalled() {
    let model = tiny("qwen2");
    let mut session = session(&model, small(Policy::Remember));
    ingest(&mut session, &story(700));
    for turn in 0..12 {
        let evicted = session.evicted();
        let recall = session.turn(&format!("Where did the red boat go on day {turn}?")).unwrap();
        let (parts, n): (Vec<_>, _) =
            (recall.blocks.iter().map(|b| b.part.clone()).collect(), recall.n_tokens());
        assert!(!parts.is_empty() && n <= 64);
        for (i, part) in parts.iter().enumerate() {
            assert!(part.start >= evicted.start && part.end <= evicted.end, "{part:?} {evicted:?}");
            assert!(part.start < part.end);
            assert!(parts[..i].iter().all(|p| p.end <= part.start || part.end <= p.start));
        }
        assert_eq!(session.sections().recalled, n);
        let options = GenerateOptions { max_tokens: 5 + 40 * (turn % 3), ..Default::default() };
        session.answer(&options, &mut ignore).unwrap();
        assert_eq!(session.sections().recalled, n);
        assert!(session.sections().window <= 96);
    }
}

#[test]
fn a_turn_recalls_the_block_with_its_words() {
    let model = tiny("qwen2");
    let mut session = session(&model, small(Policy::Remember));
    ingest(&mut session, &story(3000));
    let recall = session.turn("Who hid the emerald, Captain Vasquez?").unwrap();
    let best = recall.blocks.last().unwrap();
    assert!(best.block.text().contains("emerald"), "{}", best.block.text());
}

#[test]
fn the_first_turn_of_an_empty_stream_recalls_nothing() {
    let model = tiny("qwen2");
    let mut session = session(&model, small(Policy::Remember));
    assert!(session.recall("").unwrap().blocks.is_empty());
    assert!(session.turn("Hello.").unwrap().blocks.is_empty());
    let config = small(Policy::Remember);
    let mut session =
        Session::with_system(Arc::clone(&model), embedder(), config, Some("Be brief.")).unwrap();
    assert!(session.turn("Hello.").unwrap().blocks.is_empty());
    assert_eq!(session.sections().sinks, session.config().n_sink);
}

#[test]
fn a_source_names_the_line_of_its_first_token() {
    let model = tiny("qwen2");
    let mut session = session(&model, small(Policy::Remember));
    // The sinks take the first line breaks.
    let text = format!("\n\nA\n\nB\n{}", story(600));
    ingest(&mut session, &text);
    let tokens = model.tokenizer().encode(&text, SpecialTokens::AsText);
    for block in blocks(&mut session) {
        let before = model.tokenizer().decode(&tokens[..block.range().start.0 as usize]);
        let line = 1 + before.iter().filter(|b| **b == b'\n').count() as u64;
        assert_eq!(block.source().unwrap().line, line, "{:?}", block.text());
    }
}

/// Fails now and then.
#[derive(Debug, Default)]
struct Flaky(AtomicUsize);

impl Embedder for Flaky {
    fn name(&self) -> String {
        "test".to_owned()
    }

    fn dim(&self) -> usize {
        HashEmbedder.dim()
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        match self.0.fetch_add(1, Ordering::Relaxed) % 3 {
            0 => Err(std::io::Error::other("busy").into()),
            _ => HashEmbedder.embed(texts),
        }
    }
}

#[test]
fn an_encoder_that_fails_loses_no_token() {
    let model = tiny("qwen2");
    let text = story(3000);
    let mut steady = session(&model, small(Policy::Remember));
    ingest(&mut steady, &text);
    let tokens = model.tokenizer().encode(&text, SpecialTokens::AsText);
    let flaky: Option<Arc<dyn Embedder>> = Some(Arc::new(Flaky::default()));
    let mut session = Session::new(Arc::clone(&model), flaky, small(Policy::Remember)).unwrap();
    let mut n_failures = 0;
    // A call that fails has read what `n_tokens` says, and the prediction is what follows that.
    while session.n_tokens() < tokens.len() as u64 {
        let n_read = session.n_tokens() as usize;
        if session.append(&tokens[n_read..], Origin::turn(Role::Document)).is_ok() {
            continue;
        }
        n_failures += 1;
        let mut twin = common::session(&model, small(Policy::Sink));
        let n_read = session.n_tokens() as usize;
        twin.append(&tokens[..n_read], Origin::turn(Role::Document)).unwrap();
        assert!(session.logits() == twin.logits(), "after {n_read} tokens");
    }
    while session.end_turn().is_err() {
        n_failures += 1;
    }
    assert!(n_failures > 1);
    let ranges = |s: &Session| -> Vec<_> {
        s.memory().unwrap().metas().iter().map(|m| m.range.clone()).collect()
    };
    assert_eq!(ranges(&session), ranges(&steady));
}

/// What a template writes around words is in the stream, and in no block's text.
#[test]
fn a_chat_is_remembered_by_its_words() {
    let model = tiny("qwen2");
    let mut session = session(&model, small(Policy::Remember));
    let said = "The spare key hangs behind the clock in the hall, says Marguerite.";
    for i in 0..12 {
        session.turn(&format!("{said} That was note {i}.")).unwrap();
        session
            .answer(&GenerateOptions { max_tokens: 20, ..Default::default() }, &mut ignore)
            .unwrap();
    }
    let blocks = blocks(&mut session);
    assert!(blocks.len() > 20);
    let text: String = blocks.iter().map(|b| b.text()).collect();
    for markup in ["<|im_start|>", "<|im_end|>", "user\n", "assistant\n"] {
        assert!(!text.contains(markup), "{markup:?} in {text:?}");
    }
    assert_eq!(text.matches("behind the clock").count(), 12);
    // Turns are long enough here for blocks of their own.
    let of = |role| blocks.iter().filter(|b| b.role() == role).count();
    assert!(of(Role::User) >= 12 && of(Role::Assistant) > 0);
    let words = blocks.iter().map(|b| (b.role(), b.text().contains("behind the clock")));
    assert!(words.clone().all(|(role, said)| !said || role == Role::User));
    let tokens = |b: &Arc<Block>| b.tokens().len() as u64;
    let n_stored: u64 = blocks.iter().map(tokens).sum();
    assert!(session.n_tokens() - 4 - n_stored < 40, "markup is stored as tokens");
}

#[test]
fn an_insertion_that_is_refused_leaves_the_last_recall() {
    let model = tiny("qwen2");
    let mut session = read(&model);
    let before = session.sections().recalled;
    assert!(before > 0);
    let mut too_large = session.last_recall().unwrap().clone();
    while too_large.n_tokens() <= 64 {
        too_large.blocks.push(too_large.blocks[0].clone());
    }
    let error = session.insert(too_large).unwrap_err();
    assert!(matches!(error, SessionError::Cache(_)), "{error}");
    assert_eq!(session.sections().recalled, before);
    assert_eq!(session.last_recall().unwrap().n_tokens(), before);
    let branch = session.branch().unwrap();
    assert_eq!(branch.last_recall().unwrap().n_tokens(), branch.sections().recalled);
    session.read_turn("And now?").unwrap();
    assert!(session.last_recall().is_none() && session.sections().recalled == 0);
}

#[test]
fn a_token_that_does_not_exist_is_refused_by_every_policy() {
    let model = tiny("qwen2");
    for policy in Policy::ALL {
        let mut session = session(&model, small(policy));
        ingest(&mut session, "The river runs");
        let (n_tokens, logits) = (session.n_tokens(), session.logits().to_vec());
        let error = session.append(&[u32::MAX], Origin::turn(Role::User)).unwrap_err();
        assert!(matches!(error, SessionError::Forward(_)), "{policy}: {error}");
        assert!((n_tokens, &logits[..]) == (session.n_tokens(), session.logits()), "{policy}");
    }
}

#[test]
fn an_observed_reading_predicts_as_any_other() {
    let model = tiny("qwen2");
    for policy in Policy::ALL {
        let (mut plain, mut observed) =
            (session(&model, small(policy)), session(&model, small(policy)));
        let tokens = plain.encode(&story(300)).unwrap();
        plain.append(&tokens, Origin::turn(Role::User)).unwrap();
        observed.append_observed(&tokens, Origin::turn(Role::User), &mut |_, _| {}).unwrap();
        assert!(plain.logits() == observed.logits(), "{policy}");
    }
}

/// The end of a long prompt asks for what its beginning has said.
#[test]
fn a_prompt_recalls_for_its_end() {
    let model = tiny("qwen2");
    let mut session = session(&model, small(Policy::Remember));
    let question = "Who hid the emerald compass under floorboards? ".repeat(3);
    let prompt = format!("{}\n\n{question}", story(3000));
    let tokens = session.encode(&prompt).unwrap();
    session.read_prompt(&tokens, Origin::turn(Role::Document)).unwrap();
    assert_eq!(session.n_tokens(), tokens.len() as u64);
    let recall = session.last_recall().unwrap();
    assert!(recall.blocks.iter().any(|b| b.block.text().contains("emerald")));
}

fn read(model: &Arc<Model>) -> Session {
    let mut session = session(model, small(Policy::Remember));
    ingest(&mut session, &story(500));
    session.turn("Where did the boats go?").unwrap();
    session
}

#[test]
fn generation_stops_at_its_length_and_at_a_stop_text() {
    let model = tiny("qwen2");
    let session = read(&model);
    let mut received = String::new();
    let mut receive = |piece: &str| {
        received.push_str(piece);
        Continue(())
    };
    let options = GenerateOptions { max_tokens: 24, ..Default::default() };
    let whole = session.branch().unwrap().generate(&options, &mut receive).unwrap();
    assert_eq!((whole.stop, whole.tokens.len()), (StopReason::MaxTokens, 24));
    assert_eq!(received, whole.text);
    assert_eq!(
        whole.text.as_bytes(),
        String::from_utf8_lossy(&model.tokenizer().decode(&whole.tokens)).as_bytes()
    );

    let stop: String = whole.text.chars().skip(9).take(4).collect();
    let end = whole.text.find(&stop).unwrap();
    let mut branch = session.branch().unwrap();
    let options = GenerateOptions { stop: vec!["never".into(), stop], ..options };
    let stopped = branch.generate(&options, &mut ignore).unwrap();
    assert_eq!((stopped.stop, &stopped.text[..]), (StopReason::StopText, &whole.text[..end]));
    assert!(whole.tokens.starts_with(&stopped.tokens));
    assert_eq!(branch.n_tokens(), session.n_tokens() + stopped.tokens.len() as u64);

    let options = GenerateOptions { max_tokens: 0, ..Default::default() };
    let nothing = session.branch().unwrap().generate(&options, &mut ignore).unwrap();
    assert_eq!((nothing.stop, &nothing.text[..]), (StopReason::MaxTokens, ""));
}

#[test]
fn a_token_that_ends_the_turn_stays_out_of_the_stream() {
    let model = tiny("qwen2");
    let mut session = read(&model);
    let before = session.n_tokens();
    // Hot enough that any token may come.
    let sampler =
        SamplerConfig { temperature: 50.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Default::default() };
    let options = GenerateOptions { max_tokens: 5000, sampler, ..Default::default() };
    let generated = session.generate(&options, &mut ignore).unwrap();
    assert_eq!(generated.stop, StopReason::EndOfTurn);
    assert!(generated.tokens.iter().all(|t| !model.tokenizer().eos_ids().contains(t)));
    assert_eq!(session.n_tokens(), before + generated.tokens.len() as u64);
}

#[test]
fn an_interrupted_answer_leaves_a_usable_session() {
    let model = tiny("qwen2");
    let mut session = read(&model);
    let mut other = session.branch().unwrap();
    let mut n_pieces = 0;
    let mut receive = |_: &str| {
        n_pieces += 1;
        if n_pieces == 5 { Break(()) } else { Continue(()) }
    };
    let generated = session.generate(&GenerateOptions::default(), &mut receive).unwrap();
    assert_eq!(generated.stop, StopReason::Interrupted);
    assert!(generated.tokens.len() >= 5);
    other.append(&generated.tokens, Origin::turn(Role::Assistant)).unwrap();
    assert_eq!(session.logits(), other.logits());
    for s in [&mut session, &mut other] {
        s.end_turn().unwrap();
        s.turn("And then?").unwrap();
    }
    assert_eq!(session.logits(), other.logits());

    let mut n_chunks = 0;
    let mut stop = |_: &Session, _, _| {
        n_chunks += 1;
        if n_chunks == 3 { Break(()) } else { Continue(()) }
    };
    let before = session.n_tokens();
    let n_read = session.ingest(&story(900), Origin::turn(Role::Document), &mut stop).unwrap();
    assert!((33..=96).contains(&n_read), "{n_read}");
    assert_eq!(session.n_tokens(), before + n_read as u64);
    session.answer(&GenerateOptions { max_tokens: 3, ..Default::default() }, &mut ignore).unwrap();
}

#[test]
fn nothing_comes_from_an_empty_stream() {
    let model = tiny("qwen2");
    for policy in Policy::ALL {
        let mut session = session(&model, small(policy));
        ingest(&mut session, "");
        let error = session.generate(&GenerateOptions::default(), &mut ignore).unwrap_err();
        assert!(matches!(error, SessionError::EmptyStream), "{error}");
        ingest(&mut session, "a");
        session
            .generate(&GenerateOptions { max_tokens: 3, ..Default::default() }, &mut ignore)
            .unwrap();
    }
}

#[test]
fn appending_nothing_changes_nothing() {
    let model = tiny("qwen2");
    for policy in Policy::ALL {
        let mut session = session(&model, small(policy));
        ingest(&mut session, "The river runs");
        let mut branch = session.branch().unwrap();
        branch.append(&[], Origin::turn(Role::User)).unwrap();
        ingest(&mut branch, "");
        assert_eq!(branch.logits(), session.logits());
        assert_eq!(branch.n_tokens(), session.n_tokens());
    }
}

/// The tiny model without a token for the byte 7, which `\u{107}` stands for.
#[test]
fn text_that_the_vocabulary_lacks_is_refused() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/tiny-qwen2.gguf");
    let mut bytes = fs_err::read(path).unwrap();
    let token = [&2u64.to_le_bytes()[..], "\u{107}".as_bytes()].concat();
    let at = bytes.windows(token.len()).position(|w| w == token).unwrap();
    bytes[at + 8..at + 10].copy_from_slice(b"zq");
    let gguf = GgufFile::from_bytes(bytes, "patched").unwrap();
    let model = Arc::new(Model::from_gguf(gguf, ModelOptions::default()).unwrap());
    let mut session = session(&model, small(Policy::Remember));
    ingest(&mut session, &story(500));
    let state = |s: &Session| (s.n_tokens(), s.sections(), s.logits().to_vec());
    let before = state(&session);
    let ring = session.ingest("ring\u{7}", Origin::turn(Role::User), &mut |_, _, _| Continue(()));
    assert!(matches!(ring, Err(SessionError::MissingByte { byte: 7, at: 4 })), "{ring:?}");
    let ring = session.turn("ring\u{7}");
    assert!(matches!(ring, Err(SessionError::MissingByte { byte: 7, .. })), "{ring:?}");
    assert!(before == state(&session), "{:?}", session.sections());
}
