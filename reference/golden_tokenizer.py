"""Writes golden token ids for the tokenizers, and golden chat prompts.

`cases`: ordinary text; decoding `ids` must give `text` back, byte for byte.
`special`: text that contains special tokens; `ids` recognises them, `ids_plain` takes them for ordinary text.
`lossy`: text with bytes that the vocabulary cannot express; `ids` is what `tokenizers` returns, which drops them,
and `decoded` is what comes back.

Chat prompts are rendered with jinja2, set up as the `transformers` package does.

    python golden_tokenizer.py ids MODEL.gguf NAME OUTPUT.json
    python golden_tokenizer.py chat OUTPUT.json NAME=MODEL.gguf NAME=MODEL.gguf
"""

import argparse
import json
import os

import jinja2
from gguf import GGUFReader
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

import bpe
from common import sha256, versions, write_json

TEXTS = [
    # Prose and punctuation.
    "",
    "a",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "She said: “It’s over” — and left…",
    "Wait... what?! No way!!! (Really?) [yes] {maybe} <never>",
    "e-mail: someone@example.org, https://example.org/a/b?c=d&e=%20f#g",
    "snake_case, camelCase, SCREAMING_CASE, kebab-case, dotted.name.here",
    "Pneumonoultramicroscopicsilicovolcanoconiosis and antidisestablishmentarianism",
    "x" * 200,
    "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen",
    "A sentence.Another without a space;and;more,and more:end",
    # Contractions in both cases, with straight and curly apostrophes.
    "I'm sure you're right, they've gone, we'll see, he'd know, it's late, don't ask.",
    "I'M SURE YOU'RE RIGHT, THEY'VE GONE, WE'LL SEE, HE'D KNOW, IT'S LATE, DON'T ASK.",
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'VE 'M 'LL 'D 'x 'Re 'lL",
    "it’s, rock'n'roll, o'clock, 'quoted', ''double''",
    "the long s: it'ſ",
    # Digits.
    "0 1 12 123 1234 12345 1234567890",
    "3.14159, -42, +7, 1e-9, 0xDEADBEEF, 1,000,000.00, 50%, №5, ½ and ²",
    "2031-07-14T09:05:59Z room101 B2B 4x4 v1.2.3-rc4",
    "Arabic-Indic ٠١٢٣, Devanagari ०१२३, full width １２３, Roman Ⅻ, circled ①②",
    # White space.
    " ",
    "  ",
    " leading and trailing ",
    "two  spaces,   three,    four,        eight,                 many",
    "\n",
    "\n\n",
    "\n\n\n\n\n\n\n\n",
    "\r\n",
    "line one\r\nline two\r\n\r\nline four\r\n",
    "old\rMac\rlines\r\r",
    "trailing spaces   \n   leading spaces\n \n  \n",
    "\t",
    "a\tb\t\tc\t\t\td\n\te\n\t\tf",
    "mixed \t \n \t\n\t \r\n end \t ",
    "no\u00a0break, thin\u2009space, ideographic\u3000space, zero\u200bwidth, line\u2028separator, next\u0085line",
    "vertical\vtab, form\ffeed",
    # Code.
    "def f(x):\n    if x > 0:\n        return x ** 2\n    else:\n        return None\n",
    "fn main() {\n\tlet v: Vec<u8> = vec![1, 2, 3];\n\tprintln!(\"{:?}\", &v[..]);\n}\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]*c; } // done",
    "SELECT name, COUNT(*) FROM t WHERE x <> '' GROUP BY name HAVING COUNT(*) >= 2;",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\\n\": \"\\u00e9\"}}",
    "<div class=\"a b\"><!-- c --><p>d&nbsp;e</p></div>",
    "#include <stdio.h>\n#define MAX(a,b) ((a)>(b)?(a):(b))\n",
    "                        deeply_indented = True\n                    dedented = False\n",
    "$ grep -rn \"foo\" ./src | sort -u > /dev/null 2>&1 && echo $?",
    # Scripts.
    "你好，世界！今天天气很好，我们去公园吧。",
    "東京は日本の首都です。カタカナとひらがな、漢字。",
    "안녕하세요 세계, 한국어 문장입니다.",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "שלום עולם, מה נשמע?",
    "नमस्ते दुनिया, आप कैसे हैं? क्षत्रिय",
    "สวัสดีชาวโลก วันนี้อากาศดี",
    "Привет, мир! Как дела? Ёлка.",
    "Γειά σου Κόσμε, ὦ ἄνδρες Ἀθηναῖοι",
    "Tiếng Việt có nhiều dấu: ằẵẳặ",
    "Übergröße, naïve façade, Ærøskøbing, İstanbul ı, ŁÓDŹ, ﬁ ligature",
    # Emoji, combining marks, directions.
    "🙂🚀🔥 text 👍🏽 and 🇩🇪🇯🇵",
    "family: 👩‍👩‍👧‍👦, flag: 🏳️‍🌈, heart: ❤️, keycap: 5️⃣",
    "e\u0301 (combining) against \u00e9 (composed); A\u030a against \u00c5; n\u0303; \u1100\u1161\u11a8",
    "Z̷̡a̴͝l̵̀g̶o̸",
    "left \u202bright\u202c left, \ufeffbyte order mark, soft\u00adhyphen",
    "∀x∈ℝ: ∑ᵢ xᵢ² ≥ 0 ⇒ ‖x‖ ≥ 0; 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝑚𝑎𝑡ℎ",
    "NUL\u0000byte, bell\u0007, escape\u001b[0m, delete\u007f, unit\u001f",
    # Almost special.
    "<|im_start |> <|im_end <im_end|> < |im_start|> im_start",
    "Replacement \ufffd, last of plane 0 \uffff, private \ue000, tag \U000e0041",
]

