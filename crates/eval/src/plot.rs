//! Plots as SVG: stacked line charts over one common axis; several lines over categories; and values with
//! their intervals, a row each.
//!
//! Written by hand because it is so little: a plotting crate would be the largest dependency of
//! the program. The greys and the colours are legible on white and on near-black alike.

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
/// Colours of several lines in one chart.
const COLOURS: [&str; 8] =
    ["#3b82d6", "#d9822b", "#2f9e6e", "#c2556b", "#8b6fd1", "#7d8a2e", "#2a9aa8", "#a0705a"];
/// Height of a row: of a legend, or of a value with its interval.
const ROW: f64 = 22.0;

/// One chart of [`svg`].
#[derive(Clone, Debug)]
pub struct Chart {
    /// What stands above it.
    pub title: String,
    /// In the order of their x.
    pub points: Vec<(f64, f64)>,
}

/// The charts, one below the other, over an axis called `x_label`. Points that are not finite are
/// left out.
#[must_use]
pub fn svg(title: &str, x_label: &str, charts: &[Chart]) -> String {
    let height = HEAD + charts.len() as f64 * (HEAD + BODY) + FOOT;
    let x_axis = Axis::new(charts.iter().flat_map(|c| &c.points).map(|p| p.0));
    let mut svg = begin(title, height);
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

/// A line of [`lines`].
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// A value for each category, where there is one.
    pub values: Vec<Option<f64>>,
}

/// Lines over categories at equal distances, with a legend.
#[must_use]
pub fn lines(title: &str, x_label: &str, categories: &[String], series: &[Series]) -> String {
    let legend_rows = series.len().div_ceil(3) as f64;
    let top = HEAD + 16.0;
    let bottom = top + 2.0 * BODY;
    let mut svg = begin(title, bottom + FOOT + legend_rows * ROW);
    let values = series.iter().flat_map(|line| line.values.iter().flatten().copied());
    let y_axis = Axis::new(values);
    let y = |value: f64| bottom - value / y_axis.max * 2.0 * BODY;
    let n = categories.len().max(1) as f64;
    let x = |i: usize| LEFT + (i as f64 + 0.5) / n * (WIDTH - RIGHT - LEFT);
    for tick in y_axis.ticks() {
        grid(&mut svg, y(tick), tick);
    }
    for (i, category) in categories.iter().enumerate() {
        let category = category.parse().map_or_else(|_| category.clone(), number);
        text(&mut svg, x(i), bottom + 18.0, "middle", "", &category);
    }
    text(&mut svg, (LEFT + WIDTH - RIGHT) / 2.0, bottom + 38.0, "middle", "", x_label);
    for (s, line) in series.iter().enumerate() {
        let colour = COLOURS[s % COLOURS.len()];
        // What has no colour of its own left has dashes.
        let dashes = if s < COLOURS.len() { "" } else { r#" stroke-dasharray="5 3""# };
        // Of lines over one another the lower ones show at the edges.
        let width = 2.0 + 2.0 * (series.len() - 1 - s).min(3) as f64;
        let values = line.values.iter().enumerate().take(categories.len());
        let values = values.filter_map(|(i, value)| Some((i, value.filter(|v| v.is_finite())?)));
        let points: Vec<(f64, f64)> = values.map(|(i, value)| (x(i), y(value))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            svg,
            r#"<polyline class="line" style="stroke:{colour};stroke-width:{width}"{dashes} points="{}"/>"#,
            path.join(" ")
        );
        for (x, y) in points {
            dot(&mut svg, x, y, colour);
        }
        let left = LEFT + (s % 3) as f64 * (WIDTH - RIGHT - LEFT) / 3.0;
        let y = bottom + FOOT + (s / 3) as f64 * ROW;
        let _ = writeln!(
            svg,
            r#"<line class="line" style="stroke:{colour}"{dashes} x1="{left:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}"/>"#,
            left + 22.0
        );
        text(&mut svg, left + 28.0, y + 4.0, "start", "", &line.name);
    }
    svg.push_str("</svg>\n");
    svg
}

/// A value of [`dots`].
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is of.
    pub name: String,
    /// The value.
    pub value: f64,
    /// Its interval, if it has one.
    pub interval: Option<[f64; 2]>,
}

