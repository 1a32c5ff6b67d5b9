//! Routes: ways to rank the products for a case. Each counting route and each mixture is one entry here.
//!
//! Invariant: a route sees the case's state and the shop, never the targets. A new route is one line in [`counting`].
//! It does not know measures.

use nearshore_core::learn::split::uniform;
use nearshore_core::list::terms::mixture;
use nearshore_core::user::record::Timestamp;

use super::case::Case;
use super::shop::Shop;

/// What a route says of a case.
pub(crate) enum Ranked {
    /// A log-weight per product; the best permitted ones are listed.
    Scores(Vec<f32>),
    /// The list itself, best first.
    List(Vec<u32>),
}

/// One way to rank.
pub(crate) trait Route: Sync {
    /// Name in tables and JSON.
    fn name(&self) -> &str;
    /// Ranks the products for each of some cases, in their order.
    fn rank(&self, cases: &[&Case], shop: &Shop) -> anyhow::Result<Vec<Ranked>>;
    /// Whether it can rank in this shop.
    fn can_rank(&self, _: &Shop) -> bool {
        true
    }
    /// The time up to which it knows what was bought, if that is not the cut.
    fn knows_until(&self) -> Option<Timestamp> {
        None
    }
    /// Whether it is asked of a part of the cases only, because each takes long.
    fn is_slow(&self) -> bool {
        false
    }
}

/// Log-weights of one case.
type Scores = fn(&Case, &Shop) -> Vec<f32>;

/// A route that a function computes.
pub(super) struct Counted {
    name: &'static str,
    scores: Scores,
}

impl Route for Counted {
    fn name(&self) -> &str {
        self.name
    }

    fn rank(&self, cases: &[&Case], shop: &Shop) -> anyhow::Result<Vec<Ranked>> {
        let ranked = cases
            .iter()
            .map(|case| Ranked::Scores((self.scores)(case, shop)));
        Ok(ranked.collect())
    }
}

/// A route that reads what a log was given beside its records.
pub(super) struct Read {
    counted: Counted,
    reads: Reads,
}

/// What a route reads.
#[derive(Clone, Copy)]
struct Reads {
    /// Vectors of texts.
    texts: bool,
    /// The model's table.
    table: bool,
}

impl Read {
    /// Whether the log has what the route reads.
    pub(super) fn can_read(&self, texts: bool, table: bool) -> bool {
        (texts || !self.reads.texts) && (table || !self.reads.table)
    }
}

impl Route for Read {
    fn name(&self) -> &str {
        self.counted.name
    }

    fn rank(&self, cases: &[&Case], shop: &Shop) -> anyhow::Result<Vec<Ranked>> {
        self.counted.rank(cases, shop)
    }
}

/// The mixture of all terms without a model, with weights fitted to tune users: what `align` would make of this log.
pub(super) struct Aligned;

impl Route for Aligned {
    fn name(&self) -> &'static str {
        "aligned"
    }

    fn can_rank(&self, shop: &Shop) -> bool {
        shop.aligned.is_some()
    }

    fn rank(&self, cases: &[&Case], shop: &Shop) -> anyhow::Result<Vec<Ranked>> {
        let Some((weights, learned)) = &shop.aligned else {
            anyhow::bail!("nothing was aligned in this shop");
        };
        let scores = |case: &&Case| {
            let weights = weights.at(case.own.len());
            Ranked::Scores(mixture(weights, &case.input(shop, learned)))
        };
        Ok(cases.iter().map(scores).collect())
    }
}

/// Weights of cosines beside log-weights in a sum, as they were best in a catalogue of groceries.
const TYPICAL: f32 = 8.0;
const TEXT: f32 = 2.0;

/// Weight of the model's table, whose values are differences of log-probabilities, beside log-weights.
const TABLE: f32 = 0.25;

/// The route that all others are compared with, unless another one is asked for.
pub(crate) const BASELINE: &str = "demand, household-weeks";

