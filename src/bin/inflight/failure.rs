//! How a command can end other than well: what is printed and which exit code it gives.

use std::fmt;
use std::io;

use inflight::Status;
use inflight::error::Category;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// The command line or a request file is not valid. Exit code 2.
    Usage(String),
    /// Anything else that went wrong. Exit code 1.
    Failed(String),
    /// Ctrl-C. Exit code 130, as shells give it.
    Interrupted,
    /// The reader of standard output went away, as `head` does; not worth a word. Exit code 0.
    OutputClosed,
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::OutputClosed => 0,
            Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Interrupted => 130,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(message) | Failure::Failed(message) => f.write_str(message),
            Failure::Interrupted => f.write_str("interrupted"),
            Failure::OutputClosed => f.write_str("standard output was closed"),
        }
    }
}

impl From<inflight::Error> for Failure {
    fn from(error: inflight::Error) -> Self {
        let message = match hint(error.status()) {
            Some(hint) => format!("{error}\n  hint: {hint}"),
            None => error.to_string(),
        };
        match error.status().category() {
            Category::Argument if error.status() == Status::InvalidArgument => Failure::Usage(message),
            _ => Failure::Failed(message),
        }
    }
}

/// For writes to standard output; errors of other files are turned into [`Failure::Failed`] where their path
/// is known.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::OutputClosed;
        }
        Failure::Failed(format!("standard output: {error}"))
    }
}

/// What a person at the command line can do, where the engine's message cannot know the tool's options.
fn hint(status: Status) -> Option<&'static str> {
    match status {
        Status::ModelNotFound => {
            Some("MODEL is a directory with config.json, tokenizer.json and *.safetensors, or a .gguf file")
        }
        Status::OutOfMemory | Status::DeviceOutOfMemory | Status::MemoryLimit => Some(
            "`inflight plan` with the same options shows what is needed; \
             lower --max-model-len, --max-sequences or --kv-cache, or raise --memory-limit",
        ),
        Status::PromptTooLong => {
            Some("shorten the prompt, lower --max-tokens, or raise --max-model-len or --kv-cache")
        }
        Status::DeviceUnavailable => Some("--device cpu runs everywhere"),
        Status::TemplateFailed => Some("--prompt passes text to the model without a chat template"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let failure = |status| Failure::from(inflight::Error::new(status, "top_p is 2"));
        assert_eq!(failure(Status::InvalidArgument).exit_code(), 2);
        assert_eq!(failure(Status::ModelInvalid).exit_code(), 1);
        assert_eq!(Failure::Interrupted.exit_code(), 130);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).exit_code(), 0);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::StorageFull)).exit_code(), 1);
    }

    #[test]
    fn a_missing_model_comes_with_a_hint() {
        let text = Failure::from(inflight::Error::new(Status::ModelNotFound, "/nowhere")).to_string();
        assert!(text.contains("/nowhere") && text.contains("hint: MODEL is a directory"), "{text}");
    }
}
