//! A reading as a table for a terminal.

use std::fmt::Write;

use super::{Figures, LANES, Reading};
use crate::ops::visible::visible;

impl Reading {
    /// The reading for a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _infallible = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let (answered, all) = (self.answered, self.replicas.len());
        writeln!(out, "{answered} of {all} processes answer")?;
        writeln!(
            out,
            "\n{:<8} {:>10} {:>10} {:>12} {:>12}",
            "lane", "waiting", "running", "oldest", "model time"
        )?;
        for name in LANES {
            if let Some(lane) = self.total.lanes.get(name) {
                writeln!(
                    out,
                    "{name:<8} {:>10} {:>10} {:>12} {:>12}",
                    lane.waiting,
                    lane.running,
                    seconds(Some(lane.oldest_age_seconds)),
                    seconds(Some(lane.queued_work_seconds))
                )?;
            }
        }
        let columns = [
            "records/s",
            "lists/s",
            "busy",
            "p50",
            "p95",
            "lag",
            "lag age",
            "dlq",
        ];
        write!(out, "\n{:<28} ", "process")?;
        for column in columns {
            write!(out, " {column:>9}")?;
        }
        writeln!(out)?;
        for replica in &self.replicas {
            write!(out, "{:<28} ", visible(&replica.address))?;
            match &replica.error {
                Some(error) => writeln!(out, " DOES NOT ANSWER: {}", visible(error))?,
                None => writeln!(out, "{}", row(&replica.figures))?,
            }
            for fault in &replica.faults {
                writeln!(out, "    ! {}", visible(fault))?;
            }
        }
        writeln!(out, "{:<28} {}", "all", row(&self.total))
    }
}

fn row(figures: &Figures) -> String {
    let count = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
    let rate = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.1}"));
    let busy = figures
        .engine_busy
        .map(|busy| format!("{:.0}%", 100.0 * busy));
    let columns = [
        rate(figures.records_per_second),
        rate(figures.lists_per_second),
        busy.unwrap_or("-".into()),
        seconds(figures.fresh_p50_seconds),
        seconds(figures.fresh_p95_seconds),
        count(figures.lag_records),
        seconds(figures.lag_seconds),
        count(figures.dlq_records),
    ];
    columns.map(|column| format!(" {column:>9}")).concat()
}

fn seconds(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value >= 120.0 => format!("{:.1} min", value / 60.0),
        Some(value) => format!("{value:.2} s"),
    }
}
