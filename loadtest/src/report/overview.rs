//! One picture of all targets that are about other programs.
//!
//! A bar for each: what the other costs by what ringgate costs, on a scale on which twice as much is
//! as far as half as much. A bar to the right of 1 means that ringgate costs less; a mark shows how
//! far it is to reach, and is green where it does.

use std::fmt::Write;

use super::plot::begin;
use crate::target::Comparison;

const WIDTH: f64 = 820.0;
const LABELS: f64 = 250.0;
/// For the number right of the scale.
const NUMBERS: f64 = 100.0;
const ROW: f64 = 20.0;
/// Between scenarios.
const GAP: f64 = 12.0;
const TITLE: f64 = 78.0;
const BOTTOM: f64 = 14.0;
/// Ends of the scale if all bars are shorter.
const SCALE: (f64, f64) = (0.5, 4.0);
const TICKS: [f64; 9] = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
const MET: &str = "#15803d";
const MISSED: &str = "#b91c1c";
const GREY: &str = "#475569";
/// By program, whatever its version.
const COLOURS: [(&str, &str); 4] =
    [("haproxy", "#60a5fa"), ("nginx", "#34d399"), ("envoy", "#c084fc"), ("floor", "#cbd5e1")];

/// The picture; empty but for the scale if nothing was measured.
pub(super) fn picture(comparisons: &[Comparison]) -> String {
    let groups = comparisons.chunk_by(|one, next| one.scenario == next.scenario);
    let height = TITLE + BOTTOM + ROW * comparisons.len() as f64 + GAP * groups.count() as f64;
    let below = "Divided by what ringgate costs, log scale. Right of 1: ringgate costs less. \
                 Mark: what is wanted, green if reached.";
    let mut svg = begin(WIDTH, height, "What others cost", below);
    let scale = Scale::of(comparisons);
    svg.push_str(&scale.grid(height - BOTTOM));
    let mut top = TITLE;
    for group in comparisons.chunk_by(|one, next| one.scenario == next.scenario) {
        if let [Comparison { scenario, figure, .. }, ..] = group {
            let baseline = top + 14.5;
            writeln!(
                svg,
                "<text x=\"10\" y=\"{baseline:.1}\" font-weight=\"bold\">{scenario}</text>\n\
                 <text x=\"10\" y=\"{:.1}\" fill=\"{GREY}\" font-size=\"12\">{figure}</text>",
                baseline + 16.0
            )
            .ok();
        }
        for comparison in group {
            svg.push_str(&scale.row(comparison, top));
            top += ROW;
        }
        top += GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

struct Scale {
    min: f64,
    max: f64,
}

impl Scale {
    fn of(comparisons: &[Comparison]) -> Self {
        let ends = comparisons.iter().flat_map(|c| [c.ratio.min, c.ratio.max, c.wanted]);
        let ends = ends.filter(|value| value.is_finite() && *value > 0.0);
        let (min, max) =
            ends.fold(SCALE, |(min, max), value| (min.min(value / 1.1), max.max(value * 1.1)));
        Self { min, max }
    }

    fn at(&self, ratio: f64) -> f64 {
        let share = (ratio.max(self.min) / self.min).ln() / (self.max / self.min).ln();
        LABELS + share * (WIDTH - LABELS - NUMBERS)
    }

    fn grid(&self, bottom: f64) -> String {
        let mut svg = format!(
            "<text x=\"{}\" y=\"{}\" fill=\"{GREY}\" font-size=\"12\">is / wanted</text>\n",
            WIDTH - NUMBERS + 10.0,
            TITLE - 13.0
        );
        for tick in TICKS.into_iter().filter(|tick| (self.min..=self.max).contains(tick)) {
            let (x, top) = (self.at(tick), TITLE - 8.0);
            let (colour, width) = if tick == 1.0 { ("#0f172a", 2.0) } else { ("#e2e8f0", 1.0) };
            writeln!(
                svg,
                "<path d=\"M{x:.1} {top}V{bottom:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>\n\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{GREY}\">{tick}</text>",
                top - 5.0
            )
            .ok();
        }
        svg
    }

    fn row(&self, comparison: &Comparison, top: f64) -> String {
        let Comparison { peer, ratio, wanted, .. } = comparison;
        let (one, end, mark) = (self.at(1.0), self.at(ratio.median), self.at(*wanted));
        let (left, width) = (one.min(end), (end - one).abs());
        let (middle, baseline, tall) = (top + ROW / 2.0, top + ROW / 2.0 + 4.5, ROW - 5.0);
        let verdict = if ratio.median >= *wanted { MET } else { MISSED };
        let (labels, numbers) = (LABELS - 8.0, WIDTH - NUMBERS + 10.0);
        format!(
            "<text x=\"{labels}\" y=\"{baseline:.1}\" text-anchor=\"end\" fill=\"{GREY}\">{peer}</text>\n\
             <rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{tall}\" fill=\"{}\"/>\n\
             <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"#0f172a\" stroke-width=\"1.2\"/>\n\
             <path d=\"M{mark:.1} {:.1}V{:.1}\" stroke=\"{verdict}\" stroke-width=\"3\"/>\n\
             <text x=\"{numbers}\" y=\"{baseline:.1}\" fill=\"{verdict}\">{:.2} / {wanted:.2}</text>\n",
            top + 2.5,
            colour(peer),
            self.at(ratio.min),
            self.at(ratio.max),
            top + 0.5,
            top + ROW - 0.5,
            ratio.median
        )
    }
}

fn colour(peer: &str) -> &'static str {
    let known = COLOURS.iter().find(|(name, _)| peer.starts_with(name));
    known.map_or("#94a3b8", |(_, colour)| colour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Spread;

    #[test]
    fn equal_factors_are_equally_far_and_marks_tell_what_was_reached() {
        let comparison = |median, wanted| Comparison {
            scenario: "small-h1",
            figure: "CPU",
            peer: "nginx 1".to_owned(),
            ratio: Spread { median, min: median, max: median, count: 1 },
            wanted,
        };
        let comparisons = [comparison(2.0, 1.5), comparison(0.9, 1.1)];
        let scale = Scale::of(&comparisons);
        let (half, one, two) = (scale.at(0.5), scale.at(1.0), scale.at(2.0));
        assert!((two - one - (one - half)).abs() < 1e-6);
        let svg = picture(&comparisons);
        assert_eq!(svg.matches(MET).count(), 2, "{svg}");
        assert_eq!(svg.matches(MISSED).count(), 2, "{svg}");
        assert_eq!(svg.matches(">small-h1<").count(), 1, "{svg}");
        picture(&[]);
    }
}
