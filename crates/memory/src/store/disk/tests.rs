use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::store::contract;
use crate::testing::new_block;

fn maker(weights: u8) -> Maker {
    Maker { model: format!("model {weights}"), weights: [weights; 32], ..Maker::default() }
}

/// Small segments, so that a few blocks fill several, and nothing hot, so that all is read.
fn options() -> DiskOptions {
    DiskOptions {
        maker: Some(maker(1)),
        encoder: Some("words".to_owned()),
        segment_bytes: 2000,
        hot_bytes: 0,
        ..DiskOptions::default()
    }
}

fn open_with(data: &Path, options: DiskOptions) -> Result<DiskStore, StoreError> {
    DiskStore::open(Arc::new(SessionFolder::create(data, "test")?), options)
}

fn open(data: &Path) -> DiskStore {
    open_with(data, options()).unwrap()
}

fn block(range: Range<u64>) -> Arc<Block> {
    let text = format!("what tokens {range:?} say");
    Arc::new(Block::new(Arc::from("test"), new_block(range, &text)).unwrap())
}

/// Ranges of `n` blocks of 16 tokens each, from token 4 on.
fn ranges(n: u64) -> Vec<Range<u64>> {
    (0..n).map(|i| 4 + 16 * i..20 + 16 * i).collect()
}

fn filled(data: &Path, n_blocks: u64) -> DiskStore {
    let mut store = open(data);
    for (order, range) in ranges(n_blocks).into_iter().enumerate() {
        store.append(block(range)).unwrap();
        store.set_embedding(order, &[order as f32, 1.0]).unwrap();
    }
    store
}

fn starts(store: &DiskStore) -> Vec<u64> {
    let held = store.metas().iter().filter(|meta| !meta.is_forgotten);
    held.map(|meta| meta.range.start.0).collect()
}

/// Everything that is given back is what was appended; returns the first tokens of the blocks that
/// are not given back.
fn missing(store: &DiskStore, expected: &[Range<u64>]) -> Vec<u64> {
    let mut missing = Vec::new();
    for range in expected {
        let order = store.metas().iter().position(|meta| meta.range.start.0 == range.start);
        match order.map(|order| store.get(order)) {
            Some(Ok(found)) => {
                let expected = block(range.clone());
                assert_eq!((found.id(), found.kv()), (expected.id(), expected.kv()));
                assert_eq!((found.tokens(), found.text()), (expected.tokens(), expected.text()));
                assert_eq!(BlockMeta::from(&*found), BlockMeta::from(&*expected));
            }
            None | Some(Err(StoreError::Damaged { .. })) => missing.push(range.start),
            Some(Err(error)) => panic!("{error}"),
        }
    }
    missing
}

fn holds(store: &DiskStore, range: Range<u64>) -> bool {
    missing(store, std::slice::from_ref(&range)).is_empty()
}

fn segment_files(data: &Path) -> Vec<PathBuf> {
    let blocks = SessionFolder::path_of(data, "test").join("blocks");
    let numbers = segment::list(&blocks).unwrap();
    numbers.into_iter().map(|number| segment::path(&blocks, number)).collect()
}

fn catalog_file(data: &Path) -> PathBuf {
    SessionFolder::path_of(data, "test").join("catalog")
}

/// A copy of a data directory, as another start finds it.
fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    copy_files(from, to.path());
    to
}

fn copy_files(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        match path.is_dir() {
            true => copy_files(&path, &to),
            false => drop(fs_err::copy(path, to).unwrap()),
        }
    }
}

#[test]
fn it_keeps_the_contract() {
    let folders = std::cell::RefCell::new(Vec::new());
    contract::run(&|| {
        let data = tempfile::tempdir().unwrap();
        let store = open(data.path());
        folders.borrow_mut().push(data);
        Box::new(store)
    });
}

#[test]
fn its_branches_keep_the_contract() {
    let folders = std::cell::RefCell::new(Vec::new());
    contract::run(&|| {
        let data = tempfile::tempdir().unwrap();
        let branch = open(data.path()).branch().unwrap();
        folders.borrow_mut().push(data);
        branch
    });
}

