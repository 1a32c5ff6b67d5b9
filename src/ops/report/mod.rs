//! Pages of results with plots: one template each, SVG inline, no script, nothing from the network.
//!
//! Decides how values become bars and lines. Invariant: every text is escaped, and equal results give equal pages.

use minijinja::{Environment, context};
use serde::Serialize;

use crate::ops::evaluate::{Cell, Evaluation, Point, Targets};
use crate::ops::inspect::STYLE;

mod simulation;

pub(crate) use simulation::simulation;

/// Height of one bar with its gap.
const ROW: f64 = 22.0;
/// Place of the zero line of bars: names are left of it.
const LEFT: f64 = 210.0;
/// Length of a bar of the greatest value.
const LENGTH: f64 = 420.0;
/// Width and height of a plot of lines.
const PLOT: (f64, f64) = (560.0, 260.0);

/// A plot of bars with intervals.
#[derive(Serialize)]
struct Bars {
    title: String,
    note: String,
    height: f64,
    bars: Vec<Bar>,
    /// Where the baseline's value is.
    baseline: f64,
}

#[derive(Serialize)]
struct Bar {
    name: String,
    y: f64,
    middle: f64,
    width: f64,
    low: f64,
    high: f64,
    value: String,
    /// `above`, `below` or `same`, compared with the baseline.
    kind: &'static str,
    difference: String,
}

/// A plot of lines over the number of train users.
#[derive(Serialize)]
struct Lines {
    title: String,
    ticks: Vec<Tick>,
    levels: Vec<Tick>,
    lines: Vec<Line>,
}

#[derive(Serialize)]
struct Tick {
    at: f64,
    text: String,
}

#[derive(Serialize)]
struct Line {
    name: String,
    points: String,
    end: f64,
    label: f64,
    colour: usize,
}

/// The page of an evaluation. An error means that the template is wrong.
pub(crate) fn evaluation(of: &Evaluation) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    // The name ends in .html: every value is escaped.
    environment.add_template("evaluation.html", include_str!("evaluation.html"))?;
    environment.add_template("style.css", STYLE)?;
    let cells: Vec<Bars> = of.cells.iter().map(bars).collect();
    let cold: Vec<Bars> = of.cold.iter().map(bars).collect();
    environment
        .get_template("evaluation.html")?
        .render(context! {
            log => of.log,
            how => of.protocol,
            illegal => of.illegal,
            informed => of.protocol.informed,
            times => of.times.ms_per_user,
            cells, cold,
            curves => curves(&of.curve),
            left => LEFT, plot_width => PLOT.0, plot_height => PLOT.1,
        })
}

fn bars(cell: &Cell) -> Bars {
    let highest = cell
        .routes
        .iter()
        .map(|it| it.recall[1].high)
        .fold(0.0, f64::max);
    let scale = LENGTH / highest.max(1e-6);
    let baseline = cell.routes.iter().find(|it| it.difference.is_none());
    let bars = (0..).zip(&cell.routes).map(|(nth, route)| {
        let (y, recall) = (f64::from(nth) * ROW, &route.recall[1]);
        let kind = match &route.difference {
            Some(it) if it.low > 0.0 => "above",
            Some(it) if it.high < 0.0 => "below",
            Some(_) | None => "same",
        };
        Bar {
            name: route.route.clone(),
            y: y + 3.0,
            middle: y + ROW / 2.0,
            width: recall.mean * scale,
            low: LEFT + recall.low * scale,
            high: LEFT + recall.high * scale,
            value: format!("{:.3}", recall.mean),
            kind,
            difference: route.difference.as_ref().map_or("baseline".into(), |it| {
                format!("{:+.3} [{:+.3}, {:+.3}]", it.mean, it.low, it.high)
            }),
        }
    });
    Bars {
        title: format!(
            "{} products visible, {}",
            cell.visible,
            targets(cell.targets)
        ),
        note: format!("{} users, {} cases", cell.users, cell.cases),
        height: cell.routes.len() as f64 * ROW + 4.0,
        bars: bars.collect(),
        baseline: LEFT + baseline.map_or(0.0, |it| it.recall[1].mean) * scale,
    }
}

fn targets(of: Targets) -> &'static str {
    match of {
        Targets::All => "all targets",
        Targets::New => "new-to-user targets",
    }
}

fn curves(points: &[Point]) -> Vec<Lines> {
    let mut places: Vec<(&str, Targets)> = Vec::new();
    for point in points {
        if !places.contains(&(&point.visible, point.targets)) {
            places.push((&point.visible, point.targets));
        }
    }
    let one = |(visible, of): (&str, Targets)| {
        let here = |point: &&Point| point.visible == visible && point.targets == of;
        lines(visible, of, &points.iter().filter(here).collect::<Vec<_>>())
    };
    places.into_iter().map(one).collect()
}

fn lines(visible: &str, of: Targets, points: &[&Point]) -> Lines {
    let mut sizes: Vec<usize> = points.iter().map(|it| it.train_users).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let step = PLOT.0 / sizes.len().saturating_sub(1).max(1) as f64;
    let x = |size: usize| sizes.iter().position(|it| *it == size).unwrap_or(0) as f64 * step;
    let highest = points.iter().map(|it| it.recall.mean).fold(0.05, f64::max);
    let y = |value: f64| PLOT.1 * (1.0 - value / highest);
    let mut names: Vec<&str> = Vec::new();
    for point in points {
        if !names.contains(&point.route.as_str()) {
            names.push(&point.route);
        }
    }
    let mut drawn: Vec<Line> = Vec::new();
    for (nth, name) in names.into_iter().enumerate() {
        let own: Vec<_> = points
            .iter()
            .filter(|it| it.route == name && sizes.contains(&it.train_users))
            .collect();
        let path: Vec<String> = own
            .iter()
            .map(|it| format!("{:.1},{:.1}", x(it.train_users), y(it.recall.mean)))
            .collect();
        let end = own.last().map_or(PLOT.1, |it| y(it.recall.mean));
        drawn.push(Line {
            name: name.into(),
            points: path.join(" "),
            end,
            label: end,
            colour: nth % 8,
        });
    }
    move_apart(&mut drawn);
    Lines {
        title: format!("{visible} products visible, {}", targets(of)),
        ticks: sizes
            .iter()
            .map(|size| Tick {
                at: x(*size),
                text: size.to_string(),
            })
            .collect(),
        levels: levels(highest, 2),
        lines: drawn,
    }
}

/// Moves labels at the right end apart where lines end close together.
fn move_apart(lines: &mut [Line]) {
    lines.sort_by(|a, b| a.end.total_cmp(&b.end).then_with(|| a.name.cmp(&b.name)));
    let mut last = f64::NEG_INFINITY;
    for line in lines {
        line.label = line.end.max(last + 14.0);
        last = line.label;
    }
}

/// Levels from 0 to the highest value.
fn levels(highest: f64, digits: usize) -> Vec<Tick> {
    let values = (0..=4).map(|nth| highest * f64::from(nth) / 4.0);
    let level = |value: f64| Tick {
        at: PLOT.1 * (1.0 - value / highest),
        text: format!("{value:.digits$}"),
    };
    values.map(level).collect()
}
