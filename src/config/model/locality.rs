//! Where something is, and what a policy says of that.

use super::fields::{Field, Fields, Problems};

/// Region, zone and subzone; what is not known is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Locality<'a> {
    pub(crate) region: &'a str,
    pub(crate) zone: &'a str,
    pub(crate) subzone: &'a str,
}

/// `localityLbSetting` or `zoneAwareLbSetting` of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LocalityRule {
    /// All endpoints alike.
    Off,
    /// By shares that are written down.
    Distribute(Vec<Distribution>),
    /// The nearest endpoints, others when those fail.
    Failover(Failover),
    /// The endpoints of the nearest region, others when those fail.
    Regions(Failover),
}

/// Where the requests of gateways in some localities go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Distribution {
    pub(crate) from: Box<str>,
    /// Localities and percents.
    pub(crate) to: Vec<(Box<str>, u32)>,
}

/// Which endpoints are the nearest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Failover {
    /// From one region to another.
    pub(crate) regions: Vec<(Box<str>, Box<str>)>,
    /// Labels that endpoints have in common with the gateway, or with a value that is written down.
    pub(crate) labels: Vec<(Box<str>, Option<Box<str>>)>,
}

impl<'a> Locality<'a> {
    /// `region/zone/subzone`, of which the later ones may be missing.
    pub(crate) fn parse(text: &'a str) -> Self {
        let mut parts = text.splitn(3, '/');
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }

    /// Whether it is one of those that `pattern` means, in which `*` stands for any part.
    pub(crate) fn is_in(self, pattern: &str) -> bool {
        let wanted = Locality::parse(pattern);
        let fits = |wanted: &str, own: &str| wanted == "*" || wanted == own;
        fits(wanted.region, self.region)
            && (wanted.zone.is_empty() || fits(wanted.zone, self.zone))
            && (wanted.subzone.is_empty() || fits(wanted.subzone, self.subzone))
    }
}

/// Labels of places, which failover from region to region goes by already.
const PLACES: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

/// Reads it; `None` if something is wrong.
pub(super) fn read_rule(
    field: &Field<'_>,
    has_outliers: bool,
    problems: &mut Problems,
) -> Option<LocalityRule> {
    let mut fields = field.fields(problems)?;
    let enabled = fields.take("enabled").map(|field| field.boolean(problems));
    let mut list = |name| take_list(&mut fields, name, problems);
    let distribute = list("distribute");
    let (failover, labels) = (list("failover"), list("failoverPriority"));
    fields.finish(problems);
    check_together([&distribute, &failover, &labels], has_outliers, problems);
    let distributions = read_distributions(distribute.as_ref(), problems);
    let regions = read_list(failover.as_ref(), problems, read_failover);
    let names = read_list(labels.as_ref(), problems, read_label);
    if enabled == Some(Some(false)) {
        return Some(LocalityRule::Off);
    }
    Some(match distribute {
        Some(_) => LocalityRule::Distribute(distributions),
        None => LocalityRule::Failover(Failover { regions, labels: names }),
    })
}

/// Reads `zoneAwareLbSetting`; `None` if something is wrong.
pub(super) fn read_zone_rule(
    field: &Field<'_>,
    has_outliers: bool,
    problems: &mut Problems,
) -> Option<LocalityRule> {
    let mut fields = field.fields(problems)?;
    let enabled = fields.take("enabled").map(|field| field.boolean(problems));
    let mut list = |name| take_list(&mut fields, name, problems);
    let (failover, labels) = (list("failover"), list("failoverPriority"));
    if let Some(size) = fields.take("minClusterSize") {
        size.integer(0..=u32::MAX, problems);
        problems.warn(&size, "has no effect", "the zones of a region count alike");
    }
    fields.finish(problems);
    if let Some(labels) = &labels {
        refuse_places(labels, "here: `failover` is for regions", problems);
    }
    warn_of_no_detection(has_outliers, failover.as_ref().or(labels.as_ref()), problems);
    let regions = read_list(failover.as_ref(), problems, read_failover);
    let labels = read_list(labels.as_ref(), problems, read_label);
    if enabled == Some(Some(false)) {
        return Some(LocalityRule::Off);
    }
    let cause = "as in Istio where proxies do not discover each other; `localityLbSetting` goes by \
                 zones";
    problems.warn(field, "the zones of a region count alike", cause);
    Some(LocalityRule::Regions(Failover { regions, labels }))
}

