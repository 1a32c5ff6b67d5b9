//! An artefact bound to the served catalogue: its tables by the catalogue's indices.
//!
//! Invariant: products are matched by id, never by position; a product that the artefact does not know has the value
//! that says nothing. It does not know users' states beyond the products they bought.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::learn::choice::ChoiceModel;
use crate::learn::product_table::{BoundTable, ProductTable};
use crate::list::terms::OwnProduct;
use crate::list::terms::artefact::Artefact;
use crate::names::head::BoundHead;
use crate::shop::catalogue::Catalogue;
use crate::user::record::Timestamp;

/// Milliseconds of a day.
const DAY_MS: f64 = 86_400_000.0;

/// Least share of the artefact's products that the catalogue must have, and of the catalogue's that the artefact must.
const KNOWN_MIN: f64 = 0.5;

/// Sum of cosines at which the logarithm of their term begins to bend.
const COSINE_SCALE: f32 = 0.1;

/// An artefact that is of another catalogue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the artefact {hash} is of another catalogue: {known} of its {products} products are among the {served} of this one; \
     run `nearshore align` on this shop's log"
)]
pub struct ForeignError {
    hash: String,
    known: usize,
    products: usize,
    served: usize,
}

/// An artefact, with the catalogue's indices of its products.
#[derive(Clone, Debug)]
pub struct Learned {
    artefact: Arc<Artefact>,
    /// Version of the catalogue's names that it is bound to.
    names: u64,
    /// Per PU of the catalogue: its row.
    rows: Vec<Option<u32>>,
    /// Per column of the artefact: its value per PU.
    columns: BTreeMap<String, Arc<[f32]>>,
    table: Option<Arc<BoundTable>>,
    head: Option<Arc<BoundHead>>,
}

impl Learned {
    /// Binds an artefact; refused if the catalogue has under half of its products, or it has under half of the
    /// catalogue's.
    pub fn bind(artefact: &Arc<Artefact>, catalogue: &Catalogue) -> Result<Self, ForeignError> {
        let products = &artefact.tables.products;
        let mut rows = vec![None; catalogue.pus().len()];
        let mut known = 0;
        for (row, id) in products.iter().enumerate() {
            if let Some(pu) = catalogue.by_pu(id) {
                rows[pu.at()] = Some(row as u32);
                known += 1;
            }
        }
        let served = rows.len();
        if (known as f64) < KNOWN_MIN * products.len().max(served) as f64 {
            return Err(ForeignError {
                hash: artefact.hash.clone(),
                known,
                products: products.len(),
                served,
            });
        }
        let columns = artefact.tables.columns.iter().map(|(name, column)| {
            let of = |row: &Option<u32>| row.map_or(0.0, |row| column[row as usize]);
            (name.clone(), rows.iter().map(of).collect())
        });
        let columns = columns.collect();
        let table = artefact.table.as_ref();
        let table = table.map(|table| Arc::new(bind_table(table, catalogue)));
        let head = artefact.head.as_ref().map(|head| {
            let names = catalogue.pus().iter().map(|pu| pu.name.clone());
            Arc::new(BoundHead::new(head, names))
        });
        Ok(Self {
            table,
            head,
            artefact: Arc::clone(artefact),
            names: catalogue.names_version(),
            rows,
            columns,
        })
    }

    /// The artefact.
    pub fn artefact(&self) -> &Arc<Artefact> {
        &self.artefact
    }

    /// Version of the catalogue's names that it is bound to.
    pub fn names_version(&self) -> u64 {
        self.names
    }

    /// How SKUs under a name are chosen, if the artefact says so.
    pub(crate) fn choice(&self) -> Option<&Arc<ChoiceModel>> {
        self.artefact.choice.as_ref()
    }

    /// The model's table of products, if the artefact has one.
    pub fn table(&self) -> Option<&BoundTable> {
        self.table.as_deref()
    }

    /// The head, if the artefact has one.
    pub fn head(&self) -> Option<&Arc<BoundHead>> {
        self.head.as_ref()
    }

    /// A term that says the same to everyone, per PU of the catalogue.
    pub(crate) fn column(&self, term: &str) -> Option<Arc<[f32]>> {
        self.columns.get(term).cloned()
    }

    /// Repeat values of the products that a user bought.
    pub(crate) fn repeat(&self, own: &[OwnProduct], at: Timestamp) -> Option<Arc<[(u32, f32)]>> {
        let table = self.artefact.tables.repeat.as_ref()?;
        let values = own.iter().filter_map(|own| {
            let value = table.value(self.row(own.pu)?, days(own, at), own.count);
            Some((own.pu, value))
        });
        Some(values.collect())
    }

    /// Lift of each product by the products that a user bought; `None` if none of them is known.
    pub(crate) fn lift(&self, own: &[OwnProduct]) -> Option<Arc<[f32]>> {
        let table = self.artefact.tables.neighbours.as_ref()?;
        let visible = self.visible(own)?;
        let mut values = Vec::new();
        table.lift(&visible, &mut values);
        Some(self.of_catalogue(&values))
    }

    /// Cosine of each product to the products that a user bought; `None` if none of them is known.
    pub(crate) fn cosine(&self, own: &[OwnProduct]) -> Option<Arc<[f32]>> {
        let table = self.artefact.tables.neighbours.as_ref()?;
        let visible = self.visible(own)?;
        let mut values = Vec::new();
        table.cosine(&visible, COSINE_SCALE, &mut values);
        Some(self.of_catalogue(&values))
    }

    /// Where walks from the products that a user bought end; `None` if none of them is known.
    pub(crate) fn walk(&self, own: &[OwnProduct]) -> Option<Arc<[f32]>> {
        let table = self.artefact.tables.walk.as_ref()?;
        let visible = self.visible(own)?;
        let mut values = Vec::new();
        table.values(&visible, &mut values);
        Some(self.of_catalogue(&values))
    }

    /// The rows of what a user bought. Old purchases count as new ones do: recency weights did not help.
    fn visible(&self, own: &[OwnProduct]) -> Option<Vec<(u32, f32)>> {
        let rows = own.iter().filter_map(|own| Some((self.row(own.pu)?, 1.0)));
        let rows: Vec<(u32, f32)> = rows.collect();
        (!rows.is_empty()).then_some(rows)
    }

    /// Values by row as values by PU of the catalogue.
    fn of_catalogue(&self, values: &[f32]) -> Arc<[f32]> {
        let of = |row: &Option<u32>| row.map_or(0.0, |row| values[row as usize]);
        self.rows.iter().map(of).collect()
    }

    fn row(&self, pu: u32) -> Option<u32> {
        self.rows.get(pu as usize).copied().flatten()
    }
}

/// A product table by the numbers of a catalogue.
pub fn bind_table(table: &ProductTable, catalogue: &Catalogue) -> BoundTable {
    let place = |id: &str| catalogue.by_pu(id).map(|pu| pu.0);
    BoundTable::new(table, catalogue.pus().len(), place)
}

/// Age of a user's last purchase of a product, in days.
fn days(own: &OwnProduct, at: Timestamp) -> f32 {
    (at.0.saturating_sub(own.last.0).max(0) as f64 / DAY_MS) as f32
}