/// Routes that need no model: terms alone, then sums of terms.
pub(super) fn counting() -> Vec<Counted> {
    let all: [(&'static str, Scores); 16] = [
        ("random", random),
        ("SKU count", sku_count),
        ("category demand", |_, shop| shop.category.clone()),
        ("demand, production", production),
        ("demand, pieces", |_, shop| shop.pieces.to_vec()),
        ("demand, lines", |_, shop| shop.lines.to_vec()),
        ("demand, SKU-weeks", |_, shop| shop.buyers.to_vec()),
        (BASELINE, |_, shop| shop.household_weeks.to_vec()),
        ("repeat", repeat),
        ("neighbours, lift", lift),
        ("neighbours, cosine", cosine),
        ("neighbours, walk", walk),
        ("demand + repeat", |case, shop| {
            sum(&[&shop.household_weeks, &repeat(case, shop)])
        }),
        ("demand + lift", |case, shop| {
            sum(&[&shop.household_weeks, &lift(case, shop)])
        }),
        ("demand + repeat + walk", |case, shop| {
            sum(&[
                &shop.household_weeks,
                &repeat(case, shop),
                &walk(case, shop),
            ])
        }),
        ("demand + repeat + lift", |case, shop| {
            sum(&[
                &shop.household_weeks,
                &repeat(case, shop),
                &lift(case, shop),
            ])
        }),
    ];
    all.into_iter()
        .map(|(name, scores)| Counted { name, scores })
        .collect()
}

/// Routes by vectors of texts and by the model's table: none of them needs a log.
pub(super) fn reading() -> Vec<Read> {
    const BY_TEXT: Reads = Reads {
        texts: true,
        table: false,
    };
    const BY_TABLE: Reads = Reads {
        texts: false,
        table: true,
    };
    const BY_BOTH: Reads = Reads {
        texts: true,
        table: true,
    };
    let all: [(&'static str, Reads, Scores); 7] = [
        ("typical", BY_TEXT, typical),
        ("text", BY_TEXT, text),
        ("category demand + texts", BY_TEXT, |case, shop| {
            sum(&[&shop.category, &texts(case, shop)])
        }),
        ("table", BY_TABLE, table),
        ("SKU count + table", BY_TABLE, |case, shop| {
            sum(&[&sku_count(case, shop), &times(table(case, shop), TABLE)])
        }),
        ("category demand + table", BY_TABLE, |case, shop| {
            sum(&[&shop.category, &times(table(case, shop), TABLE)])
        }),
        ("SKU count + texts + table", BY_BOTH, |case, shop| {
            let table = times(table(case, shop), TABLE);
            sum(&[&sku_count(case, shop), &texts(case, shop), &table])
        }),
    ];
    all.into_iter()
        .map(|(name, reads, scores)| Read {
            counted: Counted { name, scores },
            reads,
        })
        .collect()
}

fn times(values: Vec<f32>, weight: f32) -> Vec<f32> {
    values.iter().map(|value| value * weight).collect()
}

/// What texts say, at the weights of a sum of log-weights.
fn texts(case: &Case, shop: &Shop) -> Vec<f32> {
    let (typical, text) = (typical(case, shop), text(case, shop));
    sum(&[&times(typical, TYPICAL), &times(text, TEXT)])
}

fn sum(terms: &[&[f32]]) -> Vec<f32> {
    let mut sum = vec![0.0; terms.iter().map(|term| term.len()).max().unwrap_or(0)];
    for term in terms {
        sum.iter_mut()
            .zip(*term)
            .for_each(|(sum, value)| *sum += value);
    }
    sum
}

/// Any order, another one for each user: what a list scores that knows nothing.
fn random(case: &Case, shop: &Shop) -> Vec<f32> {
    let pus = shop.snapshot.catalogue.pus().iter();
    pus.map(|pu| uniform(u64::from(case.user), &pu.id) as f32)
        .collect()
}

/// The number of SKUs of a product.
fn sku_count(_: &Case, shop: &Shop) -> Vec<f32> {
    let pus = shop.snapshot.catalogue.pus().iter();
    pus.map(|pu| (pu.skus.len() as f32 + 0.5).ln()).collect()
}

/// The demand term of production, of the user's segment.
fn production(case: &Case, shop: &Shop) -> Vec<f32> {
    shop.snapshot.demand.log_shares(&case.segment).to_vec()
}

fn repeat(case: &Case, shop: &Shop) -> Vec<f32> {
    let mut scores = vec![0.0; shop.household_weeks.len()];
    for own in &case.own {
        if let Some(score) = scores.get_mut(own.pu as usize) {
            let days = shop.cut.since(own.last).as_secs_f64() / 86_400.0;
            *score = shop.repeat.value(own.pu, days as f32, own.count);
        }
    }
    scores
}

fn seen(case: &Case) -> Vec<(u32, f32)> {
    case.own.iter().map(|own| (own.pu, 1.0)).collect()
}

fn lift(case: &Case, shop: &Shop) -> Vec<f32> {
    let mut scores = Vec::new();
    shop.neighbours.lift(&seen(case), &mut scores);
    scores
}

fn walk(case: &Case, shop: &Shop) -> Vec<f32> {
    let mut scores = Vec::new();
    shop.walk.values(&seen(case), &mut scores);
    scores
}

fn typical(_: &Case, shop: &Shop) -> Vec<f32> {
    let texts = shop.texts.as_ref();
    texts.map_or_else(Vec::new, |texts| texts.typical().to_vec())
}

fn text(case: &Case, shop: &Shop) -> Vec<f32> {
    let found = shop.texts.as_ref();
    let found = found.and_then(|texts| texts.similar(&case.own_texts));
    found.map_or_else(|| vec![0.0; shop.category.len()], |values| values.to_vec())
}

fn table(case: &Case, shop: &Shop) -> Vec<f32> {
    let own = case.own_texts.iter().filter_map(|own| own.pu);
    let found = shop.table.as_ref();
    let found = found.and_then(|shared| shared.bound.values(own));
    found.map_or_else(|| vec![0.0; shop.category.len()], |values| values.to_vec())
}

fn cosine(case: &Case, shop: &Shop) -> Vec<f32> {
    let mut scores = Vec::new();
    shop.neighbours.cosine(&seen(case), 1.0, &mut scores);
    scores
}
