//! Which resources there are: parses what changed, keeps what was good.
//!
//! - Of a file, its documents' digests and what they yielded are kept, not its text.
//! - A change costs what the documents that changed cost, however many others there are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::shared::SharedRules;
use super::{FileState, Identities, SourceFile};
use crate::config::model::{Finding, Key, Kind, Parsed, Resource, parse};
use crate::config::parallel;
use crate::config::source::document::{self, SyntaxError};
use crate::crypto::Digest;
use crate::snapshot::{Origin, Rejection, Severity};

/// Text that is parsed at a time.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Text that a thread is given at a time.
const SHARE_BYTES: usize = 64 * 1024;

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

    /// Whether it is the same text in the same place.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.resource, &other.resource)
            && self.lines_before == other.lines_before
            && self.path == other.path
    }

    /// Whether it comes before `other`: of two resources with the same key, the first is used.
    fn is_before(&self, other: &Self) -> bool {
        let place = |placed: &Self| (placed.lines_before, placed.resource.line);
        (&self.path, place(self)) < (&other.path, place(other))
    }
}

/// The resources that are in use, by key.
#[derive(Default)]
pub(super) struct Resources(BTreeMap<Key, Placed>);

impl Resources {
    /// The resource `key`.
    pub(super) fn get(&self, key: &Key) -> Option<&Placed> {
        self.0.get(key)
    }

    /// Those of one kind, by namespace and name.
    pub(super) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Placed)> {
        let first = Key { kind, namespace: "".into(), name: "".into() };
        self.0.range(first..).take_while(move |(key, _)| key.kind == kind)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// What is different about the resources in use.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Gateways or VirtualServices.
    pub(super) listeners: bool,
    /// What decides where services are, and how they are reached.
    pub(super) backends: bool,
    /// Secrets and ConfigMaps, by their names.
    pub(super) secrets: BTreeSet<Arc<str>>,
    /// Any of them, or what is wrong with any.
    pub(super) anything: bool,
}

impl Difference {
    fn note(&mut self, key: &Key) {
        match key.kind {
            Kind::Gateway | Kind::VirtualService => self.listeners = true,
            Kind::Service
            | Kind::ServiceEntry
            | Kind::WorkloadEntry
            | Kind::DestinationRule
            | Kind::EndpointSlice
            | Kind::Pod => self.backends = true,
            Kind::Secret | Kind::ConfigMap => drop(self.secrets.insert(Arc::clone(&key.name))),
        }
    }
}

/// The files as they were read last.
#[derive(Default)]
pub(super) struct Sources {
    files: BTreeMap<Arc<PathBuf>, File>,
    resources: Resources,
    /// Where the keys that are in use are defined once more.
    doubles: BTreeMap<Key, Vec<Placed>>,
    /// The keys in use that are defined nowhere: what was good stays while it is broken.
    kept: BTreeSet<Key>,
    /// What is broken and never was good, and in use in the form that leaves nothing open.
    closed: BTreeMap<Key, Placed>,
    /// Files that there is something to say about.
    noteworthy: BTreeSet<Arc<PathBuf>>,
    rules: SharedRules,
}

#[derive(Default)]
struct File {
    documents: Box<[Document]>,
    failure: Option<Box<SyntaxError>>,
}

struct Document {
    digest: Digest,
    lines_before: u64,
    parsed: Parsed,
}

impl Sources {
    /// The resources in use.
    pub(super) fn resources(&self) -> &Resources {
        &self.resources
    }

    /// How many of them are no stand-ins.
    pub(super) fn good(&self) -> usize {
        self.resources.len() - self.closed.len()
    }

