//! `schema`: JSON Schemas of what Nearshore reads and writes, made from its types.
//!
//! Invariant: docs/schema has exactly what is made here; a test compares them. Schemas are in draft 7, which editors and
//! validators know.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use nearshore_core::list::document::{Audit, Document, Update};
use nearshore_core::user::event::{ChangeValue, EventValue, ProfileValue, SkuValue};
use nearshore_core::user::trigger::Request;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::{
    ask, backfill, calibrate, check, dlq, forget, map, matching, namespace, try_names, users,
};
use crate::config::Config;
use crate::ops;
use crate::ops::evaluate as judged;

/// What each file is called after the name of its schema.
const ENDING: &str = ".schema.json";

/// Arguments of `schema`.
#[derive(Clone, Debug, Args)]
pub(super) struct SchemaArgs {
    /// Name of the schema; without it, and without --out, the names are printed.
    #[arg(conflicts_with = "out")]
    name: Option<String>,
    /// Folder for the files of all schemas.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// One schema.
struct Described {
    name: &'static str,
    /// What has this form, for people.
    of: &'static str,
    make: fn() -> Schema,
}

/// The schema of what is read: a field with a default may be absent.
fn read<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft07().for_deserialize();
    settings.into_generator().into_root_schema_for::<T>()
}

/// The schema of what is written.
fn written<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft07().for_serialize();
    settings.into_generator().into_root_schema_for::<T>()
}

/// A row of the tables below.
const fn row(name: &'static str, of: &'static str, make: fn() -> Schema) -> Described {
    Described { name, of, make }
}

/// Configuration, topics and what clients read.
const DATA: [Described; 9] = [
    row("config", "nearshore.toml", read::<Config>),
    row("user-events", "topic user-events", read::<EventValue>),
    row(
        "profile-changes",
        "topic profile-changes",
        read::<ProfileValue>,
    ),
    row(
        "profile-changes-debezium",
        "topic profile-changes with profile_format = \"debezium\"",
        read::<ChangeValue>,
    ),
    row("catalog", "topic catalog", read::<SkuValue>),
    row("regen", "topics regen-*", read::<Request>),
    row("recall-updates", "topic recall-updates", written::<Update>),
    row("list", "a list in Redis; get --json", written::<Document>),
    row("audit", "the audit of a list", written::<Audit>),
];

/// What commands print with `--json`; a line each, where there are several.
const ANSWERS: [Described; 41] = [
    row("check", "check", written::<check::Checked>),
    row("check-acl", "check --acl", written::<check::acl::Granted>),
    row(
        "get-neighbours",
        "get --neighbours",
        written::<nearshore_core::learn::related::NeighbourDoc>,
    ),
    row("inspect", "inspect", written::<ops::inspect::View>),
    row(
        "inspect-why-not",
        "inspect --why-not",
        written::<ops::namespace::Answer>,
    ),
    row(
        "inspect-what-if",
        "inspect --what-if",
        written::<ops::namespace::Supposed>,
    ),
    row("tap", "tap", written::<ops::tap::Seen>),
    row("top", "top", written::<ops::top::Reading>),
    row("forget", "forget", written::<forget::Forgotten>),
    row(
        "forget-proof",
        "forget --proof",
        written::<ops::forget::Receipt>,
    ),
    row(
        "forget-export",
        "forget --export",
        written::<forget::Exported>,
    ),
    row(
        "forget-import",
        "forget --import",
        written::<ops::forget::Imported>,
    ),
    row("refresh", "refresh and sweep", written::<ask::Requested>),
    row("backfill", "backfill", written::<backfill::Filled>),
    row(
        "backfill-dry-run",
        "backfill --dry-run",
        written::<ops::backfill::Estimate>,
    ),
    row(
        "namespace-list",
        "namespace list",
        written::<ops::namespace::Listing>,
    ),
    row(
        "namespace-diff",
        "namespace diff",
        written::<ops::namespace::Difference>,
    ),
    row(
        "namespace-promote",
        "namespace promote",
        written::<namespace::Promoted>,
    ),
    row(
        "namespace-retire",
        "namespace retire",
        written::<namespace::Retired>,
    ),
    row(
        "namespace-dump",
        "namespace dump --digest",
        written::<namespace::Dumped>,
    ),
    row("arms", "arms", written::<ops::arms::Arms>),
    row(
        "block",
        "block",
        written::<nearshore_core::ports::store::Block>,
    ),
    row("unblock", "unblock", written::<users::Unblocked>),
    row("dlq-list", "dlq list", written::<dlq::DeadLetterLine>),
    row("dlq-replay", "dlq replay", written::<dlq::SentBack>),
    row("try", "try", written::<try_names::Line>),
    row(
        "try-free",
        "try --mode free",
        written::<try_names::free::Line>,
    ),
    row(
        "try-totals",
        "the last line of try",
        written::<try_names::TotalsLine>,
    ),
    row(
        "try-compare",
        "try --compare",
        written::<try_names::compare::ComparisonLine>,
    ),
    row("calibrate", "calibrate", written::<calibrate::Calibrated>),
    row("evaluate", "evaluate", written::<judged::Evaluation>),
    row(
        "evaluate-diff",
        "evaluate --diff",
        written::<judged::since::Since>,
    ),
    row(
        "evaluate-off-policy",
        "evaluate --off-policy",
        written::<judged::off_policy::OffPolicy>,
    ),
    row("import", "import", written::<ops::import::Imported>),
    row("align", "align", written::<judged::align::AlignReport>),
    row("tune", "tune", written::<judged::tune::TuneReport>),
    row("simulate", "simulate", written::<ops::simulate::Simulation>),
    row(
        "match",
        "match --texts",
        written::<ops::words::matching::Matched>,
    ),
    row(
        "match-fit",
        "match without --model",
        written::<matching::FitReport>,
    ),
    row(
        "catalog-name",
        "catalog name",
        written::<ops::words::naming::Proposal>,
    ),
    row("map", "map", written::<map::MapLine>),
];

