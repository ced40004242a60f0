//! What a cache refuses leaves it as it was, to the last byte that `Debug` shows.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

use std::fmt::Debug;
use std::sync::Arc;

use everstream_kernels::Rope;
use everstream_kv_cache::{
    CacheConfig, CacheError, EvictionPolicy, KvCache, KvSource, KvType, LayerKind, NeverEvict,
    Place, RawKeys, SinkWindow, Timeline, TokenPos,
};

fn refused<T: Debug, R>(value: &mut T, f: impl Fn(&mut T) -> Result<R, CacheError>) -> CacheError {
    let before = format!("{value:?}");
    let Err(error) = f(value) else { panic!("not refused by {before}") };
    assert!(format!("{value:?}") == before, "{error}: something changed");
    error
}

fn timeline(policy: impl EvictionPolicy + 'static, recall: usize, chunk: usize) -> Timeline {
    Timeline::new(Arc::new(policy), recall, chunk).unwrap()
}

#[test]
fn chunks_that_a_timeline_refuses() {
    let mut t = timeline(SinkWindow { n_sink: 4, window_tokens: 8 }, 6, 5);
    for n_tokens in [0, 6, usize::MAX] {
        let error = refused(&mut t, |t| t.plan(n_tokens, &[], &mut Vec::new()));
        assert_eq!(error, CacheError::ChunkTooLong { n_tokens, limit: 5 });
    }
    let mut t = timeline(NeverEvict { n_sink: 1, max_tokens: 7 }, 0, 4);
    t.advance(5);
    let error = refused(&mut t, |t| t.plan(3, &[], &mut Vec::new()));
    assert_eq!(error, CacheError::Full { n_tokens: 8, capacity: 7 });
    t.plan(2, &[], &mut Vec::new()).unwrap();
}

#[test]
fn a_chunk_over_the_place_where_a_recall_moves_is_refused() {
    let mut t = timeline(SinkWindow { n_sink: 1, window_tokens: 3 }, 2, 5);
    t.advance(5);
    t.begin_recall(Place::Near, 2).unwrap();
    // The query at 8 sees 5, 6 and 7, and nothing that is older than the recall.
    assert_eq!(t.next_chunk(100), 3);
    let error = refused(&mut t, |t| t.plan(4, &[], &mut Vec::new()));
    assert_eq!(error, CacheError::ChunkTooLong { n_tokens: 4, limit: 3 });
}

#[test]
fn recalls_that_a_timeline_refuses() {
    let mut t = timeline(SinkWindow { n_sink: 4, window_tokens: 8 }, 6, 5);
    let error = refused(&mut t, |t| t.begin_recall(Place::Near, 1));
    assert_eq!(error, CacheError::SinksNotFull { n_tokens: 0, n_sink: 4 });
    // A first turn that finds nothing must not fail.
    t.begin_recall(Place::Near, 0).unwrap();
    t.advance(9);
    let error = refused(&mut t, |t| t.begin_recall(Place::Between, 7));
    assert_eq!(error, CacheError::RecallTooLarge { n_tokens: 7, capacity: 6 });
    t.begin_recall(Place::Near, 2).unwrap();
    let error = refused(&mut t, |t| t.begin_recall(Place::Near, 1));
    assert_eq!(error, CacheError::RecallActive { n_tokens: 2 });
}

#[test]
fn sizes_that_a_timeline_refuses() {
    for (window_tokens, chunk) in [(0, 1), (1, 0), (1, usize::MAX), (usize::MAX, 1)] {
        let policy = Arc::new(SinkWindow { n_sink: 0, window_tokens });
        let error = Timeline::new(policy, 0, chunk).unwrap_err();
        assert!(matches!(error, CacheError::Config { .. }), "{error}");
    }
}

fn cache(policy: impl EvictionPolicy + 'static, recall: usize, raw_keys: RawKeys) -> KvCache {
    KvCache::new(&CacheConfig {
        kinds: vec![LayerKind { rope: Rope::new(10_000.0, 16), window_tokens: None }],
        layers: vec![0; 1],
        n_kv_heads: 1,
        group: 1,
        head_dim: 16,
        policy: Arc::new(policy),
        recall_tokens: recall,
        chunk_tokens: 4,
        kv_type: KvType::F32,
        raw_keys,
        clusters: None,
    })
    .unwrap()
}

fn append(cache: &mut KvCache, n_tokens: usize) {
    for _ in 0..n_tokens {
        cache.begin(1, &[]).unwrap();
        let number = [cache.next().0 as f32; 16];
        let (rows, heads) = cache.planned(0);
        heads[0].write(rows[0].slot, &number, &number, &number);
        cache.commit(0);
    }
}

struct Ones(usize);

impl KvSource for Ones {
    fn n_tokens(&self) -> usize {
        self.0
    }

    fn read(&self, _layer: usize, _kv_head: usize, keys: &mut [f32], values: &mut [f32]) {
        keys.fill(1.0);
        values.fill(1.0);
    }
}

