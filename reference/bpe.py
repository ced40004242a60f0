"""Rebuilds a model's own tokenizer from its GGUF file, with the `tokenizers` package: byte-level BPE, or
SentencePiece's BPE, whose merges follow from the scores of its tokens as the `transformers` package derives them.

The pre-tokenizers are those that Hugging Face configures for the families,
with one exception: `qwen2` gets no NFC normalisation, because it would change the bytes of the text,
and a stream must give back what was put in.

`tokenizers` drops a byte whose symbol is missing from the vocabulary (`unk_token` is null).
SmolLM2's vocabulary lacks 21 bytes, among them six ASCII control characters.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+CONTRACTION|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*CONTRACTION|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "qwen2": QWEN2_PATTERN,
    "llama-bpe": LLAMA3_PATTERN,
    "dbrx": LLAMA3_PATTERN,
    "smaug-bpe": LLAMA3_PATTERN,
    "gpt-4o": CASED.replace("CONTRACTION", CONTRACTION).replace("DIGITS", r"\p{N}{1,3}"),
    "tekken": CASED.replace("CONTRACTION", "").replace("DIGITS", r"\p{N}"),
}
# A word that is a token is not merged.
IGNORE_MERGES = ("llama-bpe", "tekken")


def byte_symbols():
    """GPT-2's alphabet: for each byte the printable character that stands for it in a vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def pre_tokenizer(name):
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in ("smollm", "refact"):
        return pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ])
    if name in PATTERNS:
        return pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(PATTERNS[name]), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
    raise ValueError(f"unknown pre-tokenizer {name!r}")


def from_gguf(fields, with_special=True):
    """`fields`: GGUF key to value. Without special tokens, `<|im_start|>` is spelled out as ordinary text."""
    tokens = fields["tokenizer.ggml.tokens"]
    types = fields["tokenizer.ggml.token_type"]
    if fields["tokenizer.ggml.model"] == "llama":
        return sentencepiece(tokens, types, fields["tokenizer.ggml.scores"], with_special)
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    ignore_merges = fields["tokenizer.ggml.pre"] in IGNORE_MERGES
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer(fields["tokenizer.ggml.pre"])
    tokenizer.decoder = decoders.ByteLevel()
    if with_special:
        for token, kind in zip(tokens, types):
            if kind in (CONTROL, USER_DEFINED):
                tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)])
    assert tokenizer.get_vocab_size() == len(tokens)
    return tokenizer


def sentencepiece(tokens, types, scores, with_special):
    """Tokens with a fixed spelling are found in any text, control tokens only with `with_special`."""
    vocab = {token: i for i, token in enumerate(tokens)}
    normal = {token: i for i, (token, kind) in enumerate(zip(tokens, types)) if kind == NORMAL}
    merges = []
    for token, i in normal.items():
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        merges += [(scores[i], len(a), a, b) for a, b in halves if a in normal and b in normal]
    merges = [(a, b) for _, _, a, b in sorted(merges, key=lambda merge: merge[:2], reverse=True)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    found = (CONTROL, USER_DEFINED) if with_special else (USER_DEFINED,)
    for token, kind in zip(tokens, types):
        if kind in found:
            tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)])
    assert tokenizer.get_vocab_size() == len(tokens)
    return tokenizer


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids
