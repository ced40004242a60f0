//! What is guessed ahead changes nothing but the time.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

mod common;

use std::ops::ControlFlow::{Break, Continue};
use std::sync::Arc;

use common::{session, small, story, tiny};
use everstream_runtime::kv_cache::{ClusterConfig, Place};
use everstream_runtime::memory::{HashEmbedder, Keep, SessionFolder};
use everstream_runtime::model::{Model, Workspace};
use everstream_runtime::{
    Drafts, GenerateOptions, Generation, Origin, Policy, SamplerConfig, Session, SessionConfig,
    Step, StopReason, Storage, append_each,
};

/// All that two turns leave behind, and how well their answers were guessed.
fn conversation(session: &mut Session, temperature: f32) -> (String, Drafts) {
    let origin = Origin::file("story.txt");
    session.ingest(&story(1200), origin, &mut |_, _, _| Continue(())).unwrap();
    let mut all = String::new();
    for (turn, max_tokens) in [("Where did the red boat go?", 120), ("And the emerald?", 150)] {
        session.turn(turn).unwrap();
        let sampler = SamplerConfig { temperature, repeat_penalty: 1.05, ..Default::default() };
        let options = GenerateOptions {
            max_tokens,
            sampler,
            // It ends the answer wherever it comes, in what was guessed as well.
            stop: vec!["zq".to_owned()],
            log_probs: true,
            ..Default::default()
        };
        let answer = session.answer(&options, &mut |_| Continue(())).unwrap();
        all += &format!("{:?} {:?} {:?}", answer.tokens, answer.log_probs, answer.stop);
        all += &format!("{:?} {:?}", session.logits(), session.sections());
    }
    all += &format!("{:?} {:?}", session.n_tokens(), session.memory().map(|m| m.stats()));
    (all, session.drafts())
}

fn configs() -> Vec<SessionConfig> {
    let mut configs: Vec<SessionConfig> =
        [Policy::Dense, Policy::Window, Policy::Sink, Policy::Remember].map(small).into();
    for (place, every, window) in
        [(Place::Near, 7, None), (Place::Between, 0, Some(0)), (Place::Near, 0, Some(0))]
    {
        let mut config = small(Policy::Remember);
        (config.recall.place, config.recall.every, config.recall.window) = (place, every, window);
        configs.push(config);
    }
    configs
}

#[test]
fn answers_are_the_same_with_and_without() {
    for family in ["llama", "qwen2", "gemma3"] {
        let model = tiny(family);
        let mut accepted = 0;
        for config in configs() {
            for temperature in [0.0, 0.4] {
                let run = |draft_tokens| {
                    let config = SessionConfig { draft_tokens, ..config.clone() };
                    conversation(&mut session(&model, config), temperature)
                };
                let (expected, none) = run(0);
                assert_eq!(none, Drafts::default());
                for draft_tokens in [1, 5, 16, usize::MAX] {
                    let (all, drafts) = run(draft_tokens);
                    assert!(all == expected, "{family} {:?} {draft_tokens}", config.policy);
                    assert!(drafts.accepted <= drafts.drafted, "{drafts:?}");
                    accepted += drafts.accepted;
                }
            }
        }
        assert!(accepted > 100, "{family}: {accepted} are nothing to compare");
    }
}

/// A dense cache has no room for a guess behind its end, and takes as many tokens as without.
#[test]
fn a_dense_cache_is_filled_to_its_end() {
    let model = tiny("llama");
    let run = |draft_tokens| {
        let config = SessionConfig { max_tokens: 300, draft_tokens, ..small(Policy::Dense) };
        let mut session = session(&model, config);
        let tokens = session.encode(&story(600)).unwrap();
        session.append(&tokens[..150], Origin::file("story.txt")).unwrap();
        let options = GenerateOptions { max_tokens: 1000, ..Default::default() };
        let answer = session.generate(&options, &mut |_| Continue(())).unwrap();
        assert_eq!((answer.stop, session.n_tokens()), (StopReason::MaxTokens, 300));
        assert_eq!(answer.tokens.len(), 150);
        // There is no room for what a template writes behind it.
        session.close_answer().unwrap();
        assert_eq!((session.awaits_answer(), session.n_tokens()), (false, 300));
        (answer.text, session.drafts().accepted)
    };
    let (with, without) = (run(16), run(0));
    assert_eq!(with.0, without.0);
    assert!(with.1 > 0 && without.1 == 0);
}