/// Whatever changes what a row sees makes rows that were computed ahead useless.
#[test]
fn rows_ahead_are_those_of_an_unchanged_stream() {
    let ahead = |n_rows: usize, n_ahead: usize| {
        let mut c = cache(SinkWindow { n_sink: 2, window_tokens: 3 }, 4, RawKeys::Keep);
        append(&mut c, 8);
        c.begin(n_rows, &[]).unwrap();
        c.commit(n_ahead);
        c
    };
    let mut c = ahead(4, 3);
    assert_eq!(c.next(), TokenPos(9));
    assert!((0..3).all(|_| c.take_ahead()) && !c.take_ahead());
    assert_eq!(c.next(), TokenPos(12));
    assert!(!ahead(3, 0).take_ahead());
    let changes: [fn(&mut KvCache); 9] = [
        |c| append(c, 1),
        |c| c.recall(Place::Near, &[&Ones(2)]).unwrap(),
        |c| c.open_recall(2).unwrap(),
        KvCache::end_recall,
        |c| c.hide_before(TokenPos(7)),
        |c| assert!(c.begin(5, &[]).is_err()),
        |c| assert!(c.begin_recalled(&[9]).is_err()),
        KvCache::move_near,
        KvCache::drop_ahead,
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut c = ahead(4, 3);
        change(&mut c);
        let next = c.next();
        assert!(!c.take_ahead() && c.next() == next, "change {i}");
    }
    // Rows that were never taken have replaced others: seven rows, and 13 was the last to be written.
    let mut c = ahead(4, 3);
    assert_eq!(c.held(), TokenPos(5)..TokenPos(9));
    append(&mut c, 1);
    assert_eq!(c.held(), TokenPos(5)..TokenPos(10));
    append(&mut c, 3);
    assert_eq!(c.held(), TokenPos(6)..TokenPos(13));
}

#[test]
fn what_a_cache_refuses() {
    let mut c = cache(SinkWindow { n_sink: 2, window_tokens: 3 }, 4, RawKeys::Keep);
    append(&mut c, 8);
    let error = refused(&mut c, |c| c.begin(5, &[]));
    assert_eq!(error, CacheError::ChunkTooLong { n_tokens: 5, limit: 4 });
    let error = refused(&mut c, |c| c.recall(Place::Near, &[&Ones(3), &Ones(2)]));
    assert_eq!(error, CacheError::RecallTooLarge { n_tokens: 5, capacity: 4 });
    c.recall(Place::Near, &[&Ones(3), &Ones(0), &Ones(1)]).unwrap();
    let error = refused(&mut c, |c| c.recall(Place::Between, &[&Ones(1)]));
    assert_eq!(error, CacheError::RecallActive { n_tokens: 4 });
    append(&mut c, 3);
    assert!(c.timeline().is_move_due());
    let error = refused(&mut c, |c| c.begin(5, &[]));
    assert_eq!(error, CacheError::ChunkTooLong { n_tokens: 5, limit: 4 });
    append(&mut c, 1);
    assert!(!c.timeline().is_move_due());
}

#[test]
fn a_dense_cache_that_is_full() {
    let mut c = cache(NeverEvict { n_sink: 0, max_tokens: 6 }, 0, RawKeys::Drop);
    append(&mut c, 5);
    assert_eq!(refused(&mut c, |c| c.begin(2, &[])), CacheError::Full { n_tokens: 7, capacity: 6 });
    append(&mut c, 1);
    assert_eq!(refused(&mut c, |c| c.begin(1, &[])), CacheError::Full { n_tokens: 7, capacity: 6 });
}

#[test]
fn raw_rows_that_are_not_there() {
    let range = |start, end| TokenPos(start)..TokenPos(end);
    let read = |c: &KvCache, range| {
        let (mut keys, mut values) = ([0.0; 16], [0.0; 16]);
        c.read_raw(&range, 0, 0, &mut keys, &mut values).map(|()| (keys[0], values[15]))
    };
    let mut c = cache(SinkWindow { n_sink: 2, window_tokens: 3 }, 4, RawKeys::Drop);
    append(&mut c, 8);
    assert_eq!(read(&c, range(7, 8)), Err(CacheError::NoRawKeys));
    assert_eq!(refused(&mut c, |c| c.recall(Place::Near, &[&Ones(1)])), CacheError::NoRawKeys);
    let mut c = cache(SinkWindow { n_sink: 2, window_tokens: 3 }, 4, RawKeys::Keep);
    append(&mut c, 12);
    // The window and one chunk are held.
    for token in 5..12 {
        assert_eq!(read(&c, range(token, token + 1)), Ok((token as f32, token as f32)));
    }
    for (start, end) in [(0, 1), (4, 5), (11, 13), (12, 13)] {
        let range = range(start, end);
        let held = TokenPos(5)..TokenPos(12);
        assert_eq!(read(&c, range.clone()), Err(CacheError::NotHeld { range, held }));
    }
}
