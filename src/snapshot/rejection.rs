//! Rejections: what was wrong with a resource, in words that its author can act on.

use std::fmt;
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
    /// `file:line: error: Gateway default/mygateway: spec.servers[0]: what (cause)`, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.severity)?;
        for part in [&self.resource, &self.field, &self.what] {
            if !part.is_empty() {
                write!(f, ": {part}")?;
            }
        }
        if !self.cause.is_empty() {
            write!(f, " ({})", self.cause)?;
        }
        Ok(())
    }
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
