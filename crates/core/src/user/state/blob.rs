//! Encodes window, fences and register as bytes: a version byte, then postcard.
//!
//! Invariant: `decode(encode(state, v)) == state` for what version `v` stores, bit by bit. Any other bytes give a
//! [`DecodeError`], never a panic, and allocate at most a small multiple of their length. `erased_at` and the profile are
//! stored beside the blob.
//!
//! Version 1 writes each position and time in full. Version 2 has a table of partitions, times as differences, offsets
//! as differences within a partition, and prices in cents where that is exact. Version 3 is version 2 after the time
//! from which the user's events are complete. Version 4 is version 3 with the register after it; the register of an older
//! version is that of its window.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{DecodeError, Profiled, Register, UserState, WindowEvent};
use crate::user::event::{Item, Kind};
use crate::user::record::{Fences, Offset, Partition, Position, Timestamp};

mod four;

/// Newest version: the default of `state.write_version`, and the most that it may be.
pub const VERSION_CURRENT: u8 = 4;
/// Oldest version that is still read.
pub const VERSION_OLDEST: u8 = 1;

/// Encodes window and fences in a version; an unknown version is written as [`VERSION_CURRENT`].
pub fn encode(state: &UserState, version: u8) -> Vec<u8> {
    let written = match version {
        1 => postcard::to_extend(&one::from_state(state), vec![1]),
        2 => postcard::to_extend(&two::from_state(state, None).0, vec![2]),
        3 => {
            let with_time = (state.complete_since.0, two::from_state(state, None).0);
            postcard::to_extend(&with_time, vec![3])
        }
        _ => {
            let (blob, partitions) = two::from_state(state, Some(&state.register));
            let register = four::from_register(&state.register, &partitions);
            let all = (state.complete_since.0, blob, register);
            postcard::to_extend(&all, vec![VERSION_CURRENT])
        }
    };
    written.expect("a vector grows, and these types have known lengths")
}

/// Decodes a blob into a state, without what is at or before `erased_at`: the caller may pass a later erase of
/// another namespace.
pub fn decode(
    bytes: &[u8],
    profile: Option<Profiled>,
    erased_at: Timestamp,
) -> Result<UserState, DecodeError> {
    let (version, rest) = bytes.split_first().ok_or_else(|| damaged("empty"))?;
    let (since, (window, fences), register) = match *version {
        1 => (0, one::into_parts(read(rest)?)?, None),
        2 => (0, two::into_parts(read(rest)?)?.0, None),
        3 => {
            let (since, blob) = read(rest)?;
            (since, two::into_parts(blob)?.0, None)
        }
        4 => {
            let (since, blob, register) = read(rest)?;
            let (parts, partitions) = two::into_parts(blob)?;
            let register = four::into_register(&register, &partitions)?;
            (since, parts, Some(register))
        }
        0 => return Err(damaged("version 0")),
        found => {
            return Err(DecodeError::Newer {
                found,
                known: VERSION_CURRENT,
            });
        }
    };
    // Events that one record of the source made have one position.
    if !window.is_sorted_by(|a, b| (a.time, &a.position) <= (b.time, &b.position)) {
        return Err(damaged("the window is not sorted"));
    }
    let mut state = UserState {
        register: register.unwrap_or_else(|| Register::of_window(&window)),
        window,
        fences,
        erased_at: Timestamp::default(),
        complete_since: Timestamp(since),
        profile,
    };
    crate::user::fold::erase(&mut state, erased_at);
    Ok(state)
}

fn damaged(why: &str) -> DecodeError {
    DecodeError::Damaged(why.into())
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    let (value, rest) =
        postcard::take_from_bytes(bytes).map_err(|e| DecodeError::Damaged(e.to_string()))?;
    if !rest.is_empty() {
        return Err(DecodeError::Damaged(format!(
            "{} bytes after the end",
            rest.len()
        )));
    }
    Ok(value)
}

// Explicit codes, not the enums' order: variants may be reordered, stored bytes must not change.
fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Impression => 0,
        Kind::View => 1,
        Kind::Click => 2,
        Kind::Cart => 3,
        Kind::Purchase => 4,
        Kind::Search => 5,
    }
}

fn kind_of(code: u8) -> Result<Kind, DecodeError> {
    Ok(match code {
        0 => Kind::Impression,
        1 => Kind::View,
        2 => Kind::Click,
        3 => Kind::Cart,
        4 => Kind::Purchase,
        5 => Kind::Search,
        other => return Err(DecodeError::Damaged(format!("unknown event kind {other}"))),
    })
}

