//! Files that are damaged, missing or something else: one line, exit code 1, no panic.

use fs_err as fs;

use crate::rig::{Rig, tiny};

/// Every command that opens a model.
fn commands<'a>(model: &'a str, text: &'a str) -> Vec<Vec<&'a str>> {
    vec![
        vec!["inspect", model],
        vec!["pull", model],
        vec!["generate", "--prompt", "x", "--model", model],
        vec!["chat", "--policy", "sink", "--model", model],
        vec!["perplexity", "--text", text, "--model", model],
        vec!["bench", "--model", model],
    ]
}

fn check(model: &str, rig: &Rig, part: &str) {
    let text = rig.file("text.txt", "some text");
    for command in commands(model, &text) {
        rig.fails(&command, part);
    }
}

#[test]
fn a_truncated_model() {
    let rig = Rig::new();
    for name in ["tiny-llama", "tiny-qwen2"] {
        let whole = fs::read(tiny(name)).unwrap();
        for n in [1, 4, 23, 24, 1000, whole.len() / 2, whole.len() - 1] {
            let model = rig.file("cut.gguf", &whole[..n]);
            rig.fails(&["inspect", &model], "cut.gguf");
            rig.fails(&["generate", "--model", &model, "--prompt", "x"], "cut.gguf");
        }
        check(&rig.file("cut.gguf", &whole[..whole.len() - 1]), &rig, "cut.gguf");
    }
}

#[test]
fn a_corrupt_head() {
    let rig = Rig::new();
    let whole = fs::read(tiny("tiny-llama")).unwrap();
    // Magic, version, numbers of tensors and of metadata, length of the first key.
    for offset in [0, 4, 8, 15, 16, 23, 24, 31] {
        let mut bytes = whole.clone();
        bytes[offset] ^= 0xff;
        let model = rig.file("bad.gguf", bytes);
        rig.fails(&["inspect", &model], "bad.gguf");
        rig.fails(&["generate", "--model", &model, "--prompt", "x"], "bad.gguf");
    }
}

/// A changed byte may go unnoticed in a name or a weight; it never ends in a panic.
#[test]
fn a_byte_changed_anywhere() {
    let rig = Rig::new();
    let whole = fs::read(tiny("tiny-qwen2")).unwrap();
    let n_head = whole.len() / 3;
    for i in 0..60 {
        // Metadata and tensor table come first, and deserve most of the attention.
        let offset = if i < 48 { i * n_head / 48 + 5 * i % 7 } else { i * whole.len() / 60 };
        let mut bytes = whole.clone();
        bytes[offset] ^= 1 << (i % 8) | 0x80;
        let model = rig.file("changed.gguf", bytes);
        let arguments = ["generate", "--model", &model, "--prompt", "The", "--max-tokens", "1"];
        for arguments in [&arguments[..], &["inspect", &model, "--tensors", "--metadata"]] {
            let ran = rig.run(arguments);
            match ran.code {
                Some(0) => {}
                _ => assert!(ran.error().contains("changed.gguf"), "byte {offset}: {ran:?}"),
            }
        }
    }
}

#[test]
fn an_empty_model() {
    let rig = Rig::new();
    check(&rig.file("empty.gguf", ""), &rig, "empty.gguf");
}

#[test]
fn a_missing_model() {
    let rig = Rig::new();
    check(&rig.path("missing.gguf"), &rig, "missing.gguf");
}

#[test]
fn a_folder_as_a_model() {
    let rig = Rig::new();
    fs::create_dir(rig.path("folder")).unwrap();
    check(&rig.path("folder"), &rig, "folder");
}

#[test]
fn a_text_as_a_model() {
    let rig = Rig::new();
    check(&rig.file("notes.gguf", "These are notes, and no model."), &rig, "notes.gguf");
}

/// Every option that takes a text.
fn reads<'a>(model: &'a str, text: &'a str) -> [Vec<&'a str>; 4] {
    [
        vec!["generate", "--model", model, "--file", text],
        vec!["perplexity", "--model", model, "--text", text],
        vec!["chat", "--model", model, "--policy", "sink", "--ingest", text],
        vec!["bench", "--model", model, "--stream-tokens", "9", "--text", text],
    ]
}

#[test]
fn text_that_is_not_utf8() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-llama"), rig.file("latin1.txt", b"caf\xe9 au lait"));
    for arguments in reads(&model, &text) {
        rig.fails(&arguments, "latin1.txt is not UTF-8 (byte 3)");
    }
    let arguments = ["generate", "--model", &model, "--file", "-"];
    rig.fails_with_input(&arguments, b"\xff", "is not UTF-8 (byte 0)");
}

#[test]
fn text_that_is_missing_or_a_folder() {
    let rig = Rig::new();
    fs::create_dir(rig.path("folder")).unwrap();
    let model = tiny("tiny-llama");
    for name in ["missing.txt", "folder"] {
        let text = rig.path(name);
        for arguments in reads(&model, &text) {
            rig.fails(&arguments, name);
        }
    }
}

#[test]
fn text_that_is_empty() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-llama"), rig.file("empty.txt", " \n"));
    rig.fails(&["generate", "--model", &model, "--file", &text], "the prompt is empty");
    rig.fails(&["generate", "--model", &model, "--prompt", ""], "the prompt is empty");
    rig.fails(&["generate", "--model", &model, "--prompt", " \t\n"], "the prompt is empty");
    let ingest = ["chat", "--model", &model, "--policy", "sink", "--ingest", &text];
    rig.fails(&ingest, "empty.txt is empty");
    let text = rig.file("nothing.txt", "");
    rig.fails(&["perplexity", "--model", &model, "--text", &text], "at least 2 tokens are needed");
    let ingest = ["chat", "--model", &model, "--policy", "sink", "--ingest", "-"];
    rig.fails(&ingest, "--ingest - leaves no input for turns");
}
