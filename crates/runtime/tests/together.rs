//! Steps that streams take together give what each would give alone, bit for bit.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::{session, small, story, tiny};
use everstream_runtime::memory::Role;
use everstream_runtime::model::{Model, Workspace};
use everstream_runtime::{
    GenerateOptions, Generated, Generation, Origin, Policy, SamplerConfig, Session, SessionError,
    Step, append_each,
};

const POLICIES: [Policy; 5] =
    [Policy::Remember, Policy::Sink, Policy::Dense, Policy::Recompute, Policy::Remember];

/// A stream that has read a text of its own, with something recalled where the policy remembers.
fn streams(model: &Arc<Model>) -> Vec<Session> {
    let with = |(i, policy): (usize, Policy)| {
        let mut config = small(policy);
        config.recall.every = 5;
        let mut session = session(model, config);
        let tokens = session.encode(&story(600 + 300 * i)).unwrap();
        session.append(&tokens, Origin::turn(Role::Document)).unwrap();
        session.end_turn().unwrap();
        session.turn("Where did the boat go?").unwrap();
        session
    };
    POLICIES.into_iter().enumerate().map(with).collect()
}

fn options(i: usize) -> GenerateOptions {
    let sampler = SamplerConfig { temperature: 0.8, seed: i as u64, ..Default::default() };
    GenerateOptions { max_tokens: 12 + 7 * i, sampler, log_probs: true, ..Default::default() }
}

/// What a stream is after an answer.
fn fingerprint(session: &Session, answer: &Generated) -> String {
    format!(
        "{:?} {:?} {:?} {} {:?} {:?} {:?}",
        answer.text,
        answer.log_probs,
        answer.stop,
        session.n_tokens(),
        session.logits(),
        session.memory().map(|memory| memory.stats().n_blocks),
        session.sections(),
    )
}

/// Answers of all streams, whose steps are taken together as long as there are two.
fn generate_together(sessions: &mut [Session]) -> Vec<Generated> {
    let mut workspace = Workspace::default();
    let mut generations: Vec<Generation> =
        (0..sessions.len()).map(|i| Generation::new(options(i)).unwrap()).collect();
    loop {
        let mut steps = Vec::new();
        let mut open = Vec::new();
        for (i, (session, generation)) in sessions.iter_mut().zip(&mut generations).enumerate() {
            if let Some(token) = generation.next(session).unwrap() {
                steps.push(Step { session, token });
                open.push(i);
            }
        }
        if steps.is_empty() {
            break;
        }
        for result in append_each(&mut steps, &mut workspace) {
            result.unwrap();
        }
        for i in open {
            generations[i].took(&sessions[i], &mut |_| ControlFlow::Continue(()));
        }
    }
    generations.into_iter().map(|g| g.finish(&mut |_| ControlFlow::Continue(()))).collect()
}

#[test]
fn steps_taken_together_equal_those_taken_alone() {
    for family in ["llama", "qwen2", "gemma3"] {
        let model = tiny(family);
        let (mut alone, mut together) = (streams(&model), streams(&model));
        let answers = generate_together(&mut together);
        let mut n_generated = 0;
        for (i, (alone, together)) in alone.iter_mut().zip(&mut together).enumerate() {
            let answer = alone.generate(&options(i), &mut |_| ControlFlow::Continue(())).unwrap();
            n_generated += answer.tokens.len();
            assert_eq!(fingerprint(alone, &answer), fingerprint(together, &answers[i]), "{i}");
            // They also go on alike.
            for session in [&mut *alone, &mut *together] {
                session.close_answer().unwrap();
                session.turn("And the compass?").unwrap();
            }
            assert_eq!(alone.logits(), together.logits(), "{family} {i}");
        }
        assert!(n_generated > 30, "{family}: {n_generated} tokens are nothing to compare");
    }
}

#[test]
fn a_step_that_is_refused_refuses_no_other() {
    let model = tiny("llama");
    let mut full = session(&model, {
        let mut c = small(Policy::Dense);
        c.max_tokens = 40;
        c
    });
    let tokens = full.encode(&story(400)).unwrap();
    full.append(&tokens[..40], Origin::turn(Role::Document)).unwrap();
    let mut sessions = streams(&model);
    let mut other = streams(&model).remove(1);
    let before = (full.n_tokens(), full.logits().to_vec());
    let mut steps = vec![Step { session: &mut full, token: 5 }];
    steps.extend(sessions.iter_mut().skip(1).take(1).map(|session| Step { session, token: 5 }));
    let results = append_each(&mut steps, &mut Workspace::default());
    assert!(matches!(results[0], Err(SessionError::Cache(_))), "{results:?}");
    assert!(results[1].is_ok());
    assert_eq!((full.n_tokens(), full.logits().to_vec()), before);
    other.append(&[5], Origin::turn(Role::Assistant)).unwrap();
    assert_eq!(sessions[1].logits(), other.logits());

    let unknown = model.config().vocab_size as u32;
    let results =
        append_each(&mut [Step { session: &mut other, token: unknown }], &mut Workspace::default());
    assert!(results[0].is_err() && append_each(&mut [], &mut Workspace::default()).is_empty());
}