    /// Reads `changed`; says what that changed.
    pub(super) fn update(
        &mut self,
        changed: Vec<SourceFile>,
        identities: &dyn Identities,
    ) -> Difference {
        let mut difference = Difference::default();
        let mut lost = BTreeMap::new();
        let closed = std::mem::take(&mut self.closed);
        closed.keys().for_each(|key| drop(self.resources.0.remove(key)));
        let mut changed = changed.into_iter().peekable();
        while changed.peek().is_some() {
            let batch = batch(&mut changed);
            let read = parallel::map(&batch, things_at_a_time(&batch), |file| {
                let old = self.files.get(&file.path);
                File::read(&file.state, old, identities)
            });
            for (SourceFile { path, .. }, mut new) in batch.into_iter().zip(read) {
                new.iter_mut().for_each(|file| file.share(&mut self.rules));
                self.replace(&path, new, &mut lost, &mut difference);
            }
        }
        self.keep_good(lost, &mut difference);
        self.close(&closed, &mut difference);
        difference
    }

    /// What is wrong with the files.
    pub(super) fn report(&self, out: &mut Vec<Rejection>) {
        for path in &self.noteworthy {
            self.files[path].report(path, out);
        }
        for (key, others) in &self.doubles {
            let first = &self.resources.0[key];
            out.extend(others.iter().map(|other| double(first, other)));
        }
        for key in &self.kept {
            let placed = &self.resources.0[key];
            let what = "what was read before the error stays in use".to_owned();
            let (line, cause) = (placed.resource.line, "until the error is gone");
            out.push(placed.reject(Severity::Warning, line, "", what, cause));
        }
        for placed in self.closed.values() {
            let what = "where it has TLS requests are answered with 503, not sent in plain text";
            let (line, cause) = (placed.resource.line, "until the error is gone");
            out.push(placed.reject(Severity::Warning, line, "", what.to_owned(), cause));
        }
    }

    /// Takes `new` for the file at `path`; what was in use and is defined no more goes to `lost`.
    fn replace(
        &mut self,
        path: &Arc<PathBuf>,
        new: Option<File>,
        lost: &mut BTreeMap<Key, Placed>,
        difference: &mut Difference,
    ) {
        self.noteworthy.remove(path);
        let old = self.files.remove(path).unwrap_or_default();
        let stays: HashSet<_> = match &new {
            Some(new) => new.documents.iter().map(Document::place).collect(),
            None => HashSet::new(),
        };
        let (stay, go): (Vec<_>, Vec<_>) =
            old.documents.iter().partition(|document| stays.contains(&document.place()));
        for placed in go.iter().flat_map(|document| document.placed(path)) {
            self.undefine(&placed, lost, difference);
        }
        let stays: HashSet<_> = stay.into_iter().map(Document::place).collect();
        let Some(new) = new else {
            difference.anything |= old.is_noteworthy() || !go.is_empty();
            return;
        };
        let is_new = |document: &&Document| !stays.contains(&document.place());
        let come: Vec<_> = new.documents.iter().filter(is_new).collect();
        for placed in come.iter().flat_map(|document| document.placed(path)) {
            self.define(placed, difference);
        }
        difference.anything |= !go.is_empty() || !come.is_empty();
        difference.anything |= old.failure != new.failure;
        if new.is_noteworthy() {
            self.noteworthy.insert(Arc::clone(path));
        }
        self.files.insert(Arc::clone(path), new);
    }

    fn undefine(
        &mut self,
        placed: &Placed,
        lost: &mut BTreeMap<Key, Placed>,
        difference: &mut Difference,
    ) {
        let key = &placed.resource.key;
        let doubles = self.doubles.remove(key).unwrap_or_default();
        let (gone, mut left): (Vec<_>, Vec<_>) =
            doubles.into_iter().partition(|other| other.is_same(placed));
        if gone.is_empty() && self.resources.0.get(key).is_some_and(|used| used.is_same(placed)) {
            difference.note(key);
            if left.is_empty() {
                lost.extend(self.resources.0.remove(key).map(|used| (key.clone(), used)));
            } else {
                self.resources.0.insert(key.clone(), left.remove(0));
            }
        }
        if !left.is_empty() {
            self.doubles.insert(key.clone(), left);
        }
    }

