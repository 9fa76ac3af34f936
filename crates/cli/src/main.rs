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
use sublet_api::Refusal;

use args::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
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
