//! The page of a simulation: the loss of each way, and how it changes from week to week.

use minijinja::{Environment, context};
use nearshore_core::learn::simulate::Summary;

use super::{Bar, Bars, LEFT, LENGTH, Line, Lines, PLOT, ROW, STYLE, Tick, levels, move_apart};
use crate::ops::simulate::{Simulation, WorldResult};

/// The page of a simulation. An error means that the template is wrong.
pub(crate) fn simulation(of: &Simulation) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    // The name ends in .html: every value is escaped.
    environment.add_template("simulation.html", include_str!("simulation.html"))?;
    environment.add_template("style.css", STYLE)?;
    let worlds: Vec<(Bars, Lines)> = of
        .worlds
        .iter()
        .map(|world| (bars(world), lines(world)))
        .collect();
    environment
        .get_template("simulation.html")?
        .render(context! {
            worlds,
            seeds => of.seeds,
            left => LEFT, plot_width => PLOT.0, plot_height => PLOT.1,
            ours => of.worlds.first().and_then(|world| world.ways.first()).map(|way| &way.way),
        })
}

fn bars(of: &WorldResult) -> Bars {
    let highest = of.ways.iter().map(|way| way.loss.high).fold(0.0, f64::max);
    let scale = LENGTH / highest.max(1e-6);
    let bar = |(nth, way): (u32, &Summary)| {
        let y = f64::from(nth) * ROW;
        let (loss, to) = (way.loss, way.difference);
        // To lose less is better.
        let kind = match to {
            to if nth > 0 && to.high < 0.0 => "above",
            to if nth > 0 && to.low > 0.0 => "below",
            _ => "same",
        };
        Bar {
            name: way.way.clone(),
            y: y + 3.0,
            middle: y + ROW / 2.0,
            width: loss.mean * scale,
            low: LEFT + loss.low * scale,
            high: LEFT + loss.high * scale,
            value: format!("{:.1}", loss.mean),
            kind,
            difference: match nth {
                0 => String::new(),
                _ => format!("{:+.1} [{:+.1}, {:+.1}]", to.mean, to.low, to.high),
            },
        }
    };
    Bars {
        title: of.world.clone(),
        note: format!("1000 best lists bring {:.0} purchases", of.best),
        height: of.ways.len() as f64 * ROW + 4.0,
        bars: (0..).zip(&of.ways).map(bar).collect(),
        baseline: LEFT + of.ways.first().map_or(0.0, |way| way.loss.mean) * scale,
    }
}

fn lines(of: &WorldResult) -> Lines {
    let weeks = of.ways.iter().map(|way| way.weeks.len()).max().unwrap_or(0);
    let highest = of
        .ways
        .iter()
        .flat_map(|way| &way.weeks)
        .copied()
        .fold(1.0, f64::max);
    let x = |week: usize| PLOT.0 * week as f64 / weeks.saturating_sub(1).max(1) as f64;
    let y = |value: f64| PLOT.1 * (1.0 - value / highest);
    let line = |(nth, way): (usize, &Summary)| {
        let points = way.weeks.iter().enumerate();
        let points: Vec<String> = points
            .map(|(week, loss)| format!("{:.1},{:.1}", x(week), y(*loss)))
            .collect();
        let end = way.weeks.last().map_or(PLOT.1, |loss| y(*loss));
        Line {
            name: way.way.clone(),
            points: points.join(" "),
            end,
            label: end,
            colour: nth % 8,
        }
    };
    let mut drawn: Vec<Line> = of.ways.iter().enumerate().map(line).collect();
    move_apart(&mut drawn);
    let tick = |week: usize| Tick {
        at: x(week),
        text: (week + 1).to_string(),
    };
    Lines {
        title: of.world.clone(),
        ticks: (0..weeks).map(tick).collect(),
        levels: levels(highest, 0),
        lines: drawn,
    }
}

#[cfg(test)]
mod tests {
    use nearshore_core::learn::simulate::World;
    use nearshore_core::list::select::Policy;

    use super::*;
    use crate::ops::simulate::{mean_losses, simulate, ways};

    #[test]
    fn the_page_shows_every_way_in_every_world_and_needs_no_network() {
        let mut worlds = World::all();
        worlds.retain(|world| ["calm", "launches"].contains(&world.name));
        for world in &mut worlds {
            (world.products, world.days, world.lists) = (2, 14, 20);
        }
        let ways = ways(&Policy::default(), false);
        let found = simulate(&ways, &worlds, 2, &indicatif::ProgressBar::hidden());
        let page = simulation(&found).expect("the template is right");
        for way in &ways {
            assert!(page.contains(&way.name()), "{}", way.name());
        }
        assert!(page.contains("launches") && page.contains("calm"));
        assert!(
            !page.contains("http://") && !page.contains("https://") && !page.contains("<script")
        );
        assert_eq!(simulation(&found).expect("again"), page);
        let means = mean_losses(&found);
        assert!(means.is_sorted_by(|a, b| a.1 <= b.1) && means.len() == ways.len());
    }
}
