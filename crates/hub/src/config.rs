//! The settings of a hub.

use std::fmt;
use std::path::PathBuf;

/// Where models are kept and fetched from: all that a [`Hub`](crate::Hub) can be told.
#[derive(Clone)]
pub struct HubConfig {
    /// The folder that holds the models; made when the first is pulled.
    pub cache_dir: PathBuf,
    /// The address of the Hugging Face hub or of a mirror; `None` for the hub's own.
    pub hf_endpoint: Option<String>,
    /// The access token for it.
    pub hf_token: Option<String>,
    /// The Python interpreter that runs pip: a name on the search path, or a path.
    pub python: String,
    /// Fetch nothing; use only what is there.
    pub offline: bool,
}

impl HubConfig {
    /// The usual settings: the public hub without a token, `python3`, downloads allowed.
    #[must_use]
    pub fn new(cache_dir: PathBuf) -> Self {
        let python = "python3".to_owned();
        Self { cache_dir, hf_endpoint: None, hf_token: None, python, offline: false }
    }
}

impl fmt::Debug for HubConfig {
    /// Leaves out the token, and the endpoint, which may carry a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("cache_dir", &self.cache_dir)
            .field("python", &self.python)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}
