//! The report of an alignment, for a person.
//!
//! It says what was fitted and what is used, so that no weight is a surprise. It does not know files.

use nearshore_core::learn::bootstrap::Interval;
use nearshore_core::learn::model::ModelFit;

use super::{AlignReport, PromptRow, Row};
use crate::ops::evaluate::choice::ChoiceReport;
use crate::ops::evaluate::head::HeadReport;

/// The report as a table.
pub(crate) fn text(report: &AlignReport) -> String {
    use std::fmt::Write;
    let made = &report.made;
    let mut out = format!(
        "artefact {}: {} users, {} purchases\n",
        report.artefact, made.users, made.purchases
    );
    if let Some(table) = &report.table {
        let _ = writeln!(
            out,
            "table of {} products: {} rows computed, {} prompts, {} tokens",
            table.products, table.computed, table.prompts, table.tokens
        );
    }
    if let Some(head) = &report.head {
        out += &head_text(head);
    }
    for (least, fit) in &report.buckets {
        let _ = write!(
            out,
            "\n{least} or more products visible: {} cases of {} users",
            fit.samples, fit.users
        );
        if let (Some(recall), Some(nats)) = (&fit.recall, &fit.nats) {
            let _ = write!(
                out,
                "; Recall@10 over demand {:+.3} [{:+.3}, {:+.3}], nats {:+.3} [{:+.3}, {:+.3}]",
                recall.mean, recall.low, recall.high, nats.mean, nats.low, nats.high
            );
        }
        out.push('\n');
        if !fit.reason.is_empty() {
            let _ = writeln!(out, "  demand alone: {}", fit.reason);
        }
        if fit.reason.is_empty() && fit.form != "fitted" {
            let _ = writeln!(out, "  ranks best, and is used: {}", form_text(&fit.form));
        }
        if let Some(model) = report.model.get(least) {
            let _ = writeln!(out, "  {}", model_text("model", model));
        }
        if let Some(head) = report.head.as_ref().and_then(|it| it.buckets.get(least)) {
            let _ = writeln!(out, "  {}", model_text("head", head));
        }
        for (name, of) in &fit.fitted {
            let used = fit.weights.get(name).copied().unwrap_or_default();
            let _ = writeln!(
                out,
                "  {name:<12} {used:>7.3}   fitted {:>7.3} [{:>7.3}, {:>7.3}]",
                of.weight, of.low, of.high
            );
        }
    }
    if let Some(choice) = &report.choice {
        out += &choice_text(choice);
    }
    out += &ablation_text(&report.ablation);
    out += &prompts_text(&report.prompts);
    out
}

/// What each option of the selection changes, a line for each bucket.
fn ablation_text(rows: &[Row]) -> String {
    let mut out = String::new();
    for row in rows {
        let Some(visible) = row.visible else {
            out += &format!(
                "\n{}: fitted to {} cases instead of {}; on the same cases of other folds\n",
                row.option, row.samples[1], row.samples[0]
            );
            out += &changed("all", &row.recall, &row.nats);
            continue;
        };
        out += &changed(&format!("{visible} visible"), &row.recall, &row.nats);
    }
    out
}

fn changed(what: &str, recall: &Interval, nats: &Interval) -> String {
    format!(
        "  {what:<12} Recall@10 {:+.4} [{:+.4}, {:+.4}], nats {:+.4} [{:+.4}, {:+.4}]\n",
        recall.mean, recall.low, recall.high, nats.mean, nats.low, nats.high
    )
}

/// What the model adds to the mixture with each prompt.
fn prompts_text(rows: &[PromptRow]) -> String {
    let mut out = String::new();
    let mut option = "";
    for row in rows {
        if row.option != option {
            option = &row.option;
            out += &format!("\nprompt {option}: {}\n", row.template.display());
        }
        let visible = format!("{} visible", row.visible);
        match (&row.recall, &row.nats) {
            (Some(recall), Some(nats)) => out += &changed(&visible, recall, nats),
            _ => out += &format!("  {visible:<12} too few of {} users\n", row.users),
        }
    }
    out
}

/// What a form of weights is, in words.
fn form_text(form: &str) -> &str {
    match form {
        "1" => {
            "weights of 1 for demand, weeks, repeat and neighbours, as far as each can be told from 0"
        }
        "1 and walk" => {
            "weights of 1 for demand, weeks, repeat, neighbours and walk, as far as each can be told from 0"
        }
        "ranks" => "weights fitted to ranks",
        "ranks without bias" => "weights fitted to ranks, without bias",
        "without bias" => "the fit without bias",
        other => other,
    }
}

/// The model's fit of a bucket in a line.
fn model_text(what: &str, fit: &ModelFit) -> String {
    let mut line = format!("{what}: {} cases of {} users", fit.samples, fit.users);
    if let Some(of) = &fit.fitted {
        line += &format!("; fitted {:.3} [{:.3}, {:.3}]", of.weight, of.low, of.high);
    }
    for (what, found) in [("Recall@10", &fit.recall), ("nats", &fit.nats)] {
        if let Some(found) = found {
            line += &format!(
                "; {what} {:+.3} [{:+.3}, {:+.3}]",
                found.mean, found.low, found.high
            );
        }
    }
    match fit.reason.is_empty() {
        true => line,
        false => format!("{line}; weight 0: {}", fit.reason),
    }
}

/// How a head was trained, in a line.
fn head_text(head: &HeadReport) -> String {
    let mut line = format!(
        "head on the hidden states of arm {}, rank {}: {} prompts read in {:.0} s, {} known; training {:.0} s",
        head.arm, head.rank, head.computed, head.hidden_seconds, head.kept, head.training_seconds
    );
    if let Some(last) = head.trained.last() {
        line += &format!(
            "; {} cases, {} passes, {:+.3} nats on {} tune cases",
            last.cases, last.epochs, last.tune_nats, last.tune_cases
        );
    }
    line + "\n"
}

/// The choice of SKUs as a table.
fn choice_text(report: &ChoiceReport) -> String {
    use std::fmt::Write;
    let mut out = format!(
        "\nchoice of a SKU within its product: {} choices, fitted to {}",
        report.choices, report.samples
    );
    if let Some(gain) = &report.gain {
        let _ = write!(
            out,
            "; first hits over own last, else popular {:+.4} [{:+.4}, {:+.4}]",
            gain.mean, gain.low, gain.high
        );
    }
    out.push('\n');
    if !report.reason.is_empty() {
        let _ = writeln!(out, "  the default is used: {}", report.reason);
    }
    for ways in [&report.ways, &report.with_best] {
        for (name, way) in ways {
            let _ = write!(out, "  {name:<24}");
            for (what, hits) in [
                ("all", &way.all),
                ("own visible", &way.own_visible),
                ("new", &way.product_new),
            ] {
                let _ = write!(
                    out,
                    "  {what} {} hit@1 {:.4} @5 {:.4} nats {:.3}",
                    hits.choices, hits.hit1, hits.hit5, hits.nats
                );
            }
            let _ = writeln!(out, "  ECE {:.4}", way.ece);
        }
    }
    if let Some(model) = &report.fitted {
        let _ = write!(out, "  kappa {:.3}", model.kappa);
        for (name, weight) in &model.weights {
            let _ = write!(out, "  {name} {weight:.3}");
        }
        out.push('\n');
    }
    out
}
