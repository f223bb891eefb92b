//! Chat templates: Jinja as `transformers` sets it up, with limits on work, time, output and nesting.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, context, machinery};

use crate::error::{Error, Result, Status};
use crate::token::guard;
use crate::token::limits::{TEMPLATE_BYTES_MAX, invalid};
use crate::token::template_code::Code;
use crate::token::template_ops::{self, TIME_MAX};

/// Steps of one rendering; 64 bytes of texts or output count as one, so this bounds memory too.
const FUEL: u64 = 1_000_000;
/// Bytes of one rendering's output.
const OUTPUT_BYTES_MAX: usize = 16 << 20;
/// Nested macro calls and the like.
const RECURSION_MAX: usize = 200;

/// A template as it was read.
pub(crate) struct TemplateSource<'a> {
    /// File and field, for errors.
    pub place: &'a str,
    pub source: &'a str,
    /// Values of the template's variables of these names.
    pub bos_token: Option<&'a str>,
    pub eos_token: Option<&'a str>,
}

/// A chat template that is known to compile.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    place: String,
    source: String,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Checks a template and keeps it.
    pub fn compile(template: TemplateSource) -> Result<Self> {
        let place = template.place;
        if template.source.len() > TEMPLATE_BYTES_MAX {
            let problem =
                format!("{} bytes; at most {TEMPLATE_BYTES_MAX} are allowed", template.source.len());
            return Err(invalid(place, problem));
        }
        let source = without_generation_tags(template.source);
        guard::on_own_stack(Status::ModelInvalid, place, || Code::compile(place, &source).map(drop))?;
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_debug(false);
        template_ops::install(&mut environment);
        Ok(Self {
            environment,
            place: place.to_owned(),
            source,
            bos_token: template.bos_token.unwrap_or_default().to_owned(),
            eos_token: template.eos_token.unwrap_or_default().to_owned(),
        })
    }

    /// Renders `messages`, an array in the form that templates expect.
    pub fn render(&self, messages: &serde_json::Value, add_generation_prompt: bool) -> Result<String> {
        guard::on_own_stack(Status::TemplateFailed, "rendering the chat template", || {
            // Code borrows the source. Compiling anew takes less than tokenising the result.
            let code = Code::compile(&self.place, &self.source)?;
            let context = context! {
                messages => minijinja::Value::from(Serde(messages)),
                add_generation_prompt,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
                tools => (),
                documents => (),
            };
            let mut text = String::new();
            template_ops::start_budget();
            let mut output = machinery::make_string_output(&mut text);
            machinery::eval(
                &self.environment,
                &code.instructions,
                context,
                &code.blocks,
                &mut output,
                AutoEscape::None,
            )
            .map_err(|error| failed(with_causes(&error)))?;
            drop(output);
            if template_ops::is_out_of_time() {
                return Err(failed(format!("rendering took more than {} ms", TIME_MAX.as_millis())));
            }
            if text.len() > OUTPUT_BYTES_MAX {
                return Err(failed(format!("{} bytes; at most {OUTPUT_BYTES_MAX} are allowed", text.len())));
            }
            Ok(text)
        })
    }

    /// Whether the template or one of its tokens contains `c`.
    pub fn contains(&self, c: char) -> bool {
        [&self.source, &self.bos_token, &self.eos_token].into_iter().any(|text| text.contains(c))
    }
}

fn failed(problem: String) -> Error {
    Error::new(Status::TemplateFailed, format!("chat template: {problem}"))
}

/// `transformers` has a tag `generation` that marks the assistant's turns for training. Rendering ignores it,
/// so here it becomes a condition that always holds.
fn without_generation_tags(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        output.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let name = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match name {
            "generation" => output.push_str(&tag.replace(name, "if true")),
            "endgeneration" => output.push_str(&tag.replace(name, "endif")),
            _ => output.push_str(tag),
        }
        rest = after;
    }
    output.push_str(rest);
    output
}

/// The error with what caused it, in one line.
fn with_causes(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
#[path = "tests/template.rs"]
mod tests;
