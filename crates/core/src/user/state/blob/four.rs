//! Version 4: the register. A table of SKUs, then baskets: purchases of one time.
//!
//! Invariant: [`into_register`] gives back the register of [`from_register`], bit by bit, and anything else is an error.
//! SKU ids that are decimal numbers are stored as differences of numbers, all others as texts.

use super::*;
use crate::user::state::register::Entry;

#[derive(Serialize, Deserialize)]
pub(super) struct Blob<'a> {
    /// Time and SKU of the floor.
    #[serde(borrow)]
    floor: Option<(i64, &'a str)>,
    /// SKU ids that are numbers, ascending, each as the difference to the one before.
    numbers: Vec<u64>,
    /// All other SKU ids, ascending. Their indices follow those of the numbers.
    #[serde(borrow)]
    texts: Vec<&'a str>,
    /// Difference to the time of the basket before (wrapping, so that any two times have one), and its purchases.
    baskets: Vec<(i64, Vec<Row>)>,
    /// Offsets of the counting positions in the order of the rows, each as the difference to the one before in its
    /// partition, the first to 0.
    offsets: Vec<i64>,
}

/// Difference of the SKU's index to that of the row before in the basket, and a code of count and partition: the count
/// less 1, times one more than there are partitions, plus 0 without a counting position, else 1 + the partition's index.
#[derive(Serialize, Deserialize)]
struct Row(u32, u64);

/// A SKU id as a number, if the number's text is the id.
fn number(sku: &str) -> Option<u64> {
    let number: u64 = sku.parse().ok()?;
    let plain = !sku.starts_with(['0', '+']) || sku == "0";
    plain.then_some(number)
}

pub(super) fn from_register<'a>(
    register: &'a Register,
    partitions: &BTreeMap<&Partition, u32>,
) -> Blob<'a> {
    // Numbers come before texts: `Ok` is less than `Err`.
    let key = |entry: &'a Entry| number(&entry.sku).ok_or(&*entry.sku);
    let entries = register.entries();
    let mut table: BTreeMap<Result<u64, &str>, u32> =
        entries.iter().map(|entry| (key(entry), 0)).collect();
    let (mut numbers, mut texts, mut last) = (Vec::new(), Vec::new(), 0);
    for (nth, (sku, index)) in (0u32..).zip(table.iter_mut()) {
        *index = nth;
        match *sku {
            Ok(number) => {
                numbers.push(number - last);
                last = number;
            }
            Err(text) => texts.push(text),
        }
    }
    let many = partitions.len() as u64 + 1;
    let mut before = vec![0i64; partitions.len()];
    let (mut baskets, mut offsets, mut time) = (Vec::new(), Vec::new(), 0i64);
    for basket in entries.chunk_by(|one, other| one.time == other.time) {
        let mut rows: Vec<(u32, &Entry)> = basket
            .iter()
            .map(|entry| (table[&key(entry)], entry))
            .collect();
        rows.sort_unstable_by_key(|(index, _)| *index);
        let mut last = 0;
        let rows = rows.into_iter().map(|(index, entry)| {
            let mut code = u64::from(entry.count.saturating_sub(1)) * many;
            if let Some(position) = &entry.counting {
                let partition = partitions[&position.partition];
                let offset = position.offset.0;
                let last = std::mem::replace(&mut before[partition as usize], offset);
                offsets.push(offset.wrapping_sub(last));
                code += 1 + u64::from(partition);
            }
            Row(index - std::mem::replace(&mut last, index), code)
        });
        let rows = rows.collect();
        let at = basket[0].time.0;
        baskets.push((at.wrapping_sub(std::mem::replace(&mut time, at)), rows));
    }
    Blob {
        floor: register.floor().map(|(time, sku)| (time.0, sku)),
        numbers,
        texts,
        baskets,
        offsets,
    }
}

pub(super) fn into_register(
    blob: &Blob<'_>,
    partitions: &[Partition],
) -> Result<Register, DecodeError> {
    let mut last = 0u64;
    let numbers = blob.numbers.iter().map(|step| {
        last = last.wrapping_add(*step);
        Arc::from(last.to_string())
    });
    let mut skus: Vec<Arc<str>> = numbers.collect();
    skus.extend(blob.texts.iter().map(|text| Arc::from(*text)));
    let many = partitions.len() as u64 + 1;
    let mut before = vec![0i64; partitions.len()];
    let mut offsets = blob.offsets.iter();
    let mut entries = Vec::new();
    let mut time = 0i64;
    for (step, rows) in &blob.baskets {
        time = time.wrapping_add(*step);
        let mut index = 0u32;
        for Row(step, code) in rows {
            index = index.wrapping_add(*step);
            let sku = skus.get(index as usize);
            let counting = match (code % many).checked_sub(1) {
                None => None,
                Some(partition) => {
                    let partition = partition as usize;
                    let step = offsets.next();
                    let step = step.ok_or_else(|| damaged("the register lacks an offset"))?;
                    before[partition] = before[partition].wrapping_add(*step);
                    Some(Position {
                        partition: partitions[partition].clone(),
                        offset: Offset(before[partition]),
                    })
                }
            };
            let count = u32::try_from(code / many)
                .ok()
                .and_then(|n| n.checked_add(1));
            entries.push(Entry {
                time: Timestamp(time),
                sku: Arc::clone(sku.ok_or_else(|| damaged("a SKU's index is out of range"))?),
                count: count.ok_or_else(|| damaged("a count of the register is out of range"))?,
                counting,
            });
        }
    }
    if offsets.next().is_some() {
        return Err(damaged("the register has an offset too many"));
    }
    entries.sort_by(|one, other| one.key().cmp(&other.key()));
    let floor = blob.floor.map(|(time, sku)| (Timestamp(time), sku.into()));
    Register::of(entries, floor).ok_or_else(|| damaged("the register is not sorted"))
}
