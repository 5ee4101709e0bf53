//! `ringgate check`: good files pass in silence, each mistake is named by file and line.

use std::fs;

use crate::harness::gateway::run_to_end;
use crate::harness::yaml;

/// Checks `text` as one file: exit code and output.
fn check(text: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("given.yaml");
    fs::write(&path, text).unwrap();
    run_to_end(&["check", path.to_str().unwrap()])
}

/// A Gateway whose certificate nobody has to have.
fn good() -> String {
    let servers = yaml::http_server(80, &["web.test"], false);
    let route = "  - directResponse: { status: 200 }\n";
    yaml::documents(&[
        yaml::gateway("web", &servers),
        yaml::virtual_service("web", "web", &["web.test"], route),
    ])
}

#[test]
fn good_resources_pass() {
    let (code, text) = check(&good());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.ends_with("0 errors, 0 warnings\n"), "{text}");
}

#[test]
fn every_api_version_is_read() {
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let text =
            good().replace("networking.istio.io/v1", &format!("networking.istio.io/{version}"));
        assert_eq!(check(&text).0, Some(0), "{version}");
    }
}

#[test]
fn each_mistake_is_named_by_its_line() {
    let mistakes = [
        ("protocol: HTTP }", "protocol: HTTPX }", "protocol"),
        ("number: 80", "number: 80000", "number"),
        ("  http:\n", "  htpp:\n", "htpp"),
        ("  gateways: [ web ]", "  gateways: [ web ]\n  gateways: [ web ]", "gateways"),
        ("status: 200", "status: two hundred", "status"),
        ("  selector:", "  unknownField: 1\n  selector:", "unknownField"),
    ];
    for (right, wrong, word) in mistakes {
        let text = good();
        assert!(text.contains(right), "the test is about {right}");
        let text = text.replacen(right, wrong, 1);
        let (code, output) = check(&text);
        assert_eq!(code, Some(1), "{wrong}: {output}");
        // A repeated key may be reported where it stands first or again.
        let lines = text.lines().enumerate().filter(|(_, line)| line.contains(word));
        let named = lines
            .map(|(index, _)| format!("given.yaml:{}:", index + 1))
            .any(|origin| output.lines().any(|line| line.contains(&origin) && line.contains(word)));
        assert!(named, "{wrong}: no line names it:\n{output}\nin\n{text}");
    }
}

#[test]
fn all_mistakes_of_all_files_are_reported_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let broken = good().replace("  http:\n", "  htpp:\n");
    fs::write(directory.path().join("one.yaml"), &broken).unwrap();
    fs::write(directory.path().join("two.yaml"), good().replace("web", "two")).unwrap();
    fs::write(directory.path().join("three.yaml"), "kind: [").unwrap();
    let (code, text) = run_to_end(&["check", directory.path().to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(text.contains("one.yaml:") && text.contains("three.yaml:"), "{text}");
    assert!(!text.contains("two.yaml:"), "{text}");
}

#[test]
fn what_is_not_supported_is_said_not_ignored() {
    let rule = "  - fault: { abort: { httpStatus: 500, percentage: { value: 1 } } }\n    \
                directResponse: { status: 200 }\n";
    let text = yaml::documents(&[
        yaml::gateway("web", &yaml::http_server(80, &["web.test"], false)),
        yaml::virtual_service("web", "web", &["web.test"], rule),
    ]);
    let (_, output) = check(&text);
    assert!(output.contains("fault"), "{output}");
}

#[test]
fn hostile_files_are_errors_not_crashes() {
    let bomb = {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let references = vec![format!("*a{}", level - 1); 10].join(", ");
            text += &format!("a{level}: &a{level} [{references}]\n");
        }
        text
    };
    let deep = "[".repeat(100_000);
    let large = format!("# {}\n", "x".repeat(1 << 20)).repeat(100);
    let binary = "\0\u{1}\u{2}".to_owned();
    for (name, text) in [("bomb", bomb), ("deep", deep), ("large", large), ("binary", binary)] {
        let (code, output) = check(&text);
        let head: String = output.chars().take(500).collect();
        assert_eq!(code, Some(1), "{name}: {head}");
        assert!(output.contains("given.yaml") && !output.contains("panicked"), "{name}: {head}");
        assert!(output.len() < 100_000, "{name} is not echoed");
    }
}

#[test]
fn a_path_that_does_not_exist_is_an_error_that_names_it() {
    let (code, text) = run_to_end(&["check", "/no/such/path"]);
    assert!(code.is_some_and(|code| code != 0), "{text}");
    assert!(text.contains("/no/such/path"), "{text}");
}

/// Settings and a Gateway for another selector, whose certificate lies below `files.root`.
fn site() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let gateway = yaml::https_gateway("web", &["web.test"], "web");
    let gateway = gateway.replace("ingressgateway", "edge");
    fs::create_dir(root.join("resources")).unwrap();
    fs::write(root.join("resources/web.yaml"), gateway).unwrap();
    let settings = format!(
        "source: {{ directory: {root}/resources }}\nfiles: {{ root: {root}/files }}\n\
         gateway: {{ labels: {{ istio: edge }} }}\n",
        root = root.display()
    );
    fs::write(root.join("settings.yaml"), settings).unwrap();
    directory
}

#[test]
fn settings_say_what_is_checked_and_for_which_gateway() {
    let site = site();
    let settings = site.path().join("settings.yaml");
    let (code, text) = run_to_end(&["check", "--settings", settings.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    let missing = site.path().join("files/certs/web/tls.crt");
    let expected = format!("serverCertificate: {} does not exist", missing.display());
    assert!(text.contains(&expected), "where it is looked for: {text}");
    assert!(text.ends_with("1 good resource, 0 errors, 1 warning\n"), "{text}");
}

#[test]
fn settings_that_are_wrong_are_reported_before_anything_else() {
    let site = site();
    let settings = site.path().join("settings.yaml");
    fs::write(&settings, "sorce: {}\n").unwrap();
    let (settings, resources) = (settings.to_str().unwrap(), site.path().to_str().unwrap());
    let (code, text) = run_to_end(&["check", "--settings", settings, resources]);
    assert_eq!(code, Some(64), "{text}");
    let expected = format!("{settings}:1: sorce: unknown key, did you mean `source`?");
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn a_source_that_is_not_there_is_said_to_be_the_settings_one() {
    let site = site();
    fs::remove_dir_all(site.path().join("resources")).unwrap();
    let settings = site.path().join("settings.yaml");
    let (code, text) = run_to_end(&["check", "--settings", settings.to_str().unwrap()]);
    assert_eq!(code, Some(64), "{text}");
    let source = site.path().join("resources");
    let expected = format!("source.directory {} cannot be read: ", source.display());
    assert!(text.contains(&expected) && text.contains("change `source.directory`"), "{text}");
}
