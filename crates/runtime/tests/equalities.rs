//! Sessions that must be equal, bit for bit.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

mod common;

use std::num::NonZeroUsize;
use std::ops::ControlFlow::Continue;
use std::sync::Arc;

use common::{session, small, story, tiny, tiny_with};
use everstream_runtime::kernels::Isa;
use everstream_runtime::kv_cache::{
    ClusterBias, ClusterConfig, ClusterForm, ClusterPlace, KvCache, KvType, NeverEvict, Place,
};
use everstream_runtime::memory::{Gate, RecallOrder, Role};
use everstream_runtime::model::{Model, ModelOptions, Sequence, SpecialTokens, Workspace};
use everstream_runtime::{GenerateOptions, Insertion, Origin, Policy, Session, SessionConfig};

const ROLE: Role = Role::Document;

/// Everything a session predicts: after a text, two turns and their answers.
fn conversation(session: &mut Session) -> Vec<Vec<f32>> {
    let mut logits = Vec::new();
    let origin = Origin::file("story.txt");
    session.ingest(&story(900), origin, &mut |_, _, _| Continue(())).unwrap();
    logits.push(session.logits().to_vec());
    for (turn, max_tokens) in [("Where did the red boat go?", 20), ("And the emerald?", 150)] {
        session.turn(turn).unwrap();
        logits.push(session.logits().to_vec());
        let options = GenerateOptions { max_tokens, ..Default::default() };
        session.answer(&options, &mut |_| Continue(())).unwrap();
        logits.push(session.logits().to_vec());
    }
    logits
}

fn for_each(check: impl Fn(&Arc<Model>)) {
    for family in ["qwen2", "llama"] {
        check(&tiny(family));
    }
}

#[test]
fn remember_with_nothing_recalled_equals_sink() {
    for_each(|model| {
        // Also with clusters.
        let clusters = ClusterConfig { n_clusters: 12, segment_tokens: 32, ..Default::default() };
        let with = |policy| SessionConfig { clusters: Some(clusters), ..small(policy) };
        let mut closed = with(Policy::Remember);
        closed.recall.gate = Gate { max_distance: Some(-1.0) };
        let clustered = conversation(&mut session(model, closed));
        assert_eq!(clustered, conversation(&mut session(model, with(Policy::Sink))));

        let mut closed = small(Policy::Remember);
        closed.recall.gate = Gate { max_distance: Some(-1.0) };
        let mut remember = session(model, closed);
        let mut sink = session(model, small(Policy::Sink));
        assert_ne!(clustered, conversation(&mut session(model, small(Policy::Sink))));
        assert_eq!(conversation(&mut remember), conversation(&mut sink));
        let stats = remember.memory().unwrap().stats();
        assert!(stats.gated_blocks_total > 0 && stats.recalled_blocks_total == 0);
        // An open gate does make a difference.
        assert_ne!(
            conversation(&mut session(model, small(Policy::Remember))),
            conversation(&mut sink)
        );
    });
}

/// The same with clusters of all kinds, which tokens are added to at fixed places.
#[test]
fn the_size_of_chunks_changes_no_clusters() {
    for_each(|model| {
        let mut all = Vec::new();
        for (place, form, bias) in [
            (ClusterPlace::After, ClusterForm::Centroid, ClusterBias::Calibrated),
            (ClusterPlace::After, ClusterForm::Medoid, ClusterBias::LogCount),
            (ClusterPlace::Sinks, ClusterForm::Medoid, ClusterBias::Calibrated),
            (ClusterPlace::Sinks, ClusterForm::Centroid, ClusterBias::None),
        ] {
            let run = |chunk_tokens, policy| {
                let mut config = SessionConfig { chunk_tokens, ..small(policy) };
                let (n_clusters, segment_tokens) = (12, 32);
                let clusters = ClusterConfig {
                    n_clusters,
                    segment_tokens,
                    place,
                    form,
                    bias,
                    ..Default::default()
                };
                config.clusters = Some(clusters);
                // Recalls in both places.
                config.recall.place =
                    if form == ClusterForm::Medoid { Place::Near } else { Place::Between };
                let mut session = session(model, config);
                let logits = conversation(&mut session);
                assert_eq!(session.sections().clusters, 12);
                logits
            };
            for policy in [Policy::Sink, Policy::Remember] {
                let expected = run(1, policy);
                for chunk_tokens in [5, 32, 400] {
                    assert!(
                        run(chunk_tokens, policy) == expected,
                        "{form:?} {bias:?} {chunk_tokens}"
                    );
                }
                assert!(!all.contains(&expected));
                all.push(expected);
            }
        }
    });
}

/// Clusters are made by as many threads as there are, by any instruction set.
#[test]
fn threads_and_instruction_sets_change_no_clusters() {
    for family in ["qwen2", "llama"] {
        let run = |n_threads, isa, form| {
            let n_threads = NonZeroUsize::new(n_threads).unwrap();
            let options = ModelOptions { n_threads, isa, ..Default::default() };
            let (n_clusters, segment_tokens) = (12, 32);
            let clusters = ClusterConfig { n_clusters, segment_tokens, form, ..Default::default() };
            let config = SessionConfig { clusters: Some(clusters), ..small(Policy::Sink) };
            conversation(&mut session(&tiny_with(family, options), config))
        };
        for form in ClusterForm::ALL {
            let expected = run(1, Isa::detect(), form);
            assert!(run(3, Isa::detect(), form) == expected, "{form:?}");
            for isa in Isa::available() {
                assert!(run(2, isa, form) == expected, "{form:?} {isa}");
            }
        }
    }
}

