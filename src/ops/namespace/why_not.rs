//! Says why a product is not on a user's list, by what Kafka, Redis and the configuration have now.

use std::fmt::Write;
use std::sync::Arc;

use nearshore_core::list::why_not::{self, WhyNot};
use nearshore_core::ports::store::Store;
use nearshore_core::shop::catalogue::{Catalogue, PuIx};
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::text::same;
use nearshore_core::user::event::UserId;
use schemars::JsonSchema;
use serde::Serialize;

use super::now::UserNow;
use super::read_catalogue;
use crate::config::Config;
use crate::ops::visible::visible;

/// Names closer than this are suggested for one that the catalogue does not have: 1 is equal.
const ALIKE: f64 = 0.6;

/// Why a product is not on a user's list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Answer {
    /// The user's id.
    pub user: String,
    /// The namespace that was read.
    pub namespace: String,
    /// The user's arm.
    pub arm: String,
    /// Whether the arm gives the model a weight for this user: the model may rank otherwise.
    pub model: bool,
    /// Shares of the score that are not in the terms, and why.
    pub unknown: Vec<String>,
    /// Its place on the stored list, from 1.
    pub place: Option<usize>,
    /// The id of the stored list; none if there is none.
    pub list_id: Option<String>,
    /// What a list would be like that is made now, without the model.
    pub now: WhyNot,
}

/// Explains the place of a product, given by the id of a PU or a SKU, or by its name. Nothing is written.
pub async fn why_not<S: Store>(
    config: &Config,
    store: S,
    user: &UserId,
    product: &str,
) -> anyhow::Result<Answer> {
    let catalogue = read_catalogue(config).await?.catalogue;
    let product = find(&catalogue, product)?;
    let now = UserNow::read(config, store, user, catalogue).await?;
    Ok(answer(&now, user, product))
}

/// Explains it as [`why_not`] does, in a process that has a serving snapshot.
pub async fn why_not_in<S: Store>(
    config: &Config,
    store: &S,
    snapshot: Arc<Snapshot>,
    (user, product): (&UserId, &str),
) -> anyhow::Result<Answer> {
    let product = find(&snapshot.catalogue, product)?;
    let ns = store.active().await?;
    let ns = ns.unwrap_or_else(|| config.namespace.clone());
    let now = UserNow::of(config, store, (user, &ns), snapshot).await?;
    Ok(answer(&now, user, product))
}

fn answer(now: &UserNow, user: &UserId, product: PuIx) -> Answer {
    let (context, list) = (now.context(), now.list.as_ref());
    let catalogue = &now.snapshot.catalogue;
    let mut places = list.into_iter().flat_map(|list| &list.pus);
    let place = places.position(|pu| catalogue.by_pu(&pu.pu) == Some(product));
    Answer {
        user: user.0.to_string(),
        namespace: now.ns.clone(),
        arm: now.arm.clone(),
        model: context.weights.ask_model(),
        unknown: now.unknown(),
        place: place.map(|nth| nth + 1),
        list_id: list.map(|list| list.list_id.clone()),
        now: why_not::why_not(
            &now.claimed(),
            (&now.snapshot, &now.config.rules),
            &context,
            product,
        ),
    }
}

/// The product with this id, or with a SKU of this id, or with this name.
fn find(catalogue: &Catalogue, wanted: &str) -> anyhow::Result<PuIx> {
    let of_sku = || catalogue.by_sku(wanted).map(|sku| catalogue.pu_of(sku));
    if let Some(found) = catalogue.by_pu(wanted).or_else(of_sku) {
        return Ok(found);
    }
    let all = || (0..catalogue.pus().len() as u32).map(PuIx);
    let upper = wanted.to_uppercase();
    let is_named = |name: &str| same(&name.to_uppercase(), &upper);
    let mut named =
        all().filter(|ix| is_named(&catalogue.label(*ix)) || is_named(&catalogue.pu(*ix).name));
    match (named.next(), named.next()) {
        (Some(found), None) => return Ok(found),
        (Some(first), Some(second)) => anyhow::bail!(
            "several products are named {}: give an id, such as {} or {}",
            visible(wanted),
            visible(&catalogue.pu(first).id),
            visible(&catalogue.pu(second).id)
        ),
        (None, _) => {}
    }
    let alike = all().map(|ix| {
        let name = catalogue.label(ix);
        (strsim::jaro_winkler(&name.to_uppercase(), &upper), ix)
    });
    let best = alike.filter(|(alike, _)| *alike >= ALIKE);
    let best = best.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
    let hint = best.map_or_else(String::new, |(_, ix)| {
        format!("; did you mean {}?", visible(&catalogue.label(ix)))
    });
    anyhow::bail!(
        "the catalogue has no product and no SKU with the id or name {}{hint}",
        visible(wanted)
    )
}

impl Answer {
    /// The answer for a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _infallible = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Answer { now, .. } = self;
        let (name, pu) = (visible(&now.name), visible(&now.pu));
        let user = visible(&self.user);
        writeln!(
            out,
            "product {name} ({pu}) for user {user} in namespace {}, arm {}",
            self.namespace, self.arm
        )?;
        match (&self.list_id, self.place) {
            (None, _) => writeln!(out, "stored list       none")?,
            (Some(_), Some(place)) => {
                writeln!(out, "stored list       it is there, at place {place}")?
            }
            (Some(id), None) => {
                writeln!(out, "stored list       {} does not have it", visible(id))?
            }
        }
        writeln!(out, "may be offered    {}", self.offered())?;
        let model = if self.model {
            ", without the model"
        } else {
            ""
        };
        let would = if now.permitted {
            ""
        } else {
            ", if it might be offered"
        };
        writeln!(
            out,
            "rank now          {} of {} by the terms{model}{would}; a list has {} names",
            now.rank, now.of, now.names
        )?;
        if now.displaced {
            writeln!(
                out,
                "merchant          pins, or the most names of its category, take its place"
            )?;
        }
        for unknown in &self.unknown {
            writeln!(out, "not known here    {unknown}")?;
        }
        if now.terms.is_empty() {
            return Ok(());
        }
        writeln!(
            out,
            "\n{:<14} {:>12} {:>12} {:>12}",
            "term", "product", "last name", "difference"
        )?;
        for term in &now.terms {
            let difference = term.product - term.last;
            writeln!(
                out,
                "{:<14} {:>12.3} {:>12.3} {difference:>+12.3}",
                term.term, term.product, term.last
            )?;
        }
        writeln!(out, "last name: {}", visible(&now.last))
    }

    /// Whether the product may be offered, and why not.
    fn offered(&self) -> String {
        let now = &self.now;
        let forbidden = now.forbidden_by.iter().map(|id| visible(id));
        let forbidden: Vec<String> = forbidden.collect();
        match (
            now.permitted,
            now.available,
            forbidden.is_empty(),
            &now.same_name,
        ) {
            (true, ..) => "yes".into(),
            (_, 0, true, _) => format!(
                "no: none of its {} SKUs is in stock and not blocked",
                now.skus
            ),
            (_, 0, false, _) => format!(
                "no: none of its {} SKUs is in stock and not blocked, and it is forbidden by {}",
                now.skus,
                forbidden.join(", ")
            ),
            (_, _, false, _) => format!("no: forbidden by {}", forbidden.join(", ")),
            (_, _, true, Some(other)) => format!(
                "no: {} has the same name and category and more demand, and a list has one of them",
                visible(other)
            ),
            (_, _, true, None) => "no".into(),
        }
    }
}