/// The list `name`. An empty one is none, as in Istio.
fn take_list<'d>(
    fields: &mut Fields<'d>,
    name: &'static str,
    problems: &mut Problems,
) -> Option<Field<'d>> {
    fields.take(name).filter(|list| !list.items(problems).is_empty())
}

fn check_together(
    [distribute, failover, labels]: [&Option<Field<'_>>; 3],
    has_outliers: bool,
    problems: &mut Problems,
) {
    if let (Some(_), Some(failover)) = (distribute, failover) {
        problems.error(failover, "there may be only one of `distribute` and `failover`", "");
    }
    if let (Some(_), Some(labels)) = (distribute, labels) {
        problems.warn(labels, "has no effect beside `distribute`", "");
    }
    if let (Some(_), Some(labels)) = (failover, labels) {
        refuse_places(labels, "beside `failover`", problems);
    }
    warn_of_no_detection(has_outliers, failover.as_ref().or(labels.as_ref()), problems);
}

fn warn_of_no_detection(has_outliers: bool, rule: Option<&Field<'_>>, problems: &mut Problems) {
    if let (false, Some(rule)) = (has_outliers, rule) {
        let cause = "without `outlierDetection` no endpoint is known to fail";
        problems.warn(rule, "has no effect", cause);
    }
}

/// Refuses the labels that say what regions, zones and subzones say.
fn refuse_places(labels: &Field<'_>, place: &str, problems: &mut Problems) {
    for label in labels.items(problems) {
        if let Some(text) = label.string(problems)
            && PLACES.contains(&text)
        {
            problems.error(&label, format!("`{text}` cannot stand {place}"), "");
        }
    }
}

fn read_list<T>(
    field: Option<&Field<'_>>,
    problems: &mut Problems,
    read: fn(&Field<'_>, &mut Problems) -> Option<T>,
) -> Vec<T> {
    let items = field.map(|field| field.items(problems)).unwrap_or_default();
    items.iter().filter_map(|item| read(item, problems)).collect()
}

fn read_distributions(field: Option<&Field<'_>>, problems: &mut Problems) -> Vec<Distribution> {
    let items = field.map(|field| field.items(problems)).unwrap_or_default();
    let (mut patterns, mut distributions) = (Vec::new(), Vec::new());
    for item in &items {
        let Some(mut fields) = item.fields(problems) else { continue };
        let from = fields.require("from", problems);
        let to = fields.require("to", problems);
        fields.finish(problems);
        let shares = to.and_then(|to| read_shares(&to, problems));
        let text = from.as_ref().and_then(|from| from.string(problems));
        let (Some(from), Some(text)) = (from, text) else { continue };
        patterns.push((text, from));
        distributions.extend(shares.map(|to| Distribution { from: text.into(), to }));
    }
    check_patterns(&patterns, problems);
    distributions
}

fn read_shares(to: &Field<'_>, problems: &mut Problems) -> Option<Vec<(Box<str>, u32)>> {
    let weights = to.fields(problems)?;
    let mut patterns: Vec<_> = weights.all().collect();
    // The longest first: `a/b` is meant before `a/*`, as nothing else would be left of it.
    patterns.sort_by_key(|(locality, _)| std::cmp::Reverse(specificity(locality)));
    let shares = patterns
        .iter()
        .map(|(locality, field)| Some(((*locality).into(), field.integer(1..=100, problems)?)));
    let shares = shares.collect::<Option<Vec<(Box<str>, u32)>>>()?;
    let sum: u32 = shares.iter().map(|(_, share)| share).sum();
    if sum != 100 {
        problems.error(to, format!("the shares must be 100 together, not {sum}"), "");
        return None;
    }
    check_patterns(&patterns, problems);
    Some(shares)
}

/// Refuses what is no pattern of localities, and one that means what an earlier one does.
fn check_patterns(patterns: &[(&str, Field<'_>)], problems: &mut Problems) {
    for (place, (pattern, field)) in patterns.iter().enumerate() {
        if !is_pattern(pattern) {
            let what = format!("must be `region/zone/subzone` or a part of it, not `{pattern}`");
            problems.error(field, what, "the later parts may be missing, and the last be `*`");
        }
        let mut earlier = patterns[..place].iter();
        if let Some((other, _)) = earlier.find(|(other, _)| overlap(other, pattern)) {
            let cause = "each locality counts once; a pattern with `*` may stand behind others";
            problems.error(field, format!("`{pattern}` overlaps with `{other}`"), cause);
        }
    }
}

/// Without empty parts, and with `*` at its end alone.
fn is_pattern(pattern: &str) -> bool {
    let stars = pattern.matches('*').count();
    pattern.splitn(3, '/').all(|part| !part.is_empty())
        && (stars == 0 || (stars == 1 && pattern.ends_with('*')))
}

/// Whether Istio refuses `pattern` behind `before`: one means all of the other, but for `*` behind
/// what is narrower.
fn overlap(before: &str, pattern: &str) -> bool {
    let whole = if before == "*" { "" } else { before.strip_suffix("/*").unwrap_or(before) };
    is_within(pattern, whole) || is_within(before, pattern)
}

fn is_within(pattern: &str, whole: &str) -> bool {
    let rest = pattern.strip_prefix(whole);
    rest.is_some_and(|rest| rest.is_empty() || whole.is_empty() || rest.starts_with('/'))
}

/// How many parts of a locality a pattern names.
fn specificity(pattern: &str) -> usize {
    pattern.split('/').filter(|part| !part.is_empty() && *part != "*").count()
}

/// From one region to another; one that is not written is that of who does not know his own.
fn read_failover(item: &Field<'_>, problems: &mut Problems) -> Option<(Box<str>, Box<str>)> {
    let mut fields = item.fields(problems)?;
    let mut region = |name| {
        let Some(field) = fields.take(name) else { return Some(Box::default()) };
        let text = field.string(problems)?;
        if text.contains(['/', '*']) {
            problems.error(&field, format!("must be a region, not `{text}`"), "");
            return None;
        }
        Some(Box::from(text))
    };
    let (from, to): (Option<Box<str>>, Option<Box<str>>) = (region("from"), region("to"));
    fields.finish(problems);
    if from.is_some() && from == to {
        problems.error(item, "`from` and `to` are the same region", "");
    }
    Some((from?, to?))
}

/// `name`, or `name=value` for a value other than the gateway's.
fn read_label(item: &Field<'_>, problems: &mut Problems) -> Option<(Box<str>, Option<Box<str>>)> {
    let text = item.string(problems)?;
    Some(match text.split_once('=') {
        Some((name, value)) => (name.into(), Some(value.into())),
        None => (text.into(), None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_names_the_parts_that_count() {
        let here = Locality::parse("r/z/s");
        for (pattern, expected) in [
            ("r", true),
            ("r/*", true),
            ("r/z", true),
            ("*/z", true),
            ("*", true),
            ("r/z/s", true),
            ("r/z/t", false),
            ("r/y", false),
            ("q", false),
        ] {
            assert_eq!(here.is_in(pattern), expected, "{pattern}");
        }
        assert!(Locality::default().is_in("*") && !Locality::default().is_in("r"));
    }

    #[test]
    fn localities_overlap_as_in_istio() {
        for (before, pattern, expected) in [
            ("*", "a/b/c", true),
            ("*", "*", true),
            ("a", "*", false),
            ("a", "a", true),
            ("a", "a/b", true),
            ("a/b/c", "a", true),
            ("a", "ab/c", false),
            ("a", "a/*", true),
            ("a/*", "a", true),
            ("a/*", "a/b", true),
            ("a/*", "a/b/c", true),
            ("a/b", "a/*", false),
            ("a/b", "a/b/c", true),
            ("a/b/c", "a/b", true),
            ("a/b", "a/bc", false),
            ("a/b", "a/b/*", true),
            ("a/b/*", "a/b", true),
            ("a/b/*", "a/b/c", true),
            ("a/b/c", "a/b/*", false),
            ("a/b/c", "a/b/d", false),
            ("a/b/c", "a/b/c", true),
        ] {
            assert_eq!(overlap(before, pattern), expected, "{before} {pattern}");
        }
        for bad in ["", "a//c", "a/", "*/z", "*/z/*", "a/*/c"] {
            assert!(!is_pattern(bad), "{bad}");
        }
        assert!(["*", "a", "a/*", "a/b/*", "a/b/c"].into_iter().all(is_pattern));
    }
}
