//! Products of hidden states with the output head: one number for every token of the vocabulary.
//!
//! Decides the order of the work: the head is read once for all states, in pieces whose results fit into the nearest
//! cache. Invariant: a state's numbers are equal, bit for bit, with any other states and on any number of threads. It
//! does not know what chooses by them.

use std::ops::Range;

use super::kernel::{self, Tile};

/// Tokens of a piece.
const PIECE: usize = 64;

/// States are filled up to a multiple of this, so that each row of the head is multiplied by whole registers.
const STATES: usize = 8;

/// `head` `[vocabulary, width]` times each state: `[states][vocabulary]`.
pub(super) fn products(head: &[f32], states: &[&[f32]], threads: usize) -> Vec<Vec<f32>> {
    let Some(width) = states.first().map(|state| state.len()).filter(|it| *it > 0) else {
        return vec![Vec::new(); states.len()];
    };
    let columns = states.len().next_multiple_of(STATES);
    let mut turned = vec![0f32; width * columns];
    for (column, state) in states.iter().enumerate() {
        for (k, number) in state.iter().enumerate() {
            turned[k * columns + column] = *number;
        }
    }
    let vocabulary = head.len() / width;
    let work = Work {
        head,
        turned: &turned,
        width,
        columns,
        states: states.len(),
    };
    if threads <= 1 {
        return work.part(0..vocabulary);
    }
    use rayon::prelude::*;
    let each = vocabulary.div_ceil(threads).max(1);
    let parts: Vec<Vec<Vec<f32>>> = (0..threads)
        .into_par_iter()
        .map(|nth| work.part((nth * each).min(vocabulary)..((nth + 1) * each).min(vocabulary)))
        .collect();
    let mut all = vec![Vec::with_capacity(vocabulary); states.len()];
    for part in parts {
        for (all, part) in all.iter_mut().zip(part) {
            all.extend(part);
        }
    }
    all
}

struct Work<'a> {
    head: &'a [f32],
    /// `[width, columns]`: a state is a column.
    turned: &'a [f32],
    width: usize,
    columns: usize,
    states: usize,
}

impl Work<'_> {
    /// The numbers of some tokens: `[states][tokens]`.
    fn part(&self, tokens: Range<usize>) -> Vec<Vec<f32>> {
        let mut out = vec![Vec::with_capacity(tokens.len()); self.states];
        let mut sums = vec![0f32; PIECE * self.columns];
        let mut from = tokens.start;
        while from < tokens.end {
            let to = tokens.end.min(from + PIECE);
            let shape = Tile {
                rows: to - from,
                depth: self.width,
                width: self.columns,
                a_stride: self.width,
                c_stride: self.columns,
            };
            let sums = &mut sums[..(to - from) * self.columns];
            sums.fill(0.0);
            kernel::tile(shape, &self.head[from * self.width..], self.turned, sums);
            for (column, out) in out.iter_mut().enumerate() {
                out.extend(sums.iter().skip(column).step_by(self.columns));
            }
            from = to;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn a_state_has_its_products_and_the_same_bits_alone_as_among_many() {
        let (width, vocabulary) = (37, 203);
        let head = noise(width * vocabulary, 1);
        let states: Vec<Vec<f32>> = (0..75).map(|nth| noise(width, 100 + nth)).collect();
        let states: Vec<&[f32]> = states.iter().map(Vec::as_slice).collect();
        let all = products(&head, &states, 3);
        for (state, all) in states.iter().zip(&all) {
            assert_eq!(all.len(), vocabulary);
            for (row, product) in head.chunks_exact(width).zip(all) {
                let exact: f64 = (row.iter().zip(*state))
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum();
                assert!((f64::from(*product) - exact).abs() < 1e-4);
            }
            for threads in [1, 2, 400] {
                assert_eq!(products(&head, &[*state], threads)[0], *all, "{threads}");
            }
        }
        assert!(products(&head, &[], 2).is_empty());
    }
}
