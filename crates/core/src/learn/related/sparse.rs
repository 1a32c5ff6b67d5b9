//! Lists of numbers by number, in two vectors.

/// A list for each of some numbers from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grouped {
    starts: Vec<u32>,
    values: Vec<u32>,
}

impl Default for Grouped {
    fn default() -> Self {
        Self {
            starts: vec![0],
            values: Vec::new(),
        }
    }
}

impl Grouped {
    /// The values of each of `keys` keys, in the order in which they come.
    pub(super) fn of(keys: usize, pairs: impl Iterator<Item = (u32, u32)> + Clone) -> Self {
        let mut starts = vec![0u32; keys + 1];
        for (key, _) in pairs.clone() {
            starts[key as usize + 1] += 1;
        }
        for key in 0..keys {
            starts[key + 1] += starts[key];
        }
        let mut next = starts.clone();
        let mut values = vec![0; starts[keys] as usize];
        for (key, value) in pairs {
            let place = &mut next[key as usize];
            values[*place as usize] = value;
            *place += 1;
        }
        Self { starts, values }
    }

    /// Adds the list of the next number.
    pub(super) fn push(&mut self, list: &[u32]) {
        self.values.extend_from_slice(list);
        self.starts.push(self.values.len() as u32);
    }

    /// The list of a number; empty if it has none.
    pub(super) fn get(&self, key: u32) -> &[u32] {
        let end = self.starts.get(key as usize + 1);
        end.map_or(&[], |end| {
            &self.values[self.starts[key as usize] as usize..*end as usize]
        })
    }

    /// Number of lists.
    pub(super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// All lists.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u32]> + Clone {
        self.starts
            .windows(2)
            .map(|ends| &self.values[ends[0] as usize..ends[1] as usize])
    }
}

/// The values in order, each once.
pub(super) fn distinct(values: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut values: Vec<u32> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}
