//! One run: days, lists, users who look, click and buy, and what becomes known of it later.
//!
//! Invariant: the chance of everything that a user does is drawn from the seed, the day and the number of the list alone.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::shelf::{Shelf, expected};
use super::ways::{Known, Way};
use super::world::{BEFORE, LOOKS, World};

/// Numbers of lists of a product after a launch, among which it is counted how many had the new SKU.
pub(crate) const LAUNCH_LISTS: [u32; 2] = [100, 400];

/// Most of a user's purchases of a product that are remembered.
const OWN_MAX: usize = 10;

/// How often good launches were shown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Launches {
    /// Lists of their products after the launch with the new SKU, among the first [`LAUNCH_LISTS`].
    shown: [u32; 2],
    /// Lists of their products after the launch, at most as many.
    lists: [u32; 2],
}

impl Launches {
    /// The share of lists with the new SKU; `None` if there was no good launch.
    pub(crate) fn shown(&self, at: usize) -> Option<f64> {
        (self.lists[at] > 0).then(|| f64::from(self.shown[at]) / f64::from(self.lists[at]))
    }

    fn count(&mut self, nth: u32, is_shown: bool) {
        for (at, most) in LAUNCH_LISTS.into_iter().enumerate() {
            if nth < most {
                self.lists[at] += 1;
                self.shown[at] += u32::from(is_shown);
            }
        }
    }
}

/// What came of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Number of lists.
    lists: f64,
    /// Expected purchases of the lists, and of the best ones.
    value: f64,
    best: f64,
    /// Loss of each week, for 1000 lists.
    pub(crate) weeks: Vec<f64>,
    /// Good launches.
    pub(crate) launches: Launches,
}

impl Run {
    /// Purchases lost for 1000 lists.
    pub fn loss(&self) -> f64 {
        1000.0 * (self.best - self.value) / self.lists.max(1.0)
    }

    /// Expected purchases for 1000 lists, and those of the best lists.
    pub fn value(&self) -> (f64, f64) {
        let lists = self.lists.max(1.0);
        (1000.0 * self.value / lists, 1000.0 * self.best / lists)
    }
}

/// A purchase that becomes known later.
struct Late {
    user: usize,
    product: usize,
    sku: usize,
    day: u32,
}

struct Shop<'a> {
    world: &'a World,
    shelves: Vec<Shelf>,
    /// By user and product: SKU and day of each purchase, newest first. The true last one decides what a user wants.
    own: BTreeMap<(usize, usize), Vec<(usize, u32)>>,
    /// By the day on which they become known.
    late: BTreeMap<u32, Vec<Late>>,
    /// Lists of each product since each of its good launches.
    since: BTreeMap<(usize, usize), u32>,
    /// Ids of SKUs: what ties are decided by.
    ids: Vec<String>,
    run: Run,
}

/// Runs a way in a world.
pub fn run(world: &World, way: &Way, seed: u64) -> Run {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut shop = Shop {
        world,
        shelves: (0..world.products)
            .map(|_| Shelf::new(world, &mut random))
            .collect(),
        own: BTreeMap::new(),
        late: BTreeMap::new(),
        since: BTreeMap::new(),
        ids: (0..world.skus + 1000)
            .map(|nth| format!("{nth:09}"))
            .collect(),
        run: Run::default(),
    };
    for day in 0..BEFORE + world.days {
        let before = (shop.run.best, shop.run.value, shop.run.lists);
        shop.day(day, (seed, way), &mut random);
        let shown = day.checked_sub(BEFORE);
        if let Some(shown) = shown {
            let lost = (shop.run.best - before.0) - (shop.run.value - before.1);
            let weekly = 1000.0 * lost / (shop.run.lists - before.2).max(1.0) / 7.0;
            if shown.is_multiple_of(7) {
                shop.run.weeks.push(0.0);
            }
            shop.run
                .weeks
                .last_mut()
                .into_iter()
                .for_each(|week| *week += weekly);
        }
    }
    shop.run
}

