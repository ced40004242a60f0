//! Chat templates: how a conversation is written for a model.
//!
//! A GGUF file carries its template as Jinja source, which renders a whole conversation at once.
//! [`ChatTemplate::render`] does just that.
//!
//! An endless stream cannot render from the beginning at every turn: its earlier turns have long
//! left the cache. It needs the pieces between what people say: what stands before the first turn,
//! around a user's turn, behind an answer. Templates do not offer them, so they are derived:
//! conversations with placeholders are rendered and cut where one continues the other. Where that
//! does not hold (some templates rewrite earlier turns when a new one comes), the answer is
//! [`TemplateError::NotIncremental`], never a guess.
//!
//! A file without a template gets ChatML, without a default system turn: nearly all small instruct
//! models were trained on it, and [`ChatTemplate::is_fallback`] lets a program say so.
//!
//! Templates come with downloaded files and are programs. They run without access to anything but
//! the conversation, with a bound on time and memory, and a fixed clock.

mod environment;
mod functions;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;

use minijinja::Environment;
use serde::Serialize;

use crate::error::LoadError;
use crate::gguf::GgufFile;
use crate::tokenizer::Tokenizer;

const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// The template for files that have none.
const CHATML: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Placeholders for what is said. No template contains them, trims them or tells them apart.
const FIRST_USER: &str = "everstreamFirstQuestion";
const ANSWER: &str = "everstreamFirstAnswer";
const NEXT_USER: &str = "everstreamNextQuestion";
const SYSTEM: &str = "everstreamSystemText";

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The instructions before the conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    #[must_use]
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// Why a template cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TemplateError {
    /// The source is not valid Jinja.
    #[error("the chat template is not valid: {reason}")]
    Syntax {
        /// The template engine's message.
        reason: String,
    },
    /// Rendering failed: the template refuses the conversation, or does something wrong.
    #[error("the chat template fails: {reason}")]
    Render {
        /// The template engine's message, or the template's own.
        reason: String,
    },
    /// The template cannot be cut into turns that follow one another.
    #[error("the chat template cannot continue a conversation without rewriting it: {reason}")]
    NotIncremental {
        /// What did not hold.
        reason: &'static str,
    },
}

/// Text that a template has written around someone's words.
///
/// It remembers where these words are, so that
/// [`Tokenizer::encode_turn`] does not take a special token that is spelled out in them for the
/// template's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnText {
    text: String,
    quoted: Range<usize>,
}

impl TurnText {
    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The bytes of [`as_str`](Self::as_str) that are someone's words; empty if there are none.
    #[must_use]
    pub fn quoted(&self) -> Range<usize> {
        self.quoted.clone()
    }

    fn without_words(text: String) -> Self {
        Self { text, quoted: 0..0 }
    }
}

impl fmt::Display for TurnText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The chat template of a model.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    is_fallback: bool,
}

impl ChatTemplate {
    /// The template of a file, or ChatML if it has none.
    ///
    /// # Errors
    ///
    /// [`LoadError::Template`] if the template is not valid Jinja, and the errors of mistyped
    /// metadata.
    pub fn from_gguf(gguf: &GgufFile, tokenizer: &Tokenizer) -> Result<Self, LoadError> {
        let spelling = |key: &str| -> Result<String, LoadError> {
            let bytes = gguf.find_u32(key)?.map_or(&[][..], |id| tokenizer.token_bytes(id));
            Ok(String::from_utf8_lossy(bytes).into_owned())
        };
        let bos = spelling("tokenizer.ggml.bos_token_id")?;
        let eos = spelling("tokenizer.ggml.eos_token_id")?;
        let source = gguf.find_str(TEMPLATE_KEY)?;
        let mut template = Self::new(source.unwrap_or(CHATML), &bos, &eos)
            .map_err(|problem| LoadError::Template { path: gguf.path().to_owned(), problem })?;
        template.is_fallback = source.is_none();
        Ok(template)
    }

    /// A template from its source and the spellings of the tokens that begin and end a sequence.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Syntax`].
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, TemplateError> {
        Ok(Self {
            environment: environment::build(source)?,
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
            is_fallback: false,
        })
    }

    /// Whether the file had no template and ChatML stands in.
    #[must_use]
    pub fn is_fallback(&self) -> bool {
        self.is_fallback
    }

