//! Compares the lists of two namespaces: [`diff`].
//!
//! Invariant: it reads both namespaces and changes neither. It compares users of either one. A scan goes by hash, so
//! its first users are a sample.

use std::collections::BTreeSet;

use minijinja::{Environment, context};
use schemars::JsonSchema;
use serde::Serialize;

use crate::members::clock::wall_clock;
use crate::ops::coverage::is_covered;
use nearshore_core::list::diff::{Comparison, Pair, Report};
use nearshore_core::list::document::Document;
use nearshore_core::ports::store::{self, Peek, Store};
use nearshore_core::queue::replay::Moment;
use nearshore_core::user::event::UserId;

/// Users read at once.
const PAGE: usize = 500;

/// How many users with the most different lists are named.
const MOST_DIFFERENT: usize = 10;

/// The comparison of two namespaces.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Difference {
    /// The first namespace.
    pub a: String,
    /// The second.
    pub b: String,
    /// Over all compared users.
    pub all: Report,
    /// By segment, as the lists name it.
    pub segments: Vec<(String, Report)>,
    /// Users whose lists differ most, to be inspected.
    pub most_different: Vec<String>,
}

/// Compares lists of at most `sample` users of each namespace; `None` compares all users.
pub async fn diff<S: Store>(
    store: &S,
    a: &str,
    b: &str,
    sample: Option<u64>,
) -> Result<Difference, store::Error> {
    let mut users = sample_users(store, a, sample).await?;
    users.extend(sample_users(store, b, sample).await?);
    let users: Vec<UserId> = users.into_iter().collect();
    let mut comparison = Comparison::default();
    let mut differences: Vec<(f64, String)> = Vec::new();
    for page in users.chunks(PAGE) {
        let both = store
            .peek(a, page)
            .await?
            .into_iter()
            .zip(store.peek(b, page).await?);
        for (user, (in_a, in_b)) in page.iter().zip(both) {
            let (doc_a, doc_b) = (document(&in_a), document(&in_b));
            let either = doc_b.as_ref().or(doc_a.as_ref());
            let pair = Pair {
                segment: either.map_or("unknown", |doc| doc.segment.as_str()),
                a: doc_a.as_ref(),
                a_covered: is_covered(&in_a),
                b: doc_b.as_ref(),
                b_covered: is_covered(&in_b),
            };
            comparison.add(&pair);
            let mut single = Comparison::default();
            single.add(&pair);
            if let Some(overlap) = single.all.report().overlap_at_10 {
                differences.push((overlap, user.to_string()));
            }
        }
        differences.retain(|(overlap, _)| *overlap < 1.0);
        differences.sort_by(|x, y| x.0.total_cmp(&y.0).then_with(|| x.1.cmp(&y.1)));
        differences.truncate(MOST_DIFFERENT);
    }
    Ok(Difference {
        a: a.into(),
        b: b.into(),
        all: comparison.all.report(),
        segments: comparison
            .segments
            .iter()
            .map(|(segment, sums)| (segment.clone(), sums.report()))
            .collect(),
        most_different: differences.into_iter().map(|(_, user)| user).collect(),
    })
}

async fn sample_users<S: Store>(
    store: &S,
    ns: &str,
    most: Option<u64>,
) -> Result<BTreeSet<UserId>, store::Error> {
    let mut users = BTreeSet::new();
    let mut cursor = None;
    loop {
        let (page, next) = store.scan(ns, cursor).await?;
        for user in page {
            if most.is_some_and(|most| users.len() as u64 >= most) {
                return Ok(users);
            }
            users.insert(user);
        }
        match next {
            Some(next) => cursor = Some(next),
            None => return Ok(users),
        }
    }
}

fn document(peek: &Peek) -> Option<Document> {
    let list = peek.list.as_ref()?;
    Document::parse(&list.doc).ok()
}

impl Difference {
    /// The comparison as a table for a terminal.
    pub fn text(&self) -> String {
        use std::fmt::Write;
        let mut out = format!(
            "{:<16} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6}\n",
            "segment",
            "users",
            "both",
            "same",
            "overlap",
            "order",
            "cov. A",
            "cov. B",
            "new",
            "lost"
        );
        let figure =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        let everyone = [("everyone".to_owned(), self.all.clone())];
        for (segment, report) in everyone.iter().chain(&self.segments) {
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "{segment:<16} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6}",
                report.users,
                report.both,
                report.same,
                figure(report.overlap_at_10),
                figure(report.rank_correlation),
                figure(report.a.coverage),
                figure(report.b.coverage),
                report.new_products.count,
                report.lost_products.count,
            );
        }
        for (what, products) in [
            ("only in ", &self.all.new_products),
            ("no longer in ", &self.all.lost_products),
        ] {
            let names: Vec<String> = products
                .most
                .iter()
                .map(|(name, n)| format!("{name} ({n})"))
                .collect();
            if !names.is_empty() {
                let _ = writeln!(out, "{what}{}: {}", self.b, names.join(", "));
            }
        }
        if !self.most_different.is_empty() {
            let _ = writeln!(out, "most different: {}", self.most_different.join(" "));
        }
        out
    }

    /// The comparison as an HTML page: one embedded template, everything escaped, no script.
    pub fn html(&self) -> Result<String, minijinja::Error> {
        let mut environment = Environment::new();
        // The name ends in .html: minijinja escapes every value.
        environment.add_template("diff.html", include_str!("diff.html"))?;
        environment.add_template("style.css", crate::ops::inspect::STYLE)?;
        environment.add_filter("share", |value: Option<f64>| {
            value.map_or("–".to_owned(), |value| format!("{:.1} %", value * 100.0))
        });
        environment.add_filter("figure", |value: Option<f64>| {
            value.map_or("–".to_owned(), |value| format!("{value:.3}"))
        });
        let made = Moment(wall_clock()).to_string();
        environment
            .get_template("diff.html")?
            .render(context! { diff => self, made })
    }
}