impl Shop<'_> {
    fn day(&mut self, day: u32, (seed, way): (u64, &Way), random: &mut ChaCha8Rng) {
        for (product, shelf) in self.shelves.iter_mut().enumerate() {
            shelf.fade();
            if day >= BEFORE {
                let known = shelf.skus.len();
                shelf.night(self.world, day, random);
                let new = shelf.skus.get(known).and_then(|sku| sku.launched);
                if new == Some(true) {
                    self.since.insert((product, known), 0);
                }
            }
        }
        for late in self.late.remove(&day).unwrap_or_default() {
            self.shelves[late.product].buy(late.sku);
            let own = self.own.entry((late.user, late.product)).or_default();
            own.insert(0, (late.sku, late.day));
            own.truncate(OWN_MAX);
        }
        let stocked: Vec<Vec<usize>> = self
            .shelves
            .iter()
            .map(|shelf| shelf.stocked(day))
            .collect();
        let contests = self.shelves.iter().zip(&stocked);
        let contests: Vec<_> = contests
            .map(|(shelf, stocked)| Known::contest(shelf, stocked, &self.ids))
            .collect();
        for nth in 0..self.world.lists {
            let chance =
                seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(day) << 32 | u64::from(nth));
            let mut random = ChaCha8Rng::seed_from_u64(chance);
            let user = random.random_range(0..self.world.users);
            let product = random.random_range(0..self.world.products);
            let own = self.own.get(&(user, product)).cloned().unwrap_or_default();
            let last = own.first().map(|it| it.0);
            let aged: Vec<(usize, u32)> =
                own.into_iter().map(|(sku, at)| (sku, day - at)).collect();
            let shown = (day >= BEFORE).then(|| {
                let known = Known {
                    shelf: &self.shelves[product],
                    stocked: &stocked[product],
                    own: &aged,
                    contest: &contests[product],
                    top_k: self.world.top_k,
                };
                way.choose(&known, &mut ChaCha8Rng::seed_from_u64(!chance))
            });
            let shown = shown.unwrap_or_default();
            if day >= BEFORE {
                self.score(product, (&shown, &stocked[product]), last);
            }
            if let Some(sku) = self.visit(product, (&shown, &stocked[product]), last, &mut random) {
                let days = -self.world.delay * (1.0 - random.random::<f64>()).ln();
                let late = Late {
                    user,
                    product,
                    sku,
                    day,
                };
                self.late
                    .entry(day + 1 + days as u32)
                    .or_default()
                    .push(late);
            }
        }
    }

    /// Counts what a list is worth, and what the best one would be.
    fn score(
        &mut self,
        product: usize,
        (shown, stocked): (&[usize], &[usize]),
        last: Option<usize>,
    ) {
        let shelf = &self.shelves[product];
        let rate = |at: &usize| shelf.rate(*at, last, self.world.habit);
        let mut best: Vec<f64> = stocked.iter().map(rate).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        best.truncate(self.world.top_k);
        self.run.lists += 1.0;
        self.run.value += expected(shown.iter().map(rate));
        self.run.best += expected(best);
        for ((_, sku), nth) in self.since.range_mut((product, 0)..(product + 1, 0)) {
            self.run.launches.count(*nth, shown.contains(sku));
            *nth += 1;
        }
    }

    /// What a user does: looks at the list place by place, clicks, buys at most one; else buys from the shelf, perhaps.
    fn visit(
        &mut self,
        product: usize,
        (shown, stocked): (&[usize], &[usize]),
        last: Option<usize>,
        random: &mut ChaCha8Rng,
    ) -> Option<usize> {
        let habit = self.world.habit;
        let shelf = &mut self.shelves[product];
        // As many numbers are drawn whatever is shown.
        let chances: Vec<(f64, f64)> = (0..self.world.top_k)
            .map(|_| (random.random(), random.random()))
            .collect();
        let (goes, takes): (f64, f64) = (random.random(), random.random());
        let mut bought = None;
        let mut looking = true;
        for (sku, (acts, stays)) in shown.iter().zip(chances) {
            shelf.skus[*sku].seen();
            shelf.skus[*sku].counts.impressions += 1.0;
            let rate = shelf.rate(*sku, last, habit);
            if looking && acts < (self.world.clicks * rate).min(0.9) {
                shelf.skus[*sku].counts.clicks += 1.0;
            }
            if looking && acts < rate {
                bought = Some(*sku);
            }
            looking = looking && bought.is_none() && stays < LOOKS;
        }
        if bought.is_some() || goes >= self.world.shelf {
            return bought;
        }
        let rates: Vec<f64> = stocked
            .iter()
            .map(|at| shelf.rate(*at, last, habit))
            .collect();
        let mut left = takes * rates.iter().sum::<f64>();
        let found = stocked.iter().zip(rates).find(|(_, rate)| {
            left -= rate;
            left < 0.0
        });
        found.map(|(sku, _)| *sku)
    }
}
