//! The training samples of `align` as a Parquet file, for models that others fit with Spark or DuckDB: [`write`].
//!
//! A row is a case: one user at one cut with one amount of visible history, what is known of the user, and what was
//! bought in the window after. Invariant: rows are those that `align` fits to, before they are sampled; they are in the order of
//! cut, fold and user, so equal logs and options give equal files. A user is a hash, not an id.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use sha2::{Digest, Sha256};

use super::align::{AlignOptions, Among, Taught, cuts, everyone, no_tables, visible_cases};
use super::{Case, DAY, History, Knowledge};
use crate::config::Config;

/// Columns, in the order in which they are written. A repeated column is a list.
const SCHEMA: &str = "message sample {
    required binary user (UTF8);
    required int64 cut (TIMESTAMP_MILLIS);
    required int32 fold;
    required int32 visible;
    required binary segment (UTF8);
    repeated binary own (UTF8);
    repeated double own_days;
    repeated int32 own_count;
    repeated binary targets (UTF8);
    repeated binary new_targets (UTF8);
}";

/// Writes the samples beside their place and renames them, so that a reader sees all or nothing; how many there are.
pub(crate) fn write(
    history: &History,
    config: &Config,
    options: &AlignOptions,
    path: &Path,
) -> anyhow::Result<u64> {
    let among = everyone(history)?;
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let place = || format!("cannot write {}", part.display());
    let file = std::fs::File::create(&part).with_context(place)?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let schema = parse_message_type(SCHEMA)?;
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?;
    let mut written = 0;
    for cut in cuts(history, options, &among)? {
        let taught = untaught(history, config, (options, cut))?;
        for fold in 0..options.folds {
            let cases = visible_cases(config, (options, &among), (&taught, fold))?;
            let rows = Rows {
                history,
                among: &among,
                options,
                cut,
                fold,
                cases: &cases,
            };
            let mut group = writer.next_row_group()?;
            rows.write(&mut group).with_context(place)?;
            group.close()?;
            written += cases.len() as u64;
        }
    }
    writer.close().with_context(place)?;
    std::fs::rename(&part, path)
        .with_context(|| format!("cannot rename {} to {}", part.display(), path.display()))?;
    Ok(written)
}

/// A shop at a cut that nobody taught: cases need its catalogue and rules alone.
fn untaught(
    history: &History,
    config: &Config,
    (options, cut): (&AlignOptions, Timestamp),
) -> anyhow::Result<Taught> {
    let shop = Knowledge {
        history,
        config,
        users: Vec::new(),
        cut,
        window: options.window,
        cold: None,
    };
    Taught::new(shop.plain_shop(), no_tables(history))
}

/// The rows of one cut and fold.
struct Rows<'a> {
    history: &'a History,
    among: &'a Among<'a>,
    options: &'a AlignOptions,
    cut: Timestamp,
    fold: usize,
    cases: &'a [Case],
}

impl Rows<'_> {
    fn write(&self, group: &mut SerializedRowGroupWriter<'_, std::fs::File>) -> anyhow::Result<()> {
        let (cut, fold) = (self.cut.0, i32::try_from(self.fold).unwrap_or(i32::MAX));
        let days = |at: Timestamp| cut.saturating_sub(at.0) as f64 / DAY as f64;
        let count = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let own = |case: &Case| -> Vec<u32> { case.own.iter().map(|own| own.pu).collect() };
        one::<ByteArrayType>(group, self.each(|case| self.user(case)))?;
        one::<Int64Type>(group, self.each(|_| cut))?;
        one::<Int32Type>(group, self.each(|_| fold))?;
        one::<Int32Type>(group, self.each(|case| count(case.own.len() as u32)))?;
        one::<ByteArrayType>(group, self.each(|case| (&*case.segment).into()))?;
        list::<ByteArrayType>(group, &self.each(|case| self.names(&own(case))))?;
        let ages = |case: &Case| case.own.iter().map(|own| days(own.last)).collect();
        list::<DoubleType>(group, &self.each(ages))?;
        let counts = |case: &Case| case.own.iter().map(|own| count(own.count)).collect();
        list::<Int32Type>(group, &self.each(counts))?;
        list::<ByteArrayType>(group, &self.each(|case| self.names(&case.targets)))?;
        list::<ByteArrayType>(group, &self.each(|case| self.names(&case.new_targets)))
    }

    fn each<T>(&self, of: impl Fn(&Case) -> T) -> Vec<T> {
        self.cases.iter().map(of).collect()
    }

    /// Ids of products.
    fn names(&self, products: &[u32]) -> Vec<ByteArray> {
        let pus = self.history.catalogue.pus();
        let known = products.iter().filter_map(|pu| pus.get(*pu as usize));
        known.map(|pu| (&*pu.id).into()).collect()
    }

    fn user(&self, case: &Case) -> ByteArray {
        let UserId(id) = &self.among.users[case.user as usize].id;
        let mut hash = Sha256::new();
        hash.update(self.options.seed.to_le_bytes());
        hash.update(id.as_bytes());
        hex::encode(&hash.finalize()[..8]).as_str().into()
    }
}

/// Writes a column with one value a row.
fn one<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, std::fs::File>,
    values: Vec<T::T>,
) -> anyhow::Result<()> {
    let mut column = group.next_column()?.context("the schema has the column")?;
    column.typed::<T>().write_batch(&values, None, None)?;
    Ok(column.close()?)
}

/// Writes a column with a list a row.
fn list<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, std::fs::File>,
    rows: &[Vec<T::T>],
) -> anyhow::Result<()> {
    let mut column = group.next_column()?.context("the schema has the column")?;
    let values: Vec<T::T> = rows.iter().flatten().cloned().collect();
    // An empty list is one entry without a value; of a list all but the first entry repeat the row (Dremel, VLDB 2010).
    let (mut defined, mut repeated) = (Vec::new(), Vec::new());
    for row in rows {
        defined.extend(std::iter::repeat_n(
            i16::from(!row.is_empty()),
            row.len().max(1),
        ));
        repeated.extend((0..row.len().max(1)).map(|nth| i16::from(nth > 0)));
    }
    let typed = column.typed::<T>();
    typed.write_batch(&values, Some(&defined), Some(&repeated))?;
    Ok(column.close()?)
}
