//! Reads Parquet: the same columns as CSV, with the file's own types.
//!
//! Invariant: a type that the reader of rows does not know is an error that names its column, before any row is read.
//! Numbers, texts and times become what the same cell of a JSON line is.

use std::collections::BTreeMap;
use std::path::Path;

use indicatif::ProgressBar;
use jiff::ToSpan;
use jiff::civil::date;
use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type};
use parquet::data_type::Decimal;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use serde_json::{Map, Value};

use super::{Error, Rows, row, table};

/// How many units of a column's times are a millisecond.
type Units = BTreeMap<String, i64>;

/// Reads a Parquet file.
pub(super) fn read(path: &Path, bar: &ProgressBar, rows: &mut Rows) -> Result<(), Error> {
    let damaged = |error: parquet::errors::ParquetError| Error::Parquet {
        path: path.into(),
        what: error.to_string(),
    };
    let file = super::open(path)?;
    let size = file.metadata().map_or(0, |of| of.len());
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let top = schema.root_schema().get_fields();
    let names: Vec<String> = top.iter().map(|field| field.name().to_owned()).collect();
    let error = |what| Error::Columns {
        path: path.into(),
        what,
    };
    table::check(rows.topic, &names).map_err(error)?;
    let units = units(schema).map_err(error)?;
    let groups = reader.num_row_groups();
    let mut nth = 0;
    for group in 0..groups {
        let group = reader.get_row_group(group).map_err(damaged)?;
        for found in RowIter::from_row_group(None, &*group).map_err(damaged)? {
            nth += 1;
            let columns = found.map_err(damaged)?.into_columns();
            rows.add(nth, Ok(fields(rows, columns, &units)));
        }
        bar.inc(size / groups as u64);
    }
    Ok(())
}

fn fields(rows: &Rows, columns: Vec<(String, Field)>, units: &Units) -> Map<String, Value> {
    let mut fields = Map::new();
    for (name, field) in columns {
        let value = match (units.get(&name), &field) {
            (Some(per_milli), Field::Long(time)) => Value::from(time.div_euclid(*per_milli)),
            _ => value(field),
        };
        let value = match row::is_number(rows.topic, &name) {
            true => row::number(value),
            false => value,
        };
        fields.insert(name, value);
    }
    fields
}

/// Checks that every column can be read, and finds the units of those that are times without a converted type.
fn units(schema: &SchemaDescriptor) -> Result<Units, String> {
    let mut units = Units::new();
    for column in schema.columns() {
        if !is_read(column) {
            return Err(format!(
                "column {:?} has the type {:?} {:?}, which is not read; cast it to text, an integer, a float or a timestamp",
                column.path().string(),
                column.physical_type(),
                column.converted_type(),
            ));
        }
        if let Some(LogicalType::Timestamp(time)) = column.logical_type_ref() {
            let per_milli = match time.unit {
                TimeUnit::MILLIS => 1,
                TimeUnit::MICROS => 1_000,
                TimeUnit::NANOS => 1_000_000,
            };
            units.insert(column.path().string(), per_milli);
        }
    }
    Ok(units)
}

/// Whether the reader of rows knows a column's type; of any other it would panic.
fn is_read(column: &ColumnDescriptor) -> bool {
    use ConvertedType as C;
    match (column.physical_type(), column.converted_type()) {
        (Type::BOOLEAN | Type::INT96 | Type::FLOAT | Type::DOUBLE, _) => true,
        (Type::INT32, of) => !matches!(
            of,
            C::TIME_MICROS
                | C::TIMESTAMP_MILLIS
                | C::TIMESTAMP_MICROS
                | C::INT_64
                | C::UINT_64
                | C::INTERVAL
                | C::UTF8
                | C::ENUM
                | C::JSON
                | C::BSON
        ),
        (Type::INT64, of) => matches!(
            of,
            C::INT_64
                | C::UINT_64
                | C::NONE
                | C::TIME_MICROS
                | C::TIMESTAMP_MILLIS
                | C::TIMESTAMP_MICROS
                | C::DECIMAL
        ),
        (Type::BYTE_ARRAY, of) => matches!(
            of,
            C::UTF8 | C::ENUM | C::JSON | C::BSON | C::NONE | C::DECIMAL
        ),
        (Type::FIXED_LEN_BYTE_ARRAY, of) => matches!(of, C::DECIMAL | C::NONE),
    }
}

fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(value),
        Field::Byte(n) => n.into(),
        Field::Short(n) => n.into(),
        Field::Int(n) => n.into(),
        Field::Long(n) => n.into(),
        Field::UByte(n) => n.into(),
        Field::UShort(n) => n.into(),
        Field::UInt(n) => n.into(),
        Field::ULong(n) => n.into(),
        Field::Float16(n) => float(&f32::from(n).to_string()),
        // By its shortest text: 1.99 must not become 1.9900000095.
        Field::Float(n) => float(&n.to_string()),
        Field::Double(n) => serde_json::Number::from_f64(n).map_or(Value::Null, Value::Number),
        Field::Decimal(n) => float(&decimal(&n)),
        Field::Str(text) => Value::String(text),
        Field::Bytes(bytes) => Value::String(String::from_utf8_lossy(bytes.data()).into_owned()),
        Field::Date(days) => day(days),
        Field::TimeMillis(time) => time.into(),
        Field::TimeMicros(time) => time.into(),
        Field::TimestampMillis(time) => time.into(),
        Field::TimestampMicros(time) => time.div_euclid(1_000).into(),
        Field::Group(row) => {
            let columns = row.into_columns().into_iter();
            Value::Object(columns.map(|(name, field)| (name, value(field))).collect())
        }
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().cloned();
            let named = entries.map(|(name, field)| match value(name) {
                Value::String(name) => (name, value(field)),
                other => (other.to_string(), value(field)),
            });
            Value::Object(named.collect())
        }
    }
}

/// A number by its text; not a number is absent.
fn float(text: &str) -> Value {
    text.parse()
        .ok()
        .and_then(serde_json::Number::from_f64)
        .map_or(Value::Null, Value::Number)
}

/// The text of a decimal, exact up to 38 digits.
fn decimal(of: &Decimal) -> String {
    let negative = of.data().first().is_some_and(|byte| byte & 0x80 != 0);
    let start = if negative { -1_i128 } else { 0 };
    let unscaled = of
        .data()
        .iter()
        .fold(start, |sum, byte| sum.wrapping_shl(8) | i128::from(*byte));
    format!("{unscaled}e-{}", of.scale())
}

/// A date as text.
fn day(days: i32) -> Value {
    let day = date(1970, 1, 1).checked_add(days.days());
    day.map_or(Value::Null, |day| Value::String(day.to_string()))
}
