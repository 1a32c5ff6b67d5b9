//! `nearshore catalog`: products for SKUs that have only titles.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use nearshore_core::shop::naming::Map;

use crate::ops::words::Problem;
use crate::ops::words::naming::{Agreement, Proposal, Titles, map};

/// Examples of `--help`.
const EXAMPLES: &str = "\
Examples:
  nearshore catalog name --catalog skus.jsonl --out map.jsonl
  nearshore catalog name --catalog skus.csv --out map.jsonl --map map.jsonl     # again, on a grown catalogue
  jq -c 'select(.unsure)' map.jsonl                                             # what a person should look at
  nearshore catalog name --catalog skus.jsonl --out map.jsonl --truth products.jsonl

The map is JSON lines: rename a product by its `pu`, move a key to another line to move its SKUs, and set one SKU by a line
{\"sku\": \"..\", \"pu\": \"..\"}. Then, in the configuration:
  [catalog]
  naming = \"map.jsonl\"
The file is described in docs/words.md.";

/// What is done with a catalogue.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum Command {
    /// Propose products for SKUs that have titles and no product, as a map that people edit.
    #[command(after_help = EXAMPLES)]
    Name(NameArgs),
}

/// Arguments of `catalog name`.
#[derive(Clone, Debug, Args)]
pub(super) struct NameArgs {
    /// Files of SKUs (JSON lines, CSV): sku, title, and optional category and attributes. SKUs with a pu keep it.
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    catalog: Vec<PathBuf>,
    /// File that the map is written to.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Map of an earlier run, as people have edited it: its products and ids stay.
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Attribute that has the brand.
    #[arg(long, value_name = "NAME", default_value = "brand")]
    brand: String,
    /// File of known products (sku, pu): how the proposal agrees with it is printed.
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let Command::Name(args) = command;
    match name(args) {
        Err(error) if error.downcast_ref::<Problem>().is_some() => {
            note!("nearshore: {}", super::chain(&error));
            Ok(ExitCode::from(2))
        }
        done => done.map(|()| ExitCode::SUCCESS),
    }
}

fn name(args: &NameArgs) -> anyhow::Result<()> {
    let before = args.map.as_deref().map(map).transpose()?;
    if before.is_none() && args.out.exists() {
        let out = args.out.display();
        let what = format!(
            "{out} is there: give it as --map, so that what people edited stays, or remove it"
        );
        return Err(Problem::Whole(what).into());
    }
    let titles = Titles::read(&args.catalog, &args.brand)?;
    if titles.rows.is_empty() {
        let what = format!(
            "no SKU has a title and no product: {} have a product, {} have no title",
            titles.named, titles.untitled
        );
        return Err(Problem::Whole(what).into());
    }
    let (map, mut proposal) = titles.proposed(&before.unwrap_or_else(Map::default));
    if let Some(truth) = &args.truth {
        proposal.truth = Some(titles.agreement(&map, truth)?);
    }
    std::fs::write(&args.out, map.write())
        .with_context(|| format!("{} cannot be written", args.out.display()))?;
    match args.json {
        true => out!("{}", serde_json::to_string(&proposal)?),
        false => out!("{}", text(args, &proposal)),
    }
    Ok(())
}

fn text(args: &NameArgs, proposal: &Proposal) -> String {
    let Proposal {
        skus,
        products,
        unsure,
        brands,
        known,
        ..
    } = proposal;
    let mut lines = vec![format!(
        "{skus} titles are {products} products; {unsure} of these may be another one; {brands} brands were recognised"
    )];
    if *known > 0 {
        lines.push(format!(
            "{known} products were in the map before, and keep names and ids"
        ));
    }
    if proposal.named > 0 {
        lines.push(format!(
            "{} SKUs have a product already and keep it",
            proposal.named
        ));
    }
    if proposal.untitled > 0 {
        lines.push(format!(
            "{} SKUs have no title and stay without a product",
            proposal.untitled
        ));
    }
    if let Some(Agreement {
        precision,
        recall,
        f1,
        products,
    }) = proposal.truth
    {
        lines.push(format!(
            "against {products} known products, over pairs of SKUs: precision {precision:.4}, recall {recall:.4}, F1 {f1:.4}"
        ));
    }
    lines.push(format!(
        "written to {}; read it, edit it, and name it as [catalog] naming",
        args.out.display()
    ));
    lines.join("\n")
}
