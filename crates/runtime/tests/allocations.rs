//! What decoding allocates, counted by the allocator: nothing that grows with the stream.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

mod common;

use std::alloc::System;
use std::ops::ControlFlow::Continue;

use common::{session, small, story, tiny};
use everstream_runtime::memory::Role;
use everstream_runtime::{GenerateOptions, Origin, Policy};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test alone in its process: the counts are those of all threads.
#[test]
fn decoding_allocates_nothing() {
    for family in ["llama", "qwen2"] {
        let model = tiny(family);
        let mut session = session(&model, small(Policy::Sink));
        let tokens = session.encode(&story(1500)).unwrap();
        let (warm_up, steps) = tokens.split_at(200);
        session.append(warm_up, Origin::turn(Role::Document)).unwrap();
        session.append(&steps[..1], Origin::turn(Role::Document)).unwrap();
        let region = Region::new(ALLOCATOR);
        for token in &steps[1..501] {
            session.append(std::slice::from_ref(token), Origin::turn(Role::Assistant)).unwrap();
        }
        let change = region.change();
        assert_eq!((change.allocations, change.reallocations), (0, 0), "{family}: {change:?}");

        // An answer keeps its text, and has lists of the streams that take a step together; what it takes
        // for a token does not grow with the stream, guesses included.
        let options = GenerateOptions { max_tokens: 150, ..Default::default() };
        let mut taken = Vec::new();
        for _ in 0..3 {
            session.append(&steps[..400], Origin::turn(Role::Document)).unwrap();
            let region = Region::new(ALLOCATOR);
            let answer = session.generate(&options, &mut |_| Continue(())).unwrap();
            let change = region.change();
            taken.push(
                (change.allocations + change.reallocations) as f64 / answer.tokens.len() as f64,
            );
        }
        assert!(taken.iter().all(|&n| n < 20.0), "{family}: {taken:?} for a token");
    }
}
