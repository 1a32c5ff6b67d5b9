//! Baskets of a log, and counts of what was bought in one basket, or by one user.
//!
//! Decides what a basket is: a user's purchases within a span of the first of them. Invariant: counts are sums of whole
//! numbers, so the order of lines and of users changes no bit of them; a pair of items that fewer than `users_min`
//! users made counts 0. It does not know what an item is: SKUs and products are counted by the same code.

use super::sparse::{Grouped, distinct};

/// One purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bought {
    /// Number of the user.
    pub user: u32,
    /// Time in milliseconds.
    pub at: i64,
    /// Number of the item.
    pub item: u32,
}

/// A whole weight of 1: a basket of `n` items gives each pair the weight 1/(n-1), rounded to a part in a million.
pub(super) const ONE: u64 = 1 << 20;

/// Who bought what, and what was bought together.
#[derive(Clone, Debug, Default)]
pub(super) struct Baskets {
    /// Number of items.
    items: usize,
    /// The distinct items of each basket of at least two.
    baskets: Grouped,
    /// The user of each of them.
    user_of: Vec<u32>,
    /// The baskets of each item.
    with: Grouped,
    /// The distinct items of each user.
    bought: Grouped,
    /// The users of each item.
    buyers: Grouped,
}

/// Counts of one item with another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pair {
    /// The other item.
    pub item: u32,
    /// What was counted: baskets by weight, or users.
    pub count: f64,
    /// Distinct users who made the pair.
    pub users: u32,
}

/// Room to count one row in, reused for the next.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    sums: Vec<u64>,
    users: Vec<u32>,
    /// The user that was counted last for each item, plus one.
    last: Vec<u32>,
    touched: Vec<u32>,
}

impl Counter {
    /// Room for `items` items.
    pub(super) fn new(items: usize) -> Self {
        Self {
            sums: vec![0; items],
            users: vec![0; items],
            last: vec![0; items],
            touched: Vec::new(),
        }
    }

    fn add(&mut self, item: u32, weight: u64, user: u32) {
        let at = item as usize;
        if self.last[at] == 0 {
            self.touched.push(item);
        }
        self.sums[at] += weight;
        if self.last[at] != user + 1 {
            self.last[at] = user + 1;
            self.users[at] += 1;
        }
    }

    /// The pairs of at least `users_min` users, by item; the counter is empty afterwards.
    fn take(&mut self, users_min: u32) -> Vec<Pair> {
        self.touched.sort_unstable();
        let mut pairs = Vec::new();
        for item in self.touched.drain(..) {
            let at = item as usize;
            if self.users[at] >= users_min.max(1) {
                pairs.push(Pair {
                    item,
                    count: self.sums[at] as f64 / ONE as f64,
                    users: self.users[at],
                });
            }
            (self.sums[at], self.users[at], self.last[at]) = (0, 0, 0);
        }
        pairs
    }
}

impl Baskets {
    /// The baskets of `lines` of `items` items: a user's purchases at one time, or at most `span_ms` after the first of
    /// them. Items that do not exist are left out.
    pub(super) fn new(items: usize, lines: &[Bought], span_ms: i64) -> Self {
        let mut lines: Vec<Bought> = lines.to_vec();
        lines.retain(|line| (line.item as usize) < items);
        lines.sort_unstable();
        let mut found = Self {
            items,
            ..Self::default()
        };
        let mut own: Vec<(u32, u32)> = Vec::new();
        let mut rest = lines.as_slice();
        while let Some(first) = rest.first() {
            let until = first.at.saturating_add(span_ms.max(0));
            let len = rest.partition_point(|line| (line.user, line.at) <= (first.user, until));
            let basket = distinct(rest[..len].iter().map(|line| line.item));
            own.extend(basket.iter().map(|item| (first.user, *item)));
            if basket.len() > 1 {
                found.baskets.push(&basket);
                found.user_of.push(first.user);
            }
            rest = &rest[len..];
        }
        own.sort_unstable();
        own.dedup();
        let users = own.last().map_or(0, |pair| pair.0 as usize + 1);
        found.bought = Grouped::of(users, own.iter().copied());
        found.buyers = Grouped::of(items, own.iter().map(|&(user, item)| (item, user)));
        let with = found.baskets.iter().enumerate();
        let with =
            with.flat_map(|(nth, basket)| basket.iter().map(move |item| (*item, nth as u32)));
        found.with = Grouped::of(items, with);
        found
    }

    /// Number of items.
    pub(super) fn items(&self) -> usize {
        self.items
    }

    /// Number of users.
    pub(super) fn users(&self) -> usize {
        self.bought.len()
    }

    /// The users who bought an item, ascending.
    pub(super) fn buyers(&self, item: u32) -> &[u32] {
        self.buyers.get(item)
    }

    /// The items that a user bought, ascending.
    pub(super) fn bought(&self, user: u32) -> &[u32] {
        self.bought.get(user)
    }

    /// Number of baskets of at least two items that hold the item: each gives the item's pairs a weight of 1 in all.
    pub(super) fn baskets_with(&self, item: u32) -> usize {
        self.with.get(item).len()
    }

    /// How many events a weight of 1 stands for: the sum of the weights of all pairs by the sum of their squares. Counts
    /// by weight vary less than their size says, so what is fitted to their variance must be fitted to events.
    pub(super) fn events(&self) -> f64 {
        let (mut sum, mut squares) = (0u64, 0u64);
        for items in self.baskets.iter() {
            // Each of n items has n - 1 pairs of the weight 1/(n - 1).
            let n = items.len() as u64;
            sum += n * ONE;
            squares += n * ONE / (n - 1);
        }
        if squares > 0 {
            sum as f64 / squares as f64
        } else {
            1.0
        }
    }

    /// What was bought in one basket with `item`, a basket of n items counting 1/(n-1).
    pub(super) fn together(&self, item: u32, users_min: u32, counter: &mut Counter) -> Vec<Pair> {
        for basket in self.with.get(item) {
            let items = self.baskets.get(*basket);
            let weight = ONE / (items.len() as u64 - 1);
            let user = self.user_of[*basket as usize];
            for other in items.iter().filter(|other| **other != item) {
                counter.add(*other, weight, user);
            }
        }
        counter.take(users_min)
    }

    /// The same in groups of items: `group_of` names the group of each, and a group counts what its items do together.
    /// The group of `item` itself is left out.
    pub(super) fn together_by(
        &self,
        item: u32,
        group_of: &[u32],
        (users_min, counter): (u32, &mut Counter),
    ) -> Vec<Pair> {
        let own = group_of[item as usize];
        for basket in self.with.get(item) {
            let items = self.baskets.get(*basket);
            let weight = ONE / (items.len() as u64 - 1);
            let user = self.user_of[*basket as usize];
            for other in items.iter().map(|other| group_of[*other as usize]) {
                if other != own {
                    counter.add(other, weight, user);
                }
            }
        }
        counter.take(users_min)
    }

    /// What the users who bought `item` bought besides, each user counting by `weight` of the number of their items.
    pub(super) fn by_users(
        &self,
        item: u32,
        weight: impl Fn(usize) -> u64,
        (users_min, counter): (u32, &mut Counter),
    ) -> Vec<Pair> {
        for user in self.buyers(item) {
            let items = self.bought(*user);
            let weight = weight(items.len());
            for other in items.iter().filter(|other| **other != item) {
                counter.add(*other, weight, *user);
            }
        }
        counter.take(users_min)
    }
}
