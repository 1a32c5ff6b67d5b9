//! A head: scores of products from the hidden state of a frozen model at the end of a user's prompt.
//!
//! The score of a product is the dot product of two short vectors: one is a linear function of the user's hidden
//! state, the other one of the hidden state of the product's name. No product has numbers of its own, so a new one is
//! scored as soon as the model has read its name. Invariant: values of products whose name was not read are 0, and the
//! mean of the others is 0, so an unknown product is neither preferred nor held back. It does not know models, and not
//! how a head is trained: see [`learn::head`](crate::learn::head).

mod file;

use std::collections::BTreeMap;
use std::sync::Arc;

/// Where hidden states come from: a head fits no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Revision of the model.
    pub model: String,
    /// Hash of the prompt template.
    pub template: String,
}

/// A linear function of hidden states.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Projection {
    /// `[rank, width]`, row by row.
    weights: Vec<f32>,
    /// `[rank]`: what is added.
    shift: Vec<f32>,
}

impl Projection {
    /// The function `weights · x + shift`; `weights` has a row per number of `shift`.
    pub(crate) fn new(weights: Vec<f32>, shift: Vec<f32>) -> Self {
        Self { weights, shift }
    }

    /// Numbers of its values.
    fn rank(&self) -> usize {
        self.shift.len()
    }

    /// Numbers of a hidden state.
    fn width(&self) -> usize {
        self.weights.len() / self.rank().max(1)
    }

    /// The value of a hidden state; `None` for one of another width, or that is not finite.
    fn of(&self, hidden: &[f32]) -> Option<Vec<f32>> {
        if hidden.len() != self.width() || hidden.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let rows = self.weights.chunks_exact(hidden.len());
        let value = |(row, shift): (&[f32], &f32)| {
            let products = row.iter().zip(hidden);
            let sum: f64 = products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            (sum + f64::from(*shift)) as f32
        };
        Some(rows.zip(&self.shift).map(value).collect())
    }
}

/// A trained head.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    origin: Origin,
    users: Projection,
    names: Projection,
    /// The value of `names` for each name that the model has read.
    keys: BTreeMap<String, Vec<f32>>,
}

impl Head {
    /// A head with these projections that has read `names`, each with its hidden state.
    pub(crate) fn new(
        origin: Origin,
        (users, names): (Projection, Projection),
        read: impl Iterator<Item = (String, Vec<f32>)>,
    ) -> Self {
        let keys = read.filter_map(|(name, hidden)| Some((name, names.of(&hidden)?)));
        Self {
            keys: keys.collect(),
            origin,
            users,
            names,
        }
    }

    /// Where the hidden states come from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Numbers of a hidden state.
    fn width(&self) -> usize {
        self.users.width()
    }

    /// What is kept of the hidden state of a name; `None` if it is of another model.
    pub fn key(&self, hidden: &[f32]) -> Option<Vec<f32>> {
        self.names.of(hidden)
    }
}

/// A head with the keys of a catalogue's names in their order.
#[derive(Clone, Debug)]
pub struct BoundHead {
    head: Arc<Head>,
    /// `[names, rank]`; what was not read is 0.
    keys: Vec<f32>,
    has_key: Vec<bool>,
    lacking: Vec<(u32, String)>,
}

impl BoundHead {
    /// Binds a head to names.
    pub fn new(head: &Arc<Head>, names: impl Iterator<Item = String>) -> Self {
        let mut bound = Self {
            head: Arc::clone(head),
            keys: Vec::new(),
            has_key: Vec::new(),
            lacking: Vec::new(),
        };
        let rank = head.users.rank();
        for (nth, name) in (0..).zip(names) {
            let key = head.keys.get(&name);
            bound.has_key.push(key.is_some());
            let len = bound.keys.len() + rank;
            match key {
                Some(key) => bound.keys.extend(key),
                None => bound.lacking.push((nth, name)),
            }
            bound.keys.resize(len, 0.0);
        }
        bound
    }

    /// The head.
    pub fn head(&self) -> &Arc<Head> {
        &self.head
    }

    /// Products whose name the head has not read, with the name.
    pub fn lacking(&self) -> &[(u32, String)] {
        &self.lacking
    }

    /// The value of each product for a user; `read` has keys of names that were read since, by name. `None` if the
    /// hidden state is of another model.
    pub fn values(&self, hidden: &[f32], read: &BTreeMap<String, Vec<f32>>) -> Option<Arc<[f32]>> {
        let query = self.head.users.of(hidden)?;
        let dot = |key: &[f32]| -> f32 {
            let products = key.iter().zip(&query);
            products
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum::<f64>() as f32
        };
        let keys = self.keys.chunks_exact(query.len().max(1));
        let mut values: Vec<f32> = keys.map(dot).collect();
        let mut has = self.has_key.clone();
        for (nth, name) in &self.lacking {
            if let Some(key) = read.get(name) {
                values[*nth as usize] = dot(key);
                has[*nth as usize] = true;
            }
        }
        let known = has.iter().filter(|has| **has).count().max(1) as f64;
        let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
        let mean = (sum / known) as f32;
        let each = values.iter_mut().zip(has);
        each.for_each(|(value, has)| *value = if has { *value - mean } else { 0.0 });
        Some(values.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Users by their first two numbers, names by theirs swapped.
    fn head() -> Arc<Head> {
        let users = Projection::new(vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0], vec![0.0, 0.0]);
        let names = Projection::new(vec![0.0, 1.0, 0.0, 1.0, 0.0, 0.0], vec![0.5, 0.0]);
        let read = [("tea", [0.0, 1.0, 9.0]), ("milk", [2.0, 0.0, 9.0])];
        let read = read.map(|(name, hidden)| (name.to_owned(), hidden.to_vec()));
        Arc::new(Head::new(
            Origin::default(),
            (users, names),
            read.into_iter(),
        ))
    }

    fn bound(names: &[&str]) -> BoundHead {
        BoundHead::new(&head(), names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn values_are_dot_products_less_their_mean_and_an_unread_name_has_0() {
        let bound = bound(&["milk", "bread", "tea"]);
        let values = bound
            .values(&[2.0, 1.0, 7.0], &BTreeMap::new())
            .expect("same width");
        // milk: 2 · .5 + 1 · 2 = 3; tea: 2 · 1.5 = 3.
        assert_eq!(*values, [0.0, 0.0, 0.0]);
        let values = bound
            .values(&[2.0, 0.0, 7.0], &BTreeMap::new())
            .expect("same width");
        assert_eq!(*values, [-1.0, 0.0, 1.0]);
        assert_eq!(bound.lacking(), [(1, "bread".to_owned())]);
    }

    #[test]
    fn a_new_name_is_scored_once_it_is_read() {
        let bound = bound(&["milk", "bread", "tea"]);
        let key = bound.head().key(&[0.0, 4.0, 0.0]).expect("same width");
        let read = BTreeMap::from([("bread".to_owned(), key)]);
        let values = bound.values(&[2.0, 0.0, 7.0], &read).expect("same width");
        assert_eq!(
            *values,
            [1.0 - 13.0 / 3.0, 9.0 - 13.0 / 3.0, 3.0 - 13.0 / 3.0]
        );
    }

    #[test]
    fn hidden_states_of_another_model_say_nothing() {
        let bound = bound(&["milk", "tea"]);
        let none = BTreeMap::new();
        assert!(bound.values(&[1.0, 2.0], &none).is_none());
        assert!(bound.values(&[1.0, f32::NAN, 2.0], &none).is_none());
        assert!(bound.head().key(&[1.0]).is_none());
    }
}
