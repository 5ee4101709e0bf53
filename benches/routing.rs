//! What finding the way of a request costs: by SNI or host, and by path; against trying each in turn.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ringgate::snapshot::{
    Action, DirectResponse, Found, FullRegex, HostMap, HostPattern, PathMatch, Route, RouteTable,
    Subject, VirtualHost,
};

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];

fn hosts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("host");
    for size in SIZES {
        let mut map = HostMap::default();
        for index in 0..size {
            map.insert(pattern(&format!("host-{index}.example.com")), index);
            map.insert(pattern(&format!("*.wild-{index}.example.com")), index);
        }
        let exact = format!("host-{}.example.com", size / 2);
        let wildcard = format!("a.b.wild-{}.example.com", size / 2);
        for (name, host) in [("exact", &exact), ("wildcard", &wildcard)] {
            group.bench_with_input(BenchmarkId::new(name, size), host, |bencher, host| {
                bencher.iter(|| map.find(black_box(host)));
            });
        }
    }
    group.finish();
}

fn paths(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for size in SIZES {
        let routes: Vec<Route> = (0..size).map(|index| route(prefix(index))).collect();
        let naive: Vec<String> = (0..size).map(prefix).collect();
        let mut table = RouteTable::default();
        let host = VirtualHost::new("bench".to_owned(), false, routes);
        table.hosts.insert(HostPattern::Any, Arc::new(host));
        let path = format!("{}/item/17", prefix(size - 1));
        group.bench_with_input(BenchmarkId::new("trie", size), &path, |bencher, path| {
            bencher.iter(|| find(&table, path));
        });
        group.bench_with_input(BenchmarkId::new("naive", size), &path, |bencher, path| {
            let path = path.as_str();
            bencher.iter(|| naive.iter().position(|prefix| black_box(path).starts_with(prefix)));
        });
    }
    group.finish();
}

fn regexes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("regex");
    for size in [1, 10, 100] {
        let expression = |index| FullRegex::parse(&format!("/v[0-9]+/thing-{index}/.*"));
        let routes = (0..size).map(|index| Route {
            path: PathMatch::Regex(expression(index).expect("the pattern is well formed")),
            ..route(String::new())
        });
        let mut table = RouteTable::default();
        let host = VirtualHost::new("bench".to_owned(), false, routes.collect());
        table.hosts.insert(HostPattern::Any, Arc::new(host));
        let path = format!("/v2/thing-{}/x", size - 1);
        group.bench_with_input(BenchmarkId::new("set", size), &path, |bencher, path| {
            bencher.iter(|| find(&table, path));
        });
    }
    group.finish();
}

fn find<'a>(table: &'a RouteTable, path: &'a str) -> Found<'a> {
    static NONE: std::sync::LazyLock<http::HeaderMap> = std::sync::LazyLock::new(Default::default);
    let (method, scheme, authority) = ("GET", "https", "a.example.com");
    let path = black_box(path);
    let subject =
        Subject { path, query: None, method, scheme, authority, headers: &NONE, own: &[] };
    table.find(black_box(authority), &subject)
}

fn pattern(text: &str) -> HostPattern {
    text.parse().expect("a host pattern")
}

fn prefix(index: usize) -> String {
    format!("/service-{index}/api/v1")
}

fn route(prefix: String) -> Route {
    let response = DirectResponse { status: http::StatusCode::OK, body: bytes::Bytes::new() };
    Route::new(PathMatch::Prefix(prefix), Action::Respond(response))
}

criterion_group!(benches, hosts, paths, regexes);
criterion_main!(benches);
