//! The template engine, set up as Hugging Face's `apply_chat_template` sets up Jinja.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error};
use serde::Serialize;

use super::{Message, TemplateError, functions};

/// Bounds the work of one rendering: instructions, and 64 bytes of data each.
///
/// A turn costs some dozens; this is enough for ten thousand turns, or 256 MB of text.
const FUEL: u64 = 4_000_000;

const NAME: &str = "chat_template";

/// What a template sees.
#[derive(Serialize)]
pub(super) struct Input<'a> {
    pub(super) messages: &'a [Message],
    pub(super) add_generation_prompt: bool,
    pub(super) bos_token: &'a str,
    pub(super) eos_token: &'a str,
}

pub(super) fn build(source: &str) -> Result<Environment<'static>, TemplateError> {
    let syntax_error = |error| TemplateError::Syntax { reason: one_line(&error) };
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(syntax_error)?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    // The name has no extension, but the rule is worth stating: this is not HTML.
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    functions::add_to(&mut environment);
    environment.add_template_owned(NAME, source.to_owned()).map_err(syntax_error)?;
    Ok(environment)
}

pub(super) fn render(
    environment: &Environment<'_>,
    input: &Input<'_>,
) -> Result<String, TemplateError> {
    environment
        .get_template(NAME)
        .and_then(|template| template.render(Serde(input)))
        .map_err(|error| TemplateError::Render { reason: one_line(&error) })
}

/// The engine's message without the excerpt of the source that may follow it.
fn one_line(error: &Error) -> String {
    const LIMIT: usize = 300;
    let message = error.to_string();
    let line = message.lines().next().unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(LIMIT).collect()
}
