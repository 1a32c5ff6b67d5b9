//! Reference prompts of an artefact: the prompts of people who do not exist.
//!
//! A model's mean over them is what it says to everyone. Each field of a profile, the segment and each product are drawn
//! on their own, by how many users have them. Invariant: nothing is drawn that fewer than `users_min` users have, and no
//! two values are taken from one person because one person has both. It does not know templates.

use std::collections::{BTreeMap, BTreeSet};

use nearshore_core::learn::split::uniform;
use nearshore_core::list::prompt::{PROMPTS, Person, words};
use nearshore_core::user::event::{Change, Profile};
use nearshore_core::user::record::Timestamp;

use super::align::{AlignOptions, Among};
use super::{History, UserHistory};

/// How many users have each value.
#[derive(Default)]
struct Drawn(BTreeMap<String, usize>);

impl Drawn {
    /// Drops what fewer than `least` users have.
    fn keep(&mut self, least: usize) {
        self.0.retain(|_, users| *users >= least);
    }

    /// A value by `at` in [0, 1), with `absent` users who have none.
    fn draw(&self, at: f64, absent: usize) -> Option<&String> {
        let all = self.0.values().sum::<usize>() + absent;
        let mut left = at * all as f64;
        self.0.iter().find_map(|(value, users)| {
            left -= *users as f64;
            (left < 0.0).then_some(value)
        })
    }
}

/// What users have before a time, value by value.
pub(super) struct Population {
    /// Number of users.
    users: usize,
    /// By profile field, in words.
    fields: BTreeMap<String, (Drawn, usize)>,
    segments: Drawn,
    /// Names of products that were bought.
    products: Drawn,
    seed: u64,
}

impl Population {
    pub(super) fn of(history: &History, among: &Among<'_>, options: &AlignOptions) -> Self {
        let mut all = Self {
            users: among.users.len(),
            fields: BTreeMap::new(),
            segments: Drawn::default(),
            products: Drawn::default(),
            seed: options.seed,
        };
        for user in &among.users {
            all.add(history, user, among.until);
        }
        let least = options.users_min as usize;
        all.fields
            .values_mut()
            .for_each(|(values, _)| values.keep(least));
        all.segments.keep(least);
        all.products.keep(least);
        all
    }

    fn add(&mut self, history: &History, user: &UserHistory, until: Timestamp) {
        let profile = profile(user, until);
        let profile = profile.as_ref();
        for (field, value) in profile.map(words).unwrap_or_default() {
            let (values, users) = self.fields.entry(field).or_default();
            *values.0.entry(value).or_default() += 1;
            *users += 1;
        }
        let segment = history.rules.segment(profile, until).to_owned();
        *self.segments.0.entry(segment).or_default() += 1;
        let lines = user.log(until).lines;
        let bought: BTreeSet<u32> = lines.iter().map(|line| line.product).collect();
        let pus = history.catalogue.pus();
        for pu in bought
            .iter()
            .filter_map(|product| pus.get(*product as usize))
        {
            *self.products.0.entry(pu.name.clone()).or_default() += 1;
        }
    }

    /// People with so many products bought, or fewer where not so many are known.
    pub(super) fn people(&self, visible: usize) -> Vec<Person> {
        (0..PROMPTS).map(|nth| self.person(nth, visible)).collect()
    }

    fn person(&self, nth: usize, visible: usize) -> Person {
        let at = |what: &str| uniform(self.seed, &format!("{visible} {nth} {what}"));
        let profile = self.fields.iter().filter_map(|(field, (values, users))| {
            let value = values.draw(at(field), self.users - users)?;
            Some((field.clone(), value.clone()))
        });
        let mut bought: Vec<String> = Vec::new();
        let known = self.products.0.len();
        // Products that are drawn again are left out; a few tries more fill their places.
        for draw in 0..visible.min(known) * 4 {
            if let Some(name) = self.products.draw(at(&format!("product {draw}")), 0)
                && bought.len() < visible
                && !bought.contains(name)
            {
                bought.push(name.clone());
            }
        }
        Person {
            profile: profile.collect(),
            bought,
            segment: self
                .segments
                .draw(at("segment"), 0)
                .cloned()
                .unwrap_or_default(),
            ..Person::default()
        }
    }
}

/// The profile of a user at a time.
fn profile(user: &UserHistory, until: Timestamp) -> Option<Profile> {
    let records = user.records.read(&user.id).into_iter();
    let before = records.filter(|record| record.time < until);
    before.fold(None, |known, record| match record.change {
        Change::Profile(profile) => Some(profile),
        Change::Erase => None,
        Change::Event(_) => known,
    })
}
