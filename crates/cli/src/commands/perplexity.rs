//! `everstream perplexity`: scores a text under one or more policies.

use std::io::Write;

use anyhow::bail;
use everstream_runtime::perplexity::{Positions, Score, score};
use everstream_runtime::{Policy, SessionConfig};
use serde_json::{Value, json};

use crate::args::{Common, PerplexityArgs};
use crate::{load, output};

/// One line of the result.
struct Row {
    config: SessionConfig,
    score: Score,
}

pub(crate) fn run(common: &Common, args: &PerplexityArgs) -> anyhow::Result<()> {
    if args.every == 0 {
        bail!("--every is 0, but must be at least 1");
    }
    if let Some(n_tokens) = args.tokens.filter(|&n| n < 2) {
        bail!("--tokens is {n_tokens}, but at least 2 are needed: one to predict the other");
    }
    // How long the text is shows later, and only `dense` minds.
    let n_tokens = args.tokens.unwrap_or(SessionConfig::MAX_SECTION_TOKENS);
    for &policy in &args.policy {
        session_config(args, policy, n_tokens).check()?;
    }
    let text = load::text(&args.text)?;
    let model = load::model(common, &args.model.model)?;
    let mut tokens = everstream_runtime::encode(&model, &text)?;
    // It is what the model was trained to begin with; it is not scored, having no predecessor.
    if let Some(bos) = model.tokenizer().first_token() {
        tokens.insert(0, bos);
    }
    if let Some(limit) = args.tokens {
        if limit > tokens.len() {
            bail!(
                "{} has {} tokens, fewer than --tokens {limit}",
                args.text.display(),
                tokens.len()
            );
        }
        tokens.truncate(limit);
    }
    if tokens.len() < 2 {
        bail!("{} is too short: at least 2 tokens are needed", args.text.display());
    }
    let positions = Positions { first: args.every.min(tokens.len() - 1), every: args.every };
    let configs: Vec<_> =
        args.policy.iter().map(|&policy| session_config(args, policy, tokens.len())).collect();
    for config in &configs {
        config.check()?;
    }
    let needs_encoder = args.policy.contains(&Policy::Remember);
    let encoder = if needs_encoder { load::encoder(common, Policy::Remember)? } else { None };
    let mut rows = Vec::new();
    for config in configs {
        let encoder = encoder.clone();
        let bar = output::token_bar(tokens.len(), config.policy.name());
        let mut progress = |position: usize, _loss: f64| bar.set_position(position as u64);
        let score = score(&model, encoder, config.clone(), &tokens, positions, &mut progress)?;
        bar.finish_and_clear();
        rows.push(Row { config, score });
    }
    let out = &mut std::io::stdout().lock();
    if args.json {
        let results: Vec<Value> = rows.iter().map(|row| row.json(positions)).collect();
        writeln!(out, "{}", json!({ "model": args.model.model, "results": results }))?;
    } else {
        writeln!(
            out,
            "{:<10} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>11}",
            "policy", "sinks", "clusters", "recalled", "window", "budget", "tokens", "perplexity"
        )?;
        for row in &rows {
            let c = &row.config;
            let (sinks, recalled, window) = sizes(c);
            writeln!(
                out,
                "{:<10} {sinks:>6} {:>8} {recalled:>8} {window:>8} {:>8} {:>8} {:>11.3}",
                c.policy.name(),
                c.n_clusters(),
                c.budget_tokens(),
                row.score.tokens,
                row.score.perplexity()
            )?;
        }
    }
    Ok(())
}

fn session_config(args: &PerplexityArgs, policy: Policy, n_tokens: usize) -> SessionConfig {
    let mut config = args.cache.session(policy);
    config.context_tokens = args.context_tokens;
    config.max_tokens = n_tokens;
    if !matches!(policy, Policy::Sink | Policy::Remember) {
        config.clusters = None;
    }
    // A window that is computed anew has room for what others keep as sinks.
    if matches!(policy, Policy::Window | Policy::Recompute) {
        let n_before = args.cache.session(Policy::Sink).n_before_window();
        config.window_tokens = config.window_tokens.saturating_add(n_before);
        config.n_sink = 0;
    }
    config
}

/// Sinks, recalled context and window of a policy, in tokens.
fn sizes(config: &SessionConfig) -> (usize, usize, usize) {
    match config.policy {
        Policy::Dense => (0, 0, config.max_tokens),
        Policy::Window | Policy::Recompute => (0, 0, config.window_tokens),
        Policy::Sink => (config.n_sink, 0, config.window_tokens),
        Policy::Remember => (config.n_sink, config.context_tokens, config.window_tokens),
    }
}

impl Row {
    fn json(&self, positions: Positions) -> Value {
        let (sinks, recalled, window) = sizes(&self.config);
        json!({
            "policy": self.config.policy.name(),
            "sinks": sinks,
            "clusters": self.config.clusters.map(|clusters| json!({
                "n": clusters.n_clusters,
                "place": clusters.place.name(),
                "form": clusters.form.name(),
                "bias": clusters.bias.name(),
            })),
            "context_tokens": recalled,
            "window": window,
            "budget_tokens": self.config.budget_tokens(),
            "tokens": self.score.tokens,
            "first_position": positions.first,
            "every": positions.every,
            "nll": self.score.nll(),
            "perplexity": self.score.perplexity(),
        })
    }
}