#[test]
fn a_branch_reads_the_past_and_keeps_what_is_new_to_itself() {
    let data = tempfile::tempdir().unwrap();
    let mut store = filled(data.path(), 5);
    let mut branch = store.branch().unwrap();
    branch.append(block(84..100)).unwrap();
    store.append(block(84..110)).unwrap();
    branch.set_embedding(5, &[9.0, 9.0]).unwrap();
    branch.forget(0).unwrap();
    assert_eq!(branch.get(1).unwrap().kv(), block(20..36).kv());
    assert_eq!(branch.embedding(1).unwrap(), Some(vec![1.0, 1.0]));
    assert_eq!(branch.get(5).unwrap().range().end, TokenPos(100));
    assert!(matches!(branch.get(0), Err(StoreError::Forgotten { order: 0 })));
    assert_eq!(store.get(5).unwrap().range().end, TokenPos(110));
    assert_eq!(store.get(0).unwrap().id(), block(4..20).id());
    drop(branch);
    drop(store);
    assert_eq!(starts(&open(data.path())), [4, 20, 36, 52, 68, 84]);
}

#[test]
fn all_is_there_after_a_restart() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path(), 9));
    assert!(segment_files(data.path()).len() > 2, "several segments");
    let store = open(data.path());
    assert_eq!(missing(&store, &ranges(9)), [0; 0]);
    assert_eq!(store.damage(), []);
    for order in 0..9 {
        assert_eq!(store.embedding(order).unwrap(), Some(vec![order as f32, 1.0]));
        assert_eq!(store.text(order).unwrap().text, store.get(order).unwrap().text());
    }
}

/// The process ends: what the store holds in RAM is gone, what it wrote is not.
#[test]
fn all_is_there_if_the_process_just_ended() {
    let data = tempfile::tempdir().unwrap();
    let store = filled(data.path(), 9);
    let copy = copy(data.path());
    drop(store);
    let store = open(copy.path());
    assert_eq!(missing(&store, &ranges(9)), [0; 0]);
    assert_eq!(store.embedding(0).unwrap(), None, "embeddings are made again");
}

#[test]
fn a_lost_catalogue_is_made_again() {
    let data = tempfile::tempdir().unwrap();
    let mut store = filled(data.path(), 9);
    store.forget(3).unwrap();
    drop(store);
    fs_err::remove_file(catalog_file(data.path())).unwrap();
    let store = open(data.path());
    assert_eq!(starts(&store), [4, 20, 36, 68, 84, 100, 116, 132]);
    assert_eq!(missing(&store, &ranges(9)), [52]);
}

/// The newest segment ends at any byte, with a catalogue that knows all, some or nothing of it.
#[test]
fn a_segment_may_end_anywhere() {
    let data = tempfile::tempdir().unwrap();
    let (store, n) = (filled(data.path(), 9), 9);
    let without_catalog = copy(data.path());
    drop(store);
    let last = segment_files(data.path()).pop().unwrap();
    let len = fs_err::metadata(&last).unwrap().len();
    for from in [data.path(), without_catalog.path()] {
        let whole = starts(&open(copy(from).path()));
        for cut in (0..len).step_by(7) {
            let copy = copy(from);
            let last = segment_files(copy.path()).pop().unwrap();
            fs_err::OpenOptions::new().write(true).open(&last).unwrap().set_len(cut).unwrap();
            let mut store = open(copy.path());
            let found = starts(&store);
            assert_eq!(found, whole[..found.len()], "a beginning of what was there");
            assert_eq!(missing(&store, &ranges(n)), whole[found.len()..]);
            // It goes on, and what is appended now is there after the next start.
            let end = store.metas().last().map_or(4, |meta| meta.range.end.0);
            store.append(block(end..end + 20)).unwrap();
            drop(store);
            let store = open(copy.path());
            assert_eq!(starts(&store), [&found[..], &[end]].concat());
            assert!(holds(&store, end..end + 20));
            // What the catalogue knew of is named; without one nobody knows.
            let n_lost = whole.len() - found.len();
            let is_named = store.damage().iter().any(|damage| damage.what == Damage::GONE);
            assert_eq!(is_named, from == data.path() && n_lost > 2, "cut at {cut}");
            assert_eq!(store.damage().len(), usize::from(is_named));
        }
    }
}

