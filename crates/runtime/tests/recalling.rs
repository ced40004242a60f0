//! What is recalled besides blocks, and what makes room for it.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

mod common;

use std::ops::ControlFlow::Continue;
use std::path::Path;
use std::sync::Arc;

use common::{session, small, story, tiny};
use everstream_runtime::kv_cache::{KvType, Place};
use everstream_runtime::memory::{
    Distance, Embedder, FoundText, Gate, HashEmbedder, IndexError, Recall, Role, TextSource,
};
use everstream_runtime::model::{Arithmetic, Model, ModelOptions};
use everstream_runtime::{
    DocumentContext, GenerateOptions, Insertion, Origin, Policy, Session, SessionConfig,
    SessionError,
};

/// A collection of one text.
#[derive(Debug)]
struct OneText {
    text: &'static str,
    is_down: std::sync::atomic::AtomicBool,
}

impl TextSource for OneText {
    fn name(&self) -> &str {
        "notes"
    }

    fn search(&self, embedding: &[f32], _: usize) -> Result<Vec<FoundText>, IndexError> {
        if self.is_down.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(IndexError::Remote { what: "no answer".into() });
        }
        let own = HashEmbedder.embed(&[self.text]).unwrap().swap_remove(0);
        let distance = Distance::Cosine.between(embedding, &own);
        Ok(vec![FoundText { id: "n1".into(), text: self.text.into(), distance }])
    }
}

#[test]
fn texts_of_others_and_pins_are_recalled_in_front_of_blocks() {
    let model = tiny("qwen2");
    let source = Arc::new(OneText { text: "The boat is blue.", is_down: false.into() });
    let mut config = small(Policy::Remember);
    config.recall.texts = Some(Arc::clone(&source) as Arc<dyn TextSource>);
    let mut session = session(&model, config);
    // Before the sinks are filled nothing can stand behind them.
    assert!(session.recall("the boat").unwrap().is_empty());
    session.append(&session.encode(&story(900)).unwrap(), Origin::turn(Role::Document)).unwrap();
    session.pin("  Her name is Oda. ").unwrap();
    let recall = session.turn("Is the boat blue?").unwrap().clone();
    let texts: Vec<_> = recall.texts.iter().map(|t| (t.source.as_str(), t.text.trim())).collect();
    assert_eq!(texts, [("pin", "Her name is Oda."), ("notes", "The boat is blue.")]);
    assert!(!recall.blocks.is_empty() && recall.failure.is_none());
    assert_eq!(session.sections().recalled, recall.n_tokens());
    assert!(recall.n_tokens() <= session.config().context_tokens);

    source.is_down.store(true, std::sync::atomic::Ordering::Relaxed);
    let recall = session.turn("Is the boat blue?").unwrap();
    assert_eq!((recall.texts.len(), recall.failure.as_deref()), (1, Some("no answer")));
    assert!(!recall.blocks.is_empty());

    assert_eq!(session.unpin(1).unwrap(), None);
    assert_eq!(session.unpin(0).unwrap().as_deref(), Some("Her name is Oda."));
    assert!(session.turn("Is the boat blue?").unwrap().texts.is_empty());
    for text in ["", &story(300)] {
        assert!(matches!(session.pin(text), Err(SessionError::Pin { .. })));
    }
    assert!(session.pins().is_empty());
}

/// A text that is recalled is computed as if the stream began with the sinks and it. Positions are
/// then others by the same number for all, so only rounding differs.
#[test]
fn a_recalled_text_is_what_reading_it_behind_the_sinks_gives() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/tiny-llama.gguf");
    let options = ModelOptions { arithmetic: Arithmetic::F32, ..Default::default() };
    let model = Arc::new(Model::open(&file, options).unwrap());
    let mut config = small(Policy::Remember);
    (config.kv_type, config.recall.place) = (KvType::F32, Place::Between);
    config.recall.gate = Gate { max_distance: Some(-1.0) };
    let tokens = session(&model, config.clone()).encode(&story(300)).unwrap();
    let (sinks, rest) = tokens.split_at(config.n_sink);
    let origin = || Origin::turn(Role::Document);
    let mut pinned = session(&model, config.clone());
    pinned.append(sinks, origin()).unwrap();
    pinned.pin("Her name is Oda.").unwrap();
    assert_eq!(pinned.recall("anything").unwrap().texts.len(), 1);
    pinned.append(&rest[..40], origin()).unwrap();
    let mut read = session(&model, config);
    read.append(sinks, origin()).unwrap();
    read.append(&read.encode("Her name is Oda.\n").unwrap(), origin()).unwrap();
    read.append(&rest[..40], origin()).unwrap();
    let largest = read.logits().iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let differences = pinned.logits().iter().zip(read.logits()).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0_f32, f32::max) / largest;
    assert!(worst < 1e-5, "{worst:e}");
}

