//! Pulls models into a folder and says how long it took.
//!
//! ```text
//! cargo run --release -p everstream-hub --example pull -- FOLDER MODEL...
//! ```

use std::time::Instant;

use everstream_hub::{Hub, HubConfig, HubError, Progress};

/// Prints a line at the beginning and at the end of each step.
#[derive(Default)]
struct Lines {
    bytes: u64,
}

impl Progress for Lines {
    fn begin(&mut self, what: &str, total_bytes: Option<u64>) {
        self.bytes = 0;
        match total_bytes {
            Some(total) => eprintln!("{what}: {total} bytes"),
            None => eprintln!("{what}"),
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    fn finish(&mut self) {
        eprintln!("  {} bytes", self.bytes);
    }

    fn note(&mut self, text: &str) {
        eprintln!("  {text}");
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let Some(folder) = args.next() else {
        eprintln!("usage: pull FOLDER MODEL...");
        std::process::exit(2);
    };
    let hub = Hub::new(HubConfig::new(folder.into()));
    for model in args {
        if let Err(error) = pull(&hub, &model) {
            eprintln!("error: {error}");
            std::process::exit(1);
        }
    }
    for listed in hub.list() {
        let entry = listed.entry;
        println!("{:20} {:>13} {:?}", entry.name, entry.bytes(), listed.presence);
    }
}

fn pull(hub: &Hub, model: &str) -> Result<(), HubError> {
    let spec = hub.parse(model)?;
    let start = Instant::now();
    let files = hub.pull(&spec, &mut Lines::default())?;
    println!("{model}: {} in {:.1} s", files.main.display(), start.elapsed().as_secs_f64());
    let start = Instant::now();
    hub.locate(&spec)?;
    println!("{model}: found again in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}
