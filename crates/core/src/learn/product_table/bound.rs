//! A product table by the numbers of a served catalogue, and what it says of a user.
//!
//! Invariant: the order of a user's products changes no value, and a value is a mean over the user's *other* products.
//! It does not know ids beyond the catalogue's.

use std::sync::Arc;

use super::ProductTable;

/// What is read of one product.
#[derive(Clone, Debug)]
struct Bound {
    has_column: bool,
    /// Value of products that are not named.
    rest: f32,
    /// Products with what is added to the value that they have otherwise: `rest` here, or that of their own row where
    /// they have no column.
    more: Vec<(u32, f32)>,
}

/// A product table bound to a catalogue.
#[derive(Clone, Debug)]
pub struct BoundTable {
    /// Per product of the catalogue: its row.
    rows: Vec<Option<Bound>>,
    /// 1 where a product has a column, else 0.
    has_column: Vec<f32>,
    /// Products with a row and no column, with the value that their row has for products that it does not name.
    symmetric: Vec<(u32, f32)>,
    /// Number of products with neither.
    lacking: usize,
}

impl BoundTable {
    /// Binds a table to `products` products, of which `place` is the number by id.
    pub(crate) fn new(
        table: &ProductTable,
        products: usize,
        place: impl Fn(&str) -> Option<u32>,
    ) -> Self {
        let places: Vec<Option<u32>> = table.products.iter().map(|id| place(id)).collect();
        let columns = table.columns();
        let mut rows: Vec<Option<Bound>> = vec![None; products];
        let mut has_column = vec![0.0; products];
        let mut symmetric = Vec::new();
        for (nth, place) in places.iter().enumerate() {
            let Some(pu) = *place else { continue };
            let row = &table.rows[nth];
            let kept = row
                .kept
                .iter()
                .filter_map(|(column, value)| Some((places[*column as usize]?, value - row.rest)));
            rows[pu as usize] = Some(Bound {
                has_column: nth < columns,
                rest: row.rest,
                more: kept.collect(),
            });
            match nth < columns {
                true => has_column[pu as usize] = 1.0,
                false => symmetric.push((pu, row.rest)),
            }
        }
        // Whoever has such a product's column in hand looks up its row: the other way round, once for all.
        for (new, _) in &symmetric {
            let more = rows[*new as usize].as_ref().map(|row| row.more.clone());
            for (pu, value) in more.unwrap_or_default() {
                if let Some(row) = &mut rows[pu as usize] {
                    row.more.push((*new, value));
                }
            }
        }
        Self {
            lacking: rows.iter().filter(|row| row.is_none()).count(),
            rows,
            has_column,
            symmetric,
        }
    }

    /// Number of products of the catalogue that have neither row nor column: their value is 0.
    pub fn lacking(&self) -> usize {
        self.lacking
    }

    /// Mean value of each product over the others of a user's products; `None` if none of these has a row.
    pub fn values(&self, own: impl Iterator<Item = u32>) -> Option<Arc<[f32]>> {
        let mut own: Vec<u32> = own.collect();
        own.sort_unstable();
        own.dedup();
        let row = |pu: &u32| self.rows.get(*pu as usize)?.as_ref();
        let known: Vec<(u32, &Bound)> = own.iter().filter_map(|pu| Some((*pu, row(pu)?))).collect();
        if known.is_empty() {
            return None;
        }
        let n = known.len() as f32;
        let rest: f32 = known.iter().map(|(_, row)| row.rest).sum::<f32>() / n;
        let mut values: Vec<f32> = self.has_column.iter().map(|has| has * rest).collect();
        let with_column = known.iter().filter(|(_, row)| row.has_column).count() as f32;
        for (pu, rest) in &self.symmetric {
            values[*pu as usize] = rest * with_column / n;
        }
        for (_, row) in &known {
            for (pu, more) in &row.more {
                values[*pu as usize] += more / n;
            }
        }
        for (pu, row) in &known {
            // Its own row named it with `rest` only, which is no value of it.
            let value = &mut values[*pu as usize];
            *value = match (known.len(), row.has_column) {
                (1, _) => 0.0,
                (_, true) => (*value - row.rest / n) * n / (n - 1.0),
                (_, false) => *value * n / (n - 1.0),
            };
        }
        Some(values.into())
    }
}
