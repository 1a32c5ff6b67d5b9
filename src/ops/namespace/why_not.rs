//! Says why a product is not on a user's list, by what Kafka, Redis and the configuration have now.

use std::fmt::Write;

use anyhow::Context;
use nearshore_core::list::compose::{ClaimedUser, ListContext};
use nearshore_core::list::document::Document;
use nearshore_core::list::terms::Texts;
use nearshore_core::list::terms::bound::Learned;
use nearshore_core::list::why_not::{self, WhyNot};
use nearshore_core::ports::store::Store;
use nearshore_core::shop::arms::{arm_of, arms_for};
use nearshore_core::shop::catalogue::{Catalogue, PuIx};
use nearshore_core::text::same;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::trigger::{Lane, Reason, Request};
use schemars::JsonSchema;
use serde::Serialize;

use super::read_catalogue;
use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::members::snapshot::stored_snapshot;
use crate::ops::evaluate::Plain;
use crate::ops::visible::visible;
use crate::run::{Roles, loader_settings};

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
    let ns = store.active().await?;
    let ns = ns.unwrap_or_else(|| config.namespace.clone());
    let catalogue = read_catalogue(config).await?.catalogue;
    let product = find(&catalogue, product)?;
    let no_roles = Roles {
        ingest: false,
        generate: false,
    };
    let settings = loader_settings(config, no_roles);
    let snapshot = stored_snapshot(&store, &settings, (catalogue, &ns)).await?;
    let users = std::slice::from_ref(user);
    let loaded = store.load(&ns, users).await?.pop().unwrap_or_default();
    let stored = store.peek(&ns, users).await?.pop().unwrap_or_default();
    let list = stored.list.and_then(|list| Document::parse(&list.doc).ok());

    let arms = arms_for(&ns, &config.arms);
    let arm = arm_of(&user.0, &config.arm_seed, &arms).or(arms.first());
    let arm = arm.with_context(|| format!("namespace {ns} has no arm; see [[arms]]"))?;
    let ranking = Plain::by_terms(config, arm)?;
    let catalogue = &snapshot.catalogue;
    let artefact = ranking.artefact();
    let learned = artefact.map(|artefact| Learned::bind(artefact, catalogue));
    let learned = learned.transpose()?;
    let vectors = artefact.and_then(|artefact| artefact.vectors.clone());
    let texts = Texts::bind(vectors.into_iter().collect(), catalogue);
    let context = ListContext {
        learned: learned.as_ref(),
        texts: texts.as_ref(),
        ..ranking.context()
    };
    let request = request(&ns, user, wall_clock());
    let claimed = ClaimedUser {
        request: &request,
        state: &loaded.state,
        claim: loaded.claim,
    };
    let place = list.iter().flat_map(|list| &list.pus);
    let mut places = place.map(|pu| catalogue.by_pu(&pu.pu) == Some(product));
    Ok(Answer {
        user: user.0.to_string(),
        namespace: ns.clone(),
        arm: arm.id.clone(),
        model: context.weights.ask_model(),
        place: places.position(|is_it| is_it).map(|nth| nth + 1),
        list_id: list.as_ref().map(|list| list.list_id.clone()),
        now: why_not::why_not(&claimed, (&snapshot, &config.rules), &context, product),
    })
}

/// A request as of now, which nothing sends.
fn request(ns: &str, user: &UserId, now: Timestamp) -> Request {
    Request {
        v: 1,
        ns: ns.into(),
        user: user.clone(),
        reason: Reason::Refresh,
        source: None,
        time: now,
        due: now,
        lane: Lane::Backfill,
        force: false,
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
