//! OpenAI's older completions: a text that goes on, and how likely its tokens are.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use everstream_runtime::model::Model;
use everstream_runtime::{Generated, TokenLogProb};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::unbounded_channel;

use super::chat::{StreamOptions, finish_reason, recalled, usage};
use super::sampling::Sampling;
use super::tokens::begin_with;
use super::{Answer, Framing, Parts, Reply, Shared, off_thread, parse, session_name};
use crate::engine::{Begun, Job, Piece, Task};
use crate::error::ApiError;

/// Alternatives to each token at most.
const MAX_TOP: usize = 20;
/// Prompts of a request at most.
const MAX_PROMPTS: usize = 64;
/// Tokens of a prompt at most of which each is told how likely it was.
const MAX_SCORED_TOKENS: usize = 32_768;
/// Tokens of an answer where a request does not say, as OpenAI has it.
const DEFAULT_MAX_TOKENS: usize = 16;

/// The body of `POST /v1/completions`.
#[derive(Debug, Deserialize)]
struct CompletionRequest {
    model: Option<String>,
    prompt: Prompts,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<usize>,
    logprobs: Option<usize>,
    echo: Option<bool>,
    suffix: Option<String>,
    session: Option<String>,
    best_of: Option<u64>,
    #[serde(flatten)]
    sampling: Sampling,
}

/// One prompt or several, as text or as tokens.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "prompt must be a text, a list of texts, of tokens, or of lists of tokens"
)]
enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

impl Prompts {
    /// The tokens of each; a text begins as the model expects it.
    fn tokens(&self, model: &Model) -> Result<Vec<Vec<u32>>, ApiError> {
        let text = |text: &String| begin_with(model, text);
        match self {
            Self::Text(one) => Ok(vec![text(one)?]),
            Self::Texts(texts) => texts.iter().map(text).collect(),
            Self::Tokens(tokens) => Ok(vec![tokens.clone()]),
            Self::ManyTokens(tokens) => Ok(tokens.clone()),
        }
    }
}

pub(super) async fn completions(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let request: CompletionRequest = parse(&headers, body)?;
    shared.check_model(request.model.as_deref())?;
    if session_name(&headers, request.session.clone()).is_some() {
        let message = "a completion is no turn of a session: use /v1/chat/completions";
        return Err(ApiError::invalid("session", message));
    }
    let n_top = request.check()?;
    let max_tokens = request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    let mut options = request.sampling.options(&shared, Some(max_tokens))?;
    (options.log_probs, options.n_top) = (n_top.is_some(), n_top.unwrap_or(0));
    let model = Arc::clone(&shared.engine.model);
    let given = request.prompt;
    let prompts = off_thread(move || given.tokens(&model)).await?;
    let model = Arc::clone(&shared.engine.model);
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
        let message = format!("there must be a prompt, and may be {MAX_PROMPTS}");
        return Err(ApiError::invalid("prompt", message));
    }
    let n_vocab = model.config().vocab_size;
    if prompts.iter().flatten().any(|&token| token as usize >= n_vocab) {
        let message = format!("tokens are numbers below {n_vocab}");
        return Err(ApiError::invalid("prompt", message));
    }
    if prompts.iter().any(Vec::is_empty) {
        return Err(ApiError::invalid(
            "prompt",
            "the prompt is empty: there is nothing to go on with",
        ));
    }
    let is_streamed = request.stream == Some(true);
    if is_streamed && prompts.len() > 1 {
        return Err(ApiError::invalid("stream", "one prompt at a time can be streamed"));
    }
    let echo = request.echo == Some(true);
    let is_scored = echo && n_top.is_some();
    if is_scored && prompts.iter().any(|prompt| prompt.len() > MAX_SCORED_TOKENS) {
        let message =
            format!("with echo and logprobs a prompt may have {MAX_SCORED_TOKENS} tokens");
        return Err(ApiError::invalid("prompt", message));
    }
    let (mut jobs, mut replies) = (Vec::new(), Vec::new());
    for prompt in prompts {
        let (events, receiver) = unbounded_channel();
        let task = Task::Completion { tokens: prompt.clone(), echo: is_scored };
        jobs.push(Job { task, options: options.clone(), constraint: None, events });
        replies.push((prompt, receiver));
    }
    shared.engine.submit(jobs)?;
    let reply = CompletionReply {
        reply: shared.reply("cmpl"),
        model,
        echo,
        log_probs: n_top.is_some(),
        include_usage: request.stream_options.is_some_and(|o| o.include_usage == Some(true)),
        prompt: Vec::new(),
        offset: 0,
    };
    if is_streamed && let Some((prompt, events)) = replies.pop() {
        return shared.stream(events, CompletionReply { prompt, ..reply }, Framing::Events).await;
    }
    let mut answers = Vec::new();
    for (prompt, events) in replies {
        answers.push((prompt, shared.whole(events).await?));
    }
    Ok(Json(reply.whole(&answers)).into_response())
}

impl CompletionRequest {
    /// Refuses what is not done; returns to how many tokens alternatives are asked for.
    fn check(&self) -> Result<Option<usize>, ApiError> {
        if self.suffix.as_deref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::invalid("suffix", "suffix is not supported: leave it out"));
        }
        if self.best_of.is_some_and(|n| n != 1) {
            return Err(ApiError::invalid("best_of", "best_of is not supported: leave it out"));
        }
        if self.logprobs.is_some_and(|n| n > MAX_TOP) {
            let message = format!("there may be {MAX_TOP} alternatives to each token");
            return Err(ApiError::invalid("logprobs", message));
        }
        Ok(self.logprobs)
    }
}

