//! A held-out user at a cut: the state from what is visible, what may be listed, and what was bought after.
//!
//! Invariant: the state is folded by the production fold from records before the cut alone, and targets are of records
//! from the cut on. So nothing that happens after the cut can change a list.

use std::fmt;
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use nearshore_core::list::compose::{ClaimedUser, ListContext, PreparedRequest, prepare};
use nearshore_core::list::document::Stage;
use nearshore_core::list::meant::meant;
use nearshore_core::list::terms::bound::Learned;
use nearshore_core::list::terms::{OwnProduct, OwnText, TermInput, own_products, own_texts};
use nearshore_core::user::event::{Accepted, Change};
use nearshore_core::user::fold::{fold, fold_again};
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::state::UserState;
use nearshore_core::user::trigger::{Lane, Reason, Request};

use super::history::{UserHistory, purchase};
use super::shop::Shop;

/// How much of a user's history is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Visible {
    /// The newest records that hold at most so many distinct products; 0 is the profile alone.
    Products(usize),
    /// Everything, of users with more products than the largest number.
    More,
}

impl fmt::Display for Visible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Products(n) => write!(f, "{n}"),
            Self::More => f.write_str("more"),
        }
    }
}

/// A case: one user at one cut with one amount of visible history.
pub(crate) struct Case {
    /// Number of the user in the history.
    pub(crate) user: u32,
    /// State of what is visible.
    pub(crate) state: UserState,
    /// The request that a list would be made for.
    pub(crate) request: Request,
    /// Segment of the profile.
    pub(crate) segment: String,
    /// Visible purchases.
    pub(crate) own: Vec<OwnProduct>,
    /// Visible names and the profile's values.
    pub(crate) own_texts: Vec<OwnText>,
    /// Products that the user's texts mean.
    pub(crate) meant: Vec<(u32, f32)>,
    /// Products that may be listed.
    pub(crate) permitted: Arc<FixedBitSet>,
    /// Products bought after the cut, ascending.
    pub(crate) targets: Vec<u32>,
    /// Those of them that the user had not bought before.
    pub(crate) new_targets: Vec<u32>,
}

impl Case {
    /// What the score terms of the case are computed from.
    pub(super) fn input<'a>(&'a self, shop: &'a Shop, learned: &'a Learned) -> TermInput<'a> {
        TermInput {
            snapshot: &shop.snapshot,
            segment: &self.segment,
            own: &self.own,
            at: shop.cut,
            learned: Some(learned),
            texts: shop.texts.as_deref(),
            own_texts: &self.own_texts,
            meant: &self.meant,
        }
    }
}

/// What is asked of every user.
pub(crate) struct CaseMaker<'a> {
    pub(crate) shop: &'a Shop,
    /// Prepares requests as production does, without a model.
    pub(crate) context: &'a ListContext<'a>,
    pub(crate) window: usize,
    pub(crate) visible: &'a [Visible],
    /// End of the window in which targets are bought.
    pub(crate) until: Timestamp,
    pub(crate) ns: &'a str,
}

