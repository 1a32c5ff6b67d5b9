//! How similar a user's texts are to names.
//!
//! Decides the similarity: the weighted mean, over the user's texts, of the cosine between a text and the name, minus
//! the mean cosine between the name and all names. A name that is near to every name says nothing about a user, so its
//! nearness is subtracted; [`Similarities::centre`] has it. The mean of cosines, not the cosine of the mean: texts that
//! disagree have smaller similarities, and each text's share can be shown. Invariant: a name without a vector has
//! similarity 0, and so have all names if none of the user's texts has one. It does not know who the user is, nor which
//! texts matter.

use super::Vector;

/// The greatest magnitude of a number of a user's vector: products with a name's fit into 32 bits.
const GREATEST: f32 = 32767.0;

/// Vectors of all names in one table, ready to be compared with users.
#[derive(Clone, Debug, PartialEq)]
pub struct Similarities {
    width: usize,
    /// `[names, width]`; zeros for a name without a vector.
    values: Vec<i8>,
    /// `[names]`: factor that makes a row's length 1; 0 for a name without a vector.
    scales: Vec<f32>,
    /// `[names]`: mean cosine of the name to all names.
    centre: Vec<f32>,
}

impl Similarities {
    /// The table of names' vectors, in their order; `None` for a name without one. `width` is that of the vectors.
    pub fn new<'a>(width: usize, names: impl IntoIterator<Item = Option<&'a Vector>>) -> Self {
        let mut table = Self {
            width,
            values: Vec::new(),
            scales: Vec::new(),
            centre: Vec::new(),
        };
        for name in names {
            let name = name.filter(|name| name.values.len() == width);
            let values = name.map(|name| &name.values[..]).unwrap_or_default();
            table.values.extend(values);
            table.values.resize((table.scales.len() + 1) * width, 0);
            table.scales.push(unit(values) as f32);
        }
        table.centre = table.cosines(&table.mean());
        table
    }

    /// Mean cosine of each name to all names: what it says to everyone. 0 without a vector.
    pub fn centre(&self) -> &[f32] {
        &self.centre
    }

    /// Similarity of every name to a user's texts, by their vectors and weights: from -2 to 2, 0 for a name without a
    /// vector. Texts without a vector, and weights that are not over 0, do not count.
    pub fn to_user<'a>(
        &self,
        texts: impl IntoIterator<Item = (Option<&'a Vector>, f32)>,
    ) -> Vec<f32> {
        let mut sum = 0f64;
        let mut mean = vec![0f64; self.width];
        for (vector, weight) in texts {
            let Some(vector) = vector.filter(|it| it.values.len() == self.width) else {
                continue;
            };
            let scale = unit(&vector.values);
            if weight > 0.0 && weight.is_finite() && scale > 0.0 {
                let weight = f64::from(weight);
                sum += weight;
                for (mean, x) in mean.iter_mut().zip(&vector.values) {
                    *mean += weight * scale * f64::from(*x);
                }
            }
        }
        if sum == 0.0 {
            return vec![0.0; self.scales.len()];
        }
        mean.iter_mut().for_each(|x| *x /= sum);
        let mut values = self.cosines(&mean);
        for (value, centre) in values.iter_mut().zip(&self.centre) {
            *value -= centre;
        }
        values
    }

    /// The mean of the names that have a vector, each of length 1.
    fn mean(&self) -> Vec<f64> {
        let mut mean = vec![0f64; self.width];
        let mut count = 0usize;
        for (row, scale) in self.values.chunks_exact(self.width).zip(&self.scales) {
            count += usize::from(*scale > 0.0);
            for (mean, x) in mean.iter_mut().zip(row) {
                *mean += f64::from(*x) * f64::from(*scale);
            }
        }
        mean.iter_mut().for_each(|x| *x /= count.max(1) as f64);
        mean
    }

    /// `[names]`: the product of each row of length 1 with a vector.
    fn cosines(&self, vector: &[f64]) -> Vec<f32> {
        let greatest = vector.iter().fold(0f64, |max, x| max.max(x.abs()));
        // A row's sum of magnitudes is at most 128 · width, so the whole product fits into 31 bits.
        let fits = f64::from(i32::MAX) / (128.0 * self.width as f64);
        let step = greatest / f64::from(GREATEST).min(fits.floor());
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        let whole: Vec<i16> = vector
            .iter()
            .map(|x| (x * inverse).round() as i16)
            .collect();
        let rows = self.values.chunks_exact(self.width).zip(&self.scales);
        rows.map(|(row, scale)| product(row, &whole) as f32 * scale * step as f32)
            .collect()
    }
}

