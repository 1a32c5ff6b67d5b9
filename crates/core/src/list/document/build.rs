//! Builds a list from scored names or from demand: applies stock, rules, theta and SKU selection, and notes reasons.
//!
//! Invariant: whatever the engine answers, every SKU of the list is available, permitted and of its PU; no PU and no
//! shown name is twice in a list; the order of scores is kept. It does not know prompts, nor where the list is stored.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::{Document, Dropped, NameAudit, Shown, SkuAudit, Source, Why, four_digits};
use crate::learn::choice::UNSOLD;
use crate::list::choice::Chooser;
use crate::list::fallback::FORBIDDEN;
use crate::list::select::{self, Candidate, Contest, Contests};
use crate::shop::catalogue::{Catalogue, PuIx, SkuIx};
use crate::shop::demand::Demand;
use crate::shop::merchant::Merchant;
use crate::shop::rules::Verdict;
use crate::user::record::Timestamp;

/// Builds lists of one user by fixed settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListBuilder<'a> {
    /// Catalogue of the names.
    pub catalogue: &'a Catalogue,
    /// Products that the user must not be offered.
    pub verdict: &'a Verdict,
    /// Counts of SKUs, and for a fallback the demand.
    pub demand: &'a Demand,
    /// How SKUs are selected.
    pub policy: &'a select::Policy,
    /// Contests of whole PUs, of this catalogue and demand; `None` computes each.
    pub contests: Option<&'a Contests>,
    /// Orders SKUs for the user; `None` orders them by what is bought.
    pub chooser: Option<&'a Chooser<'a>>,
    /// Most names per list.
    pub names: usize,
    /// Least score of a name; `None` keeps all.
    pub theta: Option<f64>,
    /// Seeds exploration together with user and PU: the claim number, or with frozen counts [`select::draw`].
    pub draw: u64,
}

/// Fields of a document beside its products.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Header {
    /// See [`super::list_id`].
    pub list_id: String,
    /// User; none for a segment's fallback.
    pub user: Option<String>,
    /// Id of the user's arm.
    pub arm: String,
    /// Source time of the request.
    pub at: Timestamp,
    /// Segment.
    pub segment: String,
    /// Reason why it is a fallback.
    pub reason: Option<String>,
}

/// A name scored by the engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scored {
    /// Index of the PU.
    pub pu: u32,
    /// Sum of the weighted terms, in nats.
    pub score: f32,
    /// Share of each term in the score: `("model", …)`, `("demand", …)`.
    pub terms: Vec<(String, f32)>,
}

/// A list with the names of its audit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BuiltList {
    /// The list.
    pub document: Document,
    /// Its names, in its order.
    pub names: Vec<NameAudit>,
    /// Names that were left out, in the order of the response.
    pub dropped: Vec<Dropped>,
}

