//! `everstream generate`: continues a text.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::bail;
use everstream_runtime::memory::Role;
use everstream_runtime::{Origin, Policy, Sampler, Session};
use serde_json::json;

use crate::args::{Common, GenerateArgs};
use crate::{load, output, recalled};

pub(crate) fn run(common: &Common, args: &GenerateArgs) -> anyhow::Result<()> {
    let prompt = match (&args.prompt, &args.file) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(file)) => load::text(file)?,
        (None, None) => bail!("nothing to continue: use --prompt TEXT or --file FILE"),
    };
    if prompt.trim().is_empty() {
        bail!("the prompt is empty: use --prompt TEXT or --file FILE with some text");
    }
    let mut config = args.cache.session(args.policy.unwrap_or(Policy::Remember));
    config.max_tokens = args.dense.context_limit;
    args.recall.apply(&mut config);
    config.draft_tokens = args.draft.draft_tokens;
    config.check()?;
    Sampler::new(args.sample.options().sampler)?;
    let (name, clusters) = (&args.model.model, &args.cache.clusters);
    let (model, encoder) =
        load::model_and_encoder(common, name, clusters, args.policy, &mut config)?;
    load::index(&args.recall.index, None, encoder.as_deref(), &mut config)?;
    let policy = config.policy;

    let start = Instant::now();
    let mut session;
    if args.chat {
        session = Session::with_system(model, encoder, config, None)?;
        session.turn(&prompt)?;
    } else {
        session = Session::new(model, encoder, config)?;
        session.begin()?;
        let tokens = session.encode(&prompt)?;
        session.read_prompt(&tokens, Origin::turn(Role::Document))?;
    }
    let (n_prompt, ttft) = (session.n_tokens(), start.elapsed());
    let recall = session.last_recall().cloned().unwrap_or_default();
    recalled::note(session.model().tokenizer(), &recall);
    let mut out = std::io::stdout().lock();
    let mut failed = None;
    let generated = session.generate(&args.sample.options(), &mut |piece| {
        if args.json {
            return ControlFlow::Continue(());
        }
        match out.write_all(piece.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let seconds = generated.elapsed.as_secs_f64();
    if args.json {
        let result = json!({
            "model": args.model.model,
            "policy": policy.name(),
            "text": generated.text,
            "stop": generated.stop.name(),
            "prompt_tokens": n_prompt,
            "generated_tokens": generated.tokens.len(),
            "drafted_tokens": session.drafts().drafted,
            "accepted_tokens": session.drafts().accepted,
            "recalled": recalled::json(session.model().tokenizer(), &recall),
            "ttft_ms": ttft.as_secs_f64() * 1e3,
            "decode_tokens_per_second": generated.tokens.len() as f64 / seconds,
        });
        writeln!(out, "{result}")?;
    } else {
        writeln!(out)?;
        output::dim_note(&format!(
            "{n_prompt} prompt tokens in {:.2} s, {} tokens at {:.1} tokens/s, {}",
            ttft.as_secs_f64(),
            generated.tokens.len(),
            generated.tokens.len() as f64 / seconds,
            generated.stop.name(),
        ));
    }
    Ok(())
}