fn item_code(item: &Item) -> (u8, &str) {
    match item {
        Item::Sku(id) => (0, id),
        Item::Pu(id) => (1, id),
        Item::Query(words) => (2, words),
    }
}

fn item_of(code: u8, text: &str) -> Result<Item, DecodeError> {
    Ok(match code {
        0 => Item::Sku(text.into()),
        1 => Item::Pu(text.into()),
        2 => Item::Query(text.into()),
        other => return Err(DecodeError::Damaged(format!("unknown item kind {other}"))),
    })
}

fn checked(price: Option<f64>) -> Result<Option<f64>, DecodeError> {
    if price.is_some_and(|p| !p.is_finite()) {
        return Err(damaged("price is not finite"));
    }
    Ok(price)
}

type Parts = (Vec<WindowEvent>, Fences);

mod one {
    //! Version 1: everything in full.
    use super::*;

    #[derive(Serialize, Deserialize)]
    pub(super) struct Blob<'a> {
        #[serde(borrow)]
        window: Vec<Row<'a>>,
        #[serde(borrow)]
        fences: Vec<Place<'a>>,
    }

    #[derive(Serialize, Deserialize)]
    struct Place<'a>(u32, &'a str, i32, i64);

    #[derive(Serialize, Deserialize)]
    struct Row<'a> {
        time: i64,
        #[serde(borrow)]
        place: Place<'a>,
        kind: u8,
        item: (u8, &'a str),
        qty: u32,
        price: Option<f64>,
    }

    impl<'a> Place<'a> {
        fn new(partition: &'a Partition, offset: Offset) -> Self {
            let number = partition.number;
            Self(partition.incarnation, &partition.topic, number, offset.0)
        }

        fn position(&self) -> Position {
            Position {
                partition: Partition {
                    incarnation: self.0,
                    topic: self.1.into(),
                    number: self.2,
                },
                offset: Offset(self.3),
            }
        }
    }

    pub(super) fn from_state(state: &UserState) -> Blob<'_> {
        let rows = state.window.iter().map(|event| Row {
            time: event.time.0,
            place: Place::new(&event.position.partition, event.position.offset),
            kind: kind_code(event.kind),
            item: item_code(&event.item),
            qty: event.qty,
            price: event.price,
        });
        Blob {
            window: rows.collect(),
            fences: state.fences.iter().map(|(p, o)| Place::new(p, o)).collect(),
        }
    }

    pub(super) fn into_parts(blob: Blob<'_>) -> Result<Parts, DecodeError> {
        let event = |row: &Row<'_>| {
            Ok(WindowEvent {
                time: Timestamp(row.time),
                position: row.place.position(),
                kind: kind_of(row.kind)?,
                item: item_of(row.item.0, row.item.1)?,
                qty: row.qty,
                price: checked(row.price)?,
            })
        };
        let window = blob
            .window
            .iter()
            .map(event)
            .collect::<Result<_, DecodeError>>()?;
        Ok((window, blob.fences.iter().map(Place::position).collect()))
    }
}

mod two {
    //! Version 2: tables and differences.
    use super::*;

