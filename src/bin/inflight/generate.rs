//! `inflight generate`: one prompt, or a file of them in flight together.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};
use inflight::{Engine, Event, EventKind, Prompt, Request, Status};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::flight::{Answer, Flight, error_json};
use crate::interrupt::Interrupt;
use crate::loading::load;
use crate::options::{EngineArgs, RequestArgs, chat_messages, read_input};
use crate::prompts_file::{self, RequestLine, TextOptions};

/// Tokens to produce where `--max-tokens` is not given.
const DEFAULT_MAX_TOKENS: u32 = 256;

const USAGE: &str = "inflight generate MODEL \
(--prompt TEXT | --prompt-tokens ID,... | --chat TEXT | --prompts-file FILE) [OPTIONS]";

/// Options of which exactly one says what to run.
const INPUTS: [&str; 4] = ["prompt", "prompt_tokens", "chat", "prompts_file"];

const EXAMPLES: &str = "\
Examples:
  inflight generate model.gguf --prompt 'The capital of France is' --max-tokens 8
  inflight generate model.gguf --chat 'Why is the sky blue?' --temperature 0.7 --seed 1
  inflight generate model.gguf --prompt-tokens 504,3575,282 --max-tokens 4 --json
  inflight generate model.gguf --prompts-file requests.jsonl > answers.jsonl
  some-program | inflight generate model.gguf --prompts-file -

--prompt is continued as it is. --chat wraps the text in the model's chat template as a user's message.

With --json, one object is printed:
  prompt_tokens  token ids that were run      token_ids  token ids that came out
  text           the output as text           finish_reason  stop, length, cancelled, deadline or error
  timings        queued_us, first_token_us, total_us: microseconds since the request was enqueued
  logprobs       with --logprobs: for each token, itself and its alternatives
  error          for finish_reason error: code, status, message

A line of a prompts file is an object with one of prompt (text), prompt_tokens (ids) and messages (a chat),
perhaps an id, and any of the options under Limits and Sampling with _ for - (timeout is timeout_seconds,
logit_bias a list of [id, number]). Options on the command line hold for lines that do not say otherwise. All
requests are in flight together; each prints its object on a line of its own as it ends, with its index in the
file (from 0) and its id. A line that is not valid stops the run before it starts; a request that fails prints
an object with an error, the others go on, and the exit code is 1.";

/// Options of `inflight generate`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(override_usage = USAGE)]
#[command(group = ArgGroup::new("input").required(true).args(INPUTS))]
pub struct GenerateArgs {
    /// Model: a directory in Hugging Face layout, or a .gguf file
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    #[command(flatten)]
    engine: EngineArgs,

    /// Text to continue; - reads it from standard input
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    prompt: Option<String>,

    /// Token ids to continue, such as 1,2,3
    #[arg(long, value_name = "ID,...", value_delimiter = ',', help_heading = "Prompt")]
    prompt_tokens: Vec<u32>,

    /// A user's message to answer; - reads it from standard input
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    chat: Option<String>,

    /// System message for --chat
    #[arg(long, value_name = "TEXT", requires = "chat", help_heading = "Prompt")]
    system: Option<String>,

    /// File of requests, one JSON object a line; - is standard input
    #[arg(long, value_name = "FILE", help_heading = "Prompt")]
    prompts_file: Option<PathBuf>,

    /// Let the text of --prompt spell special tokens, such as <|im_start|>
    #[arg(long, help_heading = "Prompt")]
    parse_special: bool,

    /// Do not add what the model expects at the start of a text, such as a BOS token
    #[arg(long, help_heading = "Prompt")]
    no_special_tokens: bool,

    #[command(flatten)]
    request: RequestArgs,

    /// Print one JSON object instead of streaming text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &GenerateArgs, interrupt: &Interrupt) -> Result<(), Failure> {
    match &args.prompts_file {
        Some(path) => {
            let lines = prompts_file::read(path, args.text_options())?;
            let engine = load(args.engine.to_options(&args.model), args.json, interrupt)?;
            Batch::new(&engine, interrupt, lines, &args.request).run()
        }
        None => {
            let prompt = args.single_prompt()?;
            let engine = load(args.engine.to_options(&args.model), args.json, interrupt)?;
            run_single(args, prompt, &engine, interrupt)
        }
    }
}

impl GenerateArgs {
    fn text_options(&self) -> TextOptions {
        TextOptions { add_special_tokens: !self.no_special_tokens, parse_special: self.parse_special }
    }

    fn single_prompt(&self) -> Result<Prompt, Failure> {
        let text = |given: &str| match given {
            "-" => read_input("-".as_ref()),
            _ => Ok(given.to_owned()),
        };
        let TextOptions { add_special_tokens, parse_special } = self.text_options();
        match (&self.prompt, &self.chat) {
            (Some(prompt), _) => Ok(Prompt::Text { text: text(prompt)?, add_special_tokens, parse_special }),
            (_, Some(chat)) => Ok(Prompt::Chat(chat_messages(self.system.as_deref(), &text(chat)?))),
            _ => Ok(Prompt::Tokens(self.prompt_tokens.clone())),
        }
    }
}