#[test]
fn any_damaged_byte_of_a_segment_costs_its_block_only() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path(), 4));
    let with_catalog = copy(data.path());
    fs_err::remove_file(catalog_file(data.path())).unwrap();
    for (from, step) in [(with_catalog.path(), 1), (data.path(), 1)] {
        for (file, path) in segment_files(from).iter().enumerate() {
            let good = fs_err::read(path).unwrap();
            for at in (0..good.len()).step_by(step) {
                let copy = copy(from);
                let mut bad = good.clone();
                bad[at] ^= 1 << (at % 8);
                fs_err::write(&segment_files(copy.path())[file], &bad).unwrap();
                let mut store = open(copy.path());
                let missing_now = missing(&store, &ranges(4));
                assert!(missing_now.len() <= 1, "byte {at} of segment {file} cost {missing_now:?}");
                let reported = store.verify(&mut |_| {}).unwrap();
                // A header, or a prefix of which the catalogue knows better, may be damaged as well.
                assert!(missing_now.is_empty() || !reported.is_empty(), "byte {at}: not reported");
                store.append(block(68..84)).unwrap();
                assert!(holds(&store, 68..84));
            }
        }
    }
}

/// The catalogue can always be made again, so no damage to it costs anything.
#[test]
fn a_damaged_catalogue_costs_nothing() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path(), 4));
    let good = fs_err::read(catalog_file(data.path())).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        check_catalog(data.path(), &bad);
    }
    for len in 0..good.len() {
        check_catalog(data.path(), &good[..len]);
    }
    check_catalog(data.path(), b"no catalogue at all, but longer than the prefix of a record");
}

fn check_catalog(data: &Path, catalog: &[u8]) {
    let copy = copy(data);
    fs_err::write(catalog_file(copy.path()), catalog).unwrap();
    let store = open(copy.path());
    assert_eq!(missing(&store, &ranges(4)), [0; 0]);
    for order in 0..4 {
        let embedding = store.embedding(order).unwrap();
        assert!(embedding.is_none_or(|e| e == [order as f32, 1.0]));
        assert_eq!(store.text(order).unwrap().text, block(ranges(4)[order].clone()).text());
    }
}

/// The n-th byte does not fit: nothing of that block arrives, all others do, and it may be tried
/// again.
#[test]
fn a_write_that_fails_leaves_nothing_behind() {
    for n_bytes in (0..4000).step_by(97) {
        let data = tempfile::tempdir().unwrap();
        let mut store = open(data.path());
        segment::fail::after(Some(n_bytes));
        let mut failures = 0;
        for (order, range) in ranges(6).into_iter().enumerate() {
            if let Err(error) = store.append(block(range.clone())) {
                assert!(matches!(error, StoreError::File(_)), "{error}");
                failures += 1;
                assert_eq!(store.metas().len(), order);
                let copy = copy(data.path());
                let reopened = open(copy.path());
                assert_eq!(missing(&reopened, &ranges(order as u64)), [0; 0]);
                assert_eq!((reopened.metas().len(), reopened.damage()), (order, &[][..]));
                store.append(block(range)).unwrap();
            }
        }
        segment::fail::after(None);
        assert_eq!(failures, 1, "at byte {n_bytes}");
        drop(store);
        let store = open(data.path());
        assert_eq!((missing(&store, &ranges(6)), store.damage()), (vec![], &[][..]));
    }
}

#[test]
fn what_is_forgotten_is_gone_and_compacting_takes_it_off_the_disk() {
    let data = tempfile::tempdir().unwrap();
    let mut store = filled(data.path(), 9);
    for order in [1, 4, 5] {
        store.forget(order).unwrap();
        assert!(matches!(store.get(order), Err(StoreError::Forgotten { .. })));
        assert!(matches!(store.text(order), Err(StoreError::Forgotten { .. })));
        assert!(matches!(store.embedding(order), Err(StoreError::Forgotten { .. })));
        assert!(matches!(store.forget(order), Err(StoreError::Forgotten { .. })));
    }
    drop(store);
    let left = [4, 36, 52, 100, 116, 132];
    let store = open(data.path());
    assert_eq!(starts(&store), left);
    let secret = b"what tokens 20..36 say";
    let is_on_disk = |secret: &[u8]| {
        let files = segment_files(data.path());
        let bytes: Vec<u8> = files.iter().flat_map(|path| fs_err::read(path).unwrap()).collect();
        bytes.windows(secret.len()).any(|window| window == secret)
    };
    assert!(is_on_disk(secret));
    let (mut store, compacted) = store.compact().unwrap();
    assert!(!is_on_disk(secret));
    assert!(compacted.bytes_after < compacted.bytes_before && compacted.n_segments > 0);
    assert_eq!(starts(&store), left);
    assert_eq!(missing(&store, &ranges(9)), [20, 68, 84]);
    assert_eq!(store.embedding(1).unwrap(), Some(vec![2.0, 1.0]), "embeddings stay");
    assert_eq!(store.verify(&mut |_| {}).unwrap(), []);
    store.append(block(148..164)).unwrap();
    let (store, again) = store.compact().unwrap();
    assert_eq!((again.n_segments, again.bytes_after), (0, again.bytes_before));
    assert_eq!(starts(&store), [&left[..], &[148]].concat());
}

