//! The worlds: how good SKUs are, how that changes, and what a user does.
//!
//! Decides the conditions of a simulation. Invariant: [`World::all`] differ from the first one only in what their names
//! say.

/// The conditions of a simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// Its name.
    pub name: &'static str,
    /// Number of products.
    pub products: usize,
    /// SKUs of each product at the start.
    pub skus: usize,
    /// Number of users.
    pub users: usize,
    /// Days on which lists are shown.
    pub days: u32,
    /// Lists shown a day.
    pub lists: u32,
    /// SKUs that a list shows.
    pub top_k: usize,
    /// Standard deviation of the logit of a SKU's rate.
    pub spread: f64,
    /// Standard deviation by which the logit of a SKU's rate moves each day.
    pub drift: f64,
    /// Probability a day that a product gets a new SKU.
    pub launch: f64,
    /// Share of new SKUs that are better than all of their product.
    pub launch_good: f64,
    /// Probability a day that a SKU is sold out for some days.
    pub sold_out: f64,
    /// Mean number of days until a purchase is known.
    pub delay: f64,
    /// By how much the logit of a user's last SKU is higher.
    pub habit: f64,
    /// Share of users who look for the product on the shelf, too, if no SKU of the list was bought.
    pub shelf: f64,
    /// How many times likelier a click is than a purchase.
    pub clicks: f64,
}

/// The mean logit of a SKU's rate: of users who look at an average SKU, 5 % buy it.
pub(crate) const MEAN: f64 = -3.0;

/// Share of users who look at a place, of those who looked at the one before.
pub(crate) const LOOKS: f64 = 0.85;

/// Days before the first list, on which users buy from the shelf alone.
pub(crate) const BEFORE: u32 = 28;

impl World {
    /// A shop in which nothing changes, and its variants.
    pub fn all() -> Vec<Self> {
        let calm = Self {
            name: "calm",
            products: 20,
            skus: 20,
            users: 400,
            days: 84,
            lists: 200,
            top_k: 5,
            spread: 1.0,
            drift: 0.0,
            launch: 0.0,
            launch_good: 0.3,
            sold_out: 0.0,
            delay: 3.0,
            habit: 1.5,
            shelf: 0.3,
            clicks: 3.0,
        };
        let with = |name, change: fn(&mut Self)| {
            let mut world = Self {
                name,
                ..calm.clone()
            };
            change(&mut world);
            world
        };
        vec![
            calm.clone(),
            with("drift", |it| it.drift = 0.1),
            with("launches", |it| it.launch = 0.05),
            with("sold out", |it| it.sold_out = 0.03),
            with("no clicks", |it| it.clicks = 0.0),
            with("all", |it| {
                it.drift = 0.1;
                it.launch = 0.05;
                it.sold_out = 0.03;
            }),
        ]
    }

    /// The same world, much smaller: for tests.
    #[cfg(test)]
    pub(crate) fn small(mut self) -> Self {
        (self.products, self.skus, self.days, self.lists) = (4, 8, 28, 100);
        self
    }
}
