//! Embeds the same texts again and again, whenever a line comes: `reference/onnx_speed.py` lets it take
//! turns with ONNX Runtime.
//!
//! `embed_speed FOLDER THREADS`; the first line of the input is a JSON array of texts. For each line that
//! follows it prints `{"seconds": …, "embeddings": […]}`.

use std::io::{BufRead, stdin};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use everstream_memory::{Embedder, MiniLm, MiniLmOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, n_threads] = &arguments[..] else {
        return Err("use embed_speed FOLDER THREADS".into());
    };
    let n_threads: NonZeroUsize = n_threads.parse()?;
    let model = MiniLm::open(Path::new(folder), MiniLmOptions { n_threads, ..Default::default() })?;
    let mut lines = stdin().lock().lines();
    let texts: Vec<String> = serde_json::from_str(&lines.next().ok_or("no texts")??)?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    while let Some(Ok(_)) = lines.next() {
        let start = Instant::now();
        let embeddings = model.embed(&texts)?;
        let seconds = start.elapsed().as_secs_f64();
        println!("{}", serde_json::json!({ "seconds": seconds, "embeddings": embeddings }));
    }
    Ok(())
}