/// What a recall hides can be recalled, and is seen again when the recall ends, with the bits of a
/// stream that never recalled.
#[test]
fn hidden_tokens_come_back() {
    let model = tiny("llama");
    let mut config = small(Policy::Remember);
    (config.recall.window, config.recall.gate) = (Some(8), Gate::OPEN);
    config.recall.place = Place::Between;
    let mut session = session(&model, config.clone());
    let text = session.encode(&story(900)).unwrap();
    session.append(&text, Origin::turn(Role::Document)).unwrap();
    let mut twin = session.branch().unwrap();
    let evicted = session.evicted();
    let hides = |session: &Session| session.sections().window < config.window_tokens;
    // Of four blocks at most, one of those that are hidden.
    let newest = session.memory().unwrap().metas().last().unwrap().range.clone();
    let block = session.memory().unwrap().metas().len() - 1;
    let text = session.memory().unwrap().block(block).unwrap().text().to_owned();
    assert!(newest.start >= evicted.end);
    let recall = session.recall(&text).unwrap();
    assert!(recall.blocks.iter().any(|block| block.part.start == newest.start));
    assert!(hides(&session));
    assert_eq!(session.evicted(), evicted);
    session.insert(Recall::default()).unwrap();
    assert!(!hides(&session));
    let more = session.encode(&story(40)).unwrap();
    for stream in [&mut session, &mut twin] {
        stream.append(&more, Origin::turn(Role::Document)).unwrap();
    }
    assert_eq!(session.logits(), twin.logits());
}

/// A paragraph that is read apart has keys and values that say nothing of those before it, whatever
/// the chunks are.
#[test]
fn paragraphs_that_are_read_apart_do_not_see_each_other() {
    let model = tiny("qwen2");
    let (end, title) = (story(250), "The story of a lamp, in three parts. ");
    let keys_of_the_end = |context, chunk_tokens, number| {
        let config =
            SessionConfig { document_context: context, chunk_tokens, ..small(Policy::Remember) };
        let mut session = session(&model, config);
        let text = format!("{title}\n\nThere are {number} ships at sea today.\n\n{end}");
        session.ingest(&text, Origin::file("a"), &mut |_, _, _| Continue(())).unwrap();
        assert_eq!(session.sections().window, session.config().window_tokens, "all is seen again");
        let memory = session.memory().unwrap();
        let blocks = (0..memory.metas().len()).map(|order| memory.block(order).unwrap());
        let of_end: Vec<_> = blocks.filter(|block| end.contains(block.text())).collect();
        assert!(of_end.len() > 2);
        let mut all = Vec::new();
        for block in of_end {
            let shape = block.kv().shape();
            let mut keys = vec![0.0; block.tokens().len() * shape.head_dim];
            block.kv().keys(shape.n_layers - 1, 0, 0..block.tokens().len()).copy_to(&mut keys);
            all.extend(keys.into_iter().map(f32::to_bits));
        }
        all
    };
    let (apart, stream) = (DocumentContext::Paragraph, DocumentContext::Stream);
    let expected = keys_of_the_end(apart, 32, "two");
    assert!(expected == keys_of_the_end(apart, 32, "ten"));
    assert!(expected == keys_of_the_end(apart, 7, "ten"));
    assert!(keys_of_the_end(stream, 32, "two") != keys_of_the_end(stream, 32, "ten"));
}