/// Factor that makes a vector's length 1; 0 for a vector of zeros.
fn unit(values: &[i8]) -> f64 {
    let square: i64 = values.iter().map(|x| i64::from(*x) * i64::from(*x)).sum();
    if square > 0 {
        1.0 / (square as f64).sqrt()
    } else {
        0.0
    }
}

/// Numbers of a block of [`product`].
const BLOCK: usize = 32;

/// The product of two vectors. Of whole numbers, so that the order of the sums does not matter; widened in blocks, so
/// that the compiler multiplies pairs of 16 bits, which halves the time.
fn product(a: &[i8], b: &[i16]) -> i32 {
    let ((blocks, rest), (other, other_rest)) = (a.as_chunks::<BLOCK>(), b.as_chunks::<BLOCK>());
    let mut sum: i32 = rest.iter().zip(other_rest).map(times).sum();
    for (a, b) in blocks.iter().zip(other) {
        let wide = a.map(i16::from);
        let pairs = wide.iter().zip(b);
        sum += pairs
            .map(|(a, b)| i32::from(*a) * i32::from(*b))
            .sum::<i32>();
    }
    sum
}

fn times((a, b): (&i8, &i16)) -> i32 {
    i32::from(*a) * i32::from(*b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Vectors;
    use super::*;

    const WIDTH: usize = 24;

    fn numbers() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-1.0f32..1.0, WIDTH)
    }

    fn kept(all: &[Vec<f32>]) -> Vectors {
        let mut vectors = Vectors::new("a", WIDTH);
        for (nth, numbers) in all.iter().enumerate() {
            vectors
                .insert(&format!("text {nth}"), numbers)
                .expect("fits");
        }
        vectors
    }

    fn table(vectors: &Vectors, names: usize) -> Similarities {
        let texts: Vec<String> = (0..names).map(|nth| format!("text {nth}")).collect();
        Similarities::new(WIDTH, texts.iter().map(|text| vectors.get(text)))
    }

    fn to_user(table: &Similarities, vectors: &Vectors, texts: &[(&str, f32)]) -> Vec<f32> {
        table.to_user(
            texts
                .iter()
                .map(|(text, weight)| (vectors.get(text), *weight)),
        )
    }

    fn length_1(numbers: &[f32]) -> Vec<f64> {
        let length = numbers
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt();
        numbers
            .iter()
            .map(|x| f64::from(*x) / length.max(1e-30))
            .collect()
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    proptest! {
        #[test]
        fn similarities_are_centred_cosines_within_the_loss_of_whole_numbers(
            all in prop::collection::vec(numbers(), 3..12), weights in prop::collection::vec(0.1f32..3.0, 1..4),
        ) {
            let vectors = kept(&all);
            let table = table(&vectors, all.len());
            let texts: Vec<String> = (0..weights.len().min(all.len())).map(|nth| format!("text {nth}")).collect();
            let texts: Vec<(&str, f32)> = texts.iter().map(String::as_str).zip(weights.iter().copied()).collect();
            let names: Vec<Vec<f64>> = all.iter().map(|numbers| length_1(numbers)).collect();
            let sum: f64 = texts.iter().map(|(_, weight)| f64::from(*weight)).sum();
            let similar = to_user(&table, &vectors, &texts);
            for (name, value) in names.iter().zip(similar) {
                let centre = names.iter().map(|other| dot(name, other)).sum::<f64>() / names.len() as f64;
                let each = names.iter().zip(&texts);
                let mean = each.map(|(text, (_, weight))| f64::from(*weight) * dot(name, text)).sum::<f64>() / sum;
                let expected = mean - centre;
                prop_assert!((f64::from(value) - expected).abs() < 0.02, "{value} {expected}");
            }
        }

        #[test]
        fn two_texts_give_the_weighted_mean_of_what_each_gives(
            all in prop::collection::vec(numbers(), 3..8), one in 0.1f32..3.0, two in 0.1f32..3.0,
        ) {
            let vectors = kept(&all);
            let table = table(&vectors, all.len());
            let of = |texts: &[(&str, f32)]| to_user(&table, &vectors, texts);
            let both = of(&[("text 0", one), ("text 1", two)]);
            let (first, second) = (of(&[("text 0", 1.0)]), of(&[("text 1", 1.0)]));
            for (both, (first, second)) in both.iter().zip(first.iter().zip(&second)) {
                let expected = (one * first + two * second) / (one + two);
                prop_assert!((both - expected).abs() < 1e-3, "{both} {expected}");
            }
        }

        #[test]
        fn a_product_in_blocks_is_the_sum_of_products(
            all in prop::collection::vec((any::<i8>(), -900i16..900), 0..200),
        ) {
            let (a, b): (Vec<i8>, Vec<i16>) = all.into_iter().unzip();
            prop_assert_eq!(product(&a, &b), a.iter().zip(&b).map(times).sum::<i32>());
        }

        #[test]
        fn the_mean_over_names_as_users_is_0(all in prop::collection::vec(numbers(), 1..12)) {
            let vectors = kept(&all);
            let table = table(&vectors, all.len());
            let mut sums = vec![0f64; all.len()];
            for nth in 0..all.len() {
                let similar = to_user(&table, &vectors, &[(&format!("text {nth}"), 1.0)]);
                sums.iter_mut().zip(similar).for_each(|(sum, value)| *sum += f64::from(value));
            }
            for sum in sums {
                prop_assert!((sum / all.len() as f64).abs() < 1e-3, "{sum}");
            }
        }

        #[test]
        fn order_and_scale_of_weights_and_texts_without_vectors_change_nothing(
            all in prop::collection::vec(numbers(), 3..8), factor in 0.5f32..4.0,
        ) {
            let vectors = kept(&all);
            let table = table(&vectors, all.len());
            let one = to_user(&table, &vectors, &[("text 0", 1.0), ("text 1", 2.0)]);
            let two = to_user(
                &table,
                &vectors,
                &[("text 1", 2.0 * factor), ("unknown", 9.0), ("text 0", factor), ("text 2", 0.0),
                    ("text 2", f32::NAN)],
            );
            for (one, two) in one.iter().zip(&two) {
                prop_assert!((one - two).abs() < 1e-3, "{one} {two}");
            }
        }
    }

    #[test]
    fn names_and_users_without_vectors_have_0() {
        let vectors = kept(&[vec![1.0; WIDTH], vec![0.0; WIDTH]]);
        let names = [vectors.get("text 0"), None, vectors.get("text 1")];
        let table = Similarities::new(WIDTH, names);
        let similar = to_user(&table, &vectors, &[("text 0", 1.0)]);
        assert_eq!(similar[1..], [0.0, 0.0], "no vector, and one of zeros");
        assert_eq!(to_user(&table, &vectors, &[("unknown", 1.0)]), [0.0; 3]);
        assert_eq!(table.centre()[1..], [0.0, 0.0]);
        let centre = table.centre()[0];
        assert!(
            (centre - 1.0).abs() < 1e-3,
            "names without a vector do not count: {centre}"
        );
        assert_eq!(to_user(&table, &vectors, &[("text 1", 1.0)]), [0.0; 3]);
        let nothing = Similarities::new(WIDTH, []);
        assert!(to_user(&nothing, &vectors, &[]).is_empty());
    }

    #[test]
    fn the_widest_and_greatest_vectors_do_not_overflow() {
        let width = super::super::WIDTH_MAX;
        let mut vectors = Vectors::new("a", width);
        vectors.insert("one", &vec![1.0; width]).expect("fits");
        vectors.insert("other", &vec![-1.0; width]).expect("fits");
        let table = Similarities::new(width, [vectors.get("one"), vectors.get("other")]);
        let similar = to_user(&table, &vectors, &[("one", 1.0)]);
        for (value, expected) in similar.iter().zip([1.0, -1.0]) {
            assert!((value - expected).abs() < 1e-4, "{similar:?}");
        }
    }
}
