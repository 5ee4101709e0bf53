//! Horizontal bars with whiskers, as SVG.

use std::fmt::Write;

use crate::statistics::Spread;

const WIDTH: f64 = 720.0;
const LABELS: f64 = 140.0;
/// For the number behind a bar.
const NUMBERS: f64 = 170.0;
const ROW: f64 = 28.0;
const TITLE: f64 = 56.0;
/// ringgate's.
pub(super) const OWN: &str = "#c2410c";
const OTHERS: &str = "#94a3b8";

/// One bar.
#[derive(Debug)]
pub(super) struct Bar<'a> {
    pub label: &'a str,
    pub spread: Spread,
}

/// Bars to the median, whiskers from the smallest to the largest; the first bar stands out.
pub(super) fn bars(title: &str, unit: &str, bars: &[Bar<'_>]) -> String {
    let height = TITLE + ROW * bars.len() as f64 + 8.0;
    let largest = bars.iter().map(|bar| bar.spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABELS - NUMBERS) / largest;
    let mut svg = begin(WIDTH, height, title, &format!("{unit}; less is better"));
    for (index, bar) in bars.iter().enumerate() {
        let top = TITLE + ROW * index as f64;
        svg.push_str(&row(bar, top, scale, if index == 0 { OWN } else { OTHERS }));
    }
    svg.push_str("</svg>\n");
    svg
}

/// A picture's first lines: a white ground, a title and a smaller line below it.
pub(super) fn begin(width: f64, height: f64, title: &str, below: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{}</text>\n\
         <text x=\"10\" y=\"41\" fill=\"#475569\">{}</text>\n",
        escaped(title),
        escaped(below)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn row(bar: &Bar<'_>, top: f64, scale: f64, colour: &str) -> String {
    let Spread { median, min, max, .. } = bar.spread;
    let tall = ROW - 8.0;
    let (middle, baseline) = (top + tall / 2.0, top + tall / 2.0 + 4.5);
    let at = |value: f64| LABELS + value * scale;
    let (start, width) = (LABELS - 8.0, median * scale);
    let mut svg = String::new();
    writeln!(
        svg,
        "<text x=\"{start}\" y=\"{baseline:.1}\" text-anchor=\"end\">{}</text>\n\
         <rect x=\"{LABELS}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{tall}\" \
         fill=\"{colour}\"/>\n\
         <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"#0f172a\" stroke-width=\"1.5\"/>\n\
         <text x=\"{:.1}\" y=\"{baseline:.1}\">{}</text>",
        escaped(bar.label),
        at(min),
        at(max),
        at(max) + 8.0,
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
        let spread = Spread { median: 80.0, min: 50.0, max: 100.0, count: 3 };
        let svg = bars("a", "us", &[Bar { label: "b", spread }, Bar { label: "c", spread }]);
        assert!(svg.contains("M345.0 ") && svg.contains("H550.0"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 3);
        assert_eq!(svg.matches(OTHERS).count(), 1);
    }
}
