//! The command line: `run`, `check`, `demo`, `tune`. The long stories are in `main/`.

#![forbid(unsafe_code)]

#[path = "main/demo.rs"]
mod demo;
#[path = "main/log.rs"]
mod log;
#[path = "main/orders.rs"]
mod orders;
#[path = "main/run.rs"]
mod run;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ringgate::settings::Settings;

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
        /// Check this settings file too, and the resources for a gateway that has it.
        #[arg(long, value_name = "FILE")]
        settings: Option<PathBuf>,
        /// Files, or directories that are searched for *.yaml and *.yml; with --settings, its
        /// `source.directory` if none is named.
        #[arg(required_unless_present = "settings", value_name = "PATH")]
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
        Command::Check { settings, paths } => check(settings.as_deref(), &paths),
        Command::Demo(flags) => demo::demo(&flags),
        Command::Tune { format } => tune(format),
    }
}

fn check(settings: Option<&Path>, paths: &[PathBuf]) -> ExitCode {
    match try_check(settings, paths) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ringgate check: {error}");
            ExitCode::from(run::EXIT_USAGE)
        }
    }
}

/// Whether there was no error.
fn try_check(settings: Option<&Path>, paths: &[PathBuf]) -> Result<bool, String> {
    let settings = settings.map_or_else(|| Ok(Settings::default()), Settings::load);
    let settings = settings.map_err(|error| format!("the settings cannot be used:\n{error}"))?;
    let mut found = Vec::new();
    let is_good = ringgate::config::check_paths(paths, &settings, &mut found)?;
    print(&found).map_err(|error| format!("cannot print: {error}"))?;
    Ok(is_good)
}

/// What differs is no failure: 0 is returned whatever was found.
fn tune(format: Format) -> ExitCode {
    let report = ringgate::tune::compare(&ringgate::tune::Host::here());
    let text = match format {
        Format::Table => report.to_string(),
        Format::Json => report.json() + "\n",
    };
    match print(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringgate tune: cannot print: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints to standard output, whose reader may have seen enough before the end, as `head` has.
fn print(text: &[u8]) -> io::Result<()> {
    match io::stdout().lock().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