impl ListBuilder<'_> {
    /// Builds the list of a score response, best first. If it is [empty](Document::is_empty), the caller publishes a
    /// fallback.
    pub(crate) fn build(&self, header: Header, source: Source, scored: &[Scored]) -> BuiltList {
        let mut built = BuiltList::new(header, source);
        let mut seen = BTreeSet::new();
        let mut shown = BTreeSet::new();
        for name in scored {
            if built.names.len() == self.names {
                break;
            }
            let judged = self.judge(name, &mut seen).and_then(|()| {
                let label = self.catalogue.label(PuIx(name.pu));
                shown.insert(label).then_some(()).ok_or(Why::Repeated)
            });
            if let Err(why) = judged {
                built.drop(self.id(name.pu), name.score, why);
                continue;
            }
            let pu = PuIx(name.pu);
            let user = built.document.user.as_deref().unwrap_or_default();
            let seed = select::seed(user, &self.catalogue.pu(pu).id, self.draw);
            let chosen = self.contest(pu).select(&self.ranked(pu), seed, self.policy);
            let skus = chosen
                .iter()
                .map(|chosen| (chosen.sku, Some(chosen.propensity)));
            built.push(self.catalogue, name, skus.collect());
        }
        built
    }

    /// Builds the fallback of a segment: the permitted PUs most in demand, each with its best-selling SKUs, ties by id.
    /// A fallback does not explore, so it has no propensities.
    pub(crate) fn fallback(&self, header: Header) -> BuiltList {
        self.arranged_fallback(header, &Merchant::default())
    }

    /// Builds the fallback as [`Self::fallback`] does, with the merchant's pins and most names of one category.
    pub(crate) fn arranged_fallback(&self, header: Header, merchant: &Merchant) -> BuiltList {
        let mass = self.demand.mass(&header.segment);
        let mut built = BuiltList::new(header, Source::Fallback);
        let mut permitted = self.verdict.permitted(self.catalogue);
        self.catalogue.keep_one_per_label(&mut permitted, &mass);
        let mut pus: Vec<_> = permitted
            .ones()
            .map(|pu| (PuIx(pu as u32), share(&mass, pu)))
            .collect();
        let better = |a: &(PuIx, f32), b: &(PuIx, f32)| -> Ordering {
            let id = |pu: PuIx| &self.catalogue.pu(pu).id;
            b.1.total_cmp(&a.1).then_with(|| id(a.0).cmp(id(b.0)))
        };
        if pus.is_empty() && !self.catalogue.in_stock().is_clear() {
            built.document.reason = Some(FORBIDDEN.into());
        }
        if merchant.arranges() {
            pus.sort_by(better);
            let ranked: Vec<PuIx> = pus.iter().map(|(pu, _)| *pu).collect();
            let arranged = merchant
                .arrange(&ranked, self.names, &permitted)
                .into_iter();
            pus = arranged.map(|pu| (pu, share(&mass, pu.at()))).collect();
        } else {
            if pus.len() > self.names && self.names > 0 {
                pus.select_nth_unstable_by(self.names - 1, better);
            }
            pus.truncate(self.names);
            pus.sort_by(better);
        }
        for (pu, share) in pus {
            let mut skus = self.by_sales(pu);
            skus.truncate(self.policy.top_k.max(1));
            let score = share.ln();
            let name = Scored {
                pu: pu.0,
                score,
                terms: vec![("demand".to_owned(), score)],
            };
            let skus = skus.iter().map(|sku| (*sku, None)).collect();
            built.push(self.catalogue, &name, skus);
        }
        built
    }

    /// Checks whether a name may be in the list.
    fn judge(&self, name: &Scored, seen: &mut BTreeSet<u32>) -> Result<(), Why> {
        let at = name.pu as usize;
        if at >= self.catalogue.pus().len() {
            return Err(Why::Unknown);
        }
        if !seen.insert(name.pu) {
            return Err(Why::Repeated);
        }
        if self
            .theta
            .is_some_and(|theta| f64::from(name.score) < theta)
        {
            return Err(Why::Theta);
        }
        if !self.catalogue.in_stock().contains(at) {
            return Err(Why::NoStock);
        }
        let mut skus = self.catalogue.pu(PuIx(name.pu)).skus.iter();
        if !skus.any(|ix| self.verdict.permits(self.catalogue, *ix)) {
            return Err(Why::Forbidden);
        }
        Ok(())
    }

    /// SKUs that this user may be offered with their shares, the likeliest first.
    pub(super) fn ranked(&self, pu: PuIx) -> Vec<(SkuIx, f32)> {
        let Some(chooser) = self.chooser else {
            let sold = |ix: SkuIx| self.demand.sku_counts(ix).purchases.max(0.0) + UNSOLD;
            let skus = self.by_sales(pu).into_iter();
            return skus.map(|ix| (ix, sold(ix))).collect();
        };
        let skus = self.catalogue.pu(pu).skus.iter().copied();
        let permitted: Vec<SkuIx> = skus
            .filter(|ix| self.verdict.permits(self.catalogue, *ix))
            .collect();
        chooser.ranked(pu, &permitted)
    }

    /// SKUs that this user may be offered, best-selling first, ties by id.
    fn by_sales(&self, pu: PuIx) -> Vec<SkuIx> {
        let mut skus = self.candidates(pu);
        skus.sort_by(|a, b| {
            let sold = b.counts.purchases.total_cmp(&a.counts.purchases);
            sold.then_with(|| a.id.cmp(b.id))
        });
        skus.into_iter().map(|sku| sku.ix).collect()
    }

    /// The contest of the SKUs that this user may be offered.
    pub(super) fn contest(&self, pu: PuIx) -> Cow<'_, Contest> {
        let make = || Contest::of(&self.candidates(pu));
        let shared = self
            .contests
            .filter(|_| self.verdict.forbids_no_part_of(self.catalogue, pu))
            .and_then(|contests| contests.get(pu, make));
        shared.map_or_else(|| Cow::Owned(make()), Cow::Borrowed)
    }

    fn candidates(&self, pu: PuIx) -> Vec<Candidate<'_>> {
        let skus = self.catalogue.pu(pu).skus.iter();
        skus.filter(|ix| self.verdict.permits(self.catalogue, **ix))
            .map(|ix| Candidate {
                ix: *ix,
                id: &self.catalogue.sku(*ix).sku,
                counts: self.demand.sku_counts(*ix),
            })
            .collect()
    }

    fn id(&self, pu: u32) -> String {
        let known = self.catalogue.pus().get(pu as usize);
        known.map_or_else(|| format!("#{pu}"), |pu| pu.id.to_string())
    }
}

