//! What the route `aligned` knows: weights and tables as `align` makes them, at every cut, for few users and for new
//! products.
//!
//! Invariant: nothing of a test user, at or after the cut, or of a withheld product is in them. It does not rank.

use nearshore_core::list::terms::Weights;
use nearshore_core::list::terms::bound::Learned;

use super::align::{self, AlignOptions, Among, Fitted};
use super::{Progress, Run, Shop, Split, UserHistory, millis, moment};

impl<'a> Run<'a> {
    /// The users that the route `aligned` learns from.
    pub(super) fn tuned(&self, split: &Split) -> Vec<&'a UserHistory> {
        let users = split.train.iter().chain(&split.tune);
        users
            .map(|nth| &self.history.users[*nth as usize])
            .collect()
    }

    /// Aligns a shop; nothing is aligned, and a note says why, where there is too little to learn from.
    pub(super) fn align_all(
        &self,
        users: &[&UserHistory],
        shop: &mut Shop,
        progress: &Progress,
    ) -> anyhow::Result<Option<Fitted>> {
        let Some(fitted) = self.align(users, shop, progress) else {
            return Ok(None);
        };
        match fitted {
            Ok(fitted) => {
                let learned = align::learned(fitted.tables.clone(), shop)?;
                shop.aligned = Some((fitted.weights(), learned));
                Ok(Some(fitted))
            }
            Err(error) => {
                note!("nothing is aligned at {}: {error:#}", moment(shop.cut));
                Ok(None)
            }
        }
    }

    /// What `align` makes of some users before the cut; `None` if the route is left out, an error if that is too little.
    fn align(
        &self,
        users: &[&UserHistory],
        shop: &Shop,
        progress: &Progress,
    ) -> Option<anyhow::Result<Fitted>> {
        let options = self.align_options();
        let known = (&options, Some(among(users, shop)));
        let tick = |_: &str| progress.bar.tick();
        self.order
            .align
            .then(|| align::fit(self.history, self.config, known, &tick))
    }

    /// The same of the few users of the learning curve: demand alone, as `align` advises, where they are too few.
    pub(super) fn align_few(
        &self,
        users: &[&UserHistory],
        shop: &Shop,
        progress: &Progress,
    ) -> anyhow::Result<Option<(Weights, Learned)>> {
        if !self.order.align {
            return Ok(None);
        }
        let fitted = match users.len() < align::TUNE_USERS_MIN {
            true => None,
            false => self
                .align(users, shop, progress)
                .and_then(anyhow::Result::ok),
        };
        let (weights, tables) = match fitted {
            Some(fitted) => (fitted.weights(), fitted.tables),
            None => (Weights::default(), align::no_tables(self.history)),
        };
        Ok(Some((weights, align::learned(tables, shop)?)))
    }

    fn align_options(&self) -> AlignOptions {
        AlignOptions {
            seed: self.order.seed,
            window: millis(self.order.window),
            ..AlignOptions::default()
        }
    }

    /// The weights of the whole log, which a shop does not fit anew for new products, with tables that lack the log of
    /// the withheld ones.
    pub(super) fn align_cold(
        &self,
        users: &[&UserHistory],
        fitted: Option<&Fitted>,
        shop: &Shop,
    ) -> anyhow::Result<Option<(Weights, Learned)>> {
        let Some(fitted) = fitted else {
            return Ok(None);
        };
        let known = (&self.align_options(), &among(users, shop));
        let tables = align::tables_without(self.history, fitted, known, &self.cold);
        Ok(Some((fitted.weights(), align::learned(tables, shop)?)))
    }
}

/// Users before a shop's cut.
fn among<'a>(users: &[&'a UserHistory], shop: &Shop) -> Among<'a> {
    Among {
        users: users.to_vec(),
        until: shop.cut,
    }
}
