//! The neighbours of a SKU: substitutes of the same product, and complements of other products.
//!
//! Each level corrects the one above where it has data: P(product | SKU) starts from P(product | product), P(SKU | SKU)
//! from the SKU's share of its product. Invariant: a pair is listed only if its SKU has `users_min` buyers, and what
//! fewer than `users_min` users did together changes no value; the lists depend on nothing but the set of lines.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use super::baskets::{Baskets, Bought, Counter, ONE, Pair};
use super::prior::{Kinship, Known};
use super::products::{ProductPair, Products, Room};
use super::shrink::{Cell, fit, fit_weighted};

/// What the neighbours of SKUs are counted from.
pub struct Shop<'a> {
    /// Purchases of SKUs.
    pub lines: &'a [Bought],
    /// The product of each SKU, by number.
    pub product_of: &'a [u32],
    /// Number of products.
    pub products: usize,
    /// What is known of products besides.
    pub known: Known<'a>,
}

/// How neighbours are counted, and what is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RelatedOptions {
    /// Fewest users of a pair that counts, and of a SKU that is listed.
    pub users_min: u32,
    /// Purchases of a user that are at most so much later than the first of a basket are in it, in milliseconds.
    pub span_ms: i64,
    /// Power of a SKU's share by which its probability is divided: 0 lists what sells most, 1 what is most surprising.
    pub penalty: f64,
    /// Most entries of a list.
    pub list_max: usize,
    /// Most complements of one product.
    pub product_max: usize,
}

impl Default for RelatedOptions {
    fn default() -> Self {
        Self {
            users_min: 3,
            span_ms: 0,
            penalty: 0.4,
            list_max: 20,
            product_max: 3,
        }
    }
}

/// The most exact level at which a pair was counted by enough users.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    IntoStaticStr,
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Basis {
    /// The two SKUs.
    Sku,
    /// Their products.
    Product,
    /// What kind of products they are: their names or categories.
    Kind,
}

/// A neighbour of a SKU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Number of the SKU.
    pub sku: u32,
    /// Its probability, divided by a power of its share.
    pub score: f32,
    /// At which level the two were counted.
    pub basis: Basis,
}

/// The neighbours of one SKU, best first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lists {
    /// SKUs of the same product.
    pub substitutes: Vec<Neighbour>,
    /// SKUs of other products.
    pub complements: Vec<Neighbour>,
}

/// Counts of a shop, from which the lists of each product's SKUs are made.
pub struct Related<'a> {
    shop: &'a Shop<'a>,
    options: RelatedOptions,
    skus: &'a Baskets,
    products: Products<'a>,
    /// The SKUs of each product with enough buyers, those with most first.
    listed: Vec<Vec<u32>>,
    /// Of each SKU, its share of its product's buyers.
    within: Vec<f64>,
    ks: Ks,
}

/// Expected purchases that the level above is worth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Ks {
    /// Of a product, by products alike.
    pub product: f64,
    /// Of a SKU with a product, by its product.
    pub sku_product: f64,
    /// Of a SKU with a SKU of another product.
    pub complement: f64,
    /// Of a SKU with another one of its product.
    pub substitute: f64,
}

/// Baskets of SKUs, of products and of categories.
pub struct Counted {
    skus: Baskets,
    products: Baskets,
    categories: Baskets,
}

impl Counted {
    /// Counts the lines of a shop.
    pub fn new(shop: &Shop<'_>, options: RelatedOptions) -> Self {
        let of = |items: usize, item: &dyn Fn(u32) -> u32| {
            let known = shop
                .lines
                .iter()
                .filter(|line| (line.item as usize) < shop.product_of.len());
            let lines: Vec<Bought> = known
                .map(|line| Bought {
                    item: item(line.item),
                    ..*line
                })
                .collect();
            Baskets::new(items, &lines, options.span_ms)
        };
        let product = |sku: u32| shop.product_of[sku as usize];
        let categories = shop.known.categories;
        let count = categories.iter().max().map_or(0, |most| *most as usize + 1);
        Self {
            skus: of(shop.product_of.len(), &|sku| sku),
            products: of(shop.products, &product),
            categories: of(count, &|sku| categories[product(sku) as usize]),
        }
    }
}

/// Products whose SKUs are looked at for complements.
const PRODUCTS_MAX: usize = 60;
/// SKUs of each of them, beside those that were bought together with the SKU.
const SKUS_MAX: usize = 5;
/// SKUs from which each k is fitted, about.
const FIT_SKUS: usize = 400;
/// Products of the same kind whose rows stand for that of a product that is in no basket.
const KIN: usize = 5;

/// Room for the lists of a SKU, reused for the next.
pub struct Scratch {
    products: Room,
    by_product: Counter,
    by_sku: Counter,
}