/// Replaces infinity and NaN by finite numbers: JSON has neither, and an audit must read its own JSON.
fn finite(score: f32) -> f32 {
    if score.is_nan() {
        f32::MIN
    } else {
        score.clamp(f32::MIN, f32::MAX)
    }
}

/// Share of a PU in demand; the least positive one for a PU newer than the demand.
fn share(mass: &[f32], pu: usize) -> f32 {
    mass.get(pu).copied().unwrap_or(f32::MIN_POSITIVE)
}

impl BuiltList {
    fn new(header: Header, source: Source) -> Self {
        Self {
            document: Document {
                list_id: header.list_id,
                user: header.user,
                arm: header.arm,
                source,
                at: header.at,
                segment: header.segment,
                stale: false,
                reason: header.reason,
                pus: Vec::new(),
            },
            names: Vec::new(),
            dropped: Vec::new(),
        }
    }

    fn push(&mut self, catalogue: &Catalogue, name: &Scored, skus: Vec<(SkuIx, Option<f64>)>) {
        let pu = PuIx(name.pu);
        let id = |ix: SkuIx| catalogue.sku(ix).sku.clone();
        self.document.pus.push(Shown {
            pu: catalogue.pu(pu).id.to_string(),
            name: catalogue.label(pu).into_owned(),
            score: four_digits(f64::from(name.score)),
            skus: skus.iter().map(|(ix, _)| id(*ix)).collect(),
        });
        self.names.push(NameAudit {
            pu: catalogue.pu(pu).id.to_string(),
            score: finite(name.score),
            terms: name
                .terms
                .iter()
                .map(|(term, score)| (term.clone(), finite(*score)))
                .collect(),
            skus: skus
                .iter()
                .map(|(ix, ee)| SkuAudit {
                    sku: id(*ix),
                    ee: *ee,
                })
                .collect(),
            candidates: None,
        });
    }