impl CaseMaker<'_> {
    /// The cases of one user, one for each amount of visible history that the user has, with its index.
    pub(crate) fn cases(&self, nth: u32, user: &UserHistory) -> Vec<(usize, Case)> {
        let cut = self.shop.cut;
        let (targets, new_targets) = self.targets(user);
        if targets.is_empty() {
            return Vec::new();
        }
        let records = user.records.read(&user.id);
        let before = records.partition_point(|record| record.time < cut);
        let before = &records[..before];
        let erased = before.iter().rfind(|record| record.change == Change::Erase);
        let erased_at = erased.map(|record| record.time);
        let distinct = self.products_since(before, erased_at);
        let mut cases = Vec::new();
        for (nth_visible, visible) in self.visible.iter().enumerate() {
            let Some(start) = self.start(before, (erased_at, distinct), *visible) else {
                continue;
            };
            let state = self.state(before, start);
            let case = self.case(nth, user, state, (&targets, &new_targets));
            cases.push((nth_visible, case));
        }
        cases
    }

    fn targets(&self, user: &UserHistory) -> (Vec<u32>, Vec<u32>) {
        let (cut, until) = (self.shop.cut.0, self.until.0);
        let asked = |product: u32| {
            let cold = self.shop.cold.as_ref();
            cold.is_none_or(|cold| cold.contains(product as usize))
        };
        let start = user.bought.partition_point(|line| line.at < cut);
        let end = user.bought.partition_point(|line| line.at < until);
        let (before, after) = (&user.bought[..start], &user.bought[start..end.max(start)]);
        let mut targets: Vec<u32> = after
            .iter()
            .map(|line| line.product)
            .filter(|it| asked(*it))
            .collect();
        targets.sort_unstable();
        targets.dedup();
        let known = |product: &u32| before.iter().any(|line| line.product == *product);
        let new_targets = targets.iter().copied().filter(|it| !known(it)).collect();
        (targets, new_targets)
    }

    /// The product of a purchase that may be seen; `None` for any other record.
    fn seen(&self, record: &Accepted) -> Option<u32> {
        let pu = purchase(record, &self.shop.snapshot.catalogue)??;
        (!self.is_withheld(record)).then_some(pu.0)
    }

    /// Whether a record is of a product whose log is withheld.
    fn is_withheld(&self, record: &Accepted) -> bool {
        let (Some(cold), Change::Event(event)) = (&self.shop.cold, &record.change) else {
            return false;
        };
        let pu = self.shop.snapshot.catalogue.pu_of_item(&event.item);
        pu.is_some_and(|pu| cold.contains(pu.at()))
    }

    fn products_since(&self, before: &[Accepted], erased_at: Option<Timestamp>) -> usize {
        let since = before.iter().filter(|record| Some(record.time) > erased_at);
        let mut products: Vec<u32> = since.filter_map(|record| self.seen(record)).collect();
        products.sort_unstable();
        products.dedup();
        products.len()
    }

    /// Index of the first visible record; `None` if the user has too few products for this case.
    fn start(
        &self,
        before: &[Accepted],
        (erased_at, distinct): (Option<Timestamp>, usize),
        visible: Visible,
    ) -> Option<usize> {
        let largest = self.visible.iter().filter_map(|it| match it {
            Visible::Products(n) => Some(*n),
            Visible::More => None,
        });
        let most = match visible {
            Visible::Products(n) if distinct >= n => n,
            Visible::More if distinct > largest.max().unwrap_or(0) => return Some(0),
            Visible::Products(_) | Visible::More => return None,
        };
        if most == 0 {
            return Some(before.len());
        }
        let mut seen: Vec<u32> = Vec::new();
        let mut start = before.len();
        for record in before
            .iter()
            .rev()
            .take_while(|record| Some(record.time) > erased_at)
        {
            if let Some(product) = self.seen(record)
                && !seen.contains(&product)
            {
                if seen.len() == most {
                    break;
                }
                seen.push(product);
            }
            start -= 1;
        }
        Some(start)
    }

    /// Folds the records before the cut, without the events before `start` and those that are withheld.
    fn state(&self, before: &[Accepted], start: usize) -> UserState {
        let mut state = UserState::default();
        let mut folded_at = None;
        for (nth, record) in before.iter().enumerate() {
            let is_event = matches!(record.change, Change::Event(_));
            if !is_event || (nth >= start && !self.is_withheld(record)) {
                // A record of a mapped topic may have become several.
                match folded_at == Some(&record.position) {
                    true => fold_again(&mut state, record, self.window),
                    false => fold(&mut state, record, self.window),
                };
                folded_at = Some(&record.position);
            }
        }
        state
    }

    fn case(
        &self,
        nth: u32,
        user: &UserHistory,
        state: UserState,
        (targets, new_targets): (&[u32], &[u32]),
    ) -> Case {
        let cut = self.shop.cut;
        let request = Request {
            v: 1,
            ns: self.ns.to_owned(),
            user: user.id.clone(),
            reason: Reason::Refresh,
            source: None,
            time: cut,
            due: cut,
            lane: Lane::Live,
            force: false,
        };
        let catalogue = &self.shop.snapshot.catalogue;
        let profile = state.profile.as_ref().map(|profiled| &profiled.profile);
        let segment = self.shop.snapshot.rules.segment(profile, cut).to_owned();
        let own = own_products(&state, catalogue);
        let meaning = self.shop.meaning().map(|texts| {
            let user = (&*user.id.0, &state);
            meant(user, (&**catalogue, cut), &texts)
        });
        let meaning = meaning.unwrap_or_default();
        let mut case = Case {
            user: nth,
            own_texts: own_texts(&state, (&own, &meaning.own), catalogue),
            meant: meaning.interests,
            own,
            state,
            request,
            segment,
            permitted: Arc::default(),
            targets: targets.to_vec(),
            new_targets: new_targets.to_vec(),
        };
        let asked = prepared(&case, self.shop, self.context).ask;
        if let Some(permitted) = asked.and_then(|ask| ask.permitted) {
            case.permitted = permitted;
        }
        if let Some(cold) = &self.shop.cold {
            Arc::make_mut(&mut case.permitted).intersect_with(cold);
        }
        case
    }
}

/// Prepares the case's request as the generate role does.
pub(super) fn prepared(case: &Case, shop: &Shop, context: &ListContext) -> PreparedRequest {
    let claimed = ClaimedUser {
        request: &case.request,
        state: &case.state,
        claim: 1,
    };
    prepare(&claimed, (&shop.snapshot, Stage::Model), context)
}