#[test]
fn nothing_is_guessed_where_it_cannot_be() {
    let model = tiny("llama");
    let clusters = ClusterConfig { n_clusters: 12, segment_tokens: 32, ..Default::default() };
    let clusters = SessionConfig { clusters: Some(clusters), ..small(Policy::Sink) };
    let alone = SessionConfig { chunk_tokens: 1, ..small(Policy::Sink) };
    for config in [clusters, small(Policy::Recompute), alone] {
        assert_eq!(conversation(&mut session(&model, config), 0.0).1, Drafts::default());
    }
}

fn open(model: &Arc<Model>, data: &std::path::Path, draft_tokens: usize) -> Session {
    let folder = Arc::new(SessionFolder::create(data, "test").unwrap());
    let storage = Storage { folder, max_bytes: None, keep: Keep::Newest, accepts_loss: false };
    let config = SessionConfig { draft_tokens, ..small(Policy::Remember) };
    Session::open(Arc::clone(model), Arc::new(HashEmbedder), config, &storage).unwrap()
}

/// What was computed ahead is no part of a saved stream, and of no branch.
#[test]
fn a_stream_that_stops_in_a_guess_goes_on_as_any_other() {
    let model = tiny("llama");
    let options = GenerateOptions { max_tokens: 90, ..Default::default() };
    let first = |draft_tokens: usize, n_pieces: usize| {
        let data = tempfile::tempdir().unwrap();
        let mut session = open(&model, data.path(), draft_tokens);
        let text = story(1200);
        session.ingest(&text, Origin::file("story.txt"), &mut |_, _, _| Continue(())).unwrap();
        session.turn("Where did the red boat go?").unwrap();
        let mut n = 0;
        let mut receive = |_: &str| {
            n += 1;
            if n == n_pieces { Break(()) } else { Continue(()) }
        };
        session.generate(&options, &mut receive).unwrap();
        let mut branch = session.branch().unwrap();
        let branched = branch.generate(&options, &mut |_| Continue(())).unwrap().tokens;
        let went_on = session.generate(&options, &mut |_| Continue(())).unwrap().tokens;
        assert_eq!(branched, went_on);
        drop(session);
        // It was not saved: all of it is replayed.
        let mut again = open(&model, data.path(), draft_tokens);
        again.turn("And the emerald?").unwrap();
        let rest = again.generate(&options, &mut |_| Continue(())).unwrap().tokens;
        (went_on, rest, again.logits().to_vec())
    };
    for n_pieces in [3, 17, 40] {
        assert!(first(16, n_pieces) == first(0, n_pieces), "{n_pieces}");
    }
}

/// Streams that take their steps together share what may be guessed.
#[test]
fn guesses_of_several_streams_are_their_own() {
    let model = tiny("llama");
    let options = |i: usize| {
        let temperature = [0.0, 0.2, 0.0][i];
        let sampler = SamplerConfig { temperature, seed: i as u64, ..Default::default() };
        GenerateOptions { max_tokens: 200 + 20 * i, sampler, ..Default::default() }
    };
    let streams = |draft_tokens| -> Vec<Session> {
        let stream = |i: usize| {
            let config = SessionConfig { draft_tokens, ..small(Policy::Remember) };
            let mut session = session(&model, config);
            let tokens = session.encode(&story(700 + 300 * i)).unwrap();
            session.append(&tokens, Origin::file("story.txt")).unwrap();
            session.turn("Where did the boat go?").unwrap();
            session
        };
        (0..3).map(stream).collect()
    };
    let (mut alone, mut together) = (streams(0), streams(16));
    let mut open: Vec<Generation> = (0..3).map(|i| Generation::new(options(i)).unwrap()).collect();
    let mut workspace = Workspace::default();
    loop {
        let mut steps = Vec::new();
        for (session, generation) in together.iter_mut().zip(&mut open) {
            if let Some(token) = generation.next(session).unwrap() {
                steps.push(Step { session, token });
            }
        }
        if steps.is_empty() {
            break;
        }
        append_each(&mut steps, &mut workspace).into_iter().for_each(|result| result.unwrap());
    }
    for (i, (alone, generation)) in alone.iter_mut().zip(open).enumerate() {
        let expected = alone.generate(&options(i), &mut |_| Continue(())).unwrap();
        let found = generation.finish(&mut |_| Continue(()));
        assert_eq!(found.tokens, expected.tokens, "{i}");
        assert_eq!(alone.logits(), together[i].logits(), "{i}");
    }
    let accepted: u64 = together.iter().map(|s| s.drafts().accepted).sum();
    assert!(accepted > 20, "{accepted} are nothing to compare");
}
