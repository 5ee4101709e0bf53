//! The dashboard of `config/grafana/` asks for what a gateway has: every metric and label of its
//! queries is in a real scrape.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde_json::Value;

use crate::harness::backend::Backend;
use crate::harness::gateway::Gateway;
use crate::harness::{eventually, yaml};

const DASHBOARD: &str = include_str!("../../config/grafana/ringgate.json");

const HOST: &str = "web.test";

/// What Prometheus adds to every sample.
const OF_PROMETHEUS: &str = "instance";

fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    dashboard["panels"].as_array().unwrap().clone()
}

/// Every query, with the labels that its legend shows.
fn queries() -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let of_panel = |panel: &Value| -> Vec<_> {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets
            .iter()
            .map(|target| (text(&target["expr"]), text(&target["legendFormat"])))
            .collect()
    };
    panels().iter().flat_map(of_panel).collect()
}

/// The samples of a scrape: the labels that each name has.
fn scrape(gateway: &Gateway) -> BTreeMap<String, BTreeSet<String>> {
    let label = Regex::new(r#"(\w+)="(?:\\.|[^"\\])*""#).unwrap();
    let mut samples: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let page = gateway.try_plain_get(gateway.metrics(), "/stats/prometheus").unwrap().text();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let labels = label.captures_iter(line).map(|found| found[1].to_owned());
        samples.entry(name.to_owned()).or_default().extend(labels);
    }
    samples
}

#[test]
fn every_query_finds_its_metric_and_labels_in_a_scrape() {
    let backend = Backend::start("a");
    let gateway =
        Gateway::builder().serving(HOST, &yaml::backend("backend.test", backend.port())).start();
    let grpc = "content-type: application/grpc\r\n";
    assert_eq!(gateway.client(HOST).request("POST", "/status/200", grpc, b"").unwrap().status, 200);
    eventually("the call is counted", || {
        scrape(&gateway).contains_key("istio_request_messages_total")
    });
    let samples = scrape(&gateway);
    let metric = Regex::new(r"\b(?:istio|envoy|ringgate|pilot)_\w+").unwrap();
    let matcher = Regex::new(r#"(\w+) *(?:=~|!~|!=|=) *""#).unwrap();
    let grouped = Regex::new(r"by \(([^)]*)\)").unwrap();
    let shown = Regex::new(r"\{\{(\w+)\}\}").unwrap();
    for (query, legend) in queries() {
        let names: Vec<_> = metric.find_iter(&query).map(|found| found.as_str()).collect();
        assert!(!names.is_empty(), "{query}");
        let mut labels: BTreeSet<&str> =
            matcher.captures_iter(&query).map(|found| found.get(1).unwrap().as_str()).collect();
        let groups = grouped.captures_iter(&query).map(|found| found.get(1).unwrap().as_str());
        labels.extend(groups.flat_map(|names| names.split(',').map(str::trim)));
        labels.extend(shown.captures_iter(&legend).map(|found| found.get(1).unwrap().as_str()));
        labels.remove(OF_PROMETHEUS);
        for name in names {
            let has = samples.get(name).unwrap_or_else(|| panic!("{name} of {query}"));
            let missing: Vec<_> = labels.iter().filter(|label| !has.contains(**label)).collect();
            assert!(missing.is_empty(), "{name} has no {missing:?}: {query}");
        }
    }
}

#[test]
fn it_imports_as_it_is() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str()).collect();
    assert_eq!(names, [Some("datasource"), Some("destination_service")]);
    assert_eq!(variables[0]["type"], "datasource");
    // Whoever exports with a data source of their own makes it useless to others.
    let sources = DASHBOARD.matches("\"uid\": \"${datasource}\"").count();
    assert_eq!(DASHBOARD.matches("\"type\": \"prometheus\"").count(), sources);
    let panels = panels();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut cells = BTreeSet::new();
    for panel in &panels {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24, "{panel}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{} lies on another", panel["title"]);
        }
    }
}
