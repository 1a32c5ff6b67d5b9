//! A model's table of products: how much likelier it names one product after another than after any.
//!
//! Decides what is kept of the scores of all names after prompts that name one product each. Scores are double-centred:
//! less the mean of their row, which is of the prompt, and less what the model says of a product to everyone. A row
//! keeps its best [`ROW_MAX`] values exactly; the others have the least of these, so that nothing jumps where the row
//! ends. Invariant: products are matched by id; a row's mean over the other products is 0, so that a product of which
//! nothing is known, at 0, is neither preferred nor held back; equal scores give equal bytes. It does not know models.

mod bound;
mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use bound::BoundTable;

/// The most values that a row keeps: memory is products times this.
const ROW_MAX: usize = 200;

/// Where a table comes from: tables of two origins cannot be put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Revision of the model.
    pub model: String,
    /// The prompts, with `{name}` where the product's name is.
    pub wordings: Vec<String>,
}

/// A table of products by products. The first products have a column, all have a row: a product that was added later
/// has none, and its row is read instead, because the model was not asked again about the others.
#[derive(Clone, Debug, PartialEq)]
pub struct ProductTable {
    origin: Origin,
    /// Ids of products, those with a column first.
    products: Vec<String>,
    /// What the model says of each product with a column to everyone, less the mean of that.
    common: Vec<f32>,
    rows: Vec<Row>,
}

/// The values of one product's row.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    /// Value of the columns that are not kept.
    rest: f32,
    /// Columns that are kept with their values, ascending.
    kept: Vec<(u32, f32)>,
}

impl ProductTable {
    /// The table of all products. `scores[i][j]` is the score of product `j` after the prompts that name `i`, in nats.
    pub fn build(origin: Origin, products: Vec<String>, scores: &[Vec<f32>]) -> Self {
        let columns = products.len();
        let mut sums = vec![0f64; columns];
        for row in scores {
            let each = sums.iter_mut().zip(row);
            each.for_each(|(sum, score)| *sum += f64::from(*score));
        }
        let n = scores.len().max(1) as f64;
        let grand = sums.iter().sum::<f64>() / n / columns.max(1) as f64;
        let common: Vec<f32> = sums.iter().map(|sum| (sum / n - grand) as f32).collect();
        let rows = (0..).zip(scores);
        let rows = rows
            .map(|(nth, row)| Row::of(row, &common, Some(nth)))
            .collect();
        Self {
            origin,
            products,
            common,
            rows,
        }
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Number of products with a row.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Number of products with a column.
    pub fn columns(&self) -> usize {
        self.common.len()
    }

    /// Positions of those of `products` that have no row.
    pub fn lacking(&self, products: &[String]) -> Vec<usize> {
        let known = self.places();
        let lacks = (0..).zip(products);
        let lacks = lacks.filter(|(_, id)| !known.contains_key(id.as_str()));
        lacks.map(|(nth, _)| nth).collect()
    }

    /// The table of other products: rows of products that remain are kept, and those that were lacking are added with
    /// the scores of all `products` after their prompts, in the order of [`lacking`](Self::lacking).
    pub fn extended(&self, products: &[String], scores: &[Vec<f32>]) -> Self {
        let at: BTreeMap<&str, usize> = (products.iter().enumerate())
            .map(|(nth, id)| (id.as_str(), nth))
            .collect();
        let remains: Vec<usize> = (0..self.products.len())
            .filter(|old| at.contains_key(self.products[*old].as_str()))
            .collect();
        let columns = remains.partition_point(|old| *old < self.columns());
        let mut column_of = vec![None; self.columns()];
        for (new, old) in remains[..columns].iter().enumerate() {
            column_of[*old] = Some(new as u32);
        }
        let common: Vec<f32> = remains[..columns]
            .iter()
            .map(|old| self.common[*old])
            .collect();
        let mut all: Vec<String> = Vec::with_capacity(products.len());
        let mut rows = Vec::with_capacity(products.len());
        for old in remains {
            all.push(self.products[old].clone());
            rows.push(self.rows[old].renumbered(&column_of));
        }
        let places: Vec<usize> = all[..columns].iter().map(|id| at[id.as_str()]).collect();
        for (nth, scores) in self.lacking(products).into_iter().zip(scores) {
            let of_columns: Vec<f32> = places.iter().map(|place| scores[*place]).collect();
            all.push(products[nth].clone());
            rows.push(Row::of(&of_columns, &common, None));
        }
        Self {
            origin: self.origin.clone(),
            products: all,
            common,
            rows,
        }
    }

    /// Row numbers by id.
    fn places(&self) -> BTreeMap<&str, usize> {
        let ids = self.products.iter().enumerate();
        ids.map(|(nth, id)| (id.as_str(), nth)).collect()
    }
}

impl Row {
    /// A row of the scores of all columns; its own column, if it has one, is not part of it.
    fn of(scores: &[f32], common: &[f32], own: Option<usize>) -> Self {
        let n = scores.len().max(1) as f64;
        let sum: f64 = scores.iter().map(|score| f64::from(*score)).sum();
        let sum_common: f64 = common.iter().map(|value| f64::from(*value)).sum();
        // With all columns the mean of what is common is 0; after products are gone it is not.
        let (mean, mean_common) = (sum / n, sum_common / n);
        let centred = scores
            .iter()
            .zip(common)
            .map(|(score, common)| f64::from(*score) - mean - (f64::from(*common) - mean_common));
        let others = (0..).zip(centred).filter(|(nth, _)| Some(*nth) != own);
        let mut values: Vec<(usize, f64)> = others.collect();
        values.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let dropped = values.len().saturating_sub(ROW_MAX);
        values.truncate(ROW_MAX);
        let rest = values.last().map_or(0.0, |(_, least)| *least);
        let sum: f64 = values.iter().map(|(_, value)| value).sum();
        let sum = sum + rest * dropped as f64;
        let mean = sum / (values.len() + dropped).max(1) as f64;
        values.sort_by_key(|(column, _)| *column);
        let kept = values
            .into_iter()
            .map(|(column, value)| (column as u32, (value - mean) as f32));
        Self {
            kept: kept.collect(),
            rest: (rest - mean) as f32,
        }
    }

    /// The same row with other numbers of columns; those without one are dropped.
    fn renumbered(&self, column_of: &[Option<u32>]) -> Self {
        let kept = self.kept.iter().filter_map(|(column, value)| {
            let column = column_of.get(*column as usize).copied().flatten()?;
            Some((column, *value))
        });
        Self {
            kept: kept.collect(),
            rest: self.rest,
        }
    }
}
