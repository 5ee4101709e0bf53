//! Horizontal bars with whiskers, as SVG.

use std::fmt::Write;

use crate::statistics::Spread;

const WIDTH: f64 = 640.0;
const LABELS: f64 = 110.0;
/// For the number behind a bar.
const NUMBERS: f64 = 150.0;
const ROW: f64 = 30.0;
const TITLE: f64 = 36.0;
/// The first is ringgate's.
const COLOURS: [&str; 2] = ["#c2410c", "#64748b"];

/// One bar.
#[derive(Debug)]
pub(super) struct Bar {
    pub label: &'static str,
    pub spread: Spread,
}

/// Bars to the median, whiskers from the smallest to the largest; the first bar stands out.
pub(super) fn bars(title: &str, bars: &[Bar]) -> String {
    let height = TITLE + ROW * bars.len() as f64 + 8.0;
    let largest = bars.iter().map(|bar| bar.spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABELS - NUMBERS) / largest;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"22\" font-weight=\"bold\">{title}</text>\n"
    );
    for (index, bar) in bars.iter().enumerate() {
        let top = TITLE + ROW * index as f64;
        svg.push_str(&row(bar, top, scale, COLOURS[index.min(1)]));
    }
    svg.push_str("</svg>\n");
    svg
}

fn row(bar: &Bar, top: f64, scale: f64, colour: &str) -> String {
    let Spread { median, min, max } = bar.spread;
    let (middle, baseline) = (top + ROW / 2.0 - 3.0, top + ROW / 2.0 + 2.0);
    let at = |value: f64| LABELS + value * scale;
    let mut svg = format!("<text x=\"8\" y=\"{baseline}\">{}</text>\n", bar.label);
    let (width, tall) = (median * scale, ROW - 10.0);
    writeln!(
        svg,
        "<rect x=\"{LABELS}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{tall}\" \
         fill=\"{colour}\"/>\n\
         <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"black\" stroke-width=\"1.5\"/>\n\
         <text x=\"{:.1}\" y=\"{baseline}\">{}</text>",
        at(min),
        at(max),
        at(max) + 6.0,
        bar.spread
    )
    .ok();
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_leaves_room_for_its_number() {
        let spread = Spread { median: 80.0, min: 50.0, max: 100.0 };
        let svg = bars("a", &[Bar { label: "b", spread }, Bar { label: "c", spread }]);
        assert!(svg.contains("M300.0 ") && svg.contains("H490.0"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 3);
        assert_eq!(svg.matches(COLOURS[1]).count(), 1);
    }
}
