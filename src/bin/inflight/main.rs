//! The `inflight` command line tool: a host like any other, on the library's Rust interface.

mod architecture;
mod bench;
mod chat;
mod failure;
mod flight;
mod generate;
mod inspect;
mod interrupt;
mod loading;
mod options;
mod percentile;
mod plan;
mod prompts_file;
mod units;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::interrupt::Interrupt;

const NOTES: &str = "\
Exit codes:
  0    done
  1    something failed; standard error says what and what to do
  2    the command line or a request file is not valid
  130  Ctrl-C: requests in flight were cancelled and reported as such; a second Ctrl-C ends at once

Results go to standard output; progress, remarks and errors to standard error.
`inflight COMMAND --help` has examples.";

#[derive(Debug, Parser)]
#[command(version, about = "LLM inference with in-flight batching, inside one process", after_help = NOTES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Continue a prompt, answer a message, or run a file of requests
    Generate(generate::GenerateArgs),
    /// Talk with a model
    Chat(chat::ChatArgs),
    /// Measure throughput and latency
    Bench(bench::BenchArgs),
    /// Show how much memory a model needs, without loading it
    Plan(plan::PlanArgs),
    /// Show what a model is
    Inspect(inspect::InspectArgs),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match run(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::OutputClosed) {
                eprintln!("error: {failure}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: &Command) -> Result<(), Failure> {
    let interrupt =
        Interrupt::install().map_err(|error| Failure::Failed(format!("cannot take over Ctrl-C: {error}")))?;
    match command {
        Command::Generate(args) => generate::run(args, &interrupt),
        Command::Chat(args) => chat::run(args, &interrupt),
        Command::Bench(args) => bench::run(args, &interrupt),
        Command::Plan(args) => plan::run(args),
        Command::Inspect(args) => inspect::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn fixed_names_are_accepted() {
        let line = "inflight generate m --prompt-tokens 1,2,3 --max-tokens 4 --temperature 0 --top-p 1 \
                    --seed 7 --ignore-eos --device cuda:0,1 --dtype bf16 --json";
        assert!(Cli::try_parse_from(line.split_whitespace()).is_ok());
        let line = "inflight bench m --trace f.json --limit 10";
        assert!(Cli::try_parse_from(line.split_whitespace()).is_ok());
        let line = "inflight bench m --num-prompts 4 --input-len 8 --output-len 9 --max-concurrency 2";
        assert!(Cli::try_parse_from(line.split_whitespace()).is_ok());
    }

    #[test]
    fn a_prompt_is_needed_and_only_one() {
        for line in ["inflight generate m", "inflight generate m --prompt a --chat b"] {
            let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
