//! Where something is, and what a policy says of that.

use super::fields::{Field, Problems};

/// Region, zone and subzone; what is not known is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Locality<'a> {
    pub(crate) region: &'a str,
    pub(crate) zone: &'a str,
    pub(crate) subzone: &'a str,
}

/// `localityLbSetting` of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LocalityRule {
    /// All endpoints alike.
    Off,
    /// By shares that are written down.
    Distribute(Vec<Distribution>),
    /// The nearest endpoints, others when those fail.
    Failover(Failover),
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

/// Reads it; `None` if something is wrong.
pub(super) fn read_rule(
    field: &Field<'_>,
    has_outliers: bool,
    problems: &mut Problems,
) -> Option<LocalityRule> {
    let mut fields = field.fields(problems)?;
    let enabled = fields.take("enabled").map(|field| field.boolean(problems));
    let distribute = fields.take("distribute");
    let (failover, labels) = (fields.take("failover"), fields.take("failoverPriority"));
    fields.finish(problems);
    let distributions = read_list(distribute.as_ref(), problems, read_distribution);
    let regions = read_list(failover.as_ref(), problems, read_failover);
    let names = read_list(labels.as_ref(), problems, read_label);
    let other = failover.as_ref().or(labels.as_ref());
    if let (Some(_), Some(other)) = (&distribute, other) {
        let what = "there may be only one of `distribute` and `failover`";
        problems.error(other, what, "");
    }
    if let (false, Some(other)) = (has_outliers, other) {
        let cause = "without `outlierDetection` no endpoint is known to fail";
        problems.warn(other, "has no effect", cause);
    }
    if enabled == Some(Some(false)) {
        return Some(LocalityRule::Off);
    }
    // An empty list is none, as in Istio.
    Some(match distributions.is_empty() {
        false => LocalityRule::Distribute(distributions),
        true => LocalityRule::Failover(Failover { regions, labels: names }),
    })
}

fn read_list<T>(
    field: Option<&Field<'_>>,
    problems: &mut Problems,
    read: fn(&Field<'_>, &mut Problems) -> Option<T>,
) -> Vec<T> {
    let items = field.map(|field| field.items(problems)).unwrap_or_default();
    items.iter().filter_map(|item| read(item, problems)).collect()
}

fn read_distribution(item: &Field<'_>, problems: &mut Problems) -> Option<Distribution> {
    let mut fields = item.fields(problems)?;
    let from = fields.require("from", problems).and_then(|field| field.string(problems));
    let to = fields.require("to", problems);
    fields.finish(problems);
    let (from, to) = (from?.into(), to?);
    let weights = to.fields(problems)?;
    let mut shares: Vec<(Box<str>, u32)> = Vec::new();
    for (locality, field) in weights.all() {
        shares.push((locality.into(), field.integer(1..=100, problems)?));
    }
    let sum: u32 = shares.iter().map(|(_, share)| share).sum();
    if sum != 100 {
        problems.error(&to, format!("the shares must be 100 together, not {sum}"), "");
        return None;
    }
    // The longest first: `a/b` is meant before `a/*`, as nothing else would be left of it.
    shares.sort_by_key(|(locality, _)| std::cmp::Reverse(specificity(locality)));
    Some(Distribution { from, to: shares })
}

/// How many parts of a locality a pattern names.
fn specificity(pattern: &str) -> usize {
    pattern.split('/').filter(|part| !part.is_empty() && *part != "*").count()
}

fn read_failover(item: &Field<'_>, problems: &mut Problems) -> Option<(Box<str>, Box<str>)> {
    let mut fields = item.fields(problems)?;
    let mut region = |name| {
        let field = fields.require(name, problems)?;
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
}
