//! Compiles resources without serving them and prints what is wrong with them.
//!
//! - One line per finding, by file and line, then one line that sums up.
//! - A certificate that is not there is a warning: it may be on the machine that serves.
//! - Names are not resolved: nothing leaves the machine.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::compile::{
    Changes, Compiler, FileState, GatewayIdentity, Identities, Inputs, Listen, PemFiles, SourceFile,
};
use crate::config::control::{gateway, listen};
use crate::config::identities::RealIdentities;
use crate::config::source::directory::Directory;
use crate::config::source::document::FILE_BYTES_MAX;
use crate::config::source::named::NamedFiles;
use crate::config::source::watch::Nobody;
use crate::crypto::Digest;
use crate::settings::Settings;
use crate::snapshot::{Limits, Rejection, Severity};

/// Checks the files `paths`, and those below the directories `paths`, for a gateway with
/// `settings`, whose own source is checked where there are none; prints each finding and a summary
/// to `out`. Returns whether there was no error.
///
/// # Errors
/// A path does not exist or cannot be read, or `out` cannot be written.
pub fn check_paths(
    paths: &[PathBuf],
    settings: &Settings,
    out: &mut dyn Write,
) -> Result<bool, String> {
    let mut found = Changes::default();
    if paths.is_empty() {
        let source = read_directory(&settings.source.directory, out);
        found = source.map_err(|error| format!("source.directory {error}"))?;
    }
    for path in paths {
        if path.is_dir() {
            found.extend(read_directory(path, out)?);
        } else {
            found.files.push(read_file(path)?);
        }
    }
    check(Subject::new(found, &settings.files.root, settings), out)
        .map_err(|error| cannot_print(&error))
}

fn cannot_print(error: &io::Error) -> String {
    format!("cannot print: {error}")
}

fn read_directory(path: &Path, out: &mut dyn Write) -> Result<Changes, String> {
    let found = Directory::new(path).scan(&mut Nobody).map_err(|error| error.to_string())?;
    if found.is_empty() {
        let what = "warning: there is no *.yaml and no *.yml below it";
        writeln!(out, "{}: {what}", path.display()).map_err(|error| cannot_print(&error))?;
    }
    Ok(found)
}

/// Checks a file that holds `content` and stands alone. Returns whether there was no error.
#[cfg(feature = "bench")]
pub(crate) fn check_bytes(content: &[u8]) -> bool {
    let state = FileState::Content(content.into());
    let file = SourceFile { path: Arc::new("a.yaml".into()), state };
    let found = Changes { files: vec![file], ..Changes::default() };
    let subject = Subject::new(found, Path::new("/nowhere"), &Settings::default());
    check(subject, &mut io::sink()).expect("a sink takes everything")
}

fn read_file(path: &Path) -> Result<SourceFile, String> {
    let words = |error: io::Error| format!("{}: {error}", path.display());
    let metadata = std::fs::metadata(path).map_err(words)?;
    if !metadata.is_file() {
        return Err(format!("{}: is no file and no directory", path.display()));
    }
    let bytes = metadata.len();
    let state = if bytes > FILE_BYTES_MAX as u64 {
        let what = format!("{bytes} bytes, more than the {FILE_BYTES_MAX} that a file may have");
        FileState::Unreadable(what)
    } else {
        FileState::Content(std::fs::read(path).map_err(words)?)
    };
    Ok(SourceFile { path: Arc::new(path.to_owned()), state })
}

/// What to check, and for which gateway.
struct Subject<'a> {
    found: Changes,
    /// Prefix of every path that a Gateway names.
    files_root: &'a Path,
    gateway: GatewayIdentity,
    listen: Listen,
    identities: Box<dyn Identities>,
}

impl<'a> Subject<'a> {
    /// As far as the settings say it.
    fn new(found: Changes, files_root: &'a Path, settings: &Settings) -> Self {
        Self {
            found,
            files_root,
            gateway: gateway(settings),
            listen: listen(settings),
            identities: Box::new(RealIdentities::new(settings.tls.provider)),
        }
    }
}

/// Checks; returns whether there was no error.
///
/// # Errors
/// `out` cannot be written.
fn check(subject: Subject<'_>, out: &mut dyn Write) -> io::Result<bool> {
    let Subject { found, files_root, gateway, listen, identities } = subject;
    let paths: BTreeSet<_> = found.files.iter().map(|file| Arc::clone(&file.path)).collect();
    let mut compiler = Compiler::new(gateway, listen, Limits::default(), identities);
    compiler.tolerate_absent_certificates();
    compiler.read(found);
    let mut pem = Unwatched(NamedFiles::new(files_root.to_owned()));
    let output = compiler.compile(Inputs { pem: &mut pem, resolved: &|_| None });
    let rejections = &output.snapshot.rejections;
    for rejection in rejections {
        writeln!(out, "{rejection}")?;
    }
    let errors = count(rejections, Severity::Error);
    writeln!(
        out,
        "{}, {}, {}, {}",
        plural(paths.len(), "file"),
        plural(compiler.resources(), "good resource"),
        plural(errors, "error"),
        plural(count(rejections, Severity::Warning), "warning"),
    )?;
    Ok(errors == 0)
}

/// Files that are looked at once.
struct Unwatched(NamedFiles);

impl PemFiles for Unwatched {
    fn want(&mut self, paths: &BTreeSet<Arc<str>>) {
        self.0.want(paths, &mut Nobody);
    }