impl<'a> Related<'a> {
    /// Fits what all lists share.
    pub fn fit(shop: &'a Shop<'a>, counted: &'a Counted, options: RelatedOptions) -> Self {
        let users_min = options.users_min.max(1);
        let kinship = Kinship::new(shop.known, &counted.categories, users_min);
        let products = Products::fit(&counted.products, kinship, users_min);
        let skus = &counted.skus;
        let mut listed: Vec<Vec<u32>> = vec![Vec::new(); shop.products];
        let mut buyers = vec![0.0; shop.products];
        for (sku, product) in (0..).zip(shop.product_of) {
            let many = skus.buyers(sku).len();
            if many >= users_min as usize {
                listed[*product as usize].push(sku);
                buyers[*product as usize] += many as f64;
            }
        }
        for list in &mut listed {
            list.sort_by_key(|sku| (std::cmp::Reverse(skus.buyers(*sku).len()), *sku));
        }
        let mut within = vec![0.0; shop.product_of.len()];
        for (list, all) in listed.iter().zip(&buyers) {
            for sku in list {
                within[*sku as usize] = skus.buyers(*sku).len() as f64 / all;
            }
        }
        let mut found = Self {
            shop,
            options,
            skus,
            ks: Ks {
                product: products.k(),
                sku_product: 10.0,
                complement: 10.0,
                substitute: 10.0,
            },
            products,
            listed,
            within,
        };
        found.ks = found.fit_ks();
        found
    }

    /// What the level above is worth at each level.
    pub fn ks(&self) -> Ks {
        self.ks
    }

    /// Room for [`product_lists`](Self::product_lists).
    pub fn scratch(&self) -> Scratch {
        Scratch {
            products: Room::new(self.shop.products),
            by_product: Counter::new(self.shop.products),
            by_sku: Counter::new(self.shop.product_of.len()),
        }
    }

    /// Whether enough users bought a SKU for it to be listed, and to have lists of its own.
    pub fn is_listed(&self, sku: u32) -> bool {
        self.within[sku as usize] > 0.0
    }

    /// The lists of some SKUs of one product, in their order; `None` stands for any SKU that too few users bought.
    pub fn product_lists(
        &self,
        product: u32,
        skus: &[Option<u32>],
        scratch: &mut Scratch,
    ) -> Vec<Lists> {
        let row = self.product_row(product, &mut scratch.products);
        let each = skus.iter().map(|sku| Lists {
            substitutes: self.substitutes((product, *sku), scratch),
            complements: self.complements(*sku, &row, scratch),
        });
        each.collect()
    }

    /// P(product | product); of a product that is in no basket, the mean of those of its kind.
    pub(crate) fn product_row(&self, product: u32, room: &mut Room) -> Vec<ProductPair> {
        let row = self.products.row(product, room);
        if self.products.share(product) > 0.0 {
            return row;
        }
        let kin = self.products.kin(product, KIN);
        let mut sums: BTreeMap<u32, ProductPair> = BTreeMap::new();
        for pair in kin.iter().flat_map(|other| self.products.row(*other, room)) {
            let sum = sums.entry(pair.product).or_insert(ProductPair {
                chance: 0.0,
                is_counted: false,
                ..pair
            });
            sum.chance += pair.chance / kin.len() as f64;
        }
        match kin.is_empty() {
            true => row,
            false => sums
                .into_values()
                .filter(|pair| pair.product != product)
                .collect(),
        }
    }

    fn substitutes(
        &self,
        (product, sku): (u32, Option<u32>),
        scratch: &mut Scratch,
    ) -> Vec<Neighbour> {
        let cells = self.substitute_cells((product, sku), scratch);
        let score = |(other, chance, cell): (u32, f64, Cell)| Neighbour {
            sku: other,
            score: (chance * cell.rate(self.ks.substitute)) as f32,
            basis: match cell.count > 0.0 {
                true => Basis::Sku,
                false => Basis::Product,
            },
        };
        self.best(cells.into_iter().map(score).collect())
    }

    /// The other SKUs of a SKU's product: the probability of each by its share, and how often it was bought by the same
    /// user.
    fn substitute_cells(
        &self,
        (product, sku): (u32, Option<u32>),
        scratch: &mut Scratch,
    ) -> Vec<(u32, f64, Cell)> {
        let known = (self.options.users_min, &mut scratch.by_sku);
        let pairs = sku.map(|sku| self.skus.by_users(sku, |_| ONE, known));
        let mut pairs = pairs.unwrap_or_default();
        pairs.retain(|pair| self.shop.product_of[pair.item as usize] == product);
        let all: f64 = pairs.iter().map(|pair| pair.count).sum();
        let others = 1.0 - sku.map_or(0.0, |sku| self.within[sku as usize]);
        let of = |other: &u32| {
            let chance = self.within[*other as usize] / others.max(1e-9);
            let cell = Cell {
                count: count_of(&pairs, *other),
                expected: all * chance,
                prior: 1.0,
            };
            (*other, chance, cell)
        };
        let listed = self.listed[product as usize].iter();
        listed
            .filter(|other| Some(**other) != sku)
            .map(of)
            .collect()
    }