    fn define(&mut self, placed: Placed, difference: &mut Difference) {
        let key = &placed.resource.key;
        let before = self.resources.0.get(key).filter(|_| !self.kept.contains(key));
        let Some(used) = before else {
            difference.note(key);
            self.kept.remove(key);
            self.resources.0.insert(key.clone(), placed);
            return;
        };
        let (used, key) = (used.clone(), key.clone());
        let doubles = self.doubles.entry(key.clone()).or_default();
        if placed.is_before(&used) {
            difference.note(&key);
            doubles.insert(0, used);
            self.resources.0.insert(key, placed);
        } else {
            let place = doubles.partition_point(|other| !placed.is_before(other));
            doubles.insert(place, placed);
        }
    }

    /// Decides about what is `lost` and what was kept before: it stays while it is broken.
    fn keep_good(&mut self, mut lost: BTreeMap<Key, Placed>, difference: &mut Difference) {
        for key in std::mem::take(&mut self.kept) {
            lost.extend(self.resources.0.remove_entry(&key));
        }
        lost.retain(|key, _| !self.resources.0.contains_key(key));
        if lost.is_empty() {
            return;
        }
        let files = self.noteworthy.iter().map(|path| &self.files[path]);
        let broken: BTreeSet<_> =
            files.flat_map(File::parsed).flat_map(|parsed| &parsed.broken).cloned().collect();
        for (key, placed) in lost {
            if broken.contains(&key) || self.is_unreadable(&placed.path) {
                self.kept.insert(key.clone());
                self.resources.0.insert(key, placed);
            } else {
                difference.note(&key);
                difference.anything = true;
            }
        }
    }

