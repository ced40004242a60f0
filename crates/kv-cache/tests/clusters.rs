//! Clusters in the cache: what they stand for, and where.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

use std::num::NonZeroUsize;
use std::sync::Arc;

use everstream_kernels::{Isa, Pool, Rope};
use everstream_kv_cache::{
    CacheConfig, CacheError, ClusterBias, ClusterConfig, ClusterForm, ClusterPlace, Compute,
    KvCache, KvType, LayerKind, QueryHeads, RawKeys, SinkWindow,
};

const DIM: usize = 16;
const SINKS: usize = 4;
/// With a chunk or segment a ring that is no whole number of segments.
const WINDOW: usize = 37;

fn cache(clusters: ClusterConfig, raw_keys: RawKeys) -> Result<KvCache, CacheError> {
    sliding_cache(clusters, raw_keys, None)
}

/// One layer, in which a query sees so many tokens at most.
fn sliding_cache(
    clusters: ClusterConfig,
    raw_keys: RawKeys,
    window_tokens: Option<usize>,
) -> Result<KvCache, CacheError> {
    KvCache::new(&CacheConfig {
        kinds: vec![LayerKind { rope: Rope::new(10_000.0, DIM), window_tokens }],
        layers: vec![0],
        n_kv_heads: 1,
        group: 2,
        head_dim: DIM,
        policy: Arc::new(SinkWindow { n_sink: SINKS, window_tokens: WINDOW }),
        recall_tokens: 0,
        chunk_tokens: 8,
        kv_type: KvType::F32,
        raw_keys,
        clusters: Some(clusters),
    })
}

fn config(n_clusters: usize, bias: ClusterBias) -> ClusterConfig {
    ClusterConfig { n_clusters, bias, segment_tokens: 16, ..ClusterConfig::default() }
}

/// Numbers that depend on `seed` only.
fn vector(seed: usize) -> Vec<f32> {
    (0..DIM).map(|d| ((seed * 31 + d * 17) as f32 * 0.7).sin()).collect()
}

/// One of `n_kinds` keys and values, but for the sinks.
fn kind_of(token: usize, n_kinds: usize) -> usize {
    if token < SINKS { 1000 + token } else { token * 7 % n_kinds }
}

fn rotated(position: usize, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; DIM];
    Rope::new(10_000.0, DIM).rotation(position as u64).apply(x, 1.0, &mut out);
    out
}

/// Reads tokens one by one, and gives the attention of two query heads of the last of them.
fn read(cache: &mut KvCache, n_tokens: usize, n_kinds: usize) -> Vec<f32> {
    let pool = Pool::new(NonZeroUsize::MIN).unwrap();
    let mut out = vec![0.0; 2 * DIM];
    for token in cache.next().0 as usize..n_tokens {
        let compute =
            Compute { isa: Isa::detect(), pool: &pool, attention_scale: 0.25, score_cap: None };
        cache.settle_clusters(&compute);
        cache.begin(1, &[]).unwrap();
        let queries = [vector(5000 + token), vector(6000 + token)].concat();
        cache.keep_queries(0, &queries);
        let (rows, heads) = cache.planned(0);
        let row = rows[0];
        let key = vector(kind_of(token, n_kinds));
        let value = vector(2000 + kind_of(token, n_kinds));
        let at = row.window_pos.0 as usize;
        heads[0].write(row.slot, &key, &rotated(at, &key), &value);
        let forms = [row.window_pos, row.cache_pos].map(|position| -> Vec<f32> {
            queries.chunks_exact(DIM).flat_map(|q| rotated(position.0 as usize, q)).collect()
        });
        let forms = [&forms[0][..], &forms[1][..]];
        let queries = QueryHeads { first: 0, forms, is_alone: false };
        heads[0].attend(
            Isa::detect(),
            &row.sliding_spans,
            None,
            queries,
            &mut Vec::new(),
            &mut out,
        );
        cache.commit(0);
    }
    out
}