#[test]
fn compacting_takes_damage_off_the_disk() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path(), 9));
    let first = &segment_files(data.path())[0];
    let mut bytes = fs_err::read(first).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs_err::write(first, bytes).unwrap();
    let store = open(data.path());
    let damage = store.verify(&mut |_| {}).unwrap();
    assert_eq!(damage.len(), 1);
    let lost = damage[0].tokens.clone().unwrap().start.0;
    let (store, _) = store.compact().unwrap();
    assert_eq!(store.verify(&mut |_| {}).unwrap(), []);
    assert_eq!(missing(&store, &ranges(9)), [lost]);
}

/// A segment that was cut off or taken away is told from one that never was.
#[test]
fn blocks_that_are_gone_are_named_until_the_store_is_compacted() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path(), 9));
    let files = segment_files(data.path());
    assert!(files.len() > 2);
    let first = open(data.path()).places.iter().filter(|place| place.segment == 1).count();
    fs_err::remove_file(&files[0]).unwrap();
    let lost = TokenPos(4)..TokenPos(4 + 16 * first as u64);
    for _ in 0..2 {
        let store = open(data.path());
        assert_eq!(starts(&store).len(), 9 - first);
        let damage = store.verify(&mut |_| {}).unwrap();
        assert_eq!(damage, store.damage());
        assert_eq!((damage.len(), damage[0].what), (1, Damage::GONE));
        assert_eq!(damage[0].tokens, Some(lost.clone()));
    }
    let (store, _) = open(data.path()).compact().unwrap();
    drop(store);
    assert_eq!(open(data.path()).verify(&mut |_| {}).unwrap(), []);
}

#[test]
fn a_session_may_be_called_otherwise() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path(), 5));
    let folder = SessionFolder::path_of(data.path(), "test");
    fs_err::rename(&folder, folder.with_file_name("other")).unwrap();
    let folder = Arc::new(SessionFolder::open(data.path(), "other").unwrap());
    let mut store = DiskStore::open(folder, options()).unwrap();
    assert_eq!((store.session(), store.folder().name()), ("test", "other"));
    assert!(missing(&store, &ranges(5)).is_empty());
    store.append(block(84..100)).unwrap();
    assert!(holds(&store, 84..100));
    let (store, _) = store.compact().unwrap();
    assert_eq!((missing(&store, &ranges(6)), store.damage()), (Vec::new(), &[][..]));
}

#[test]
fn a_stream_that_ended_earlier_goes_on_from_there() {
    let data = tempfile::tempdir().unwrap();
    let mut store = filled(data.path(), 6);
    store.forget(5).unwrap();
    store.truncate(TokenPos(60)).unwrap();
    assert_eq!(starts(&store), [4, 20, 36]);
    store.append(block(52..80)).unwrap();
    drop(store);
    for rebuild in [false, true] {
        if rebuild {
            fs_err::remove_file(catalog_file(data.path())).unwrap();
        }
        let store = open(data.path());
        assert_eq!(starts(&store), [4, 20, 36, 52]);
        assert_eq!(store.get(3).unwrap().range().end, TokenPos(80));
        assert_eq!(store.damage(), []);
    }
}

