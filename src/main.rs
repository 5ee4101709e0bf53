//! The command line: `run`, `check`, `demo`. Each command is a story of its own in `main/`.

#![forbid(unsafe_code)]

#[path = "main/demo.rs"]
mod demo;
#[path = "main/run.rs"]
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A TLS-terminating ingress gateway that reads Istio's resources.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or Ctrl-C; SIGHUP re-reads everything.
    Run {
        /// The settings file; see config/ringgate.yaml for every key.
        #[arg(long, value_name = "FILE")]
        settings: PathBuf,
    },
    /// Compile resources, print every rejection, and exit with 1 if any is an error.
    Check {
        /// Files, or directories that are searched for *.yaml.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Serve an example with a throwaway CA and a backend, and print curl lines to paste.
    Demo(demo::Flags),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run { settings } => run::run(&settings),
        Command::Check { paths } => check(&paths),
        Command::Demo(flags) => demo::demo(&flags),
    }
}

fn check(paths: &[PathBuf]) -> ExitCode {
    match ringgate::config::check_paths(paths, &mut std::io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ringgate check: {error}");
            ExitCode::from(run::EXIT_USAGE)
        }
    }
}
