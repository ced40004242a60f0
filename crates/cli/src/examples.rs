//! The examples that end each command's help.

pub(crate) const DEMO: &str = "\
Examples:
  everstream demo                               five questions about what the cache has lost
  everstream demo --seed 7                      five others
  everstream demo --all --model qwen2.5-coder-0.5b";

pub(crate) const CHAT: &str = "\
Examples:
  everstream chat
  everstream chat --ingest notes.md log.txt     talk about texts of any length
  everstream chat --system 'Answer in one sentence.' --policy sink
  everstream chat --session work                go on tomorrow where it ended today
  journalctl --since today | everstream chat --session log --ingest -
  echo 'Who locked the gate?' | everstream chat --ingest log.txt --json

Lines that begin with / are commands (/help lists them); // begins a turn that begins with /. On a
terminal Ctrl-C stops an answer and Ctrl-D ends the program. With piped input each line that is not
blank is a turn and each answer one line on standard output; recalls, progress and what commands say
go to standard error. What is typed at a terminal is kept in chat_history.txt of the cache folder.";

pub(crate) const GENERATE: &str = "\
Examples:
  everstream generate --prompt 'Once upon a time'
  everstream generate --file story.txt --max-tokens 500 --temperature 0.8 --seed 3
  fortune | everstream generate --file - --json";

pub(crate) const SERVE: &str = "\
Examples:
  everstream serve
  everstream serve --model qwen2.5-coder-0.5b --addr 0.0.0.0:8080 --api-key \"$(cat key)\"
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'

Any client of OpenAI's chat completions works with the base URL http://127.0.0.1:8080/v1. Clients send
the whole conversation with each turn; of one that goes on only what is new is read, and what the
cache has lost is recalled. A request with a field `session` sends what is new only, and goes on with a
session that `everstream chat --session NAME` knows as well. See docs/SERVER.md.";

pub(crate) const KEY: &str = "\
Examples:
  everstream key anna --keys keys
  everstream serve --addr 0.0.0.0:8080 --keys keys

The key is printed once; the file has its SHA-256. Whoever has a key sees their own conversations and
sessions only. To take a key back, remove its line and start the server again.";

pub(crate) const MEMORY: &str = "\
Examples:
  everstream memory ls
  everstream memory show --session work --role user --since 2days
  everstream memory search --session work 'where is the key?'
  everstream memory export --session work > work.jsonl
  everstream memory rm --session work 120..480  forgets these tokens; compact takes them off the disk
  everstream memory verify --session work";

pub(crate) const PERPLEXITY: &str = "\
Examples:
  everstream perplexity --text book.txt --policy sink --window 1020
  everstream perplexity --text book.txt --tokens 4000 --policy dense,window,sink --json
  everstream perplexity --text book.txt --tokens 4000 --policy recompute,sink --every 50";

pub(crate) const BENCH: &str = "\
Examples:
  everstream bench
  everstream bench --model qwen2.5-coder-0.5b --threads 2 --json
  everstream bench --stream-tokens 200000 --window 508 --plot stream.svg
  everstream bench --stream-tokens 100000 --text book-1.txt book-2.txt";

pub(crate) const INSPECT: &str = "\
Examples:
  everstream inspect smollm2-135m
  everstream inspect model.gguf --policy sink --window 4092
  everstream inspect model.gguf --tensors --metadata
  everstream inspect hf:ORG/REPO/FILE.gguf --json";

pub(crate) const PULL: &str = "\
Examples:
  everstream pull smollm2-135m
  everstream pull hf:ORG/REPO/FILE.gguf
  everstream pull ./model.gguf                  only checks the file
  everstream --cache-dir /data/models pull minilm --json";

pub(crate) const RM: &str = "\
Examples:
  everstream rm qwen2.5-coder-1.5b
  everstream rm hf:ORG/REPO/FILE.gguf";

pub(crate) const COMPLETIONS: &str = "\
Examples:
  everstream completions bash > ~/.local/share/bash-completion/completions/everstream
  everstream completions zsh > ~/.zfunc/_everstream
  everstream completions fish > ~/.config/fish/completions/everstream.fish";

pub(crate) const MODELS: &str = "\
Examples:
  everstream models
  everstream models --json";

pub(crate) const EVAL: &str = "\
Examples:
  everstream eval squad --data dev-v2.0.json
  everstream eval squad --data dev-v2.0.json --policy evidence,full,sink,rag-text,remember
  everstream eval squad --data dev-v2.0.json --policy remember --strategy hybrid,nearest,random --gate 2
  everstream eval passkey --distance 4000,16000 --limit 40 --out results/passkey --json
  everstream eval all comparison.toml --data data --out results
  everstream eval report results --to report";

pub(crate) const EVAL_ALL: &str = "\
Example of a file:
  model = \"qwen2.5-coder-0.5b\"
  seeds = [1, 2, 3]

  [[run]]
  task = \"squad\"
  data = \"dev-v2.0.json\"
  policy = [\"evidence\", \"sink\", \"remember\"]

  [[run]]
  name = \"passkey-16k\"
  task = \"passkey\"
  distance = 16000";
