//! Renders a [`View`] for a terminal. Control characters in stored text are escaped.

use std::fmt::Write;

use super::{ListView, View, moment};

/// Escapes control characters, which would move the cursor or colour the terminal.
fn safe(text: &str) -> String {
    let escaped = text.chars().map(|c| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    });
    escaped.collect()
}

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
        safe(&view.user),
        safe(&view.namespace)
    )?;
    if !view.segment.is_empty() {
        writeln!(out, "segment {}", safe(&view.segment))?;
    }
    writeln!(out, "\nPROFILE")?;
    match &view.profile {
        None => writeln!(out, "  none")?,
        Some(profile) => {
            writeln!(
                out,
                "  of {} at {}",
                moment(profile.time),
                safe(&profile.position)
            )?;
            for (field, value) in &profile.fields {
                writeln!(out, "  {}: {}", safe(field), safe(&value.to_string()))?;
            }
        }
    }
    writeln!(out, "\nEVENTS")?;
    if view.events.is_empty() {
        writeln!(out, "  none")?;
    }
    for event in &view.events {
        let name = event.name.as_deref().unwrap_or("(not in the catalogue)");
        let (kind, item) = (safe(&event.kind), safe(&event.item));
        let time = moment(event.time);
        writeln!(
            out,
            "  {time}  {kind:<10} {:>3} × {}  [{item}]  {}",
            event.qty,
            safe(name),
            safe(&event.position)
        )?;
    }
    state(view, out)?;
    match &view.list {
        None => writeln!(out, "\nLIST\n  none; the segment's fallback is served")?,
        Some(list) => names(list, out)?,
    }
    audit(view, out)?;
    if let Some(prompt) = &view.prompt {
        writeln!(out, "\nPROMPT {}", safe(&prompt.hash))?;
        if prompt.moved_on {
            writeln!(
                out,
                "  State, catalogue or template changed after the list was made."
            )?;
        }
        for line in prompt.text.lines() {
            writeln!(out, "  | {}", safe(line))?;
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
    writeln!(out, "  fences {}", safe(&state.fences.join(", ")))?;
    match &state.pending {
        None => writeln!(out, "  nothing pending"),
        Some(pending) => {
            let source = pending.source.as_deref().unwrap_or("a sweep or refresh");
            writeln!(
                out,
                "  pending: requested by {}, due {}",
                safe(source),
                moment(pending.due)
            )
        }
    }
}

fn names(list: &ListView, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "\nLIST {} made by {}, arm {} epoch {}, claim {}",
        safe(&list.list_id),
        safe(&list.source),
        safe(&list.arm),
        list.epoch,
        list.claim
    )?;
    if !list.note.is_empty() {
        writeln!(out, "  {}", safe(&list.note))?;
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
            .map(|(term, value)| format!("{} {value:.2}", safe(term)))
            .collect();
        writeln!(
            out,
            "  {:>2}. {:<40} {:>8.3}  {}",
            nth + 1,
            safe(&name.name),
            name.score,
            terms.join("  ")
        )?;
        for sku in &name.skus {
            let sold_out = if sku.sold_out { "  SOLD OUT SINCE" } else { "" };
            let ee = sku.ee.map_or(String::new(), |ee| format!("EE {ee:.3}"));
            writeln!(
                out,
                "        {:<12} {ee:<8}  {}{sold_out}",
                safe(&sku.sku),
                safe(&sku.title)
            )?;
        }
    }
    Ok(())
}

fn audit(view: &View, out: &mut String) -> std::fmt::Result {
    let Some(audit) = &view.audit else {
        return Ok(());
    };
    writeln!(out, "\nWHY")?;
    let rules = if audit.rules.is_empty() {
        "none".into()
    } else {
        safe(&audit.rules.join(", "))
    };
    writeln!(out, "  rules fired: {rules}")?;
    for dropped in &audit.dropped {
        writeln!(
            out,
            "  dropped: {} ({})",
            safe(&dropped.name),
            safe(&dropped.reason)
        )?;
    }
    for (what, version) in &audit.versions {
        writeln!(out, "  {}: {}", safe(what), safe(version))?;
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
