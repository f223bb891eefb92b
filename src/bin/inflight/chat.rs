//! `inflight chat`: a conversation, on a terminal or over a pipe.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use clap::Args;
use inflight::{Engine, EventKind, FinishReason, Prompt};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::flight::{Answer, Flight};
use crate::interrupt::Interrupt;
use crate::loading::load;
use crate::options::{EngineArgs, RequestArgs};

/// Tokens of an answer where `--max-tokens` is not given.
const DEFAULT_MAX_TOKENS: u32 = 1024;

const COMMANDS: &str = "\
/reset          forget the conversation
/system TEXT    set the system message (none without TEXT) and forget the conversation
/help           list these commands
/exit           leave, as Ctrl-D does
";

const EXAMPLES: &str = "\
Examples:
  inflight chat model.gguf
  inflight chat model.gguf --system 'Answer in one sentence.' --temperature 0.7
  printf 'My name is Ada.\\nWhat is my name?\\n' | inflight chat model.gguf

Each line is a message of the user; the conversation so far goes with it. Lines that begin with / are
commands:
  /reset          forget the conversation
  /system TEXT    set the system message (none without TEXT) and forget the conversation
  /help           list these commands
  /exit           leave, as Ctrl-D does
Ctrl-C ends an answer that is being written, and leaves where none is. With --json, each answer is one object
a line, as `inflight generate --json` prints it.";

/// Options of `inflight chat`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ChatArgs {
    /// Model: a directory in Hugging Face layout, or a .gguf file
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    #[command(flatten)]
    engine: EngineArgs,

    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    #[command(flatten)]
    request: RequestArgs,

    /// Print one JSON object for each answer instead of streaming text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &ChatArgs, interrupt: &Interrupt) -> Result<(), Failure> {
    let engine = load(args.engine.to_options(&args.model), args.json, interrupt)?;
    if !engine.model_info().has_chat_template {
        let message = "the model has no chat template; continue raw text with `inflight generate --prompt`";
        return Err(Failure::Failed(message.to_owned()));
    }
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        eprintln!("/help lists commands, Ctrl-D leaves");
    }
    let conversation = Conversation::new(args.system.as_deref());
    Chat { args, engine: &engine, interrupt, conversation, interactive }.run()
}

/// Messages so far.
#[derive(Debug, Clone, PartialEq)]
struct Conversation {
    messages: Vec<Value>,
}

impl Conversation {
    fn new(system: Option<&str>) -> Self {
        let mut conversation = Self { messages: Vec::new() };
        if let Some(system) = system {
            conversation.push("system", system);
        }
        conversation
    }

    fn push(&mut self, role: &str, content: &str) {
        self.messages.push(json!({"role": role, "content": content}));
    }

    /// Forgets all but the system message.
    fn reset(&mut self) {
        self.messages.retain(|message| message["role"] == "system");
    }
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Input<'a> {
    Nothing,
    Message(&'a str),
    Reset,
    System(&'a str),
    Help,
    Exit,
    Unknown(&'a str),
}

impl<'a> Input<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        if !line.starts_with('/') {
            return if line.is_empty() { Input::Nothing } else { Input::Message(line) };
        }
        match line.split_once(char::is_whitespace).unwrap_or((line, "")) {
            ("/reset", "") => Input::Reset,
            ("/system", text) => Input::System(text.trim()),
            ("/help", "") => Input::Help,
            ("/exit" | "/quit", "") => Input::Exit,
            _ => Input::Unknown(line),
        }
    }
}

struct Chat<'a> {
    args: &'a ChatArgs,
    engine: &'a Engine,
    interrupt: &'a Interrupt,
    conversation: Conversation,
    interactive: bool,
}