    fn look(&self, path: &str) -> io::Result<Digest> {
        self.0.look(path)
    }

    fn take(&mut self, path: &str) -> io::Result<Vec<u8>> {
        self.0.take(path)
    }

    fn place(&self, path: &str) -> String {
        self.0.real(path).display().to_string()
    }
}

fn count(rejections: &[Rejection], severity: Severity) -> usize {
    rejections.iter().filter(|rejection| rejection.severity == severity).count()
}

fn plural(count: usize, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::compile::tests::{TestIdentities, gateway, listen};
    use proptest::prelude::*;
    use std::path::PathBuf;

    fn checked(name: &str, content: &[u8]) -> (bool, String) {
        let state = FileState::Content(content.into());
        let file = SourceFile { path: Arc::new(PathBuf::from(name)), state };
        let mut out = Vec::new();
        let subject = Subject {
            found: Changes { files: vec![file], ..Changes::default() },
            files_root: Path::new("/nowhere"),
            gateway: gateway(),
            listen: listen(),
            identities: Box::new(TestIdentities::default()),
        };
        let good = check(subject, &mut out).unwrap();
        (good, String::from_utf8(out).unwrap())
    }

    /// `NAME.yaml` below `testdata` is checked and must say what stands in `NAME.rejections`, which
    /// is written where it is missing.
    #[test]
    fn every_case_says_what_is_expected() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/testdata");
        let mut wrong = String::new();
        let mut cases = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            cases += 1;
            let name = path.file_name().unwrap().to_str().unwrap();
            let (_, said) = checked(name, &std::fs::read(&path).unwrap());
            let expected = std::fs::read_to_string(path.with_extension("rejections"));
            if expected.as_ref().ok() != Some(&said) {
                if expected.is_err() {
                    std::fs::write(path.with_extension("rejections"), &said).unwrap();
                }
                wrong += &format!("--- {name}\n{said}");
            }
        }
        assert!(wrong.is_empty(), "\n{wrong}");
        assert!(cases >= 25, "{cases}");
    }

    /// The decisions of [`ISTIO`] that are wrong here.
    #[test]
    fn istio_decides_alike() {
        let (mut template, mut cases, mut wrong) = ("", 0, String::new());
        for line in ISTIO.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let Some((decision, case)) = line.split_once(' ').filter(|_| !line.starts_with('['))
            else {
                template = line;
                continue;
            };
            cases += 1;
            let case = case.rsplit_once(" # ").map_or(case, |(case, _)| case).trim();
            let (kind, spec) = template[1..].split_once("] ").unwrap();
            let text = format!(
                "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{ name: a }}\n\
                 spec:\n  {}\n",
                spec.replacen('%', case, 1)
            );
            let (good, said) = checked("a.yaml", text.as_bytes());
            let is_right = match decision {
                "accept" | "refuse!" => good,
                "warn" => good && said.lines().any(is_of_the_case),
                "refuse" | "accept!" => !good && said.contains(&format!("{kind} default/a: spec")),
                other => panic!("`{other}` is none of the words of the table"),
            };
            if !is_right {
                wrong += &format!("{decision} {case}\n{said}\n");
            }
        }
        assert!(wrong.is_empty(), "\n{wrong}");
        assert!(cases > 250, "{cases}");
    }

    /// Whether it is no warning that what a case names is not there.
    fn is_of_the_case(line: &str) -> bool {
        let absent = ["no usable Gateway", "does not exist", "there is no Secret"];
        line.contains(": warning: ") && !absent.iter().any(|words| line.contains(words))
    }

    const ISTIO: &str = include_str!("testdata/istio.txt");

    #[test]
    fn a_bomb_is_an_error() {
        let mut text = String::from("a: &a [x, x, x, x, x, x, x, x, x]\n");
        for (name, before) in ('b'..='z').zip('a'..) {
            let items = vec![format!("*{before}"); 9].join(", ");
            text += &format!("{name}: &{name} [{items}]\n");
        }
        let (good, said) = checked("bomb.yaml", text.as_bytes());
        assert!(!good);
        assert!(said.len() < 400, "{said}");
    }

    #[test]
    fn deep_nesting_is_an_error() {
        for open in ["[", "{a: ", "- ", "? "] {
            let (good, said) = checked("deep.yaml", open.repeat(100_000).as_bytes());
            assert!(!good);
            assert!(said.len() < 400, "{said}");
        }
    }

    #[test]
    fn a_file_of_100_mb_is_an_error() {
        let (good, said) = checked("large.yaml", &vec![b'a'; 100_000_000]);
        assert!(!good);
        assert!(said.starts_with("large.yaml: error: the file has 100 MB"), "{said}");
    }

    proptest! {
        #[test]
        fn random_bytes_never_crash(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            checked("random.yaml", &bytes);
        }

        #[test]
        fn random_yaml_never_crashes(
            head in "(apiVersion: v1\n)?(kind: (Secret|Service|List)\n)?",
            text in "[-:a-c{}\\[\\],\"'&*!|>?# \n]{0,80}",
        ) {
            checked("random.yaml", (head + &text).as_bytes());
        }

        #[test]
        fn half_a_file_never_crashes(cut in 0..PAGE.len(), drop in 0..40_usize) {
            let mut bytes = PAGE.as_bytes().to_vec();
            bytes.drain(cut..(cut + drop).min(PAGE.len()));
            checked("page.yaml", &bytes);
        }
    }

    const PAGE: &str = include_str!("testdata/page.yaml");
}
