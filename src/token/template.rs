//! Chat templates: Jinja as `transformers` sets it up, with limits on work, time, output and nesting.

use std::io;
use std::time::{Duration, Instant};

use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, context, syntax::SyntaxConfig};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::error::{Error, Result, Status};
use crate::token::guard;
use crate::token::limits::{TEMPLATE_BYTES_MAX, invalid};
use crate::token::{python_json, strftime};

/// Steps of one rendering; 64 bytes of strings or output count as one, so this bounds memory too.
const FUEL: u64 = 2_000_000;
/// Wall time of one rendering.
const TIME_MAX: Duration = Duration::from_millis(50);
/// Bytes of one rendering's output.
const OUTPUT_BYTES_MAX: usize = 16 << 20;
/// Nested macro calls and the like.
const RECURSION_MAX: usize = 200;
const NAME: &str = "chat_template";

/// A template as it was read.
pub(crate) struct TemplateSource<'a> {
    /// File and field, for errors.
    pub place: &'a str,
    pub source: &'a str,
    /// Values of the template's variables of these names.
    pub bos_token: Option<&'a str>,
    pub eos_token: Option<&'a str>,
}

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Compiles a template.
    pub fn compile(template: TemplateSource) -> Result<Self> {
        let place = template.place;
        if template.source.len() > TEMPLATE_BYTES_MAX {
            let problem =
                format!("{} bytes; at most {TEMPLATE_BYTES_MAX} are allowed", template.source.len());
            return Err(invalid(place, problem));
        }
        let source = without_generation_tags(template.source);
        let environment = guard::on_own_stack(Status::ModelInvalid, place, || {
            let mut environment = environment().map_err(|error| Error::internal(error.to_string()))?;
            environment
                .add_template_owned(NAME, source.clone())
                .map_err(|error| invalid(place, with_causes(&error)))?;
            Ok(environment)
        })?;
        Ok(Self {
            environment,
            source,
            bos_token: template.bos_token.unwrap_or_default().to_owned(),
            eos_token: template.eos_token.unwrap_or_default().to_owned(),
        })
    }

    /// Renders `messages`, an array in the form that templates expect.
    pub fn render(&self, messages: &serde_json::Value, add_generation_prompt: bool) -> Result<String> {
        guard::on_own_stack(Status::TemplateFailed, "rendering the chat template", || {
            let mut sink = Sink { output: Vec::new(), deadline: Instant::now() + TIME_MAX, exceeded: None };
            let context = context! {
                messages => Value::from(Serde(messages)),
                add_generation_prompt,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
                tools => (),
                documents => (),
            };
            let template = self.environment.get_template(NAME);
            let rendered =
                template.and_then(|template| template.render_captured_to(context, &mut sink).map(drop));
            match (rendered, sink.exceeded) {
                (_, Some(limit)) => Err(Error::new(Status::TemplateFailed, limit)),
                (Err(error), None) => Err(Error::new(Status::TemplateFailed, with_causes(&error))),
                (Ok(()), None) => String::from_utf8(sink.output)
                    .map_err(|_| Error::internal("the chat template wrote half a code point")),
            }
        })
    }

    /// Whether the template or one of its tokens contains `c`.
    pub fn contains(&self, c: char) -> bool {
        [&self.source, &self.bos_token, &self.eos_token].into_iter().any(|text| text.contains(c))
    }
}

fn environment() -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_debug(false);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, _> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| strftime::now(&format));
    Ok(environment)
}

fn tojson(value: Value, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let refused = |problem: String| minijinja::Error::new(ErrorKind::BadSerialization, problem);
    let style = python_json::Style {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: options.get("indent")?,
        separators: match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
            Some([item, key]) => Some((item.clone(), key.clone())),
            Some(_) => return Err(refused("tojson: separators must be a pair".to_owned())),
            None => None,
        },
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    python_json::dumps(&value, style).map_err(refused)
}

/// `transformers` has a tag `generation` that marks the assistant's turns for training. Rendering ignores it, so
/// here it becomes a condition that always holds.
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

/// Takes the output, and stops the rendering where it grows too large or takes too long.
struct Sink {
    output: Vec<u8>,
    deadline: Instant,
    exceeded: Option<String>,
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.output.len() + bytes.len() > OUTPUT_BYTES_MAX {
            self.exceeded = Some(format!("the chat template wrote more than {OUTPUT_BYTES_MAX} bytes"));
        } else if Instant::now() > self.deadline {
            self.exceeded = Some(format!("the chat template ran for more than {} ms", TIME_MAX.as_millis()));
        } else if self.output.try_reserve(bytes.len()).is_err() {
            self.exceeded = Some("no memory for the chat template's output".to_owned());
        }
        if self.exceeded.is_some() {
            return Err(io::Error::other("limit exceeded"));
        }
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "tests/template.rs"]
mod tests;