/// Softmax attention of the query of `token` over (key, value, position, weight), in f64.
fn naive(
    token: usize,
    head: usize,
    query_position: usize,
    seen: &[(usize, usize, f64)],
) -> Vec<f64> {
    let query = rotated(query_position, &vector(5000 + 1000 * head + token));
    let (mut total, mut out) = (0.0, vec![0.0; DIM]);
    for &(kind, position, weight) in seen {
        let key = rotated(position, &vector(kind));
        let dot: f64 = query.iter().zip(&key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
        let mass = dot.exp() * weight;
        total += mass;
        out.iter_mut().zip(vector(2000 + kind)).for_each(|(o, v)| *o += mass * f64::from(v));
    }
    out.iter().map(|o| o / total).collect()
}

fn assert_near(found: &[f32], expected: &[f64]) {
    for (x, y) in found.iter().zip(expected) {
        assert!((f64::from(*x) - y).abs() < 2e-5, "{x} {y}");
    }
}

/// If a cluster's members are all the same, it gives what they would give at its place.
#[test]
fn a_cluster_of_equal_tokens_is_all_of_them() {
    let (n_kinds, n_tokens) = (3, 150);
    for form in [ClusterForm::Centroid, ClusterForm::Medoid] {
        for place in [ClusterPlace::After, ClusterPlace::Sinks] {
            for (bias, weight) in [(ClusterBias::LogCount, 1.0), (ClusterBias::None, 0.0)] {
                let config = ClusterConfig { form, place, ..config(16, bias) };
                let mut cache = cache(config, RawKeys::Keep).unwrap();
                let out = read(&mut cache, n_tokens, n_kinds);
                let token = n_tokens - 1;
                // Whole segments of what has left.
                let n_left = (token - WINDOW - SINKS) / 16 * 16;
                assert_eq!(cache.timeline().state().clusters.1.0 as usize, SINKS + n_left);
                assert_eq!(cache.sections().clusters, 16);
                let is_sinks = place == ClusterPlace::Sinks;
                // Three kinds are three clusters, among the first four; the others are empty.
                let n_before = if is_sinks { 16 } else { SINKS + 1 };
                for head in 0..2 {
                    let position = n_before + WINDOW;
                    let window = (token - WINDOW..=token)
                        .map(|t| (kind_of(t, n_kinds), n_before + t + WINDOW - token, 1.0));
                    let mut seen: Vec<_> = window.collect();
                    if is_sinks {
                        // Which of them stands first is drawn: any order may be right.
                        let counts = (0..n_kinds).map(|kind| {
                            let left = SINKS..SINKS + n_left;
                            left.filter(|&t| kind_of(t, n_kinds) == kind).count() as f64
                        });
                        let counts: Vec<f64> =
                            counts.map(|n| if weight > 0.0 { n } else { 1.0 }).collect();
                        let fits = all_orders().any(|order| {
                            let mut seen = seen.clone();
                            let places = order.iter().zip(&counts).enumerate();
                            seen.extend(places.map(|(kind, (&at, &n))| (kind, at, n)));
                            let expected = naive(token, head, position, &seen);
                            let found = &out[head * DIM..][..DIM];
                            let near = |(x, y): (&f32, &f64)| (f64::from(*x) - y).abs() < 2e-5;
                            found.iter().zip(&expected).all(near)
                        });
                        assert!(fits, "{form:?} {bias:?}");
                        continue;
                    }
                    seen.extend((0..SINKS).map(|t| (kind_of(t, n_kinds), t, 1.0)));
                    if weight > 0.0 {
                        let left = SINKS..SINKS + n_left;
                        seen.extend(left.map(|t| (kind_of(t, n_kinds), SINKS, 1.0)));
                    } else {
                        seen.extend((0..n_kinds).map(|kind| (kind, SINKS, 1.0)));
                    }
                    assert_near(&out[head * DIM..][..DIM], &naive(token, head, position, &seen));
                }
            }
        }
    }
}

/// A layer with a window of its own sees clusters if their place is near enough, all of them or none.
#[test]
fn a_sliding_layer_sees_clusters_as_far_as_it_reaches() {
    let (n_kinds, n_tokens) = (3, 150);
    let (token, n_before) = (n_tokens - 1, SINKS + 1);
    let n_left = (token - WINDOW - SINKS) / 16 * 16;
    // The query stands at `n_before + WINDOW`, the clusters in front of the window.
    let everything = n_before + WINDOW + 1;
    for width in [1, 7, WINDOW, WINDOW + 1, WINDOW + 2, WINDOW + 3, everything, 1000] {
        let config = config(16, ClusterBias::LogCount);
        let mut cache = sliding_cache(config, RawKeys::Keep, Some(width)).unwrap();
        let out = read(&mut cache, n_tokens, n_kinds);
        assert_eq!(cache.sections().clusters, 16);
        let left = (SINKS..SINKS + n_left).map(|t| (kind_of(t, n_kinds), SINKS, 1.0));
        let window = (token - WINDOW..=token)
            .map(|t| (kind_of(t, n_kinds), n_before + t + WINDOW - token, 1.0));
        let sinks = (0..SINKS).map(|t| (kind_of(t, n_kinds), t, 1.0));
        let is_near = |seen: &(usize, usize, f64)| seen.1 + width > n_before + WINDOW;
        let seen: Vec<_> = sinks.chain(left).chain(window).filter(is_near).collect();
        for head in 0..2 {
            let expected = naive(token, head, n_before + WINDOW, &seen);
            assert_near(&out[head * DIM..][..DIM], &expected);
        }
    }
}

/// Places of three kinds among four.
fn all_orders() -> impl Iterator<Item = [usize; 3]> {
    let digits = (0..64usize).map(|n| [n % 4, n / 4 % 4, n / 16]);
    digits.filter(|[a, b, c]| a != b && b != c && a != c)
}

/// Before a segment has left nothing is different; with no clusters never.
#[test]
fn no_clusters_is_as_without() {
    let plain = read(&mut cache(config(0, ClusterBias::None), RawKeys::Drop).unwrap(), 150, 9);
    for bias in [ClusterBias::None, ClusterBias::LogCount, ClusterBias::Calibrated] {
        let mut none = cache(config(0, bias), RawKeys::Keep).unwrap();
        assert_eq!(read(&mut none, 150, 9), plain);
        let mut some = cache(config(8, bias), RawKeys::Keep).unwrap();
        let n_tokens = SINKS + WINDOW + 15;
        let mut none = cache(config(0, bias), RawKeys::Keep).unwrap();
        assert_eq!(read(&mut some, n_tokens, 9), read(&mut none, n_tokens, 9));
        assert_ne!(read(&mut some, 150, 9), plain);
    }
    let refused = cache(config(8, ClusterBias::None), RawKeys::Drop);
    assert!(matches!(refused, Err(CacheError::NoRawKeys)));
}

/// More clusters than tokens have left: those that there are.
#[test]
fn there_are_as_many_clusters_as_tokens_at_most() {
    let mut cache = cache(config(100, ClusterBias::Calibrated), RawKeys::Keep).unwrap();
    let out = read(&mut cache, SINKS + WINDOW + 17, 50);
    assert_eq!(cache.sections().clusters, 16);
    assert!(out.iter().all(|x| x.is_finite()));
    let out = read(&mut cache, 400, 50);
    assert_eq!(cache.sections().clusters, 100);
    assert!(out.iter().all(|x| x.is_finite()));
}

/// A calibrated head pays clusters the attention that what has left would get where it stood.
#[test]
fn calibration_weighs_clusters_by_what_has_left() {
    let of = |bias| {
        let config = ClusterConfig { reach_tokens: 200, ..config(8, bias) };
        let mut cache = cache(config, RawKeys::Keep).unwrap();
        read(&mut cache, 300, 40)
    };
    let [none, log_count, calibrated] =
        [ClusterBias::None, ClusterBias::LogCount, ClusterBias::Calibrated].map(of);
    assert!(calibrated != none && calibrated != log_count);
    // The same stream, and nothing within reach: clusters have a place and no weight.
    let config = ClusterConfig { reach_tokens: 1, ..config(8, ClusterBias::Calibrated) };
    let out = read(&mut cache(config, RawKeys::Keep).unwrap(), 300, 40);
    let (n_before, token) = (SINKS + 1, 299);
    let mut seen: Vec<_> = (0..SINKS).map(|t| (kind_of(t, 40), t, 1.0)).collect();
    let window =
        (token - WINDOW..=token).map(|t| (kind_of(t, 40), n_before + t + WINDOW - token, 1.0));
    seen.extend(window);
    for head in 0..2 {
        let expected = naive(token, head, n_before + WINDOW, &seen);
        assert_near(&out[head * DIM..][..DIM], &expected);
    }
}

/// Who sees a part of the window only, as a turn does that has something recalled, sees no clusters, and sees
/// them again when what was hidden has left.
#[test]
fn clusters_are_hidden_with_the_window() {
    let mut cache = cache(config(3, ClusterBias::None), RawKeys::Keep).unwrap();
    read(&mut cache, 200, 5);
    let sees_clusters = |cache: &mut KvCache| {
        cache.begin(1, &[]).unwrap();
        let (rows, _) = cache.planned(0);
        let mut slots = rows[0].spans.iter().flat_map(|s| s.first..s.first + s.len);
        let n_seen = slots.by_ref().filter(|slot| (SINKS..SINKS + 3).contains(slot)).count();
        assert!([0, 3].contains(&n_seen));
        n_seen == 3
    };
    assert!(sees_clusters(&mut cache));
    let hidden = cache.next();
    cache.hide_before(hidden);
    assert!(!sees_clusters(&mut cache));
    // A query sees as many tokens before it as the window has room for.
    read(&mut cache, 200 + WINDOW - 1, 5);
    assert!(!sees_clusters(&mut cache));
    read(&mut cache, 200 + WINDOW, 5);
    assert!(sees_clusters(&mut cache));
}
