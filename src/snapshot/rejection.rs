//! Rejections: what was wrong with a resource, in words that its author can act on.

use std::fmt::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// One finding about one resource.
///
/// The same value reaches `check`, the log, `/config_dump`, `/certs` and a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Whether the resource is left out.
    pub severity: Severity,
    /// Where it was found.
    pub origin: Origin,
    /// The resource, `Gateway default/mygateway`; empty when the document could not be told apart.
    pub resource: String,
    /// Path of the field, `spec.servers[0].tls.mode`; empty when it concerns the whole document.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// What probably caused it and how to cure it; empty when `what` says it all.
    pub cause: String,
}

/// What a rejection does to its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The resource is left out, or its last good version stays.
    Error,
    /// The resource is used all the same.
    Warning,
}

/// Where a resource was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A line of a file.
    File {
        /// The file as the user named it or it was found below the directory.
        path: Arc<PathBuf>,
        /// From 1; 0 when the file as a whole is meant.
        line: u64,
    },
    /// An object in Kubernetes.
    Object {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Rejection {
    /// `file:line: error: Gateway default/mygateway: spec.servers[0]: what (cause)`, on one line:
    /// what a resource says may be anything, and must not pass for another line of a log, nor for
    /// a command to a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = Escaped(f);
        write!(line, "{}: {}", self.origin, self.severity)?;
        for part in [&self.resource, &self.field, &self.what] {
            if !part.is_empty() {
                write!(line, ": {part}")?;
            }
        }
        if !self.cause.is_empty() {
            write!(line, " ({})", self.cause)?;
        }
        Ok(())
    }
}

/// Writes what is no text as `\n` or `\u{1b}`.
struct Escaped<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(is_no_text) {
            let end = part.chars().next_back().filter(|last| is_no_text(*last));
            self.0.write_str(&part[..part.len() - end.map_or(0, char::len_utf8)])?;
            if let Some(end) = end {
                write!(self.0, "{}", end.escape_default())?;
            }
        }
        Ok(())
    }
}

/// Whether it does something else than to be seen: control characters, separators of lines, and
/// what turns the direction of writing.
fn is_no_text(character: char) -> bool {
    let turns = ['\u{200e}'..='\u{200f}', '\u{2028}'..='\u{202e}', '\u{2066}'..='\u{2069}'];
    character.is_control() || turns.iter().any(|range| range.contains(&character))
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Object { namespace, name } => write!(f, "{namespace}/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_resource_says_it_is_told_on_one_line() {
        let rejection = Rejection {
            severity: Severity::Error,
            origin: Origin::Object { namespace: "default".to_owned(), name: "web".to_owned() },
            resource: "Gateway default/web".to_owned(),
            field: "spec.x".to_owned(),
            what: "not `5x\n2026-01-01T00:00:00Z ERROR forged\u{1b}[31m\u{202e}é`".to_owned(),
            cause: "a\tb".to_owned(),
        };
        let expected = "default/web: error: Gateway default/web: spec.x: not \
                        `5x\\n2026-01-01T00:00:00Z ERROR forged\\u{1b}[31m\\u{202e}é` (a\\tb)";
        assert_eq!(rejection.to_string(), expected);
    }
}