#[test]
fn the_oldest_segment_is_dropped_to_keep_the_limit() {
    let data = tempfile::tempdir().unwrap();
    let options = DiskOptions { max_bytes: Some(5000), ..options() };
    let mut store = open_with(data.path(), options.clone()).unwrap();
    for range in ranges(40) {
        store.append(block(range)).unwrap();
        assert!(store.segment_bytes() <= 5000);
    }
    let (left, n_dropped) = (starts(&store), store.n_dropped());
    assert!(n_dropped > 20 && left.len() == 40 - n_dropped);
    assert_eq!(left.last(), Some(&(4 + 16 * 39)), "the newest stay");
    assert!(matches!(store.get(0), Err(StoreError::Forgotten { order: 0 })));
    drop(store);
    for rebuild in [false, true] {
        if rebuild {
            fs_err::remove_file(catalog_file(data.path())).unwrap();
        }
        let store = open_with(data.path(), options.clone()).unwrap();
        assert_eq!(starts(&store), left);
        let all = ranges(40);
        assert_eq!(missing(&store, &all[n_dropped..]), [0; 0]);
    }
    let too_little = DiskOptions { max_bytes: Some(3999), ..options };
    let error = open_with(tempfile::tempdir().unwrap().path(), too_little).unwrap_err();
    assert!(matches!(error, StoreError::Limit { least: 4000, .. }));
}

/// A block whose keys point where those of no other do.
fn odd_block(range: Range<u64>) -> Arc<Block> {
    let new = new_block(range.clone(), &format!("what tokens {range:?} say"));
    let shape = new.kv.shape();
    let n_components = shape.components(16).unwrap();
    let keys: Vec<f32> = (0..n_components).map(|i| if i % 2 == 0 { 3.0 } else { -3.0 }).collect();
    let kv = BlockKv::new(shape, 16, &keys, &keys, KvType::F32).unwrap();
    Arc::new(Block::new(Arc::from("test"), NewBlock { kv, ..new }).unwrap())
}

/// Forgets the newest ordinary block that is so far back that the record of it stands in a later segment.
fn forget_an_old_one(store: &mut DiskStore, is_odd: impl Fn(usize) -> bool) -> u64 {
    let held = |order: &usize| !store.metas()[*order].is_forgotten && !is_odd(*order);
    let order = (0..store.metas().len() - 15).filter(held).last().unwrap();
    store.forget(order).unwrap();
    store.metas()[order].range.start.0
}

#[test]
fn what_is_distinct_stays_within_the_limit_and_all_of_the_stream_is_covered() {
    let data = tempfile::tempdir().unwrap();
    let (segment_bytes, max_bytes) = (6000, Some(36_000));
    let limited = DiskOptions { segment_bytes, max_bytes, keep: Keep::Distinct, ..options() };
    let mut store = open_with(data.path(), limited.clone()).unwrap();
    let is_odd = |i: usize| i % 25 == 3;
    let mut forgotten = Vec::new();
    for (i, range) in ranges(300).into_iter().enumerate() {
        store.append(if is_odd(i) { odd_block(range) } else { block(range) }).unwrap();
        store.set_embedding(i, &[i as f32]).unwrap();
        assert!(store.segment_bytes() <= 36_000);
        if i % 40 == 20 {
            forgotten.push(forget_an_old_one(&mut store, is_odd));
        }
    }
    let left = starts(&store);
    assert_eq!(left.len(), 300 - forgotten.len() - store.n_dropped());
    let odd: Vec<u64> = (0..300).filter(|&i| is_odd(i)).map(|i| 4 + 16 * i as u64).collect();
    let n_odd = odd.iter().filter(|start| left.contains(start)).count();
    assert_eq!((n_odd, odd.len()), (12, 12), "{left:?}");
    for quarter in 0..4 {
        let range = 4 + 1200 * quarter..1204_u64 + 1200 * quarter;
        let n_left = left.iter().filter(|start| range.contains(*start)).count();
        assert!(n_left > 2, "{left:?}");
    }
    drop(store);
    let check = |data: &Path, has_embeddings: bool| {
        let store = open_with(data, limited.clone()).unwrap();
        assert_eq!((starts(&store), store.damage()), (left.clone(), &[][..]));
        assert_eq!(store.verify(&mut |_| {}).unwrap(), []);
        for (order, start) in left.iter().enumerate() {
            let found = store.get(order).unwrap();
            let range = *start..start + 16;
            let expected = if odd.contains(start) { odd_block(range) } else { block(range) };
            assert_eq!((found.id(), found.kv()), (expected.id(), expected.kv()));
            assert_eq!(store.text(order).unwrap().text, expected.text());
            let embedding = vec![((start - 4) / 16) as f32];
            assert_eq!(store.embedding(order).unwrap(), has_embeddings.then_some(embedding));
        }
    };
    check(data.path(), true);
    let copy = copy(data.path());
    fs_err::remove_file(catalog_file(copy.path())).unwrap();
    check(copy.path(), false);
}

