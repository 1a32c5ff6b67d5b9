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

/// The numbers as differences, the texts, and the index of each entry's SKU.
fn table(entries: &[Entry]) -> (Vec<u64>, Vec<&str>, Vec<u32>) {
    // Numbers come before texts: `Ok` is less than `Err`.
    let sku = |entry: &'_ Entry| number(&entry.sku);
    let mut order: Vec<(Result<u64, &str>, usize)> = (entries.iter().enumerate())
        .map(|(nth, entry)| (sku(entry).ok_or(&*entry.sku), nth))
        .collect();
    order.sort_unstable();
    let (mut numbers, mut texts, mut last) = (Vec::new(), Vec::new(), 0);
    let mut index = vec![0; entries.len()];
    for (ordinal, same) in (0u32..).zip(order.chunk_by(|one, other| one.0 == other.0)) {
        match same[0].0 {
            Ok(number) => {
                numbers.push(number - last);
                last = number;
            }
            Err(text) => texts.push(text),
        }
        same.iter().for_each(|(_, nth)| index[*nth] = ordinal);
    }
    (numbers, texts, index)
}

/// The SKUs of the table: all different, for a number's text is no other SKU's text.
fn skus(blob: &Blob<'_>) -> Result<Vec<Arc<str>>, DecodeError> {
    let mut skus: Vec<Arc<str>> = Vec::with_capacity(blob.numbers.len() + blob.texts.len());
    let mut last: Option<u64> = None;
    for step in &blob.numbers {
        let next = last.unwrap_or(0).checked_add(*step);
        let next = next.filter(|_| *step > 0 || last.is_none());
        let next = next.ok_or_else(|| damaged("the SKUs are not sorted"))?;
        skus.push(next.to_string().into());
        last = Some(next);
    }
    let sorted = blob.texts.is_sorted_by(|one, other| one < other);
    if !sorted || blob.texts.iter().any(|text| number(text).is_some()) {
        return Err(damaged("the SKUs are not sorted"));
    }
    skus.extend(blob.texts.iter().map(|text| Arc::from(*text)));
    Ok(skus)
}

pub(super) fn from_register<'a>(
    register: &'a Register,
    partitions: &BTreeMap<&Partition, u32>,
) -> Blob<'a> {
    let entries = register.entries();
    let (numbers, texts, index) = table(entries);
    let many = partitions.len() as u64 + 1;
    let mut before = vec![0i64; partitions.len()];
    let (mut baskets, mut offsets, mut time) = (Vec::new(), Vec::new(), 0i64);
    let mut known: Option<(&Partition, u32)> = None;
    let mut rows: Vec<(u32, &Entry)> = Vec::new();
    let mut begin = 0;
    for basket in entries.chunk_by(|one, other| one.time == other.time) {
        rows.clear();
        rows.extend(index[begin..].iter().copied().zip(basket));
        begin += basket.len();
        rows.sort_unstable_by_key(|(index, _)| *index);
        let mut last = 0;
        let mut row = |&(index, entry): &(u32, &'a Entry)| {
            let mut code = u64::from(entry.count.saturating_sub(1)) * many;
            if let Some(position) = &entry.counting {
                let place = &position.partition;
                let same = known.filter(|(partition, _)| *partition == place);
                let (_, partition) = same.unwrap_or_else(|| (place, partitions[place]));
                known = Some((place, partition));
                let offset = position.offset.0;
                let last = std::mem::replace(&mut before[partition as usize], offset);
                offsets.push(offset.wrapping_sub(last));
                code += 1 + u64::from(partition);
            }
            Row(index - std::mem::replace(&mut last, index), code)
        };
        let at = basket[0].time.0;
        let step = at.wrapping_sub(std::mem::replace(&mut time, at));
        baskets.push((step, rows.iter().map(&mut row).collect()));
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
    let skus = skus(blob)?;
    let mut used = vec![false; skus.len()];
    let many = partitions.len() as u64 + 1;
    let mut before = vec![0i64; partitions.len()];
    let mut offsets = blob.offsets.iter();
    let mut entries = Vec::new();
    let mut time = 0i64;
    for (step, rows) in &blob.baskets {
        time = time.wrapping_add(*step);
        let begin = entries.len();
        let mut index = 0u32;
        for Row(step, code) in rows {
            index = index.wrapping_add(*step);
            let sku = skus.get(index as usize);
            let sku = sku.ok_or_else(|| damaged("a SKU's index is out of range"))?;
            used[index as usize] = true;
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
                sku: Arc::clone(sku),
                count: count.ok_or_else(|| damaged("a count of the register is out of range"))?,
                counting,
            });
        }
        entries[begin..].sort_unstable_by(|one: &Entry, other| one.key().cmp(&other.key()));
    }
    if offsets.next().is_some() {
        return Err(damaged("the register has an offset too many"));
    }
    let floor = blob.floor.map(|(time, sku)| (Timestamp(time), sku.into()));
    let skus = used.into_iter().filter(|used| *used).count();
    Register::of(entries, floor, skus).ok_or_else(|| damaged("the register is not sorted"))
}
