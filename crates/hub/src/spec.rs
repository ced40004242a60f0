//! What a user may write where a model is expected.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::HubError;
use crate::table::{self, Entry, TABLE};

/// Where a model is, as the user said it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Spec {
    /// A name of [`TABLE`].
    Name(String),
    /// One file of the Hugging Face hub.
    Hf(HfSpec),
    /// A file or folder of this machine.
    Path(PathBuf),
}

impl Spec {
    /// Reads `NAME`, `hf:ORG/REPO/FILE` or `PATH`, in this order.
    ///
    /// A path is anything that has a path separator, ends in `.gguf`, or exists. A file that has
    /// the name of a model is reached as `./NAME`.
    ///
    /// # Errors
    ///
    /// [`HubError::UnknownName`] and [`HubError::BadHfSpec`].
    ///
    /// ```
    /// use everstream_hub::Spec;
    ///
    /// assert_eq!(Spec::parse("minilm")?, Spec::Name("minilm".into()));
    /// assert!(matches!(Spec::parse("hf:org/repo/model.gguf")?, Spec::Hf(_)));
    /// assert_eq!(Spec::parse("./minilm")?, Spec::Path("./minilm".into()));
    /// assert!(Spec::parse("minilmm").is_err());
    /// # Ok::<(), everstream_hub::HubError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, HubError> {
        Self::parse_with(TABLE, text)
    }

    /// As [`Spec::parse`], with the names of another table.
    pub(crate) fn parse_with(table: &'static [Entry], text: &str) -> Result<Self, HubError> {
        if let Some(rest) = text.strip_prefix("hf:") {
            return HfSpec::parse(rest).map(Self::Hf);
        }
        if table::find(table, text).is_some() {
            return Ok(Self::Name(text.to_owned()));
        }
        let has_separator = text.chars().any(std::path::is_separator);
        if has_separator || text.ends_with(".gguf") || Path::new(text).exists() {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        Err(HubError::UnknownName { name: text.to_owned(), known: table::names(table) })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Hf(hf) => hf.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// One `.gguf` file of a repository of the Hugging Face hub, or a file of a dataset there, on its main branch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HfSpec {
    is_dataset: bool,
    repo: String,
    file: String,
}

/// What the repositories of datasets begin with, as in the hub's own addresses.
pub(crate) const DATASETS: &str = "datasets/";
/// Endings of files with data.
const DATA_ENDINGS: [&str; 5] = [".json", ".jsonl", ".jsonl.gz", ".parquet", ".txt"];

/// Longest `ORG/REPO/FILE` accepted: its folder's name must fit a file system.
const MAX_HF_CHARS: usize = 200;

impl HfSpec {
    /// Reads `ORG/REPO/FILE` or `datasets/ORG/REPO/FILE`, where `FILE` may lie in folders of the repository.
    ///
    /// Only letters, digits, `.`, `_` and `-` are allowed between the slashes: such a text needs
    /// no escaping in a URL and cannot leave a folder.
    fn parse(text: &str) -> Result<Self, HubError> {
        let fault = |reason| HubError::BadHfSpec { spec: format!("hf:{text}"), reason };
        let of_dataset = text.strip_prefix(DATASETS);
        let parts: Vec<&str> = of_dataset.unwrap_or(text).split('/').collect();
        let [org, repo, file @ ..] = parts.as_slice() else {
            return Err(fault("it has no slash"));
        };
        if file.is_empty() {
            return Err(fault("it needs at least two slashes"));
        }
        if text.len() > MAX_HF_CHARS {
            return Err(fault("it is longer than 200 characters"));
        }
        if !parts.iter().all(|part| is_plain(part)) {
            return Err(fault("between slashes stand letters, digits, '.', '_' and '-'"));
        }
        let is_dataset = of_dataset.is_some();
        if is_dataset && !DATA_ENDINGS.iter().any(|ending| text.ends_with(ending)) {
            return Err(fault("data ends in .json, .jsonl, .jsonl.gz, .parquet or .txt"));
        }
        if !is_dataset && !text.ends_with(".gguf") {
            return Err(fault("only .gguf files are models"));
        }
        Ok(Self { is_dataset, repo: format!("{org}/{repo}"), file: file.join("/") })
    }

    /// The repository of `hf:datasets/ORG/REPO`, a dataset without a file of it.
    pub(crate) fn dataset_repo(text: &str) -> Option<&str> {
        let repo = text.strip_prefix("hf:")?.strip_prefix(DATASETS)?;
        let mut parts = repo.split('/');
        let is_repo = parts.all(is_plain) && repo.matches('/').count() == 1;
        (is_repo && repo.len() <= MAX_HF_CHARS).then_some(repo)
    }

    /// The file of a dataset that evaluations mean: its only one with data, or the only one of the part that
    /// is called validation or dev, or test if there is none.
    pub(crate) fn dataset_file(repo: &str, files: &[String]) -> Result<String, HubError> {
        let is_data = |file: &&String| {
            let name = file.rsplit('/').next().unwrap_or(file);
            DATA_ENDINGS.iter().any(|ending| file.ends_with(ending))
                && !file.ends_with(".txt")
                && !name.starts_with("dataset_info")
                && file.split('/').all(is_plain)
        };
        let data: Vec<&String> = files.iter().filter(is_data).collect();
        let part = |names: &[&str]| -> Vec<&String> {
            let is_of = |file: &&&String| names.iter().any(|name| file.contains(name));
            data.iter().filter(is_of).copied().collect()
        };
        let mut parts = [data.clone(), part(&["validation", "dev"]), part(&["test"])].into_iter();
        match parts.find(|part| part.len() == 1) {
            Some(one) => Ok(format!("hf:{DATASETS}{repo}/{}", one[0])),
            None => Err(HubError::DatasetFile {
                name: format!("hf:{DATASETS}{repo}"),
                files: data.into_iter().cloned().collect(),
            }),
        }
    }

    /// Whether the repository is one of datasets.
    #[must_use]
    pub fn is_dataset(&self) -> bool {
        self.is_dataset
    }

    /// `ORG/REPO`.
    #[must_use]
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The path of the file in the repository.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The last component of [`HfSpec::file`].
    pub(crate) fn base_name(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or(&self.file)
    }

    /// The name of its folder in the cache; `+` occurs nowhere else, so no two specs share one.
    pub(crate) fn key(&self) -> String {
        self.to_string().replacen(':', "+", 1).replace('/', "+")
    }
}

fn is_plain(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    part.chars().all(plain) && part.chars().any(|c| c != '.')
}

impl fmt::Display for HfSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let datasets = if self.is_dataset { DATASETS } else { "" };
        write!(f, "hf:{datasets}{}/{}", self.repo, self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, &str>) {
        let found = match Spec::parse(text) {
            Ok(Spec::Name(name)) => Ok(format!("name {name}")),
            Ok(Spec::Hf(hf)) => Ok(format!("hf {} {}", hf.repo(), hf.file())),
            Ok(Spec::Path(path)) => Ok(format!("path {}", path.display())),
            Err(error) => Err(error.to_string()),
        };
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text:?}"),
            (Err(found), Err(part)) => assert!(found.contains(part), "{text:?}: {found}"),
            (found, _) => panic!("{text:?}: {found:?}"),
        }
    }

    #[test]
    fn names_hub_files_and_paths() {
        check("minilm", Ok("name minilm"));
        check("hf:Qwen/R-GGUF/q.gguf", Ok("hf Qwen/R-GGUF q.gguf"));
        check("hf:o/r/sub/q.gguf", Ok("hf o/r sub/q.gguf"));
        check("model.gguf", Ok("path model.gguf"));
        check("dir/model", Ok("path dir/model"));
        check("./minilm", Ok("path ./minilm"));
        check("Cargo.toml", Ok("path Cargo.toml"));
    }

    #[test]
    fn everything_else_is_refused_with_the_known_names() {
        for text in ["", "smollm", "MINILM", "minilm ", "HF:a"] {
            check(text, Err("give one of smollm2-135m, qwen2.5-coder-0.5b, "));
        }
    }

    #[test]
    fn hub_specs_cannot_leave_their_folder() {
        check("hf:", Err("no slash"));
        check("hf:a/b", Err("two slashes"));
        check("hf:a/b/", Err("between slashes"));
        check("hf:a/b/../x.gguf", Err("between slashes"));
        check("hf:/etc/x.gguf", Err("between slashes"));
        check("hf:a/b/c d.gguf", Err("between slashes"));
        check("hf:a/b/c%2f.gguf", Err("between slashes"));
        check("hf:a/b/c.bin", Err("only .gguf"));
        check("hf:datasets/a/b/c.parquet", Ok("hf a/b c.parquet"));
        check("hf:datasets/a/b/c.gguf", Err("data ends in .json"));
        check("hf:datasets/a/b", Err("two slashes"));
        check(&format!("hf:a/b/{}.gguf", "x".repeat(300)), Err("200 characters"));
    }

    #[test]
    fn a_dataset_means_its_part_for_validation() {
        assert_eq!(HfSpec::dataset_repo("hf:datasets/a/b"), Some("a/b"));
        for other in ["hf:a/b", "hf:datasets/a", "hf:datasets/a/b/c", "hf:datasets/../b", "a/b"] {
            assert_eq!(HfSpec::dataset_repo(other), None, "{other}");
        }
        let choose = |files: &[&str]| {
            let files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
            HfSpec::dataset_file("a/b", &files).map_err(|error| error.to_string())
        };
        let check = |files: &[&str], expected: &str| {
            assert_eq!(choose(files).unwrap(), format!("hf:datasets/a/b/{expected}"));
        };
        check(&["README.md", "dataset_infos.json", "x.jsonl"], "x.jsonl");
        check(&["d/train-0.parquet", "d/validation-0.parquet"], "d/validation-0.parquet");
        check(&["train.json", "dev.json", "test.json"], "dev.json");
        check(&["train.json", "test.json", "a b.json"], "test.json");
        for files in [&["README.md", "notes.txt"][..], &["a.json", "b.json"], &[]] {
            let error = choose(files).unwrap_err();
            assert!(error.contains("hf:datasets/a/b"), "{error}");
        }
        let error = choose(&["a/dev.json", "b/dev.json", "train.json"]).unwrap_err();
        assert!(error.contains("/a/dev.json, /b/dev.json, /train.json"), "{error}");
    }

    #[test]
    fn keys_differ() {
        let key = |text: &str| HfSpec::parse(text).unwrap().key();
        assert_eq!(key("a/b/c.gguf"), "hf+a+b+c.gguf");
        assert_ne!(key("a/b/c/d.gguf"), key("a/b/c-d.gguf"));
    }
}
