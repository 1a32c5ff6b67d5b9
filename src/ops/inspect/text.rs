//! Renders a [`View`] for a terminal. What cannot be seen in stored text is escaped.

use std::fmt::Write;

use super::{ListView, View, moment};
use crate::ops::visible::visible;

pub(super) fn text(view: &View) -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _infallible = write(view, &mut out);
    out
}

fn write(view: &View, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "user {} in namespace {}",
        visible(&view.user),
        visible(&view.namespace)
    )?;
    if !view.segment.is_empty() {
        writeln!(out, "segment {}", visible(&view.segment))?;
    }
    writeln!(out, "\nPROFILE")?;
    match &view.profile {
        None => writeln!(out, "  none")?,
        Some(profile) => {
            writeln!(
                out,
                "  of {} at {}",
                moment(profile.time),
                visible(&profile.position)
            )?;
            for (field, value) in &profile.fields {
                writeln!(out, "  {}: {}", visible(field), visible(&value.to_string()))?;
            }
        }
    }
    writeln!(out, "\nEVENTS")?;
    if view.events.is_empty() {
        writeln!(out, "  none")?;
    }
    for event in &view.events {
        let name = event.name.as_deref().unwrap_or("(not in the catalogue)");
        let (kind, item) = (visible(&event.kind), visible(&event.item));
        let time = moment(event.time);
        writeln!(
            out,
            "  {time}  {kind:<10} {:>3} × {}  [{item}]  {}",
            event.qty,
            visible(name),
            visible(&event.position)
        )?;
    }
    state(view, out)?;
    match &view.list {
        None => writeln!(out, "\nLIST\n  none; the segment's fallback is served")?,
        Some(list) => names(list, out)?,
    }
    audit(view, out)?;
    if let Some(prompt) = &view.prompt {
        writeln!(out, "\nPROMPT {}", visible(&prompt.hash))?;
        if prompt.moved_on {
            writeln!(
                out,
                "  State, catalogue or template changed after the list was made."
            )?;
        }
        for line in prompt.text.lines() {
            writeln!(out, "  | {}", visible(line))?;
        }
    }
    Ok(())
}

fn state(view: &View, out: &mut String) -> std::fmt::Result {
    let state = &view.state;
    writeln!(out, "\nSTATE")?;
    writeln!(
        out,
        "  version {}, claim {}, activity {:.2}, erased {}",
        state.ver,
        state.claim,
        state.activity,
        moment(state.erased_at)
    )?;
    writeln!(out, "  fences {}", visible(&state.fences.join(", ")))?;
    match &state.pending {
        None => writeln!(out, "  nothing pending"),
        Some(pending) => {
            let source = pending.source.as_deref().unwrap_or("a sweep or refresh");
            writeln!(
                out,
                "  pending: requested by {}, due {}",
                visible(source),
                moment(pending.due)
            )
        }
    }
}

fn names(list: &ListView, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "\nLIST {} made by {}, arm {} epoch {}, claim {}",
        visible(&list.list_id),
        visible(&list.source),
        visible(&list.arm),
        list.epoch,
        list.claim
    )?;
    if !list.note.is_empty() {
        writeln!(out, "  {}", visible(&list.note))?;
    }
    let coverage = if list.current {
        "has seen all of the state"
    } else {
        "trails the state"
    };
    writeln!(out, "  for the record of {}; {coverage}", moment(list.at))?;
    for (nth, name) in list.names.iter().enumerate() {
        let terms: Vec<_> = name
            .terms
            .iter()
            .map(|(term, value)| format!("{} {value:.2}", visible(term)))
            .collect();
        writeln!(
            out,
            "  {:>2}. {:<40} {:>8.3}  {}",
            nth + 1,
            visible(&name.name),
            name.score,
            terms.join("  ")
        )?;
        for sku in &name.skus {
            let sold_out = if sku.sold_out { "  SOLD OUT SINCE" } else { "" };
            let ee = sku.ee.map_or(String::new(), |ee| format!("p {ee:.3}"));
            writeln!(
                out,
                "        {:<12} {ee:<8}  {}{sold_out}",
                visible(&sku.sku),
                visible(&sku.title)
            )?;
        }
    }
    Ok(())
}

/// What is said of a list whose audit is not in Redis.
const NOT_KEPT: &str =
    "Redis keeps no audit of this list that can be read (audit.keep); recall-updates has it";

fn audit(view: &View, out: &mut String) -> std::fmt::Result {
    let Some(audit) = &view.audit else {
        return match view.list {
            Some(_) => writeln!(out, "\nWHY\n  {NOT_KEPT}"),
            None => Ok(()),
        };
    };
    writeln!(out, "\nWHY")?;
    let rules = if audit.rules.is_empty() {
        "none".into()
    } else {
        visible(&audit.rules.join(", "))
    };
    writeln!(out, "  rules fired: {rules}")?;
    for dropped in &audit.dropped {
        writeln!(
            out,
            "  dropped: {} ({})",
            visible(&dropped.name),
            visible(&dropped.reason)
        )?;
    }
    for text in &audit.texts {
        writeln!(out, "  text {}", visible(text))?;
    }
    for (what, version) in &audit.versions {
        writeln!(out, "  {}: {}", visible(what), visible(version))?;
    }
    let parts = audit.times.parts();
    if !parts.is_empty() {
        let whole = audit
            .times
            .whole()
            .map_or(String::new(), |whole| format!("{whole} = "));
        let parts: Vec<_> = parts
            .iter()
            .map(|part| format!("{} {}", part.name, part.took))
            .collect();
        writeln!(out, "  from event to list: {whole}{}", parts.join(" + "))?;
    }
    Ok(())
}
