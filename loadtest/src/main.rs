//! Compares ringgate with other gateways: same machine, same work, one command.
//!
//! - `compare` measures every scenario with every gateway that is installed and writes a record.
//! - `backend` and `generate` are its helpers, processes of their own so that their cost is not
//!   the gateway's; they can be used by hand.
//! - `baseline` is a proxy without features, measured beside the gateways.
//!
//! `baseline::ring` alone has unsafe code.

mod backend;
mod baseline;
mod certificate;
mod check;
mod compare;
mod generate;
mod hosts;
mod machine;
mod measure;
mod peer;
mod process;
mod reload;
mod report;
mod results;
mod scenario;
mod statistics;
mod target;
mod template;
mod tls;
mod tool;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure every scenario with every gateway that is installed.
    Compare(compare::Options),
    /// Serve what gateways forward to; prints its addresses.
    Backend(backend::Options),
    /// Load a gateway with HTTP/1.1 over TLS 1.3.
    Generate(generate::Load),
    /// Serve as a proxy without features, to hold gateways against.
    Baseline(baseline::Options),
}

fn main() -> ExitCode {
    process::raise_open_files();
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadtest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> io::Result<()> {
    match command {
        Command::Compare(options) => compare::run(&options),
        Command::Backend(options) => backend::run(&options),
        Command::Generate(load) => generate::run(&load),
        Command::Baseline(options) => baseline::run(&options),
    }
}
