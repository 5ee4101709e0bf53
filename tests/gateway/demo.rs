//! `ringgate demo`: what it prints can be pasted and does what it says.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::gateway::run_to_end;
use crate::harness::{PATIENCE, eventually, free_port, outside};

/// A running demo and what it printed; killed when dropped.
struct Demo {
    child: Child,
    lines: Vec<String>,
}

impl Demo {
    /// Starts on free ports and collects what it prints until it falls silent.
    fn start(directory: &std::path::Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringgate"));
        command.arg("demo");
        for flag in ["--https-port", "--http-port", "--admin-port"] {
            command.args([flag, &free_port().to_string()]);
        }
        command.arg("--dir").arg(directory).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let printed = read_lines(&mut child);
        let mut demo = Self { child, lines: Vec::new() };
        let mut patience = PATIENCE;
        while let Ok(line) = printed.recv_timeout(patience) {
            if line.trim_start().starts_with("curl ") {
                // The rest of the text comes in one go.
                patience = Duration::from_secs(1);
            }
            demo.lines.push(line);
        }
        demo
    }

    /// The command lines to paste, continued lines joined.
    fn commands(&self) -> Vec<String> {
        let joined = self.lines.join("\n").replace("\\\n", " ");
        let commands = joined.lines().map(str::trim).filter(|line| line.starts_with("curl "));
        commands.map(str::to_owned).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[test]
fn the_demo_starts_prints_commands_and_ends_when_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let mut demo = Demo::start(directory.path());
    let commands = demo.commands();
    assert!(commands.iter().any(|line| line.contains("/status/418")), "{:#?}", demo.lines);
    kill_process(Pid::from_child(&demo.child), Signal::INT).unwrap();
    eventually("the demo ends", || demo.child.try_wait().unwrap().is_some());
}

#[test]
fn every_printed_command_works() {
    if outside::tool("curl").is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let demo = Demo::start(directory.path());
    for line in demo.commands() {
        let (code, text) = outside::output(Command::new("sh").args(["-c", &line]));
        assert_eq!(code, Some(0), "{line}\n{text}");
        if line.contains("/status/418") && line.contains("https://") {
            assert!(text.contains("teapot"), "{line}\n{text}");
        }
    }
}

#[test]
fn the_teapot_comes_over_verified_http2() {
    if outside::tool("curl").is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let demo = Demo::start(directory.path());
    let commands = demo.commands();
    let line = commands
        .iter()
        .find(|line| line.contains("/status/418") && line.contains("https://"))
        .expect("the page's own request");
    let line = line.replacen("curl ", "curl -v ", 1);
    let (code, text) = outside::output(Command::new("sh").args(["-c", &line]));
    assert_eq!(code, Some(0), "{text}");
    for expected in ["HTTP/2 418", "SSL certificate verify ok", "teapot"] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
}

#[test]
fn a_port_in_use_names_the_flag_to_change() {
    let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let taken = taken.local_addr().map(|address| (taken, address.port().to_string())).unwrap();
    for flag in ["--https-port", "--http-port", "--admin-port"] {
        let mut arguments = vec!["demo".to_owned()];
        for other in ["--https-port", "--http-port", "--admin-port"] {
            let port = if other == flag { taken.1.clone() } else { free_port().to_string() };
            arguments.extend([other.to_owned(), port]);
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let (code, text) = run_to_end(&arguments);
        assert!(code.is_some_and(|code| code != 0), "{flag}: {text}");
        assert!(text.contains(flag) && text.contains(&taken.1), "{flag}: {text}");
    }
}