/// Values with their intervals, one below the other.
#[must_use]
pub fn dots(title: &str, x_label: &str, rows: &[Row]) -> String {
    const NAMES: f64 = 200.0;
    let top = HEAD + 8.0;
    let bottom = top + rows.len() as f64 * ROW;
    let mut svg = begin(title, bottom + FOOT);
    let x_axis = Axis::new(rows.iter().flat_map(|row| {
        let interval = row.interval.unwrap_or([row.value; 2]);
        [row.value, interval[1]]
    }));
    let right = WIDTH - RIGHT - 48.0;
    let x = |value: f64| NAMES + value / x_axis.max * (right - NAMES);
    for tick in x_axis.ticks() {
        let class = if tick == 0.0 { "axis" } else { "grid" };
        let x = x(tick);
        let _ = writeln!(
            svg,
            r#"<line class="{class}" x1="{x:.1}" y1="{top}" x2="{x:.1}" y2="{bottom}"/>"#
        );
        text(&mut svg, x, bottom + 18.0, "middle", "", &number(tick));
    }
    text(&mut svg, (NAMES + right) / 2.0, bottom + 38.0, "middle", "", x_label);
    for (i, row) in rows.iter().enumerate().filter(|(_, row)| row.value.is_finite()) {
        let y = top + (i as f64 + 0.5) * ROW;
        text(&mut svg, NAMES - 10.0, y + 4.0, "end", "", &row.name);
        if let Some([low, high]) = row.interval {
            let _ = writeln!(
                svg,
                r#"<line class="line" x1="{:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}"/>"#,
                x(low.max(0.0)),
                x(high)
            );
        }
        dot(&mut svg, x(row.value.max(0.0)), y, COLOURS[0]);
        let n_digits = if x_axis.max < 5.0 { 3 } else { 1 };
        let value = format!("{:.n_digits$}", row.value);
        text(&mut svg, right + 10.0, y + 4.0, "start", "", &value);
    }
    svg.push_str("</svg>\n");
    svg
}

/// The head of a drawing so high.
fn begin(title: &str, height: f64) -> String {
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">"#
    );
    let _ = writeln!(svg, "<title>{}</title>\n<style>{STYLE}</style>", escape(title));
    text(&mut svg, 12.0, 20.0, "start", "title", title);
    svg
}

/// A line across, and its number.
fn grid(svg: &mut String, y: f64, tick: f64) {
    let (class, right) = (if tick == 0.0 { "axis" } else { "grid" }, WIDTH - RIGHT);
    let _ = writeln!(
        svg,
        r#"<line class="{class}" x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}"/>"#
    );
    text(svg, LEFT - 8.0, y + 4.0, "end", "", &number(tick));
}

fn dot(svg: &mut String, x: f64, y: f64, colour: &str) {
    let _ = writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" style="fill:{colour}"/>"#);
}

fn draw(svg: &mut String, chart: &Chart, x_axis: &Axis, top: f64) {
    let y_axis = Axis::new(chart.points.iter().map(|p| p.1));
    let bottom = top + BODY;
    text(svg, LEFT, top - 10.0, "start", "title", &chart.title);
    for tick in y_axis.ticks() {
        grid(svg, y_axis.y(tick, top), tick);
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

/// Text that cannot be taken for markup.
pub(crate) fn escape(text: &str) -> String {
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
    fn every_line_has_its_colour_or_its_dashes() {
        let series = |i: i32| Series {
            name: format!("line <{i}>"),
            values: vec![Some(f64::from(i)), None, Some(f64::NAN), Some(3.0)],
        };
        let series: Vec<Series> = (0..10).map(series).collect();
        let categories: Vec<String> = ["500", "2000", "far", "128000"].map(str::to_owned).to_vec();
        let svg = lines("t", "x", &categories, &series);
        assert_eq!(svg.matches("<circle").count(), 20);
        assert_eq!(svg.matches("stroke-dasharray").count(), 2 * 2);
        assert!(!svg.contains("NaN") && svg.contains("line &lt;3&gt;") && svg.contains("128k"));
        assert!(lines("t", "x", &[], &[]).ends_with("</svg>\n"));
    }

    #[test]
    fn rows_show_their_values() {
        let row = |value, interval| Row { name: "a & b".to_owned(), value, interval };
        let svg =
            dots("t", "x", &[row(59.23, Some([50.0, 70.0])), row(0.25, None), row(f64::NAN, None)]);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains(">59.2<") && svg.contains(">0.2<") && svg.contains("a &amp; b"));
        assert!(dots("t", "x", &[row(0.25, None)]).contains(">0.250<"));
        assert!(!svg.contains("NaN"));
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
