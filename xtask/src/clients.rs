//! Real clients against a real server on loopback, for as long as they run.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use crate::check::{Profile, built, run_command};
use crate::{models, structure};

/// What the gate asks with.
const CLIENTS: &[&str] = &["openai==2.54.0", "playwright==1.65.2"];
/// What `soak clients` asks with besides.
const FRAMEWORKS: &[&str] = &[
    "openai==2.54.0",
    "langchain-openai==1.7.4",
    "llama-index-llms-openai-like==0.8.1",
    "llm==0.32.1",
];
const JAVASCRIPT: &str = "openai@6";
const MODEL: &str = "smollm2-135m";

/// OpenAI's client for Python, and the page in Chromium where there is one.
pub(crate) fn check() -> anyhow::Result<()> {
    let program = built("everstream", Profile::Dev)?;
    let packages = packages("clients", CLIENTS)?;
    let server = Server::start(program)?;
    server.ask(&packages, "official.py", &[&server.url, MODEL])?;
    match ["chromium", "chromium-browser"].iter().any(|name| is_installed(name)) {
        true => server.ask(&packages, "page.py", &[&server.url]),
        false => {
            println!("xtask: no Chromium: the page was not looked at");
            Ok(())
        }
    }
}

/// Frameworks, the client for JavaScript, and a conversation of 200 turns.
pub(crate) fn soak() -> anyhow::Result<()> {
    models::pull()?;
    let program = built("everstream", Profile::Release)?;
    let packages = packages("frameworks", FRAMEWORKS)?;
    let server = Server::start(program.clone())?;
    server.ask(&packages, "frameworks.py", &[&server.url, MODEL])?;
    server.ask_javascript()?;
    let data = server.data.join("long");
    let (program, data) = (program.to_string_lossy(), data.to_string_lossy());
    server.ask(&packages, "long_conversation.py", &[&program, MODEL, &data])
}

/// A running server; it ends when this is dropped.
struct Server {
    child: Child,
    data: PathBuf,
    url: String,
}

impl Server {
    fn start(program: PathBuf) -> anyhow::Result<Self> {
        let data = structure::target_folder()?.join(format!("serve-data-{}", std::process::id()));
        let mut child = Command::new(program)
            .args(["serve", "--model", MODEL, "--addr", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run everstream serve")?;
        let said = child.stderr.take();
        // From here on it ends with this, whatever happens.
        let mut server = Self { child, data, url: String::new() };
        let said = said.context("it has no standard error")?;
        // It says where it listens; the rest is shown.
        let mut lines = BufReader::new(said).lines();
        for line in lines.by_ref() {
            let line = line?;
            if let Some((_, at)) = line.split_once(" at http://") {
                let address = at.split_once("/v1").map_or(at, |(address, _)| address);
                server.url = format!("http://{address}");
                break;
            }
            eprintln!("{line}");
        }
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| eprintln!("{line}"))
        });
        match server.url.is_empty() {
            true => bail!("the server did not start"),
            false => Ok(server),
        }
    }

    fn ask(&self, packages: &Path, script: &str, args: &[&str]) -> anyhow::Result<()> {
        let script = structure::root().join("crates/server/clients").join(script);
        run_command(Command::new("python3").arg(script).args(args).env("PYTHONPATH", packages))
    }

    fn ask_javascript(&self) -> anyhow::Result<()> {
        if !is_installed("npm") {
            println!("xtask: no npm: the client for JavaScript was not run");
            return Ok(());
        }
        let folder = self.data.join("javascript");
        fs_err::create_dir_all(&folder)?;
        let script = structure::root().join("crates/server/clients/client.mjs");
        fs_err::copy(script, folder.join("client.mjs"))?;
        let in_folder = |program: &str| {
            let mut command = Command::new(program);
            command.current_dir(&folder);
            command
        };
        run_command(in_folder("npm").args(["install", "--silent", "--no-save", JAVASCRIPT]))?;
        run_command(in_folder("node").args(["client.mjs", &self.url, MODEL]))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs_err::remove_dir_all(&self.data);
    }
}

fn is_installed(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Installs packages into the build folder, if they are not there. Another list has another folder.
fn packages(name: &str, list: &[&str]) -> anyhow::Result<PathBuf> {
    let versions: Vec<&str> = list.iter().filter_map(|p| p.split("==").nth(1)).collect();
    let folder = structure::target_folder()?.join(format!("{name}-{}", versions.join("-")));
    if folder.exists() {
        return Ok(folder);
    }
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs_err::remove_dir_all(&partial)?;
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(&partial).args(list);
    run_command(&mut pip)?;
    fs_err::rename(partial, &folder)?;
    Ok(folder)
}