    fn complements(
        &self,
        sku: Option<u32>,
        row: &[ProductPair],
        scratch: &mut Scratch,
    ) -> Vec<Neighbour> {
        let counted = self.counted(sku, scratch);
        let mut products: Vec<(f64, f64, ProductPair)> = Vec::with_capacity(row.len());
        for pair in row {
            let cell = product_cell(&counted, *pair);
            let chance = pair.chance * cell.rate(self.ks.sku_product);
            let score = chance / self.products.share(pair.product).powf(self.options.penalty);
            products.push((score, chance, *pair));
        }
        products.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.2.product.cmp(&b.2.product)));
        products.truncate(PRODUCTS_MAX);
        let mut found = Vec::new();
        for (_, chance, pair) in products {
            let mut list = self.of_product((&counted, chance), pair);
            list.truncate(self.options.product_max);
            found.extend(list);
        }
        self.best(found)
    }

    /// What was bought in one basket with a SKU; nothing, where there is none.
    fn counted(&self, sku: Option<u32>, scratch: &mut Scratch) -> Partners {
        let Some(sku) = sku else {
            return Partners::default();
        };
        let users_min = self.options.users_min;
        let known = (users_min, &mut scratch.by_product);
        Partners {
            baskets: self.skus.baskets_with(sku) as f64,
            products: self.skus.together_by(sku, self.shop.product_of, known),
            skus: self.skus.together(sku, users_min, &mut scratch.by_sku),
        }
    }

    /// The SKUs of another product, best first: those bought most, and those that were bought with the SKU.
    fn of_product(&self, (counted, chance): (&Partners, f64), pair: ProductPair) -> Vec<Neighbour> {
        let most = self.listed[pair.product as usize].iter().take(SKUS_MAX);
        let mut skus: Vec<u32> = most.copied().collect();
        let with = counted.skus.iter().map(|pair| pair.item);
        let is_of = |sku: &u32| self.shop.product_of[*sku as usize] == pair.product;
        skus.extend(with.filter(|sku| is_of(sku) && self.is_listed(*sku)));
        skus.sort_unstable();
        skus.dedup();
        let of = |sku: u32| {
            let chance = chance * self.within[sku as usize];
            let cell = Cell {
                count: count_of(&counted.skus, sku),
                expected: counted.baskets * chance,
                prior: 1.0,
            };
            let share = self.products.share(pair.product) * self.within[sku as usize];
            let score = chance * cell.rate(self.ks.complement) / share.powf(self.options.penalty);
            Neighbour {
                sku,
                score: score as f32,
                basis: match (cell.count > 0.0, pair.is_counted) {
                    (true, _) => Basis::Sku,
                    (false, true) => Basis::Product,
                    (false, false) => Basis::Kind,
                },
            }
        };
        self.best(skus.into_iter().map(of).collect())
    }

    fn best(&self, mut list: Vec<Neighbour>) -> Vec<Neighbour> {
        list.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.sku.cmp(&b.sku)));
        list.truncate(self.options.list_max);
        list
    }

    /// Fits each k to some SKUs, those of most products.
    fn fit_ks(&self) -> Ks {
        let mut scratch = self.scratch();
        let all = self.listed.iter().flatten().count();
        let chosen = self
            .listed
            .iter()
            .flatten()
            .step_by((all / FIT_SKUS).max(1));
        let (mut products, mut complements, mut substitutes) = (Vec::new(), Vec::new(), Vec::new());
        for sku in chosen {
            let product = self.shop.product_of[*sku as usize];
            let cells = self.substitute_cells((product, Some(*sku)), &mut scratch);
            substitutes.extend(cells.into_iter().map(|(_, _, cell)| cell));
            let row = self.product_row(product, &mut scratch.products);
            let counted = self.counted(Some(*sku), &mut scratch);
            for pair in row {
                let cell = product_cell(&counted, pair);
                products.push(cell);
                // Of a product that was never in a basket with the SKU all SKUs have no count either.
                if cell.count > 0.0 {
                    let others = self.listed[pair.product as usize].iter().take(SKUS_MAX);
                    complements.extend(others.map(|other| Cell {
                        count: count_of(&counted.skus, *other),
                        expected: cell.count * self.within[*other as usize],
                        prior: 1.0,
                    }));
                }
            }
        }
        Ks {
            product: self.products.k(),
            sku_product: fit_weighted(&products, self.skus.events()),
            complement: fit_weighted(&complements, self.skus.events()),
            substitute: fit(&substitutes),
        }
    }
}

/// What was bought in one basket with a SKU, and in how many.
#[derive(Default)]
struct Partners {
    baskets: f64,
    products: Vec<Pair>,
    skus: Vec<Pair>,
}

/// How often a SKU and a product were in one basket, and how often its product says.
fn product_cell(counted: &Partners, pair: ProductPair) -> Cell {
    Cell {
        count: count_of(&counted.products, pair.product),
        expected: counted.baskets * pair.chance,
        prior: 1.0,
    }
}

/// The count of an item among pairs that are sorted by item.
fn count_of(pairs: &[Pair], item: u32) -> f64 {
    let found = pairs.binary_search_by_key(&item, |pair| pair.item);
    found.map_or(0.0, |at| pairs[at].count)
}