SPECIAL_TEXTS = [
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>",
    "a<|im_end|>b <|im_end|> c\n<|im_end|>\n",
    "<|im_start|><|im_start|><|im_end|>",
    "text <|im_start|>system",
]

GEMMA_SPECIAL_TEXTS = [
    "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n",
    "<eos>",
    "a<end_of_turn>b <end_of_turn> c\n\n\n<end_of_turn>\n",
    "<start_of_turn><start_of_turn><end_of_turn>",
    "[multimodal] <unused7><0x41> <unk>",
]

# Control characters and the bytes of unassigned planes: not in SmolLM2's vocabulary.
BEYOND_ASCII_PRINTABLE = [
    "\u0004",
    "end of transmission \u0004, acknowledge\u0006done, \u0013\u0014 x \u0016\u001d",
    "plane 4: \U00040000 and plane 8: \U00080000.",
    "".join(map(chr, range(0x20))),
]

CONVERSATIONS = [
    [("user", "Hello!")],
    [("system", "You are terse."), ("user", "What is the capital of France?")],
    [("user", "Hi"), ("assistant", "Hello. How can I help?"), ("user", "Write a haiku.\n\nIn German, please.")],
    [
        ("system", "  Leading and trailing white space  \n"),
        ("user", "First"),
        ("assistant", "Second"),
        ("user", "Third"),
        ("assistant", "Fourth"),
    ],
    [("system", "Only a system turn.")],
    [("system", ""), ("user", "")],
    [("user", "Quotes \"a\" 'b', braces {{ x }} {% if %}, markup <b>&amp;</b>, special <|im_end|>, 你好 🙂")],
    [("user", "One"), ("system", "A system turn in the middle."), ("user", "Two")],
]


def fields_of(path):
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def write_ids(path, name, output):
    fields = fields_of(path)
    tokenizer = bpe.from_gguf(fields)
    plain = bpe.from_gguf(fields, with_special=False)

    cases, lossy = [], []
    for text in TEXTS + BEYOND_ASCII_PRINTABLE:
        ids = bpe.encode(tokenizer, text)
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        if decoded == text:
            cases.append({"text": text, "ids": ids})
        else:
            lossy.append({"text": text, "ids": ids, "decoded": decoded})
    special = [
        {"text": text, "ids": bpe.encode(tokenizer, text), "ids_plain": bpe.encode(plain, text)}
        for text in (GEMMA_SPECIAL_TEXTS if fields["tokenizer.ggml.model"] == "llama" else SPECIAL_TEXTS)
    ]
    print(f"{name}: {len(cases)} cases, {len(special)} special, {len(lossy)} lossy")
    write_json(output, header() | {
        "model": name,
        "file": os.path.basename(path),
        "sha256": sha256(path),
        "pre": fields["tokenizer.ggml.pre"],
        "missing_bytes": missing_bytes(fields),
        "cases": cases,
        "special": special,
        "lossy": lossy,
    })


def missing_bytes(fields):
    if fields["tokenizer.ggml.model"] == "llama":
        return []
    tokens = set(fields["tokenizer.ggml.tokens"])
    return sorted(byte for byte, symbol in bpe.byte_symbols().items() if symbol not in tokens)


def header():
    return {
        "script": "reference/golden_tokenizer.py",
        "versions": versions("tokenizers", "gguf", "jinja2"),
        "seed": None,
        "tolerance": "exact",
    }


def template_environment():
    """The environment that `transformers` renders chat templates in."""

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


def write_chat(output, models):
    cases = []
    for name, path in models.items():
        fields = fields_of(path)
        template = template_environment().from_string(fields["tokenizer.chat_template"])
        tokens = fields["tokenizer.ggml.tokens"]
        for turns in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in turns]
            for add_generation_prompt in (True, False):
                text = template.render(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
                    eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
                )
                cases.append({"model": name, "messages": messages,
                              "add_generation_prompt": add_generation_prompt, "text": text})
    templates = [
        {"model": name, "sha256": sha256(path), "chat_template": fields_of(path)["tokenizer.chat_template"]}
        for name, path in models.items()
    ]
    write_json(output, header() | {"templates": templates, "cases": cases})


def main():
    parser = argparse.ArgumentParser(description="Writes golden token ids or golden chat prompts.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    ids = kinds.add_parser("ids")
    ids.add_argument("model")
    ids.add_argument("name")
    ids.add_argument("output")
    chat = kinds.add_parser("chat")
    chat.add_argument("output")
    chat.add_argument("models", nargs="+", metavar="NAME=MODEL.gguf")
    arguments = parser.parse_args()
    if arguments.kind == "ids":
        write_ids(arguments.model, arguments.name, arguments.output)
    else:
        write_chat(arguments.output, dict(model.split("=", 1) for model in arguments.models))


if __name__ == "__main__":
    main()