/// The process ends between any two changes of files.
#[test]
fn segments_that_become_one_lose_nothing_that_stays() {
    let limited = DiskOptions { max_bytes: Some(12_000), keep: Keep::Distinct, ..options() };
    let data = tempfile::tempdir().unwrap();
    let mut store = open_with(data.path(), limited.clone()).unwrap();
    let (mut n_merged, mut forgotten) = (0, Vec::new());
    for (i, range) in ranges(60).into_iter().enumerate() {
        if i % 7 == 6 && i > 20 {
            forgotten.push(forget_an_old_one(&mut store, |_| false));
        }
        let before = copy(data.path());
        store.append(block(range)).unwrap();
        store.sync().unwrap();
        let after = copy(data.path());
        let folder = |data: &Path| SessionFolder::path_of(data, "test").join("blocks");
        let numbers = |data: &Path| segment::list(&folder(data)).unwrap();
        let is_gone = |number: &u32| !numbers(after.path()).contains(number);
        let gone: Vec<u32> = numbers(before.path()).into_iter().filter(is_gone).collect();
        let [first] = gone[..] else { continue };
        n_merged += 1;
        let second = numbers(before.path()).into_iter().find(|&number| number > first).unwrap();
        let take = |from: &TempDir, number, to: &TempDir| {
            let path = |data: &TempDir| segment::path(&folder(data.path()), number);
            fs_err::copy(path(from), path(to)).unwrap();
        };
        let left = starts(&store);
        let (_, without_newest) = left.split_last().unwrap();
        let check = |crashed: &TempDir, has_catalog: bool, expected: &[u64]| {
            let crashed = copy(crashed.path());
            if !has_catalog {
                fs_err::remove_file(catalog_file(crashed.path())).unwrap();
            }
            for max_bytes in [None, limited.max_bytes] {
                let limit = DiskOptions { max_bytes, ..limited.clone() };
                let store = open_with(crashed.path(), limit).unwrap();
                let found = starts(&store);
                // Without a catalogue nobody knows what was to go.
                assert!(found == expected || !has_catalog, "{found:?} {expected:?}");
                let is_missing = |start: &&u64| !found.contains(start);
                let missing = expected.iter().find(is_missing);
                assert!(missing.is_none() || max_bytes.is_some(), "{found:?} {expected:?}");
                assert!(!forgotten.iter().any(|start| found.contains(start)), "{found:?}");
                assert!(max_bytes.is_none_or(|max| store.segment_bytes() <= max));
                assert_eq!((store.damage(), store.verify(&mut |_| {}).unwrap()), (&[][..], vec![]));
            }
        };
        // What is to go is noted.
        let noted = copy(before.path());
        let mut crashed = open_with(noted.path(), limited.clone()).unwrap();
        let all = starts(&crashed);
        let to_go = all.iter().enumerate().filter(|(_, start)| !left.contains(start));
        crashed.drop_blocks(&to_go.map(|(order, _)| order).collect::<Vec<_>>()).unwrap();
        drop(crashed);
        check(&noted, true, without_newest);
        // The new segment is there.
        take(&after, second, &noted);
        check(&noted, true, without_newest);
        check(&noted, false, without_newest);
        // So the first of the two is gone.
        fs_err::remove_file(segment::path(&folder(noted.path()), first)).unwrap();
        check(&noted, true, without_newest);
        check(&noted, false, without_newest);
        // The catalogue knows all of it, and the first is there again, as after a power failure.
        check(&after, true, &left);
        take(&before, first, &after);
        check(&after, true, &left);
        check(&after, false, &left);
    }
    assert!(n_merged > 10 && forgotten.len() > 4);
    let too_little = DiskOptions { max_bytes: Some(5999), ..limited };
    let error = open_with(tempfile::tempdir().unwrap().path(), too_little).unwrap_err();
    assert!(matches!(error, StoreError::Limit { least: 6000, .. }));
}

/// The records that forget a block of an earlier segment stand in the first of the two, or in the second.
#[test]
fn what_was_forgotten_stays_so_when_segments_become_one() {
    for in_first in [true, false] {
        let data = tempfile::tempdir().unwrap();
        let mut store = filled(data.path(), 3);
        let is_written_to = |store: &DiskStore, number| {
            store.segments.last_key_value().is_some_and(|(&last, _)| last == number)
        };
        let append = |store: &mut DiskStore| {
            let start = store.metas().last().unwrap().range.end.0;
            store.append(block(start..start + 16)).unwrap();
        };
        while !is_written_to(&store, if in_first { 2 } else { 3 }) {
            append(&mut store);
        }
        store.forget(1).unwrap();
        while !is_written_to(&store, 4) {
            append(&mut store);
        }
        let expected = starts(&store).len();
        store.merge(2, 3).unwrap();
        let left = starts(&store);
        assert!(!left.contains(&20) && left.len() < expected);
        drop(store);
        fs_err::remove_file(catalog_file(data.path())).unwrap();
        let store = open(data.path());
        assert_eq!((starts(&store), store.damage()), (left, &[][..]));
    }
}

#[test]
fn a_thinned_store_is_one_like_any_other() {
    let data = tempfile::tempdir().unwrap();
    let limited =
        |max_bytes| DiskOptions { max_bytes: Some(max_bytes), keep: Keep::Distinct, ..options() };
    let mut store = open_with(data.path(), limited(16_000)).unwrap();
    ranges(60).into_iter().for_each(|range| store.append(block(range)).unwrap());
    drop(store);
    // A damaged block is not kept.
    let oldest = &segment_files(data.path())[0];
    let mut bytes = fs_err::read(oldest).unwrap();
    let last = bytes.len() - 9;
    bytes[last] ^= 1;
    fs_err::write(oldest, bytes).unwrap();
    assert_eq!(open(data.path()).verify(&mut |_| {}).unwrap().len(), 1);
    let mut store = open_with(data.path(), limited(6_000)).unwrap();
    assert!(store.segment_bytes() <= 6_000 && starts(&store).len() > 4);
    assert_eq!(store.verify(&mut |_| {}).unwrap(), []);
    // The stream goes on earlier, over what was dropped.
    let middle = starts(&store)[2];
    store.truncate(TokenPos(middle)).unwrap();
    store.append(block(middle..middle + 30)).unwrap();
    store.append(block(middle + 30..middle + 46)).unwrap();
    let expected = starts(&store);
    let (mut store, _) = store.compact().unwrap();
    assert_eq!(starts(&store), expected);
    assert_eq!((store.damage(), store.verify(&mut |_| {}).unwrap()), (&[][..], vec![]));
    for i in 0..40 {
        store.append(block(middle + 46 + 16 * i..middle + 62 + 16 * i)).unwrap();
    }
    assert!(store.segment_bytes() <= 6_000 && holds(&store, middle + 670..middle + 686));
    drop(store);
    let store = open_with(data.path(), limited(6_000)).unwrap();
    assert_eq!((store.damage(), store.verify(&mut |_| {}).unwrap()), (&[][..], vec![]));
}

#[test]
fn another_model_is_refused_and_no_model_needed_to_look() {
    let data = tempfile::tempdir().unwrap();
    let nobody = DiskOptions { maker: None, ..options() };
    let mut store = open_with(data.path(), nobody.clone()).unwrap();
    assert!(matches!(store.append(block(4..20)), Err(StoreError::NoMaker { .. })));
    drop(store);
    drop(filled(data.path(), 2));
    let other = DiskOptions { maker: Some(maker(2)), ..options() };
    let error = open_with(data.path(), other).unwrap_err();
    let expected = "session \"test\" was made by model 1 with another weights: use that model, or another --session";
    assert_eq!(error.to_string(), expected);
    let mut store = open_with(data.path(), nobody).unwrap();
    assert_eq!(store.maker(), Some(&maker(1)));
    assert_eq!(missing(&store, &ranges(2)), [0; 0]);
    store.append(block(36..52)).unwrap();
}

