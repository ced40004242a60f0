//! Help, versions and wrong usage.

use crate::rig::Rig;

const COMMANDS: [&str; 14] = [
    "demo",
    "chat",
    "generate",
    "memory",
    "serve",
    "key",
    "perplexity",
    "eval",
    "bench",
    "inspect",
    "pull",
    "models",
    "rm",
    "completions",
];

#[test]
fn every_command_helps_with_examples() {
    let rig = Rig::new();
    for command in COMMANDS {
        let ran = rig.ok(&[command, "--help"]);
        assert!(ran.stdout.contains(&format!("everstream {command}")), "{ran:?}");
        assert!(ran.stdout.contains("Examples:\n"), "{command}");
        assert_eq!(ran.stderr, "");
    }
    let ran = rig.ok(&["--help"]);
    for command in COMMANDS {
        assert!(ran.stdout.contains(&format!("\n  {command} ")), "{command}: {}", ran.stdout);
    }
    assert!(ran.stdout.contains("Exit codes: "), "{}", ran.stdout);
    assert!(rig.ok(&["--version"]).stdout.starts_with("everstream "));
}

#[test]
fn wrong_usage_has_a_code_of_its_own() {
    let rig = Rig::new();
    let wrong: [&[&str]; 9] = [
        &[],
        &["dance"],
        &["models", "--no-such-option"],
        &["inspect"],
        &["generate"],
        &["generate", "--prompt", "x", "--file", "y"],
        &["generate", "--prompt", "x", "--policy", "oracle"],
        &["perplexity", "--text", "x", "--policy", "sink,oracle"],
        &["chat", "--threads", "0"],
    ];
    for arguments in wrong {
        let ran = rig.run_with_input(arguments, b"");
        assert_eq!(ran.code, Some(2), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains("Usage: ") || ran.stderr.contains("--help"), "{ran:?}");
        assert_eq!(ran.stdout, "");
    }
}

#[test]
fn an_unknown_policy_is_answered_with_those_that_exist() {
    let rig = Rig::new();
    for command in [&["chat"][..], &["generate", "--prompt", "x"], &["perplexity", "--text", "x"]] {
        let ran = rig.run(&[command, &["--policy", "oracle"]].concat());
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains("use dense, window, recompute, sink or remember"), "{ran:?}");
    }
}

#[test]
fn shells_are_told_what_there_is() {
    let rig = Rig::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = rig.ok(&["completions", shell]);
        assert!(ran.stdout.contains("memory-keep") && ran.stdout.contains("perplexity"), "{shell}");
    }
    assert_eq!(rig.run(&["completions", "csh"]).code, Some(2));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    use std::process::Stdio;
    let rig = Rig::new();
    for arguments in [&["models"][..], &["models", "--json"]] {
        let mut command = rig.command();
        let mut child =
            command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
}
