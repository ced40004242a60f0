"""Writes golden sentence embeddings of all-MiniLM-L6-v2, computed by the `sentence-transformers` package.

Mean pooling over all word pieces, then normalised to length 1; float32; one sentence at a time, so without padding.
Longer texts are cut to `max_seq_length` word pieces, [CLS] and [SEP] among them.
(The truncation and padding to 128 that `tokenizer.json` contains are not used: the package overrides them.)

    HF_HUB_OFFLINE=1 python golden_minilm.py MODEL_FOLDER OUTPUT.json
"""

import argparse
import pathlib

import torch
from sentence_transformers import SentenceTransformer

from common import sha256, significant, versions, write_json

LONG = (
    "The archive fills the whole cellar, and every winter the water comes a little closer to it. "
    "We have moved the oldest boxes to the upper shelves, where the labels fade in the light instead. "
    "Whoever looks for a name has to know the year, the parish and the handwriting of three clerks. "
)

SENTENCES = [
    # Short.
    "Yes.",
    "A dog runs in the park.",
    "The puppy is playing outside on the grass.",
    "Interest rates rose by half a percent.",
    "The central bank tightened its policy again.",
    "She plays the violin every evening.",
    "How do I reset my password?",
    "I forgot my login and cannot sign in.",
    "Bread needs flour, water, salt and time.",
    "The train to the coast leaves at six.",
    # Who said what: like the blocks of a chat.
    "User: my sister's name is Ingrid and she lives in Bergen.",
    "Assistant: I will remember that Ingrid lives in Bergen.",
    "Where does my sister live?",
    "What did we decide about the colour of the kitchen?",
    "We agreed to paint the kitchen dark green, except for the ceiling.",
    # Numbers, units, code, markup.
    "3.14159 26535 89793",
    "The invoice of 14 July 2031 amounts to 1,284.50 euros.",
    "Call 555-0199 between 9:00 and 17:30.",
    "x = [i ** 2 for i in range(10) if i % 2 == 0]",
    "fn main() { println!(\"{}\", 1 + 1); }",
    "SELECT id FROM block WHERE distance < 0.25 ORDER BY distance;",
    "<p class=\"note\">Some <b>bold</b> text &amp; more</p>",
    "https://example.org/path?query=value#fragment",
    "E = mc^2; a_1, a_2, ..., a_n",
    # Not English, not ASCII.
    "Der Fluss friert in diesem Winter nicht zu.",
    "El río no se congela este invierno.",
    "Où est la bibliothèque, s'il vous plaît ?",
    "Привет, как дела?",
    "你好，世界！今天天气很好。",
    "東京は日本の首都です。",
    "안녕하세요, 반갑습니다.",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "Ça coûte 3,50 € au café; naïve façade, ÅNGSTRÖM, İstanbul.",
    "e\u0301 combining and \u00e9 composed",
    "🙂 🚀 👩‍👩‍👧‍👦 mixed with words",
    "\u00bd cup of sugar, 20 \u00b0C, \u2264 5 \u00b5m",
    # Empty, or nearly.
    "",
    " ",
    "\n\n\t",
    ".",
    "?!...",
    "\u0000\u0007 control\u0000characters",
    # Odd shapes.
    "UPPER CASE AND lower case Are The Same Here",
    "upper case and lower case are the same here",
    "word " * 60,
    "antidisestablishmentarianism " * 3 + "x" * 150,
    # Long: under, around and far over the limit.
    LONG,
    LONG * 4,
    LONG * 12,
]


def main():
    parser = argparse.ArgumentParser(description="Writes golden sentence embeddings.")
    parser.add_argument("model", help="folder of the sentence-transformers model")
    parser.add_argument("output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = SentenceTransformer(arguments.model, device="cpu")
    embeddings = model.encode(SENTENCES, batch_size=1, normalize_embeddings=True)
    sentences = []
    for text, embedding in zip(SENTENCES, embeddings):
        ids = model.preprocess([text])["input_ids"][0].tolist()
        sentences.append({"text": text, "ids": ids, "embedding": significant(embedding, 7)})
    assert len(sentences) == 50
    write_json(arguments.output, {
        "script": "reference/golden_minilm.py",
        "versions": versions("sentence-transformers", "transformers", "tokenizers", "torch", "numpy"),
        "seed": None,
        "sha256": sha256(pathlib.Path(arguments.model) / "model.safetensors"),
        "max_seq_length": model.max_seq_length,
        "pooling": "mean, then normalised to length 1",
        "tolerance": 1e-4,
        "sentences": sentences,
    })


if __name__ == "__main__":
    main()