impl Chat<'_> {
    fn run(mut self) -> Result<(), Failure> {
        let lines = read_lines();
        while let Some(line) = self.next_line(&lines)? {
            match Input::parse(&line) {
                Input::Nothing => {}
                Input::Message(text) => match self.answer(text) {
                    // At a terminal the conversation goes on; a script wants to know.
                    Err(Failure::Failed(message) | Failure::Usage(message)) if self.interactive => {
                        eprintln!("error: {message}");
                    }
                    result => result?,
                },
                Input::Reset => self.conversation.reset(),
                Input::System("") => self.conversation = Conversation::new(None),
                Input::System(text) => self.conversation = Conversation::new(Some(text)),
                Input::Help => eprint!("{COMMANDS}"),
                Input::Exit => break,
                Input::Unknown(command) => eprintln!("{command:?} is no command; /help lists them"),
            }
        }
        Ok(())
    }

    /// The next line of input; `None` at its end and on Ctrl-C.
    fn next_line(&self, lines: &Receiver<std::io::Result<String>>) -> Result<Option<String>, Failure> {
        if self.interactive {
            eprint!("> ");
        }
        loop {
            match lines.recv_timeout(Duration::from_millis(50)) {
                Ok(Ok(line)) => return Ok(Some(line)),
                Ok(Err(error)) => {
                    return Err(Failure::Usage(format!("cannot read standard input: {error}")));
                }
                Err(RecvTimeoutError::Timeout) if !self.interrupt.is_pressed() => {}
                Err(_) => {
                    if self.interactive {
                        eprintln!();
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// Answers a message and keeps both; a message that fails is forgotten.
    fn answer(&mut self, text: &str) -> Result<(), Failure> {
        self.conversation.push("user", text);
        match self.stream_answer() {
            Ok(answer) => {
                self.conversation.push("assistant", &answer.text);
                Ok(())
            }
            Err(failure) => {
                self.conversation.messages.pop();
                Err(failure)
            }
        }
    }

    fn stream_answer(&mut self) -> Result<Answer, Failure> {
        let prompt = Prompt::Chat(Value::from(self.conversation.messages.clone()).to_string());
        let tokens = self.engine.prompt_tokens(&prompt)?;
        let mut flight = Flight::new(self.engine, self.interrupt);
        flight.enqueue(self.args.request.to_request(prompt, DEFAULT_MAX_TOKENS))?;
        let mut stdout = std::io::stdout().lock();
        let mut answer = Answer::default();
        while !flight.is_empty() {
            for event in flight.wait()? {
                if let (EventKind::Output(output), false) = (&event.kind, self.args.json) {
                    stdout.write_all(output.text.as_bytes())?;
                    stdout.flush()?;
                }
                answer.absorb(event.kind);
            }
        }
        if self.args.json {
            writeln!(stdout, "{}", answer.to_json(&tokens))?;
        } else {
            writeln!(stdout)?;
            eprintln!("{}", answer.remark());
        }
        answer.check()?;
        let cancelled = answer.finished.as_ref().is_some_and(|end| end.reason == FinishReason::Cancelled);
        if cancelled {
            // Over a pipe there is nobody to go on; at a terminal what was written so far stays.
            if !self.interactive {
                return Err(Failure::Interrupted);
            }
            self.interrupt.clear();
        }
        Ok(answer)
    }
}

/// Lines of standard input, read in a thread, so that Ctrl-C is seen while none comes. The thread is left
/// behind at the end of the process.
fn read_lines() -> Receiver<std::io::Result<String>> {
    let (sender, receiver) = sync_channel(0);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        assert_eq!(Input::parse("  Hello there \n"), Input::Message("Hello there"));
        assert_eq!(Input::parse(" \t"), Input::Nothing);
        assert_eq!(Input::parse("/reset"), Input::Reset);
        assert_eq!(Input::parse("/system  Be brief. "), Input::System("Be brief."));
        assert_eq!(Input::parse("/system"), Input::System(""));
        assert_eq!(Input::parse("/exit"), Input::Exit);
        assert_eq!(Input::parse("/exit now"), Input::Unknown("/exit now"));
        assert_eq!(Input::parse("/rest"), Input::Unknown("/rest"));
    }

    #[test]
    fn reset_keeps_the_system_message() {
        let mut conversation = Conversation::new(Some("Be brief."));
        let fresh = conversation.clone();
        conversation.push("user", "Hi");
        conversation.push("assistant", "Hello");
        conversation.reset();
        assert_eq!(conversation, fresh);
    }

    #[test]
    fn the_help_lists_every_command() {
        assert!(COMMANDS.lines().all(|line| EXAMPLES.contains(line)));
    }
}
