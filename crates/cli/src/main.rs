//! The `sublet` command: one binary for every role.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing))]

mod args;
mod commands;
mod context;
mod demo;
mod interrupt;
mod nbd;
mod output;
mod playground;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use sublet_api::{ErrorKind, Refusal};

use args::Cli;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("SUBLET_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    let json = cli.json;
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            report(&refusal, json);
            ExitCode::from(if interrupt::was_hit() { interrupt::EXIT_CODE } else { refusal.kind.exit_code() })
        }
    }
}

/// Wrong usage, or a question for help.
fn usage(error: &clap::Error) -> ExitCode {
    // What cannot be parsed cannot say whether JSON is wanted.
    let json = std::env::args_os().any(|arg| arg == "--json");
    if !error.use_stderr() || !json {
        error.exit();
    }
    let text = error.render().to_string();
    // The first paragraph says what is wrong; the others show the usage.
    let first = text.split("\n\n").next().unwrap_or_default().trim().trim_start_matches("error: ");
    let refusal = Refusal::new(ErrorKind::BadRequest, first.split_whitespace().collect::<Vec<_>>().join(" ")).hint("see --help");
    report(&refusal, true);
    ExitCode::from(refusal.kind.exit_code())
}

/// Errors go to standard error, also with `--json`: then as one JSON object.
fn report(refusal: &Refusal, json: bool) {
    if json {
        match serde_json::to_string(refusal) {
            Ok(text) => eprintln!("{text}"),
            Err(_) => eprintln!("sublet: {refusal}"),
        }
    } else {
        eprintln!("sublet: {refusal}");
    }
}