/// How completions are written.
struct CompletionReply {
    reply: Reply,
    model: Arc<Model>,
    echo: bool,
    log_probs: bool,
    include_usage: bool,
    /// The prompt of the completion that is streamed.
    prompt: Vec<u32>,
    /// Where in the text the next token stands of those that are streamed.
    offset: usize,
}

impl CompletionReply {
    fn whole(&self, answers: &[(Vec<u32>, Answer)]) -> Value {
        let choice = |(index, (prompt, answer)): (usize, &(Vec<u32>, Answer))| {
            let generated = &answer.generated;
            let text = match self.echo {
                true => self.text(prompt) + &generated.text,
                false => generated.text.clone(),
            };
            // The token that ended an answer counts here, as it does for OpenAI.
            let of = answer.begun.log_probs.iter().chain(&generated.log_probs);
            let first = prompt.first().filter(|_| self.echo);
            let mut offset = 0;
            json!({
                "index": index,
                "text": text,
                "logprobs": self.log_probs(first, of, &mut offset),
                "finish_reason": finish_reason(generated.stop),
            })
        };
        let usages = answers.iter().map(|(_, a)| usage(&a.begun, a.generated.tokens.len()));
        json!({
            "id": self.reply.id,
            "object": "text_completion",
            "created": self.reply.created,
            "model": self.reply.model,
            "choices": answers.iter().enumerate().map(choice).collect::<Vec<_>>(),
            "usage": sum(usages),
            "everstream": {
                "recalled": recalled(answers.iter().flat_map(|(_, a)| &a.begun.recalled)),
            },
        })
    }

    fn chunk(&self, text: &str, log_probs: &Value, finish_reason: &Value) -> Value {
        json!({
            "id": self.reply.id,
            "object": "text_completion",
            "created": self.reply.created,
            "model": self.reply.model,
            "choices": [{
                "index": 0, "text": text, "logprobs": log_probs, "finish_reason": finish_reason,
            }],
        })
    }

    fn text(&self, tokens: &[u32]) -> String {
        String::from_utf8_lossy(&self.model.tokenizer().decode(tokens)).into_owned()
    }

    /// How likely tokens were, in the form of these completions. Of the first token of a prompt
    /// nothing can be said.
    fn log_probs<'a>(
        &self,
        first: Option<&u32>,
        of: impl Iterator<Item = &'a TokenLogProb>,
        offset: &mut usize,
    ) -> Value {
        if !self.log_probs {
            return Value::Null;
        }
        let (mut tokens, mut token_logprobs, mut top_logprobs, mut offsets) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut push = |token: u32, log_prob: Value, top: Value| {
            let name = self.name(token);
            offsets.push(*offset);
            *offset += name.chars().count();
            tokens.push(name);
            token_logprobs.push(log_prob);
            top_logprobs.push(top);
        };
        if let Some(&first) = first {
            push(first, Value::Null, Value::Null);
        }
        for of in of {
            let mut top = Map::new();
            for &(token, log_prob) in &of.top {
                // Of two tokens that are written alike the likelier one counts.
                top.entry(self.name(token)).or_insert_with(|| log_prob.into());
            }
            push(of.token, of.log_prob.into(), top.into());
        }
        json!({
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": top_logprobs,
            "text_offset": offsets,
        })
    }

    /// A token as text, or its bytes if it is none.
    fn name(&self, token: u32) -> String {
        let bytes = self.model.tokenizer().token_bytes(token);
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => {
                let hex: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
                format!("bytes:{hex}")
            }
        }
    }
}

/// The sum of what answers have used.
fn sum(usages: impl Iterator<Item = Value>) -> Value {
    let mut total = usage(&Begun::default(), 0);
    for usage in usages {
        for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            let sum = total[key].as_u64().unwrap_or(0) + usage[key].as_u64().unwrap_or(0);
            total[key] = sum.into();
        }
    }
    total
}

impl Parts for CompletionReply {
    fn begun(&mut self, begun: &Begun) -> Option<Value> {
        let (text, log_probs) = match self.echo {
            true => {
                let mut offset = self.offset;
                let of = begun.log_probs.iter();
                let log_probs = self.log_probs(self.prompt.first(), of, &mut offset);
                self.offset = offset;
                (self.text(&self.prompt), log_probs)
            }
            false => (String::new(), Value::Null),
        };
        let mut chunk = self.chunk(&text, &log_probs, &Value::Null);
        chunk["everstream"] = json!({"recalled": recalled(&begun.recalled)});
        Some(chunk)
    }

    fn piece(&mut self, piece: &Piece) -> Option<Value> {
        let mut offset = self.offset;
        let log_probs = self.log_probs(None, piece.log_probs.iter(), &mut offset);
        self.offset = offset;
        Some(self.chunk(&piece.text, &log_probs, &Value::Null))
    }

    fn ended(&mut self, begun: &Begun, generated: &Generated) -> Vec<Value> {
        let reason = finish_reason(generated.stop).into();
        // The token that ended the answer.
        let last = generated.log_probs.get(generated.tokens.len()..).unwrap_or(&[]);
        let log_probs = self.log_probs(None, last.iter(), &mut self.offset.clone());
        let mut chunks = vec![self.chunk("", &log_probs, &reason)];
        if self.include_usage {
            let mut chunk = self.chunk("", &Value::Null, &Value::Null);
            chunk["choices"] = json!([]);
            chunk["usage"] = usage(begun, generated.tokens.len());
            chunks.push(chunk);
        }
        chunks
    }
}
