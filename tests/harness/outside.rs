//! Programs that others wrote. Where one is missing its test is skipped, aloud; with
//! `RINGGATE_REQUIRE_TOOLS=1`, as in CI, that is a failure.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::{PATIENCE, within};

/// The program, its Debian package, and what the test wants it for is in the test's name.
const PACKAGES: [(&str, &str); 8] = [
    ("chromium", "chromium"),
    ("curl", "curl"),
    ("h2load", "nghttp2-client"),
    ("nginx", "nginx"),
    ("openssl", "openssl"),
    ("python3", "python3-venv"),
    ("strace", "strace"),
    ("wrk", "wrk"),
];

/// `name` ready to be given arguments, or None after saying how to install it.
pub fn tool(name: &str) -> Option<Command> {
    let (_, package) = PACKAGES.iter().find(|(known, _)| *known == name).expect("a known tool");
    if on_path(name) {
        return Some(Command::new(name));
    }
    skip(&format!("{name} (apt-get install {package})"));
    None
}

/// A Python that can import `module`: the one that `RINGGATE_PYTHON` names, else `python3`.
pub fn python(module: &str) -> Option<Command> {
    let program = env::var("RINGGATE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let (code, _) = output(Command::new(&program).args(["-c", &format!("import {module}")]));
    if code == Some(0) {
        return Some(Command::new(program));
    }
    let package = if module == "grpc" { "grpcio" } else { module };
    skip(&format!(
        "python with {package} (apt-get install python3-venv, python3 -m venv DIR, \
         DIR/bin/pip install {package}, RINGGATE_PYTHON=DIR/bin/python)"
    ));
    None
}

/// Whether a process may have mounts of its own, which is the kernel's affair and no program's.
pub fn own_mounts() -> Option<()> {
    let (code, said) = output(Command::new("unshare").args(["-rm", "true"]));
    if code != Some(0) {
        println!("skipped: no mounts of its own: {said}");
        return None;
    }
    Some(())
}

/// Runs `command` to its end: exit code (none when it was killed or is missing), all its output.
pub fn output(command: &mut Command) -> (Option<i32>, String) {
    output_within(command, 2 * PATIENCE)
}

/// The same; after `limit` it is killed and its exit code is none.
pub fn output_within(command: &mut Command, limit: Duration) -> (Option<i32>, String) {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return (None, error.to_string()),
    };
    let out = read_aside(child.stdout.take().unwrap());
    let err = read_aside(child.stderr.take().unwrap());
    let ended = within(limit, || child.try_wait().unwrap().is_some());
    if !ended {
        // Gone in the meantime is as good as killed.
        let _ = child.kill();
    }
    let code = child.wait().unwrap().code();
    (code, out.join().unwrap() + &err.join().unwrap())
}

fn read_aside(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until the pipe broke is what there is.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn on_path(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|directory: PathBuf| directory.join(name)).any(|p| p.is_file())
}

fn skip(what: &str) {
    let required = env::var("RINGGATE_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
    assert!(!required, "RINGGATE_REQUIRE_TOOLS=1, but this needs {what}");
    println!("skipped: needs {what}");
}

/// A Python script that serves on a port it chose and printed as its first line; killed when
/// dropped.
pub struct PythonServer {
    child: Child,
    pub port: u16,
}

impl PythonServer {
    /// # Panics
    /// When the script does not print a port.
    pub fn start(mut python: Command, script: &str) -> Self {
        python.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = python.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap_or_else(|_| panic!("no port in {line:?}"));
        Self { child, port }
    }
}

impl Drop for PythonServer {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
