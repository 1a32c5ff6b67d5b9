//! Vectors of texts, as a sentence encoder made them, kept by text.
//!
//! Decides how a vector is kept: the nearest whole numbers from -127 to 127 with one scale per vector, a quarter of
//! 32-bit floats. Invariant: all vectors are of one encoder and of one width, a text and its normal form have the same
//! vector, and [`Vectors::encode`] is a function of the contents. It does not know encoders: it is given their vectors
//! and the hash that names them.

mod file;
mod similarity;

use std::collections::BTreeMap;

pub use similarity::Similarities;

use super::normalise;

/// The most numbers of a vector: encoders in use have at most 4,096.
const WIDTH_MAX: usize = 1 << 13;

/// The greatest magnitude of a kept number.
const GREATEST: f32 = 127.0;

/// Vectors by text.
#[derive(Clone, Debug, PartialEq)]
pub struct Vectors {
    encoder: String,
    width: usize,
    by_text: BTreeMap<String, Vector>,
}

/// A vector as it is kept: each number is `values[i] · scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector {
    scale: f32,
    values: Box<[i8]>,
}

/// A vector that cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Another number of numbers than the encoder's.
    #[error("a vector of {found} numbers, not of {width}: it is of another encoder")]
    Width {
        /// Numbers of the vector.
        found: usize,
        /// Numbers of the encoder's vectors.
        width: usize,
    },
    /// A number is infinite, or not a number.
    #[error("a vector has a number that is not finite")]
    NotFinite,
}

impl Vector {
    /// The nearest vector that can be kept.
    fn nearest(numbers: &[f32]) -> Result<Self, Unfit> {
        if numbers.iter().any(|x| !x.is_finite()) {
            return Err(Unfit::NotFinite);
        }
        let greatest = numbers.iter().fold(0f32, |max, x| max.max(x.abs()));
        let scale = greatest / GREATEST;
        // The smallest numbers have no scale; such a vector has no direction either.
        let inverse = if scale.is_normal() { 1.0 / scale } else { 0.0 };
        let scale = if inverse > 0.0 { scale } else { 0.0 };
        let nearest = numbers.iter().map(|x| (x * inverse).round() as i8);
        Ok(Self {
            scale,
            values: nearest.collect(),
        })
    }

    /// Its numbers.
    pub fn numbers(&self) -> impl Iterator<Item = f32> + '_ {
        let scale = self.scale;
        self.values.iter().map(move |x| f32::from(*x) * scale)
    }
}

impl Vectors {
    /// No vectors yet, of the encoder with this hash, whose vectors have `width` numbers: from 1 to 8,192.
    pub fn new(encoder: &str, width: usize) -> Self {
        assert!((1..=WIDTH_MAX).contains(&width), "{width} is no width");
        Self {
            encoder: encoder.to_owned(),
            width,
            by_text: BTreeMap::new(),
        }
    }

    /// Hash of the encoder that made the vectors.
    pub fn encoder(&self) -> &str {
        &self.encoder
    }

    /// Numbers of each vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.by_text.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_text.is_empty()
    }

    /// Keeps the vector of a text, in place of the one before.
    pub fn insert(&mut self, text: &str, numbers: &[f32]) -> Result<(), Unfit> {
        if numbers.len() != self.width {
            return Err(Unfit::Width {
                found: numbers.len(),
                width: self.width,
            });
        }
        let vector = Vector::nearest(numbers)?;
        self.by_text.insert(normalise(text).into_owned(), vector);
        Ok(())
    }

    /// The vector of a text, if it is kept.
    pub fn get(&self, text: &str) -> Option<&Vector> {
        self.by_text.get(&*normalise(text))
    }

    /// Removes all vectors but those of texts that `is_kept`, which is given their normal forms.
    pub fn retain(&mut self, mut is_kept: impl FnMut(&str) -> bool) {
        self.by_text.retain(|text, _| is_kept(text));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_kept_number_differs_by_at_most_half_a_step(numbers in prop::collection::vec(-3.0f32..3.0, 1..50)) {
            let vector = Vector::nearest(&numbers).expect("finite");
            let greatest = numbers.iter().fold(0f32, |max, x| max.max(x.abs()));
            for (kept, number) in vector.numbers().zip(&numbers) {
                prop_assert!((kept - number).abs() <= greatest / 127.0 * 0.501, "{kept} {number}");
            }
            let again: Vec<f32> = vector.numbers().collect();
            let again = Vector::nearest(&again).expect("finite");
            prop_assert_eq!(again.values, vector.values, "what is kept stays as it is");
        }
    }

    #[test]
    fn a_text_and_its_normal_form_have_one_vector() {
        let mut vectors = Vectors::new("a", 2);
        vectors
            .insert(" BODY\u{200b}  LOTION ", &[1.0, 0.0])
            .expect("fits");
        vectors.insert("BODY LOTION", &[0.0, 1.0]).expect("fits");
        assert_eq!(vectors.len(), 1);
        let found = vectors.get("BODY\tLOTION").expect("kept");
        assert_eq!(found.numbers().collect::<Vec<_>>(), [0.0, 1.0]);
        assert_eq!(vectors.get("body lotion"), None, "letter case is seen");
        vectors.retain(|text| text != "BODY LOTION");
        assert!(vectors.is_empty());
    }

    #[test]
    fn a_vector_that_does_not_fit_is_refused_and_the_one_before_stays() {
        let mut vectors = Vectors::new("a", 2);
        vectors.insert("tea", &[1.0, 0.5]).expect("fits");
        let before = vectors.clone();
        for (numbers, expected) in [
            (&[1.0][..], "a vector of 1 numbers, not of 2"),
            (&[1.0, f32::NAN], "not finite"),
            (&[f32::INFINITY, 0.0], "not finite"),
        ] {
            let error = vectors.insert("tea", numbers).expect_err(expected);
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert_eq!(vectors, before);
        vectors.insert("nothing", &[0.0, 1e-40]).expect("fits");
        let nothing = vectors.get("nothing").expect("kept");
        assert_eq!(nothing.numbers().collect::<Vec<_>>(), [0.0, 0.0]);
    }
}
