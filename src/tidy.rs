//! Checks the properties of this source that the compiler does not: layering, where `unsafe` may
//! live, that every module says what it is for, and line length.

use std::fs;
use std::path::{Path, PathBuf};

/// Each layer and the layers it may import, in the order that data flows.
///
/// `snapshot` is the waist: what makes it and what reads it never see each other. `address` is a
/// word that most of them use, and knows nothing itself.
const LAYERS: &str = "
    bench     > http tls snapshot io
    fuzz      > config http tcp upstream tls crypto io
    main      > config admin worker snapshot drain telemetry demo tune settings address
    config    > snapshot crypto telemetry settings address
    admin     > snapshot drain telemetry settings address
    worker    > http tcp upstream tls snapshot runtime io drain telemetry settings address
    http      > upstream snapshot io drain telemetry address
    tcp       > upstream snapshot io drain telemetry address
    upstream  > tls snapshot io telemetry address
    tls       > snapshot crypto io telemetry
    snapshot  > crypto address
    crypto    >
    runtime   > io address
    io        > address
    drain     >
    telemetry > address
    demo      >
    tune      >
    settings  >
    address   >
";

/// The one layer that may say `unsafe`.
const UNSAFE_LAYER: &str = "runtime";

const COLUMNS_MAX: usize = 100;

#[test]
fn layers_read_top_to_bottom() {
    let layers: Vec<_> = layers().collect();
    for (index, (name, imports)) in layers.iter().enumerate() {
        for import in imports {
            let below = layers[index + 1..].iter().any(|(other, _)| other == import);
            assert!(below, "`{name}` may import `{import}` only if it is listed below");
        }
    }
}

#[test]
fn tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let errors: Vec<_> = sources(&root)
        .iter()
        .map(|path| Source::read(&root, path))
        .filter(|file| !matches!(file.layer(), "lib" | "tidy"))
        .flat_map(|file| file.errors())
        .collect();
    assert!(errors.is_empty(), "\n{}", errors.join("\n"));
}

#[test]
fn a_wrong_import_is_found() {
    let wrong = [
        ("http/serve.rs", "use crate::config::model;"),
        ("http/serve.rs", "use crate::{config, snapshot};"),
        ("http/serve.rs", "use super::super::config;"),
        ("http/mod.rs", "use super::config;"),
        ("main.rs", "use ringgate::http;"),
        ("main/run.rs", "ringgate::tls::accept();"),
        ("nowhere/mod.rs", "use crate::snapshot;"),
    ];
    for (name, line) in wrong {
        assert_eq!(imports_found(name, line), 1, "{name}: {line}");
    }
    let right = [
        ("http/serve.rs", "use crate::snapshot::Limits;"),
        ("http/serve.rs", "use super::headers;"),
        ("http/serve.rs", "// use crate::config"),
        ("upstream/h1/body.rs", "use super::super::pool;"),
        ("main.rs", "use ringgate::config;"),
    ];
    for (name, line) in right {
        assert_eq!(imports_found(name, line), 0, "{name}: {line}");
    }
}

#[test]
fn unsafe_is_found_outside_its_layer() {
    let block = "unsafe { std::hint::unreachable_unchecked() }";
    let found = |name: &str| Source::new(name, &format!("//! x\n{block}")).text_errors().len();
    assert_eq!(found("http/serve.rs"), 1);
    assert_eq!(found("runtime/uring/slot.rs"), 0);
}

fn imports_found(name: &str, line: &str) -> usize {
    Source::new(name, line).layer_errors().len()
}

fn layers() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    LAYERS
        .lines()
        .filter_map(|line| line.split_once('>'))
        .map(|(name, imports)| (name.trim(), imports.split_whitespace().collect()))
}

struct Source {
    /// Path below `src`.
    name: String,
    text: String,
}

impl Source {
    fn new(name: &str, text: &str) -> Self {
        Self { name: name.to_owned(), text: text.to_owned() }
    }

    fn read(root: &Path, path: &Path) -> Self {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        Self { name, text: fs::read_to_string(path).unwrap() }
    }

    fn layer(&self) -> &str {
        self.name.split(['/', '.']).next().unwrap()
    }

    /// How many `super::` lead out of the layer: the modules between this one and the crate.
    fn depth(&self) -> usize {
        let parts = self.name.split('/').count();
        if self.name.ends_with("/mod.rs") { parts - 1 } else { parts }
    }

    fn errors(&self) -> Vec<String> {
        let mut errors = self.layer_errors();
        errors.extend(self.text_errors());
        errors
    }

    fn layer_errors(&self) -> Vec<String> {
        let layer = self.layer();
        let Some((_, imports)) = layers().find(|(name, _)| *name == layer) else {
            return vec![format!("{}: `{layer}` has no place in LAYERS", self.name)];
        };
        // The binary is a crate of its own: its `crate::` is `main` itself.
        let root = if layer == "main" { "ringgate::" } else { "crate::" };
        let climbing = "super::".repeat(self.depth());
        let mut errors = Vec::new();
        for (number, line) in self.code() {
            let targets = line.split(root).skip(1).map(first_word);
            let wrong = targets.filter(|target| *target != layer && !imports.contains(target));
            errors.extend(
                wrong
                    .map(|target| format!("`{layer}` may not import `{target}`"))
                    .chain(
                        line.contains(&climbing)
                            .then(|| format!("`super` climbs out of `{layer}`")),
                    )
                    .map(|what| format!("{}:{number}: {what}", self.name)),
            );
        }
        errors
    }

    fn text_errors(&self) -> Vec<String> {
        let mut errors = Vec::new();
        if !self.text.starts_with("//! ") {
            errors.push(format!("{}:1: say what the module is for", self.name));
        }
        for (number, line) in self.code() {
            if self.layer() != UNSAFE_LAYER && line.contains("unsafe ") {
                errors.push(format!("{}:{number}: `unsafe` outside `{UNSAFE_LAYER}`", self.name));
            }
        }
        for (index, line) in self.text.lines().enumerate() {
            if line.chars().count() > COLUMNS_MAX && !line.contains("https://") {
                errors.push(format!("{}:{}: over {COLUMNS_MAX} columns", self.name, index + 1));
            }
        }
        errors
    }

    /// The lines that are not comments, numbered, up to the unit tests.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .take_while(|(_, line)| *line != "#[cfg(test)]")
            .map(|(index, line)| (index + 1, line))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut sources(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}
