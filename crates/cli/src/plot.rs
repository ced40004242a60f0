//! A plot as SVG: line charts over one common axis, stacked, each with its own scale from zero.
//!
//! Written by hand because it is so little: a plotting crate would be the largest dependency of
//! the program. The greys and the blue are legible on white and on near-black alike.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 24.0;
/// Room above the curve of a chart, for its title.
const HEAD: f64 = 34.0;
/// Height of the curve's area.
const BODY: f64 = 120.0;
/// Room below the last chart, for the labels of the common axis.
const FOOT: f64 = 48.0;
/// About so many marks on an axis.
const N_TICKS: f64 = 4.0;

const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#767b84}\
    .title{font-weight:600}.grid{stroke:#8a8f98;stroke-opacity:.35}\
    .axis{stroke:#767b84}.line{fill:none;stroke:#3b82d6;stroke-width:1.8;stroke-linejoin:round}\
    .dot{fill:#3b82d6}";

/// One chart: a title, and points in the order of their x.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// The charts, one below the other, over an axis called `x_label`. Points that are not finite are
/// left out.
pub(crate) fn svg(title: &str, x_label: &str, charts: &[Chart]) -> String {
    let height = HEAD + charts.len() as f64 * (HEAD + BODY) + FOOT;
    let x_axis = Axis::new(charts.iter().flat_map(|c| &c.points).map(|p| p.0));
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">"#
    );
    let _ = writeln!(svg, "<title>{}</title>\n<style>{STYLE}</style>", escape(title));
    text(&mut svg, 12.0, 20.0, "start", "title", title);
    for (i, chart) in charts.iter().enumerate() {
        let top = HEAD + i as f64 * (HEAD + BODY) + HEAD;
        draw(&mut svg, chart, &x_axis, top);
    }
    let bottom = HEAD + charts.len() as f64 * (HEAD + BODY);
    for tick in x_axis.ticks() {
        text(&mut svg, x_axis.x(tick), bottom + 18.0, "middle", "", &number(tick));
    }
    text(&mut svg, (LEFT + WIDTH - RIGHT) / 2.0, bottom + 38.0, "middle", "", x_label);
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, chart: &Chart, x_axis: &Axis, top: f64) {
    let y_axis = Axis::new(chart.points.iter().map(|p| p.1));
    let (right, bottom) = (WIDTH - RIGHT, top + BODY);
    text(svg, LEFT, top - 10.0, "start", "title", &chart.title);
    for tick in y_axis.ticks() {
        let y = y_axis.y(tick, top);
        let class = if tick == 0.0 { "axis" } else { "grid" };
        let _ = writeln!(
            svg,
            r#"<line class="{class}" x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}"/>"#
        );
        text(svg, LEFT - 8.0, y + 4.0, "end", "", &number(tick));
    }
    for tick in x_axis.ticks() {
        let x = x_axis.x(tick);
        let _ = writeln!(
            svg,
            r#"<line class="axis" x1="{x:.1}" y1="{bottom}" x2="{x:.1}" y2="{:.1}"/>"#,
            bottom + 4.0
        );
    }
    let finite = chart.points.iter().filter(|p| p.0.is_finite() && p.1.is_finite());
    let points: Vec<(f64, f64)> = finite.map(|&(x, y)| (x_axis.x(x), y_axis.y(y, top))).collect();
    let line: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(svg, r#"<polyline class="line" points="{}"/>"#, line.join(" "));
    for (x, y) in points {
        let _ = writeln!(svg, r#"<circle class="dot" cx="{x:.1}" cy="{y:.1}" r="2.2"/>"#);
    }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, content: &str) {
    let content = escape(content);
    let _ = writeln!(
        svg,
        r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{content}</text>"#
    );
}

/// An axis from zero to a round number.
struct Axis {
    max: f64,
    step: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>) -> Self {
        let largest = values.filter(|v| v.is_finite()).fold(0.0, f64::max);
        let step = round_step(largest / N_TICKS);
        Self { max: step * (largest / step).ceil().max(1.0), step }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + use<> {
        let step = self.step;
        (0..=(self.max / step).round() as usize).map(move |i| i as f64 * step)
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + value / self.max * (WIDTH - RIGHT - LEFT)
    }

    fn y(&self, value: f64, top: f64) -> f64 {
        top + BODY - value / self.max * BODY
    }
}

/// The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `least`.
fn round_step(least: f64) -> f64 {
    if !least.is_finite() || least <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(least.log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    // A product may fall short of `least` by one rounding.
    let fits = |factor: &&f64| **factor * power >= least * (1.0 - 1e-9);
    factors.iter().find(fits).unwrap_or(&10.0) * power
}

/// A mark of an axis: `0`, `0.25`, `12.5`, `200k`, `1.5M`.
fn number(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = format!("{scaled:.4}");
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{digits}{unit}")
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML has no way to write most control characters.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)]) -> Chart {
        Chart { title: "a < b & c".to_owned(), points: points.to_vec() }
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("a<b>&\"c\u{1b}\n"), "a&lt;b&gt;&amp;&quot;c  ");
        let svg = svg("<script>", "x", &[chart(&[(1.0, 1.0)])]);
        assert!(!svg.contains("<script>") && svg.contains("a &lt; b &amp; c"), "{svg}");
    }

    #[test]
    fn numbers_that_are_none_do_not_appear() {
        let wild = [(0.0, f64::NAN), (f64::INFINITY, 1.0), (2.0, f64::NEG_INFINITY), (3.0, 2.0)];
        let zero = [(0.0, 0.0)];
        for charts in [vec![], vec![chart(&[])], vec![chart(&wild), chart(&zero)]] {
            let svg = svg("t", "x", &charts);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        }
    }

    #[test]
    fn every_point_lies_inside() {
        let points: Vec<_> = (0..50).map(|i| (f64::from(i) * 977.0, f64::from(i % 7))).collect();
        let svg = svg("t", "x", &[chart(&points)]);
        let dots = svg.lines().filter(|line| line.starts_with("<circle")).count();
        assert_eq!(dots, 50);
        let attribute = |line: &str, name: &str| -> f64 {
            let rest = line.split_once(&format!("{name}=\"")).unwrap().1;
            rest.split_once('"').unwrap().0.parse().unwrap()
        };
        for dot in svg.lines().filter(|line| line.starts_with("<circle")) {
            let (x, y) = (attribute(dot, "cx"), attribute(dot, "cy"));
            assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{dot}");
            assert!((2.0 * HEAD..=2.0 * HEAD + BODY).contains(&y), "{dot}");
        }
    }

    #[test]
    fn axes_end_at_round_numbers() {
        for (largest, max, n_ticks) in
            [(1_000_000.0, 1_000_000.0, 5), (31.4, 40.0, 5), (0.0, 1.0, 2), (6.1, 8.0, 5)]
        {
            let axis = Axis::new([largest].into_iter());
            assert_eq!((axis.max, axis.ticks().count()), (max, n_ticks), "{largest}");
        }
    }

    #[test]
    fn marks_are_short() {
        let marks = [0.0, 0.25, 12.5, 5000.0, 200_000.0, 1_500_000.0];
        assert_eq!(marks.map(number), ["0", "0.25", "12.5", "5000", "200k", "1.5M"]);
    }
}
