//! A real Chroma server for the tests that need one, on loopback, for as long as they run.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::check::run_command;
use crate::structure;

const PACKAGE: &str = "chromadb==1.5.9";
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// A running server; it ends when this is dropped.
pub(crate) struct Server {
    child: Child,
    data: PathBuf,
    pub(crate) url: String,
}

impl Server {
    /// Installs the server into the build folder, if it is not there, and starts it.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let packages = structure::target_folder()?.join(PACKAGE.replace("==", "-"));
        install(&packages)?;
        let data = structure::target_folder()?.join(format!("chroma-data-{}", std::process::id()));
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = fs_err::File::create(structure::target_folder()?.join("chroma.log"))?;
        let child = Command::new(packages.join("bin/chroma"))
            .env("PYTHONPATH", &packages)
            .args(["run", "--host", "127.0.0.1", "--port", &address.port().to_string(), "--path"])
            .arg(&data)
            .stdout(Stdio::from(log.into_file()))
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run chroma")?;
        let mut server = Self { child, data, url: format!("http://{address}") };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("chroma ended ({status}): see chroma.log in the build folder");
            }
            if start.elapsed() > START_TIMEOUT {
                bail!("chroma did not start within {START_TIMEOUT:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs_err::remove_dir_all(&self.data);
    }
}

fn install(packages: &Path) -> anyhow::Result<()> {
    if packages.join("bin/chroma").exists() {
        return Ok(());
    }
    let partial = packages.with_extension("partial");
    if partial.exists() {
        fs_err::remove_dir_all(&partial)?;
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(&partial).arg(PACKAGE);
    run_command(&mut pip)?;
    Ok(fs_err::rename(partial, packages)?)
}