    #[derive(Serialize, Deserialize)]
    pub(super) struct Blob<'a> {
        #[serde(borrow)]
        topics: Vec<&'a str>,
        /// Incarnation, index of the topic, partition number, and the fence if there is one.
        partitions: Vec<(u32, u32, i32, Option<i64>)>,
        #[serde(borrow)]
        window: Vec<Row<'a>>,
    }

    #[derive(Serialize, Deserialize)]
    struct Row<'a> {
        /// Difference to the row before; the first is absolute. Wrapping, so that any two times have a difference.
        time: i64,
        /// Index of the partition.
        partition: u32,
        /// Difference to the last row of this partition; the first to its fence.
        offset: i64,
        kind: u8,
        item: u8,
        text: &'a str,
        qty: u32,
        price: Price,
    }

    #[derive(Clone, Copy, Serialize, Deserialize)]
    enum Price {
        None,
        Cents(u64),
        Exact(f64),
    }

    impl Price {
        fn new(price: Option<f64>) -> Self {
            let Some(price) = price else {
                return Self::None;
            };
            let cents = (price * 100.0).round();
            // Below 2^53, dividing gives back the very price, or the price is not in cents. -0.0 is not: an integer has
            // no negative zero.
            let whole = (0.0..9e15).contains(&cents) && cents.is_sign_positive();
            if whole && (cents / 100.0).to_bits() == price.to_bits() {
                return Self::Cents(cents as u64);
            }
            Self::Exact(price)
        }

        fn price(self) -> Option<f64> {
            match self {
                Self::None => None,
                Self::Cents(cents) => Some(cents as f64 / 100.0),
                Self::Exact(price) => Some(price),
            }
        }
    }

    /// The blob, and the index of each partition in it: of fences and window, and of `register` if it is stored beside.
    pub(super) fn from_state<'a>(
        state: &'a UserState,
        register: Option<&'a Register>,
    ) -> (Blob<'a>, BTreeMap<&'a Partition, u32>) {
        // After a fold every partition of the window has a fence, but the encoding does not rely on it.
        let mut index: BTreeMap<&Partition, u32> = BTreeMap::new();
        let fenced = state.fences.iter().map(|(partition, _)| partition);
        let window = state.window.iter().map(|event| &event.position);
        let entries = register.map(Register::entries).unwrap_or_default().iter();
        let counting = entries.filter_map(|entry| entry.counting.as_ref());
        let placed = window.chain(counting).map(|position| &position.partition);
        for partition in fenced.chain(placed) {
            index.entry(partition).or_insert(0);
        }
        let mut topics: Vec<&str> = Vec::new();
        let mut partitions = Vec::with_capacity(index.len());
        for (next, (partition, index)) in (0u32..).zip(index.iter_mut()) {
            *index = next;
            let known = topics.iter().position(|topic| **topic == *partition.topic);
            let topic = known.unwrap_or_else(|| {
                topics.push(&partition.topic);
                topics.len() - 1
            });
            let fence = state.fences.get(partition).map(|offset| offset.0);
            let topic = u32::try_from(topic).expect("fewer topics than partitions");
            partitions.push((partition.incarnation, topic, partition.number, fence));
        }
        let mut before = Before::new(&partitions);
        let rows = state.window.iter().map(|event| {
            let partition = index[&event.position.partition];
            let (item, text) = item_code(&event.item);
            let last = &mut before.offsets[partition as usize];
            let row = Row {
                time: event.time.0.wrapping_sub(before.time),
                partition,
                offset: event.position.offset.0.wrapping_sub(*last),
                kind: kind_code(event.kind),
                item,
                text,
                qty: event.qty,
                price: Price::new(event.price),
            };
            before.time = event.time.0;
            *last = event.position.offset.0;
            row
        });
        let window = rows.collect();
        let blob = Blob {
            topics,
            partitions,
            window,
        };
        (blob, index)
    }

    /// Time and offsets to which the next row is a difference.
    struct Before {
        time: i64,
        offsets: Vec<i64>,
    }

    impl Before {
        fn new(partitions: &[(u32, u32, i32, Option<i64>)]) -> Self {
            Self {
                time: 0,
                offsets: partitions.iter().map(|p| p.3.unwrap_or(0)).collect(),
            }
        }
    }

    /// Window and fences, and the table of partitions.
    pub(super) fn into_parts(blob: Blob<'_>) -> Result<(Parts, Vec<Partition>), DecodeError> {
        let topics: Vec<Arc<str>> = blob.topics.iter().map(|topic| (*topic).into()).collect();
        let mut partitions = Vec::new();
        let mut fences = Fences::default();
        for (incarnation, topic, number, fence) in &blob.partitions {
            let topic = topics.get(*topic as usize);
            let partition = Partition {
                incarnation: *incarnation,
                topic: topic
                    .ok_or_else(|| damaged("a partition's topic index is out of range"))?
                    .clone(),
                number: *number,
            };
            if let Some(offset) = fence {
                fences.raise(&Position {
                    partition: partition.clone(),
                    offset: Offset(*offset),
                });
            }
            partitions.push(partition);
        }
        let mut before = Before::new(&blob.partitions);
        let mut window = Vec::new();
        for row in &blob.window {
            let index = row.partition as usize;
            let partition = partitions.get(index);
            let partition =
                partition.ok_or_else(|| damaged("a row's partition index is out of range"))?;
            before.time = before.time.wrapping_add(row.time);
            before.offsets[index] = before.offsets[index].wrapping_add(row.offset);
            window.push(WindowEvent {
                time: Timestamp(before.time),
                position: Position {
                    partition: partition.clone(),
                    offset: Offset(before.offsets[index]),
                },
                kind: kind_of(row.kind)?,
                item: item_of(row.item, row.text)?,
                qty: row.qty,
                price: checked(row.price.price())?,
            });
        }
        Ok(((window, fences), partitions))
    }
}

#[cfg(test)]
#[path = "blob_tests.rs"]
mod tests;
