//! Reads the demo's data: a year of purchases of 2,469 households, as `scripts/fetch-data` writes them.
//!
//! The files are `products.jsonl`, `households.jsonl` and `transactions.csv`; an error names file and line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::files;

/// Why the data cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A file that cannot be read.
    #[error("{path}: {source}; run scripts/fetch-data")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file that is not text.
    #[error(transparent)]
    Text(#[from] files::Error),
    /// A line that cannot be read.
    #[error("{path}:{line}: {what}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

/// One SKU of the catalogue.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Product {
    /// SKU id.
    pub sku: String,
    /// Product type: the PU.
    pub pu: String,
    /// Category of the type.
    #[serde(default)]
    pub category: Option<String>,
    /// Department.
    #[serde(default)]
    pub department: Option<String>,
    /// `National` or `Private`.
    #[serde(default)]
    pub brand: Option<String>,
    /// Title.
    #[serde(default)]
    pub title: Option<String>,
}

impl Product {
    /// The value of the SKU's `catalog` record.
    pub(super) fn record(&self, stock: i64) -> Value {
        json!({
            "pu": self.pu,
            "category": self.category,
            "title": self.title.as_deref().unwrap_or(&self.pu),
            "stock": stock,
            "attributes": { "department": self.department, "brand": self.brand },
        })
    }
}

/// One household with its demographics.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Household {
    /// Household id: the user.
    pub user: String,
    /// Raw fields, as text.
    #[serde(flatten)]
    pub fields: BTreeMap<String, Value>,
}

impl Household {
    /// The profile in words, as a shop would write it.
    pub(super) fn profile(&self) -> Value {
        let text = |name: &str| {
            let value = self.fields.get(name)?;
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_string);
            (!text.is_empty() && text != "null").then_some(text)
        };
        let mut profile = serde_json::Map::new();
        let mut set = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                profile.insert(name.into(), Value::String(value));
            }
        };
        set("age", text("age").map(|age| format!("{age} years")));
        set(
            "income",
            text("income").map(|income| format!("{income} dollars a year")),
        );
        set(
            "home",
            text("home_ownership").map(|home| home.to_lowercase()),
        );
        set(
            "marital_status",
            text("marital_status").map(|status| status.to_lowercase()),
        );
        set(
            "household",
            text("household_comp").map(|comp| comp.to_lowercase()),
        );
        set("household_size", text("household_size"));
        set("children", text("kids_count").filter(|kids| kids != "0"));
        Value::Object(profile)
    }
}

/// One purchased SKU: a line of `transactions.csv`.
#[derive(Clone, Debug)]
pub(super) struct Purchase {
    /// Time in milliseconds since 1970, in the year of the data.
    pub time: i64,
    /// Household id.
    pub user: String,
    /// SKU id.
    pub sku: String,
    /// Quantity.
    pub qty: u32,
    /// Total paid.
    pub paid: f64,
}

/// Reads all SKUs.
pub(super) fn products(data: &Path) -> Result<Vec<Product>, Error> {
    json_lines(&data.join("products.jsonl"))
}

/// Reads all households with demographics.
pub(super) fn households(data: &Path) -> Result<Vec<Household>, Error> {
    json_lines(&data.join("households.jsonl"))
}

/// Reads the purchases of some households, in time order.
///
/// `keep` says for each household id whether its lines are kept: all 1.4 million would need too much memory.
pub(super) fn purchases(data: &Path, keep: impl Fn(&str) -> bool) -> Result<Vec<Purchase>, Error> {
    let path = data.join("transactions.csv");
    let mut purchases = Vec::new();
    let mut columns: Option<Columns> = None;
    for line in lines(&path)? {
        let (nth, line) = line?;
        let error = |what: String| Error::Line {
            path: path.clone(),
            line: nth,
            what,
        };
        let Some(columns) = &columns else {
            columns = Some(Columns::of(&line).map_err(error)?);
            continue;
        };
        let cells: Vec<&str> = line.split(',').collect();
        if cells.get(columns.user).is_some_and(|user| keep(user)) {
            purchases.push(columns.purchase(&cells).map_err(error)?);
        }
    }
    purchases.sort_by(|a, b| (a.time, &a.user, &a.sku).cmp(&(b.time, &b.user, &b.sku)));
    Ok(purchases)
}

/// Indices of the columns that are used.
struct Columns {
    time: usize,
    user: usize,
    sku: usize,
    qty: usize,
    paid: usize,
}

impl Columns {
    fn of(header: &str) -> Result<Self, String> {
        let names: Vec<&str> = header.trim().split(',').collect();
        let at = |wanted: &str| {
            names
                .iter()
                .position(|name| *name == wanted)
                .ok_or_else(|| {
                    format!("there is no column {wanted:?}; run scripts/fetch-data again")
                })
        };
        Ok(Self {
            time: at("ts_ms")?,
            user: at("household_id")?,
            sku: at("product_id")?,
            qty: at("quantity")?,
            paid: at("sales_value")?,
        })
    }

    fn purchase(&self, cells: &[&str]) -> Result<Purchase, String> {
        let cell = |at: usize| {
            cells
                .get(at)
                .copied()
                .ok_or_else(|| format!("there is no cell {}", at + 1))
        };
        let number = |at: usize| {
            cell(at)?
                .parse::<f64>()
                .map_err(|_| format!("cell {} is not a number", at + 1))
        };
        Ok(Purchase {
            time: cell(self.time)?
                .parse()
                .map_err(|_| "ts_ms is not an integer".to_string())?,
            user: cell(self.user)?.to_string(),
            sku: cell(self.sku)?.to_string(),
            // The data has a few returns (0) and weights (thousands): both count as purchases.
            qty: number(self.qty)?.clamp(1.0, 1000.0) as u32,
            paid: number(self.paid)?,
        })
    }
}

fn lines(path: &Path) -> Result<files::Lines<BufReader<File>>, Error> {
    let file = File::open(path).map_err(|source| Error::Io {
        path: path.into(),
        source,
    })?;
    Ok(files::lines(BufReader::new(file), path))
}

fn json_lines<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>, Error> {
    let read = |line| {
        let (nth, line): (usize, String) = line?;
        serde_json::from_str(&line).map_err(|error| Error::Line {
            path: path.into(),
            line: nth,
            what: error.to_string(),
        })
    };
    lines(path)?.map(read).collect()
}
