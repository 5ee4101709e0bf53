//! What rewriting the headers of one exchange costs, in both directions.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue};
use ringgate::bench::Headers;

/// A curl user's request.
const SMALL: &[(&str, &str)] = &[("user-agent", "curl/8.5.0"), ("accept", "*/*")];

/// A browser's request for a page.
const BROWSER: &[(&str, &str)] = &[
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-GB,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("referer", "https://www.example.com/catalogue/shoes?page=3"),
    ("cookie", "session=0f6b1c8e2a5d4b7f9c3e; theme=dark; consent=yes; cart=17"),
    ("upgrade-insecure-requests", "1"),
    ("sec-fetch-dest", "document"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-site", "same-origin"),
    ("priority", "u=0, i"),
    ("cache-control", "max-age=0"),
];

/// A request by way of another proxy, with everything that must be taken away.
const HOSTILE: &[(&str, &str)] = &[
    ("user-agent", "curl/8.5.0"),
    ("accept", "*/*"),
    ("connection", "keep-alive, x-secret"),
    ("keep-alive", "timeout=5"),
    ("te", "trailers"),
    ("x-secret", "1"),
    ("x-forwarded-for", "203.0.113.7, 198.51.100.9"),
    ("x_forwarded_for", "127.0.0.1"),
    ("x-envoy-internal", "true"),
    ("x-forwarded-client-cert", "Hash=1"),
    ("x-request-id", "mine"),
];

/// A backend's response.
const RESPONSE: &[(&str, &str)] = &[
    ("content-type", "application/json"),
    ("content-length", "62"),
    ("date", "Mon, 23 Nov 2026 19:46:00 GMT"),
    ("server", "gunicorn/19.9.0"),
    ("access-control-allow-origin", "*"),
    ("access-control-allow-credentials", "true"),
];

fn to_upstream(criterion: &mut Criterion) {
    let headers = Headers::new("192.0.2.1:40000".parse().expect("an address"));
    let mut group = criterion.benchmark_group("to upstream");
    for (name, fields) in [("small", SMALL), ("browser", BROWSER), ("hostile", HOSTILE)] {
        rewrite(&mut group, name, fields, |map| headers.to_upstream(map));
    }
    group.finish();
}

fn to_downstream(criterion: &mut Criterion) {
    let headers = Headers::new("192.0.2.1:40000".parse().expect("an address"));
    let mut group = criterion.benchmark_group("to downstream");
    rewrite(&mut group, "response", RESPONSE, |map| headers.to_downstream(map));
    group.finish();
}

/// Rewrites a fresh copy of `fields` each time; making and dropping it is not timed.
fn rewrite(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    name: &str,
    fields: &[(&str, &str)],
    rewrite: impl Fn(&mut HeaderMap),
) {
    let received = received(fields);
    group.bench_function(name, |bencher| {
        bencher.iter_batched_ref(
            || received.clone(),
            |map| rewrite(black_box(map)),
            BatchSize::SmallInput,
        );
    });
}

/// As hyper hands them out: with room for what is added.
fn received(fields: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        let name: HeaderName = name.parse().expect("a name");
        map.append(name, HeaderValue::from_str(value).expect("a value"));
    }
    map
}

criterion_group!(benches, to_upstream, to_downstream);
criterion_main!(benches);