/// One paragraph comes back as it was stored; what may never have seen each other is computed again.
#[test]
fn several_texts_are_computed_again() {
    let model = tiny("qwen2");
    let (apart, stream) = (DocumentContext::Paragraph, DocumentContext::Stream);
    let check = |document_context, max_blocks, texts: &[&str], pin, role, expected| {
        let run = |insertion| {
            let mut config = SessionConfig { document_context, ..small(Policy::Remember) };
            (config.recall.max_blocks, config.recall.insertion) = (max_blocks, insertion);
            let mut session = session(&model, config);
            for text in texts.iter().copied().chain([&*story(900)]) {
                session.ingest(text, Origin::turn(role), &mut |_, _, _| Continue(())).unwrap();
            }
            if pin {
                session.pin("Oda").unwrap();
            }
            let recall = session.recall("A lamp that the captain hid.").unwrap();
            assert!(recall.blocks.len() <= max_blocks && !recall.blocks.is_empty());
            assert!(max_blocks == 1 || recall.runs().len() > 1);
            session.append(&session.encode("Where?").unwrap(), Origin::turn(Role::User)).unwrap();
            session.logits().to_vec()
        };
        let (stored, computed) = (run(Some(Insertion::Kv)), run(Some(Insertion::Tokens)));
        // A paragraph that was read apart is as if it were computed behind the sinks.
        assert!(stored != computed || expected == Insertion::Kv);
        let expected = if expected == Insertion::Kv { stored } else { computed };
        assert!(
            run(None) == expected,
            "{document_context:?} {max_blocks} {texts:?} {pin} {role:?}"
        );
    };
    let one =
        &["Once upon a time. \n\nThe captain hid a lamp under the floorboards of his house.\n\n"];
    let two = &["A lamp.\n\n", "The captain hid it.\n\n", "He was old.\n\n"];
    check(apart, 1, one, false, Role::Document, Insertion::Kv);
    check(apart, 1, two, false, Role::Document, Insertion::Tokens);
    // These have seen each other.
    check(stream, 1, two, false, Role::Document, Insertion::Kv);
    check(apart, 1, two, false, Role::Assistant, Insertion::Kv);
    check(apart, 2, one, false, Role::Document, Insertion::Tokens);
    check(stream, 2, one, false, Role::Assistant, Insertion::Tokens);
    check(apart, 1, one, true, Role::Document, Insertion::Tokens);
}

/// "And the other one?" is about what was said last, so that is never hidden.
#[test]
fn the_last_turn_and_its_answer_are_not_hidden() {
    let model = tiny("qwen2");
    let mut config = small(Policy::Remember);
    config.recall.window = Some(0);
    let mut session = session(&model, config);
    let document = session.encode(&story(900)).unwrap();
    session.append(&document, Origin::turn(Role::Document)).unwrap();
    let options = GenerateOptions { max_tokens: 12, ..Default::default() };
    let mut begin = session.n_tokens();
    for turn in ["Where?", "And the other?", "Blue?"] {
        let last_begin = std::mem::replace(&mut begin, session.n_tokens());
        assert!(!session.turn(turn).unwrap().is_empty());
        let n_seen = session.sections().window as u64;
        assert!(
            n_seen
                >= session.config().window_tokens.min((session.n_tokens() - last_begin) as usize)
                    as u64
        );
        session.answer(&options, &mut |_| Continue(())).unwrap();
    }
    // A document in between is not what a turn goes on with.
    session.ingest(&story(100), Origin::file("a"), &mut |_, _, _| Continue(())).unwrap();
    let before = session.n_tokens();
    session.turn("Where?").unwrap();
    assert_eq!(session.sections().window as u64, session.n_tokens() - before);
}

#[test]
fn a_recall_may_leave_a_smaller_window() {
    let model = tiny("qwen2");
    let n_visible = |window, gate, pin: bool| {
        let mut config = small(Policy::Remember);
        (config.recall.window, config.recall.gate) = (window, gate);
        let mut session = session(&model, config);
        let text = session.encode(&story(900)).unwrap();
        session.append(&text, Origin::turn(Role::Document)).unwrap();
        if pin {
            session.pin("Her name is Oda.").unwrap();
        }
        session.turn("Where is the boat?").unwrap();
        session.sections().window
    };
    let all = n_visible(None, Gate::OPEN, false);
    assert!(n_visible(Some(0), Gate::OPEN, false) < all);
    // Nothing is recalled: nothing makes way, and a pinned text asks for nothing.
    for pin in [false, true] {
        assert_eq!(n_visible(Some(0), Gate { max_distance: Some(-1.0) }, pin), all);
    }
}