    /// Puts stand-ins in the place of what is broken and not known from before; there were
    /// `before`.
    fn close(&mut self, before: &BTreeMap<Key, Placed>, difference: &mut Difference) {
        let files = self.noteworthy.iter().map(|path| (path, &self.files[path]));
        let all = files.flat_map(|(path, file)| {
            file.documents.iter().flat_map(|document| document.stand_ins(path))
        });
        for placed in all {
            let key = &placed.resource.key;
            if !self.resources.0.contains_key(key) {
                self.closed.entry(key.clone()).or_insert(placed);
            }
        }
        self.resources.0.extend(self.closed.clone());
        let is_same = |(old, new): (&Placed, &Placed)| old.is_same(new);
        let all_same = before.values().zip(self.closed.values()).all(is_same);
        if before.len() != self.closed.len() || !all_same {
            before.keys().chain(self.closed.keys()).for_each(|key| difference.note(key));
            difference.anything = true;
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
    /// The file in the state `state`, which takes over what is as in `old`.
    fn read(state: &FileState, old: Option<&Self>, identities: &dyn Identities) -> Option<Self> {
        match state {
            FileState::Content(content) => Some(match document::split(content) {
                Ok(parts) => Self::parse(content, parts, old, identities),
                Err(failure) => Self { failure: Some(Box::new(failure)), ..Self::default() },
            }),
            FileState::Unreadable(reason) => {
                let what = format!("cannot be read: {reason}");
                let failure = SyntaxError { line: 0, what, cause: String::new() };
                Some(Self { failure: Some(Box::new(failure)), ..Self::default() })
            }
            FileState::Gone => None,
        }
    }

    fn parse(
        content: &[u8],
        parts: Vec<document::Part>,
        old: Option<&Self>,
        identities: &dyn Identities,
    ) -> Self {
        let known = || old.into_iter().flat_map(|old| &old.documents);
        // Of two with the same text, each goes on as itself.
        let in_place: HashMap<_, _> = known().map(|d| (d.place(), &d.parsed)).collect();
        let by_text: HashMap<_, _> = known().map(|d| (d.digest, &d.parsed)).collect();
        let document = |part: document::Part| {
            let (text, lines_before) = (&content[part.bytes.clone()], part.lines_before);
            let digest = Digest::of(text);
            let same = in_place.get(&(digest, lines_before)).or_else(|| by_text.get(&digest));
            let parsed =
                same.map_or_else(|| parse_text(text, identities), |&parsed| parsed.clone());
            Document { digest, lines_before, parsed }
        };
        Self { documents: parts.into_iter().map(document).collect(), failure: None }
    }

    /// Lets go of rules that others have, too.
    fn share(&mut self, rules: &mut SharedRules) {
        let resources = self.documents.iter_mut().flat_map(|d| &mut d.parsed.resources);
        resources.for_each(|resource| rules.share(resource));
    }

    fn parsed(&self) -> impl Iterator<Item = &Parsed> {
        self.documents.iter().map(|document| &document.parsed)
    }

    fn is_noteworthy(&self) -> bool {
        let is_noteworthy = |parsed: &Parsed| {
            parsed.unreadable || !parsed.broken.is_empty() || !parsed.findings.is_empty()
        };
        self.failure.is_some() || self.parsed().any(is_noteworthy)
    }

    fn report(&self, path: &Arc<PathBuf>, out: &mut Vec<Rejection>) {
        if let Some(failure) = &self.failure {
            let finding = syntax_finding(SyntaxError::clone(failure));
            out.push(rejection(path, 0, "", &finding));
        }
        for Document { lines_before, parsed, .. } in &self.documents {
            let findings = parsed.findings.iter();
            out.extend(findings.map(|(resource, f)| rejection(path, *lines_before, resource, f)));
        }
    }
}

impl Document {
    /// What tells it from the other documents of its file.
    fn place(&self) -> (Digest, u64) {
        (self.digest, self.lines_before)
    }

    fn placed(&self, path: &Arc<PathBuf>) -> impl Iterator<Item = Placed> {
        self.parsed.resources.iter().map(|resource| self.place_of(resource, path))
    }

    fn stand_ins(&self, path: &Arc<PathBuf>) -> impl Iterator<Item = Placed> {
        self.parsed.stand_ins.iter().map(|resource| self.place_of(resource, path))
    }

    fn place_of(&self, resource: &Arc<Resource>, path: &Arc<PathBuf>) -> Placed {
        let (path, resource) = (Arc::clone(path), Arc::clone(resource));
        Placed { path, lines_before: self.lines_before, resource }
    }
}

/// The next files, as many as are parsed before the first of them is put in its place: a model is
/// larger than its text, until what it shares with others is gone.
fn batch(files: &mut impl Iterator<Item = SourceFile>) -> Vec<SourceFile> {
    let mut bytes = 0;
    let mut batch = Vec::new();
    while bytes < BATCH_BYTES
        && let Some(file) = files.next()
    {
        bytes += content_bytes(&file);
        batch.push(file);
    }
    batch
}

/// Large files are worth a thread each, small ones by the dozen.
fn things_at_a_time(files: &[SourceFile]) -> usize {
    let bytes: usize = files.iter().map(content_bytes).sum();
    let average = bytes / files.len().max(1);
    (SHARE_BYTES / average.max(1)).clamp(1, parallel::MANY)
}

fn content_bytes(file: &SourceFile) -> usize {
    match &file.state {
        FileState::Content(content) => content.len(),
        FileState::Unreadable(_) | FileState::Gone => 0,
    }
}

fn parse_text(text: &[u8], identities: &dyn Identities) -> Parsed {
    let text = std::str::from_utf8(text).expect("split() checked the file");
    match document::parse(text) {
        Ok(Some(node)) => parse(&node, identities),
        Ok(None) => Parsed::default(),
        Err(error) => {
            let findings = vec![(String::new(), syntax_finding(error))];
            Parsed { unreadable: true, findings, ..Parsed::default() }
        }
    }
}

fn double(first: &Placed, other: &Placed) -> Rejection {
    let what = format!("is already defined at {}", first.origin(first.resource.line));
    let cause = "the first one is used; give one of them another name or namespace";
    other.reject(Severity::Error, other.resource.line, "metadata.name", what, cause)
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
