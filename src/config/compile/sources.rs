//! Which resources there are: parses what changed, keeps what was good.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use super::SourceFile;
use crate::config::model::{Finding, Key, Parsed, Resource, parse};
use crate::config::source::document::{self, Part, SyntaxError};
use crate::snapshot::{Origin, Rejection, Severity};

/// A resource and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    path: Arc<PathBuf>,
    lines_before: u64,
    pub(super) resource: Arc<Resource>,
}

impl Placed {
    /// The place of a line of the resource.
    pub(super) fn origin(&self, line: u64) -> Origin {
        Origin::File { path: Arc::clone(&self.path), line: self.lines_before + line }
    }

    /// A finding about the resource.
    pub(super) fn reject(
        &self,
        severity: Severity,
        line: u64,
        field: impl Into<String>,
        what: String,
        cause: &str,
    ) -> Rejection {
        Rejection {
            severity,
            origin: self.origin(line),
            resource: self.resource.key.to_string(),
            field: field.into(),
            what,
            cause: cause.to_owned(),
        }
    }
}

/// The resources that are in use, by key.
pub(super) type Resources = BTreeMap<Key, Placed>;

/// The files as they were read last.
#[derive(Default)]
pub(super) struct Sources {
    files: BTreeMap<Arc<PathBuf>, File>,
    /// What the generation before used.
    good: Resources,
}

#[derive(Default)]
struct File {
    content: Option<Arc<[u8]>>,
    documents: Vec<(Part, Arc<Parsed>)>,
    failure: Option<SyntaxError>,
}

impl Sources {
    /// Reads `files` and says which resources are to be used.
    pub(super) fn update(
        &mut self,
        files: &[SourceFile],
        rejections: &mut Vec<Rejection>,
    ) -> Resources {
        let mut before = std::mem::take(&mut self.files);
        for file in files {
            let old = before.remove(&file.path).unwrap_or_default();
            self.files.insert(Arc::clone(&file.path), old.update(&file.content));
        }
        let mut used = Resources::new();
        for (path, file) in &self.files {
            file.collect(path, &mut used, rejections);
        }
        self.keep_good(&mut used, rejections);
        self.good.clone_from(&used);
        used
    }

    /// How many resources are in use.
    pub(super) fn len(&self) -> usize {
        self.good.len()
    }

    /// Adds what was good and is broken now.
    fn keep_good(&self, used: &mut Resources, rejections: &mut Vec<Rejection>) {
        let broken: BTreeSet<_> =
            self.files.values().flat_map(File::parsed).flat_map(|p| &p.broken).collect();
        for (key, placed) in &self.good {
            let gone = || !broken.contains(key) && !self.is_unreadable(&placed.path);
            if used.contains_key(key) || gone() {
                continue;
            }
            let what = "what was read before the error stays in use".to_owned();
            let (line, cause) = (placed.resource.line, "until the error is gone");
            rejections.push(placed.reject(Severity::Warning, line, "", what, cause));
            used.insert(key.clone(), placed.clone());
        }
    }

    /// Whether the file holds something that could not be told apart: it may be any resource.
    fn is_unreadable(&self, path: &Arc<PathBuf>) -> bool {
        let file = self.files.get(path);
        file.is_some_and(|file| {
            file.failure.is_some() || file.parsed().any(|parsed| parsed.unreadable)
        })
    }
}

impl File {
    fn update(self, content: &Result<Arc<[u8]>, String>) -> Self {
        match (content, &self.content) {
            (Ok(new), Some(old)) if Arc::ptr_eq(new, old) || new == old => self,
            (Ok(new), _) => self.reread(new),
            (Err(reason), _) => {
                let what = format!("cannot be read: {reason}");
                let failure = SyntaxError { line: 0, what, cause: String::new() };
                Self { failure: Some(failure), ..Self::default() }
            }
        }
    }

    fn reread(self, content: &Arc<[u8]>) -> Self {
        let parts = match document::split(content) {
            Ok(parts) => parts,
            Err(failure) => return Self { failure: Some(failure), ..Self::default() },
        };
        let known = self.by_text();
        let documents = parts
            .into_iter()
            .map(|part| {
                let text = &content[part.bytes.clone()];
                let parsed = known.get(text).map_or_else(|| Arc::new(read(text)), Arc::clone);
                (part, parsed)
            })
            .collect();
        Self { content: Some(Arc::clone(content)), documents, failure: None }
    }

    /// The documents of before by their text.
    fn by_text(&self) -> HashMap<&[u8], Arc<Parsed>> {
        let Some(content) = &self.content else { return HashMap::new() };
        let text = |part: &Part| &content[part.bytes.clone()];
        self.documents.iter().map(|(part, parsed)| (text(part), Arc::clone(parsed))).collect()
    }

    fn parsed(&self) -> impl Iterator<Item = &Parsed> {
        self.documents.iter().map(|(_, parsed)| parsed.as_ref())
    }

    fn collect(&self, path: &Arc<PathBuf>, used: &mut Resources, out: &mut Vec<Rejection>) {
        if let Some(failure) = &self.failure {
            let finding = syntax_finding(failure.clone());
            out.push(rejection(path, 0, "", &finding));
        }
        for (part, parsed) in &self.documents {
            for (resource, finding) in &parsed.findings {
                out.push(rejection(path, part.lines_before, resource, finding));
            }
            for resource in &parsed.resources {
                let (path, resource) = (Arc::clone(path), Arc::clone(resource));
                let placed = Placed { path, lines_before: part.lines_before, resource };
                add(placed, used, out);
            }
        }
    }
}

fn add(placed: Placed, used: &mut Resources, out: &mut Vec<Rejection>) {
    let (key, line) = (placed.resource.key.clone(), placed.resource.line);
    match used.get(&key) {
        Some(first) => {
            let what = format!("is already defined at {}", first.origin(first.resource.line));
            let cause = "the first one is used; give one of them another name or namespace";
            out.push(placed.reject(Severity::Error, line, "metadata.name", what, cause));
        }
        None => {
            used.insert(key, placed);
        }
    }
}

fn read(text: &[u8]) -> Parsed {
    let text = std::str::from_utf8(text).expect("split() checked the file");
    match document::parse(text) {
        Ok(Some(node)) => parse(&node),
        Ok(None) => Parsed::default(),
        Err(error) => {
            let findings = vec![(String::new(), syntax_finding(error))];
            Parsed { unreadable: true, findings, ..Parsed::default() }
        }
    }
}

fn syntax_finding(error: SyntaxError) -> Finding {
    let SyntaxError { line, what, cause } = error;
    Finding { severity: Severity::Error, line, field: String::new(), what, cause }
}

fn rejection(path: &Arc<PathBuf>, lines_before: u64, resource: &str, found: &Finding) -> Rejection {
    Rejection {
        severity: found.severity,
        origin: Origin::File { path: Arc::clone(path), line: lines_before + found.line },
        resource: resource.to_owned(),
        field: found.field.clone(),
        what: found.what.clone(),
        cause: found.cause.clone(),
    }
}