#[test]
fn another_encoder_embeds_again() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path(), 2));
    let other = DiskOptions { encoder: Some("other".to_owned()), ..options() };
    let any = DiskOptions { encoder: None, ..options() };
    let store = open_with(data.path(), any).unwrap();
    assert_eq!(store.embedding(0).unwrap(), Some(vec![0.0, 1.0]), "who only looks keeps all");
    drop(store);
    let store = open_with(data.path(), other).unwrap();
    assert_eq!(store.embedding(0).unwrap(), None);
}

#[test]
fn a_session_belongs_to_one_process() {
    let data = tempfile::tempdir().unwrap();
    let store = open(data.path());
    let error = SessionFolder::create(data.path(), "test").unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }));
    drop(SessionFolder::create(data.path(), "other").unwrap());
    assert_eq!(SessionFolder::list(data.path()).unwrap(), ["other", "test"]);
    drop(store);
    let folder = SessionFolder::open(data.path(), "test").unwrap();
    folder.remove().unwrap();
    let gone = SessionFolder::open(data.path(), "test").unwrap_err();
    assert!(matches!(gone, StoreError::NoSession { .. }));
}

#[test]
fn names_that_are_no_folder_are_refused() {
    let data = tempfile::tempdir().unwrap();
    for name in ["", ".", "..", "a/b", "a\\b", "a b", "a\0", "../x", &"x".repeat(65)] {
        for open in [SessionFolder::create, SessionFolder::open] {
            let error = open(data.path(), name).unwrap_err();
            assert!(matches!(error, StoreError::SessionName { .. }), "{name:?}");
        }
    }
    drop(SessionFolder::create(data.path(), "größe-1.x_y").unwrap());
}

#[test]
fn newer_formats_are_refused() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path(), 2));
    let segment = &segment_files(data.path())[0];
    let good = fs_err::read(segment).unwrap();
    let mut newer = Vec::new();
    record::encode(segment::HEADER, &[9, 0, 0, 0, 1, 2, 3], &[], &mut newer);
    fs_err::write(segment, newer).unwrap();
    let error = open_with(data.path(), options()).unwrap_err();
    assert!(matches!(error, StoreError::Format { ref found, .. } if found == "9"), "{error}");
    fs_err::write(segment, good).unwrap();
    fs_err::write(data.path().join("FORMAT"), "everstream data 2\n").unwrap();
    let error = open_with(data.path(), options()).unwrap_err();
    assert!(matches!(error, StoreError::Format { .. }));
    assert!(SessionFolder::list(data.path()).is_err());
}

/// Root may write anywhere, so this shows nothing where tests run as root.
#[cfg(unix)]
#[test]
fn a_data_directory_that_cannot_be_written_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("read-only");
    fs_err::create_dir_all(&folder).unwrap();
    fs_err::set_permissions(&folder, PermissionsExt::from_mode(0o500)).unwrap();
    if fs_err::write(folder.join("x"), "").is_err() {
        let error = SessionFolder::create(&folder, "test").unwrap_err();
        assert!(matches!(error, StoreError::File(_)), "{error}");
    }
    let file = data.path().join("file");
    fs_err::write(&file, "").unwrap();
    let error = SessionFolder::create(&file, "test").unwrap_err();
    assert!(matches!(error, StoreError::File(_)), "{error}");
}

/// What `docs/FORMAT.md` says of sizes.
#[test]
fn records_have_the_documented_size() {
    let data = tempfile::tempdir().unwrap();
    let options = DiskOptions { segment_bytes: DEFAULT_SEGMENT_BYTES, ..options() };
    let mut store = open_with(data.path(), options).unwrap();
    store.append(block(4..30)).unwrap();
    let before = store.segment_bytes();
    let mut new = new_block(30..50, "some text");
    let name = "notes/today.txt";
    new.source = Some(crate::block::Source { file: Arc::from(name), line: 3 });
    let block = Block::new(Arc::from("test"), new).unwrap();
    let (text, kv) = (block.text().len(), block.kv().bytes());
    store.append(Arc::new(block)).unwrap();
    let expected = 95 + 4 * 20 + text + kv + 12 + name.len();
    assert_eq!(store.segment_bytes() - before, expected as u64);
}