    fn drop(&mut self, pu: String, score: f32, why: Why) {
        let score = finite(score);
        self.dropped.push(Dropped { pu, score, why });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::shop::catalogue::tests::sku;
    use crate::shop::count_kind::CountKind;
    use crate::shop::demand::Count;
    use crate::shop::rules::{Rule, Table};
    use crate::user::event::{Kind, Profile, Sku};

    fn rules() -> Vec<Rule> {
        serde_json::from_value(json!([
            {"id": "nuts", "required": true, "when": {"field": "nuts", "equals": true},
             "forbid": {"attributes": {"nuts": [true]}}},
        ]))
        .expect("rules")
    }

    /// `(sku, pu, in stock, with nuts)` per SKU.
    fn catalogue(skus: &[(u8, u8, bool, bool)]) -> Catalogue {
        let of = |(n, (_, pu, stock, nuts)): (usize, &(u8, u8, bool, bool))| Sku {
            stock: i64::from(*stock),
            ..sku(
                &format!("s{n:02}"),
                &format!("P{pu}"),
                json!({"nuts": nuts}),
            )
        };
        Catalogue::load(skus.iter().enumerate().map(of).collect())
    }

    fn demand(catalogue: &Catalogue) -> Demand {
        let skus = (0..catalogue.sku_len() as u32).map(SkuIx);
        let counts = skus.map(|ix| Count {
            sku: &catalogue.sku(ix).sku,
            kind: CountKind::Event(Kind::Purchase),
            segment: "default",
            bucket: 0,
            n: u64::from(ix.0 % 7),
        });
        Demand::build(
            counts,
            catalogue,
            &crate::shop::demand::Policy::default(),
            Timestamp(0),
        )
    }

    fn header() -> Header {
        Header {
            user: Some("u".into()),
            segment: "default".into(),
            ..Header::default()
        }
    }

    fn scored(pus: &[u32]) -> Vec<Scored> {
        let name = |(nth, pu): (usize, &u32)| Scored {
            pu: *pu,
            score: -(nth as f32),
            terms: vec![],
        };
        pus.iter().enumerate().map(name).collect()
    }

    #[test]
    fn each_name_left_out_has_its_reason() {
        let catalogue = catalogue(&[
            (0, 0, true, false),
            (1, 1, false, false),
            (2, 2, true, true),
            (3, 3, true, false),
        ]);
        let (demand, policy) = (demand(&catalogue), select::Policy::default());
        let verdict = Table::compile(&rules(), &[], &catalogue).judge(None, Timestamp(0));
        let builder = ListBuilder {
            catalogue: &catalogue,
            verdict: &verdict,
            demand: &demand,
            policy: &policy,
            contests: None,
            chooser: None,
            names: 5,
            theta: Some(-4.5),
            draw: 1,
        };
        let mut answer = scored(&[0, 1, 2, 0, 9, 3]);
        answer[5].score = f32::NEG_INFINITY;
        let built = builder.build(header(), Source::Model, &answer);
        let text = serde_json::to_string(&built.dropped).expect("json");
        assert_eq!(
            serde_json::from_str::<Vec<Dropped>>(&text).expect("valid"),
            built.dropped
        );
        let why: Vec<_> = built
            .dropped
            .iter()
            .map(|dropped| (dropped.pu.as_str(), dropped.why))
            .collect();
        assert_eq!(
            why,
            [
                ("P1", Why::NoStock),
                ("P2", Why::Forbidden),
                ("P0", Why::Repeated),
                ("#9", Why::Unknown),
                ("P3", Why::Theta)
            ]
        );
        assert_eq!(built.document.pus.len(), 1);
        assert_eq!(
            built.names[0].skus,
            [SkuAudit {
                sku: "s00".into(),
                ee: Some(1.0)
            }]
        );
    }

    #[test]
    fn a_name_that_several_products_have_is_on_a_list_once() {
        let of = |id: &str, pu_id: &str, category: &str| Sku {
            pu_id: pu_id.into(),
            category: Some(category.into()),
            ..sku(id, "BREAD", json!({}))
        };
        let skus = [
            of("s00", "1", "bakery"),
            of("s01", "2", "bakery"),
            of("s02", "3", "pets"),
        ];
        let catalogue = Catalogue::load(skus.into());
        let (demand, policy) = (demand(&catalogue), select::Policy::default());
        let verdict = Table::compile(&[], &[], &catalogue).judge(None, Timestamp(0));
        let builder = ListBuilder {
            catalogue: &catalogue,
            verdict: &verdict,
            demand: &demand,
            policy: &policy,
            contests: None,
            chooser: None,
            names: 5,
            theta: None,
            draw: 1,
        };
        let names = |built: &BuiltList| -> Vec<(String, String)> {
            let shown = built.document.pus.iter();
            shown
                .map(|shown| (shown.pu.clone(), shown.name.clone()))
                .collect()
        };
        let pair = |id: &str, name: &str| (id.to_owned(), name.to_owned());
        let built = builder.build(header(), Source::Model, &scored(&[0, 1, 2]));
        let expected = [pair("1", "BREAD (bakery)"), pair("3", "BREAD (pets)")];
        assert_eq!(names(&built), expected);
        assert_eq!(
            (&*built.dropped[0].pu, built.dropped[0].why),
            ("2", Why::Repeated)
        );
        // The third SKU sold most, and of the two in the bakery the second one.
        let expected = [pair("3", "BREAD (pets)"), pair("2", "BREAD (bakery)")];
        assert_eq!(names(&builder.fallback(header())), expected);
    }

    #[test]
    fn a_fallback_has_the_best_selling_products_and_skus() {
        let catalogue = catalogue(&[
            (0, 0, true, false),
            (1, 1, true, false),
            (2, 1, true, false),
            (3, 2, true, false),
            (4, 0, true, false),
            (5, 3, false, false),
            (6, 3, true, true),
        ]);
        let (demand, policy) = (
            demand(&catalogue),
            select::Policy {
                top_k: 2,
                ..Default::default()
            },
        );
        let verdict = Table::compile(&rules(), &[], &catalogue).judge(None, Timestamp(0));
        let builder = ListBuilder {
            catalogue: &catalogue,
            verdict: &verdict,
            demand: &demand,
            policy: &policy,
            contests: None,
            chooser: None,
            names: 2,
            theta: None,
            draw: 0,
        };
        let built = builder.fallback(header());
        let shown: Vec<_> = built
            .document
            .pus
            .iter()
            .map(|shown| (shown.pu.as_str(), shown.skus.join(" ")))
            .collect();
        // P3 sells best, but one SKU is sold out, and the other has nuts while the profile field is unknown.
        assert_eq!(
            shown,
            [("P0", "s04 s00".to_owned()), ("P1", "s02 s01".to_owned())]
        );
        assert_eq!(built.document.source, Source::Fallback);
        assert!(built.names[0].skus[0].ee.is_none());
    }

    fn skus() -> impl Strategy<Value = Vec<(u8, u8, bool, bool)>> {
        prop::collection::vec(
            (0u8..1, 0u8..8, prop::bool::weighted(0.7), any::<bool>()),
            0..40,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn every_list_is_legal_whatever_the_engine_answers(
            skus in skus(), answer in prop::collection::vec(0u32..12, 0..20),
            nuts in prop::option::of(any::<bool>()), names in 0usize..6, top_k in 1usize..4,
        ) {
            let catalogue = catalogue(&skus);
            let (demand, policy) = (demand(&catalogue), select::Policy { top_k, ..Default::default() });
            let profile: Profile = serde_json::from_value(json!({ "nuts": nuts })).expect("a profile");
            let verdict = Table::compile(&rules(), &[], &catalogue).judge(Some(&profile), Timestamp(0));
            let builder = ListBuilder {
                catalogue: &catalogue, verdict: &verdict, demand: &demand, policy: &policy,
                contests: None, chooser: None, names, theta: None, draw: 3,
            };
            // Contests that another user needed first, whose rules forbid nothing.
            let contests = Contests::new(catalogue.pus().len());
            let anyone = Verdict::default();
            let first = ListBuilder { verdict: &anyone, contests: Some(&contests), ..builder };
            first.build(header(), Source::Model, &scored(&answer));
            let shared = ListBuilder { contests: Some(&contests), ..builder };
            let list = builder.build(header(), Source::Model, &scored(&answer));
            prop_assert_eq!(shared.build(header(), Source::Model, &scored(&answer)), list);
            let fallback = builder.fallback(header());
            let legal = verdict.permitted(&catalogue).count_ones(..);
            prop_assert_eq!(fallback.document.pus.len(), legal.min(names));
            for built in [builder.build(header(), Source::Model, &scored(&answer)), fallback] {
                let list = &built.document;
                prop_assert!(list.distinct() && list.pus.len() <= names && built.names.len() == list.pus.len());
                prop_assert!(list.pus.is_sorted_by(|a, b| a.score >= b.score));
                for shown in &list.pus {
                    let may = |at: usize| {
                        let (_, pu, stock, with) = skus[at];
                        format!("P{pu}") == shown.pu && stock && !(with && nuts != Some(false))
                    };
                    prop_assert_eq!(shown.skus.len(), (0..skus.len()).filter(|at| may(*at)).count().min(top_k));
                    for id in &shown.skus {
                        let (_, pu, stock, with) = skus[id[1..].parse::<usize>().expect("a number")];
                        prop_assert!(stock && !(with && nuts != Some(false)));
                        prop_assert_eq!(format!("P{pu}"), shown.pu.as_str());
                    }
                }
                let mut stripped = list.clone();
                let forbids = |sku: &str| catalogue.by_sku(sku).is_none_or(|ix| !verdict.permits(&catalogue, ix));
                prop_assert!(!stripped.strip(|_, sku| forbids(sku)));
            }
        }
    }
}