    /// Renders a whole conversation; with `GenerationPrompt::Add`, up to where the model answers.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Render`].
    pub fn render(
        &self,
        messages: &[Message],
        prompt: GenerationPrompt,
    ) -> Result<String, TemplateError> {
        environment::render(
            &self.environment,
            &environment::Input {
                messages,
                add_generation_prompt: prompt == GenerationPrompt::Add,
                bos_token: &self.bos_token,
                eos_token: &self.eos_token,
            },
        )
    }

    /// What stands before the first user turn: the system turn, if `system` is given, or else the
    /// one that the template adds by itself, if any.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Render`] if the template refuses a system turn, and
    /// [`TemplateError::NotIncremental`] if it puts the system text inside the user's turn.
    pub fn system_prefix(&self, system: Option<&str>) -> Result<TurnText, TemplateError> {
        let first_turn = self.user_turn(FIRST_USER)?.text;
        let prefix = |system: Option<&str>| {
            let messages: Vec<_> = system
                .map(|text| Message::new(Role::System, text))
                .into_iter()
                .chain([Message::new(Role::User, FIRST_USER)])
                .collect();
            let whole = self.render(&messages, GenerationPrompt::Add)?;
            let prefix = whole.strip_suffix(&first_turn).map(str::to_owned);
            prefix.ok_or(TemplateError::NotIncremental {
                reason: "the first user turn differs from later ones",
            })
        };
        match system {
            None => prefix(None).map(TurnText::without_words),
            Some(text) => quote(text, &prefix(Some(SYSTEM))?, SYSTEM, prefix(Some(text))?),
        }
    }

    /// What a user's turn adds to the stream, up to where the model answers.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Render`] and [`TemplateError::NotIncremental`].
    pub fn user_turn(&self, text: &str) -> Result<TurnText, TemplateError> {
        let before = self.render(&first_exchange(), GenerationPrompt::Omit)?;
        let turn = |text: &str| {
            let mut messages = first_exchange();
            messages.push(Message::new(Role::User, text));
            let whole = self.render(&messages, GenerationPrompt::Add)?;
            let turn = whole.strip_prefix(&before).map(str::to_owned);
            turn.ok_or(TemplateError::NotIncremental {
                reason: "a new user turn changes what stands before it",
            })
        };
        quote(text, &turn(NEXT_USER)?, NEXT_USER, turn(text)?)
    }

    /// What closes an answer, so that the next user turn may follow.
    ///
    /// It usually begins with the token that ends a turn. A model that has ended its answer itself
    /// has written that token already.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Render`] and [`TemplateError::NotIncremental`].
    pub fn after_answer(&self) -> Result<String, TemplateError> {
        let exchange = first_exchange();
        let before = self.render(&exchange[..1], GenerationPrompt::Add)?;
        let whole = self.render(&exchange, GenerationPrompt::Omit)?;
        whole
            .strip_prefix(&before)
            .and_then(|rest| rest.strip_prefix(ANSWER))
            .map(str::to_owned)
            .ok_or(TemplateError::NotIncremental {
                reason: "an answer is not written where the model was asked to write it",
            })
    }
}

/// Whether a rendered conversation ends with the beginning of the model's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// It does: the model is to answer.
    Add,
    /// It ends with the last message.
    Omit,
}

fn first_exchange() -> Vec<Message> {
    vec![Message::new(Role::User, FIRST_USER), Message::new(Role::Assistant, ANSWER)]
}

/// Finds the words in a rendered text by comparing it with the same one around a placeholder.
fn quote(
    words: &str,
    pattern: &str,
    placeholder: &str,
    rendered: String,
) -> Result<TurnText, TemplateError> {
    let not_incremental = |reason| Err(TemplateError::NotIncremental { reason });
    let Some((before, behind)) = pattern.split_once(placeholder) else {
        return not_incremental("it leaves out what is said");
    };
    if behind.contains(placeholder) {
        return not_incremental("it repeats what is said");
    }
    let inside = rendered.strip_prefix(before).and_then(|rest| rest.strip_suffix(behind));
    match inside {
        // Templates may trim what is said, and nothing else.
        Some(inside) if inside.trim() == words.trim() => {
            let quoted = before.len()..before.len() + inside.len();
            Ok(TurnText { text: rendered, quoted })
        }
        // Many templates treat an empty text as none at all. There is nothing to quote.
        _ if words.trim().is_empty() => Ok(TurnText::without_words(rendered)),
        _ => not_incremental("it changes what is said, or what stands around it depends on that"),
    }
}