/// Chunks of any size, with recalls in both places and answers that outlast them.
#[test]
fn the_size_of_chunks_changes_nothing() {
    for_each(|model| {
        for (place, insertion) in [
            (Place::Near, Insertion::Kv),
            (Place::Between, Insertion::Kv),
            (Place::Near, Insertion::Tokens),
            (Place::Between, Insertion::Tokens),
            (Place::Near, Insertion::Repair),
        ] {
            let run = |chunk_tokens| {
                let mut config = SessionConfig { chunk_tokens, ..small(Policy::Remember) };
                config.recall.place = place;
                config.recall.insertion = Some(insertion);
                let mut session = session(model, config);
                let logits = conversation(&mut session);
                assert!(session.memory().unwrap().stats().recalled_blocks_total > 0);
                logits
            };
            let expected = run(1);
            for chunk_tokens in [5, 32, 400] {
                assert_eq!(run(chunk_tokens), expected, "{place:?} {insertion:?} {chunk_tokens}");
            }
        }
    });
}

#[test]
fn a_budget_above_the_length_makes_all_policies_equal() {
    for_each(|model| {
        let run = |policy| {
            let mut config = SessionConfig { window_tokens: 2000, ..small(policy) };
            config.max_tokens = 2000;
            conversation(&mut session(model, config))
        };
        let dense = run(Policy::Dense);
        for policy in [Policy::Window, Policy::Sink, Policy::Remember] {
            assert_eq!(run(policy), dense, "{policy}");
        }
    });
    // Computing everything anew for every token of a conversation would take minutes.
    let model = tiny("qwen2");
    let read = |policy| {
        let config = SessionConfig { window_tokens: 200, ..small(policy) };
        let mut session = session(&model, config);
        session.append(&tokens(&model, 120), Origin::turn(ROLE)).unwrap();
        session.logits().to_vec()
    };
    assert_eq!(read(Policy::Recompute), read(Policy::Dense));
}

fn tokens(model: &Model, n: usize) -> Vec<u32> {
    let mut tokens = model.tokenizer().encode(&story(3 * n), SpecialTokens::AsText);
    tokens.truncate(n);
    tokens
}

/// A dense run over nothing but the last `window + 1` tokens.
#[test]
fn recompute_equals_a_fresh_run_over_the_window() {
    for_each(|model| {
        let tokens = tokens(model, 60);
        let config = SessionConfig { window_tokens: 20, ..small(Policy::Recompute) };
        let mut recompute = session(model, config);
        for (i, &token) in tokens.iter().enumerate() {
            recompute.append(&[token], Origin::turn(ROLE)).unwrap();
            let window = &tokens[(i + 1).saturating_sub(21)..=i];
            let policy = Arc::new(NeverEvict { n_sink: 0, max_tokens: 60 });
            let mut cache = KvCache::new(&model.cache_config(policy, 0, 60)).unwrap();
            let mut ws = Workspace::default();
            model.forward(&mut ws, &mut [Sequence::new(window, &mut cache)]).unwrap();
            let expected = model.logits(&mut ws, window.len() - 1..window.len());
            assert_eq!(recompute.logits(), expected, "token {i}");
        }
    });
}

#[test]
fn a_branch_continues_as_the_original() {
    let model = tiny("qwen2");
    for policy in Policy::ALL {
        let mut config = small(policy);
        if policy == Policy::Recompute {
            config.window_tokens = 20;
        }
        let mut original = session(&model, config);
        original.append(&tokens(&model, 300), Origin::turn(ROLE)).unwrap();
        original.turn("Where did the red boat go?").unwrap();
        let mut branch = original.branch().unwrap();
        let mut other = original.branch().unwrap();
        other.append(&tokens(&model, 70), Origin::turn(ROLE)).unwrap();
        let options = GenerateOptions { max_tokens: 30, ..Default::default() };
        for turn in ["And then?", "Who hid the emerald?"] {
            let answer = |s: &mut Session| {
                let answer = s.answer(&options, &mut |_| Continue(())).unwrap();
                s.turn(turn).unwrap();
                (answer.tokens, s.logits().to_vec(), s.evicted(), s.sections())
            };
            assert_eq!(answer(&mut branch), answer(&mut original), "{policy}");
        }
        let ids = |s: &Session| -> Option<Vec<_>> {
            s.memory().map(|m| m.metas().iter().map(|meta| meta.id).collect())
        };
        assert_eq!(ids(&branch), ids(&original));
    }
}

/// Tokens that are computed again behind the sinks and each other have their whole past before
/// them, so that it makes no difference whether they are.
#[test]
fn all_that_left_recalled_in_order_equals_never_leaving() {
    for_each(|model| {
        let tokens = tokens(model, 200);
        let run = |window_tokens, insertion| {
            let mut config = SessionConfig { window_tokens, ..small(Policy::Remember) };
            config.recall.insertion = Some(insertion);
            config.context_tokens = 200;
            config.kv_type = KvType::F32;
            config.memory_type = everstream_runtime::memory::KvType::F32;
            config.recall.place = Place::Between;
            config.recall.order = RecallOrder::Stream;
            config.recall.max_blocks = 100;
            let mut session = session(model, config);
            let mut logits = Vec::new();
            for token in &tokens {
                let n_evicted = session.evicted().end.since(session.evicted().start);
                assert_eq!(session.recall("the boat").unwrap().n_tokens(), n_evicted);
                session.append(&[*token], Origin::turn(ROLE)).unwrap();
                logits.push(session.logits().to_vec());
            }
            (logits, session.sections())
        };
        let (whole, all) = run(400, Insertion::Kv);
        assert_eq!((all.recalled, all.window), (0, 196));
        for insertion in Insertion::ALL {
            let (cut, sections) = run(96, insertion);
            assert_eq!((sections.recalled, sections.window), (99, 96));
            assert_eq!(cut, whole, "{insertion:?}");
        }
    });
}