fn all() -> impl Iterator<Item = &'static Described> {
    DATA.iter().chain(&ANSWERS)
}

impl Described {
    fn text(&self) -> anyhow::Result<String> {
        let mut text = serde_json::to_string_pretty(&(self.make)())?;
        text.push('\n');
        Ok(text)
    }
}

/// Runs the command.
pub(super) fn run(args: &SchemaArgs) -> anyhow::Result<ExitCode> {
    if let Some(folder) = &args.out {
        let what = || format!("schemas cannot be written to {}", folder.display());
        std::fs::create_dir_all(folder).with_context(what)?;
        for one in all() {
            let file = folder.join(format!("{}{ENDING}", one.name));
            std::fs::write(&file, one.text()?).with_context(what)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(name) = &args.name else {
        for one in all() {
            out!("{:<26} {}", one.name, one.of);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Some(found) = all().find(|one| one.name == *name) else {
        note!("nearshore: there is no schema {name:?}; `nearshore schema` lists them");
        return Ok(ExitCode::from(2));
    };
    out_part!("{}", found.text()?);
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema")
    }

    #[test]
    fn docs_schema_has_what_the_types_give() {
        let mut wrong = Vec::new();
        for one in all() {
            let file = format!("{}{ENDING}", one.name);
            let kept = std::fs::read_to_string(folder().join(&file)).unwrap_or_default();
            if kept != one.text().expect("JSON") {
                wrong.push(file);
            }
        }
        assert!(
            wrong.is_empty(),
            "{wrong:?} differ from the types: renew them with `cargo run -- schema --out docs/schema`"
        );
    }

    #[test]
    fn docs_schema_has_no_other_file_and_its_page_names_each() {
        let names: BTreeSet<String> = all().map(|one| format!("{}{ENDING}", one.name)).collect();
        let entries = std::fs::read_dir(folder()).expect("the folder");
        let files = entries.map(|entry| entry.expect("an entry").file_name());
        let files = files.map(|name| name.to_string_lossy().into_owned());
        let files: BTreeSet<String> = files.filter(|name| name.ends_with(ENDING)).collect();
        assert_eq!(files, names);
        let page = std::fs::read_to_string(folder().join("README.md")).expect("the page");
        for name in names {
            assert!(page.contains(&format!("]({name})")), "no link to {name}");
        }
    }
}
