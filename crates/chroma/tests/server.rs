//! A real server, whose address `EVERSTREAM_TEST_CHROMA` says.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, Ordering};

use everstream_chroma::{ChromaConfig, ChromaIndex, ChromaTexts, MakeChroma};
use everstream_memory::{
    BlockId, Distance, ExactIndex, Hit, IndexError, MakeIndex, TextSource, VectorIndex, contract,
};
use serde_json::{Value, json};

static N_MADE: AtomicU32 = AtomicU32::new(0);

fn config() -> ChromaConfig {
    let url = std::env::var("EVERSTREAM_TEST_CHROMA").expect("EVERSTREAM_TEST_CHROMA is set");
    ChromaConfig::new(&url)
}

/// A collection that nobody has.
fn fresh(distance: Distance) -> MakeChroma {
    let (process, n) = (std::process::id(), N_MADE.fetch_add(1, Ordering::Relaxed));
    let collection = format!("test-{process}-{n}");
    MakeChroma { config: config(), collection, distance, encoder: "words".into() }
}

/// A call as somebody else's client makes it.
fn post(path: &str, body: &Value) -> Value {
    let url = config().url;
    let url = format!("{url}/api/v2/tenants/default_tenant/databases/default_database/{path}");
    let request = ureq::post(&url).header("content-type", "application/json");
    let mut answer = request.send(body.to_string()).unwrap();
    serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap()
}

/// Numbers in -1 .. 1, by a linear congruence.
fn random(seed: &mut u64) -> f32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 40) as f32 / (1 << 23) as f32 - 1.0
}

fn unit(seed: &mut u64, dim: usize) -> Vec<f32> {
    let mut x: Vec<f32> = (0..dim).map(|_| random(seed)).collect();
    everstream_memory::normalise(&mut x);
    x
}

#[test]
#[ignore = "needs a Chroma server: cargo xtask check starts one"]
fn it_keeps_the_contract() {
    contract::run_without_order(&|dim, distance| {
        Box::new(ChromaIndex::open(&fresh(distance), dim, 3).unwrap())
    });
}

#[test]
#[ignore = "needs a Chroma server: cargo xtask check starts one"]
fn distances_are_ours_and_nearly_all_of_the_nearest_are_found() {
    let (dim, n) = (384, 1000);
    for distance in [Distance::L2, Distance::InnerProduct, Distance::Cosine] {
        let mut seed = 7;
        let mut chroma = ChromaIndex::open(&fresh(distance), dim, 64).unwrap();
        let mut exact = ExactIndex::new(dim, distance).unwrap();
        for i in 0..n {
            let vector = unit(&mut seed, dim);
            chroma.add(BlockId(i), &vector).unwrap();
            exact.add(BlockId(i), &vector).unwrap();
        }
        let (mut n_found, n_queries) = (0, 30);
        for _ in 0..n_queries {
            let query = unit(&mut seed, dim);
            let search = |index: &dyn VectorIndex, n| {
                let mut hits: Vec<Hit> = Vec::new();
                index.search(&query, n, &|id| id.0 % 5 != 2, &mut hits).unwrap();
                hits
            };
            let all = search(&exact, n as usize);
            let found = search(&chroma, 10);
            for hit in &found {
                let ours = all.iter().find(|ours| ours.id == hit.id).unwrap();
                assert!((ours.distance - hit.distance).abs() < 1e-5, "{hit:?} {ours:?}");
            }
            n_found += found.iter().filter(|hit| all[..10].iter().any(|x| x.id == hit.id)).count();
        }
        assert!(n_found >= 98 * n_queries / 10, "{distance}: {n_found} of {}", 10 * n_queries);
    }
}

#[test]
#[ignore = "needs a Chroma server: cargo xtask check starts one"]
fn what_was_sent_is_there_the_next_time() {
    let make = fresh(Distance::Cosine);
    let (mut seed, dim) = (3, 8);
    let vectors: Vec<Vec<f32>> = (0..10).map(|_| unit(&mut seed, dim)).collect();
    let search = |index: &dyn VectorIndex| {
        let mut hits = Vec::new();
        index.search(&vectors[2], 10, &|_| true, &mut hits).unwrap();
        hits.iter().map(|hit| hit.id.0).collect::<Vec<_>>()
    };
    let fill = |index: &mut dyn VectorIndex| {
        for (i, vector) in vectors.iter().enumerate() {
            index.add(BlockId(i as u64), vector).unwrap();
        }
    };
    let mut first = make.make(dim, NonZeroUsize::MIN).unwrap();
    // Two batches of four are sent, two vectors wait.
    let mut small = ChromaIndex::open(&make, dim, 4).unwrap();
    fill(&mut small);
    assert_eq!(search(&small).len(), 10);
    // Nothing of it is this session's until it is added.
    assert!(search(first.as_ref()).is_empty());
    fill(first.as_mut());
    assert_eq!(search(first.as_ref()), search(&small));
    first.remove(BlockId(2)).unwrap();
    first.remove(BlockId(77)).unwrap();
    assert!(!search(first.as_ref()).contains(&2));
    let other = MakeChroma { encoder: "other".into(), ..make.clone() };
    let error = other.make(dim, NonZeroUsize::MIN).map(drop).unwrap_err();
    assert!(matches!(&error, IndexError::Remote { what } if what.contains("words")), "{error}");
    let error = make.make(9, NonZeroUsize::MIN).map(drop).unwrap_err();
    assert!(matches!(&error, IndexError::Remote { what } if what.contains("8 comp")), "{error}");
}

/// By default a collection of Chroma measures by squared distance, and its records have names.
#[test]
#[ignore = "needs a Chroma server: cargo xtask check starts one"]
fn texts_of_somebody_else_are_found() {
    let name = fresh(Distance::L2).collection;
    let made = post("collections", &json!({ "name": name }));
    let id = made["id"].as_str().unwrap();
    let records = json!({
        "ids": ["near", "far", "mute"],
        "embeddings": [[2.0, 0.1], [0.0, 3.0], [2.0, 0.0]],
        "documents": ["The gate is closed.", "Bread costs four coins.", null],
    });
    post(&format!("collections/{id}/upsert"), &records);
    let texts = ChromaTexts::open(&config(), &name, 2, Distance::Cosine, "words").unwrap();
    let found = texts.search(&[1.0, 0.0], 5).unwrap();
    assert_eq!((texts.name(), found.len()), (name.as_str(), 2));
    assert_eq!(found[0].text, "The gate is closed.");
    assert!(found[0].distance < 0.01 && (found[1].distance - 1.0).abs() < 1e-6);
    assert!(ChromaTexts::open(&config(), &name, 3, Distance::Cosine, "words").is_err());
}
