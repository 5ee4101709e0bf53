//! The command line: `run`, `check`, `demo`, `tune`. The long stories are in `main/`.

#![forbid(unsafe_code)]

#[path = "main/demo.rs"]
mod demo;
#[path = "main/orders.rs"]
mod orders;
#[path = "main/run.rs"]
mod run;

use std::io::{self, Write};
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
    /// Compare this host with the advice in tuning/ and print what differs; changes nothing.
    Tune {
        /// How to print it.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
}

/// How `tune` prints what it found.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs: every knob, whether it differs or not.
    Json,
}

fn main() -> ExitCode {
    ringgate::worker::forbid_huge_pages();
    ringgate::worker::raise_open_files();
    match Cli::parse().command {
        Command::Run { settings } => run::run(&settings),
        Command::Check { paths } => check(&paths),
        Command::Demo(flags) => demo::demo(&flags),
        Command::Tune { format } => tune(format),
    }
}

fn check(paths: &[PathBuf]) -> ExitCode {
    match ringgate::config::check_paths(paths, &mut io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ringgate check: {error}");
            ExitCode::from(run::EXIT_USAGE)
        }
    }
}

/// What differs is no failure: 0 is returned whatever was found.
fn tune(format: Format) -> ExitCode {
    let report = ringgate::tune::compare(&ringgate::tune::Host::here());
    let text = match format {
        Format::Table => report.to_string(),
        Format::Json => report.json() + "\n",
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // A reader that has seen enough, as `head` has.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("ringgate tune: cannot write: {error}");
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}
