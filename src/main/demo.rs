//! `ringgate demo`: a complete set-up to try the gateway with, in one command.
//!
//! Certificates, resources and settings are files in a directory, as a user would have them; the
//! gateway is started from those files just as `ringgate run` would.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ringgate::demo::{self, Backend, Certificates, Ports};
use ringgate::settings::Settings;

use crate::run::{Failure, on_control_thread, serve};

/// The flags of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// Serve HTTPS here.
    #[arg(long, default_value_t = 8443, value_name = "PORT", value_parser = port())]
    https_port: u16,
    /// Serve plain HTTP here.
    #[arg(long, default_value_t = 8080, value_name = "PORT", value_parser = port())]
    http_port: u16,
    /// Serve the administration here.
    #[arg(long, default_value_t = 15000, value_name = "PORT", value_parser = port())]
    admin_port: u16,
    /// Write certificates, resources and settings here and keep them. Default: a temporary
    /// directory that is removed at exit.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// The lines to paste name the port, so it cannot be one that the kernel chooses.
fn port() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..)
}

/// Serves the demo until Ctrl-C.
pub(crate) fn demo(flags: &Flags) -> ExitCode {
    match try_demo(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringgate demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_demo(flags: &Flags) -> Result<(), Failure> {
    flags.check_ports()?;
    let place = Place::open(flags.dir.as_deref())?;
    let dir = place.path();
    println!(
        "Starting a gateway and a backend for this host alone; files are in {}.",
        dir.display()
    );
    let cannot = |what: &'static str| {
        move |error: io::Error| Failure::new(format!("cannot {what}: {error}"))
    };
    let ports = flags.ports();
    let certificates = Certificates::create(dir).map_err(cannot("write certificates"))?;
    let backend = Backend::start().map_err(cannot("start the backend"))?;
    let resources = demo::write_resources(dir, ports, backend.address().port())
        .map_err(cannot("write resources"))?;
    let load = || Settings::load(&resources.settings).map_err(|error| error.to_string());
    let settings = load().map_err(Failure::new)?;
    on_control_thread(|log| {
        serve(settings, load, log, || {
            println!("{}", demo::instructions(ports, &certificates.ca, dir));
        })
    })
}

impl Flags {
    fn ports(&self) -> Ports {
        Ports { https: self.https_port, http: self.http_port, admin: self.admin_port }
    }

    /// Finds a port in use before anything is written, when it can still be told which flag it is.
    fn check_ports(&self) -> Result<(), Failure> {
        let ports = [
            ("--https-port", self.https_port),
            ("--http-port", self.http_port),
            ("--admin-port", self.admin_port),
        ];
        // All are held until all are bound, so that the same port twice is found, too.
        let mut bound = Vec::new();
        for (flag, port) in ports {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
            bound.push(listener.map_err(|error| {
                let what = format!("cannot listen on port {port}: {error}");
                Failure::new(format!("{what}; choose another port with {flag}"))
            })?);
        }
        Ok(())
    }
}

/// The demo's directory.
enum Place {
    Kept(PathBuf),
    /// Removed when dropped.
    Temporary(tempfile::TempDir),
}

impl Place {
    fn open(dir: Option<&Path>) -> Result<Self, Failure> {
        let Some(dir) = dir else {
            let made = tempfile::Builder::new().prefix("ringgate-demo-").tempdir();
            return made.map(Self::Temporary).map_err(|error| {
                Failure::new(format!("cannot make a temporary directory: {error}; use --dir"))
            });
        };
        let made = std::fs::create_dir_all(dir).and_then(|()| dir.canonicalize());
        made.map(Self::Kept).map_err(|error| {
            let dir = dir.display();
            Failure::new(format!("cannot make {dir}: {error}; name a directory with --dir"))
        })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }
}