fn run_single(
    args: &GenerateArgs,
    prompt: Prompt,
    engine: &Engine,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let tokens = engine.prompt_tokens(&prompt)?;
    let mut flight = Flight::new(engine, interrupt);
    flight.enqueue(args.request.to_request(prompt, DEFAULT_MAX_TOKENS))?;
    let mut stdout = std::io::stdout().lock();
    let mut answer = Answer::default();
    while !flight.is_empty() {
        for event in flight.wait()? {
            if let (EventKind::Output(output), false) = (&event.kind, args.json) {
                stdout.write_all(output.text.as_bytes())?;
                stdout.flush()?;
            }
            answer.absorb(event.kind);
        }
    }
    if args.json {
        writeln!(stdout, "{}", answer.to_json(&tokens))?;
    } else {
        writeln!(stdout)?;
        if std::io::stderr().is_terminal() {
            eprintln!("{}", answer.remark());
        }
    }
    if flight.was_cancelled() {
        return Err(Failure::Interrupted);
    }
    answer.check()
}

/// A file's requests, in flight together.
struct Batch<'a> {
    engine: &'a Engine,
    flight: Flight<'a>,
    defaults: &'a RequestArgs,
    lines: Vec<RequestLine>,
    /// Per line, what has come; taken when the request ends.
    answers: Vec<Answer>,
    prompt_tokens: Vec<Vec<u32>>,
    num_failed: usize,
}

impl<'a> Batch<'a> {
    fn new(
        engine: &'a Engine,
        interrupt: &'a Interrupt,
        lines: Vec<RequestLine>,
        defaults: &'a RequestArgs,
    ) -> Self {
        let answers = lines.iter().map(|_| Answer::default()).collect();
        let prompt_tokens = vec![Vec::new(); lines.len()];
        let flight = Flight::new(engine, interrupt);
        Self { engine, flight, defaults, lines, answers, prompt_tokens, num_failed: 0 }
    }

    fn run(mut self) -> Result<(), Failure> {
        for index in 0..self.lines.len() {
            self.enqueue(index)?;
            if self.flight.was_cancelled() {
                break;
            }
        }
        while !self.flight.is_empty() {
            let events = self.flight.wait()?;
            self.handle(events)?;
        }
        if self.flight.was_cancelled() {
            return Err(Failure::Interrupted);
        }
        match self.num_failed {
            0 => Ok(()),
            failed => Err(Failure::Failed(format!(
                "{failed} of {} requests failed; their objects hold the error",
                self.lines.len()
            ))),
        }
    }

    /// Enqueues a line and prints what has ended meanwhile. A request that is refused is reported at once.
    fn enqueue(&mut self, index: usize) -> Result<(), Failure> {
        let line = &self.lines[index];
        let mut request =
            line.args.clone().or(self.defaults).to_request(line.prompt.clone(), DEFAULT_MAX_TOKENS);
        request.user_data = index as u64;
        let accepted = match self.engine.prompt_tokens(&request.prompt) {
            Ok(tokens) => {
                self.prompt_tokens[index] = tokens;
                self.enqueue_when_free(&request)?
            }
            Err(error) => Err(error),
        };
        if let Err(error) = accepted {
            self.num_failed += 1;
            self.print(index, json!({"finish_reason": "error", "error": error_json(&error)}))?;
        }
        let events = self.flight.poll(Duration::ZERO)?;
        self.handle(events)
    }

    /// Enqueues, waiting where the engine's queue is full. The inner result is the request's own.
    fn enqueue_when_free(&mut self, request: &Request) -> Result<inflight::Result<()>, Failure> {
        loop {
            match self.flight.enqueue(request.clone()) {
                Err(error) if error.status() == Status::Busy && !self.flight.was_cancelled() => {
                    let events = self.flight.poll(Duration::from_millis(10))?;
                    self.handle(events)?;
                }
                result => return Ok(result.map(drop)),
            }
        }
    }

    fn handle(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        for event in events {
            let index = event.user_data as usize;
            self.answers[index].absorb(event.kind);
            if let Some(finished) = &self.answers[index].finished {
                self.num_failed += usize::from(finished.error.is_some());
                let answer = std::mem::take(&mut self.answers[index]);
                self.print(index, answer.to_json(&self.prompt_tokens[index]))?;
            }
        }
        Ok(())
    }

    /// Prints `fields` after the line's index and id.
    fn print(&self, index: usize, fields: Value) -> Result<(), Failure> {
        let mut object = json!({"index": index});
        if let Some(id) = &self.lines[index].id {
            object["id"] = id.clone();
        }
        if let (Value::Object(object), Value::Object(fields)) = (&mut object, fields) {
            object.extend(fields);
        }
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{object}")?;
        Ok(stdout.flush()?)
    }
}
