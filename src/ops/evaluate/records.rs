//! A user's records as bytes: a fifth of what they are as values, in memory as in a file of `align --part`.
//!
//! Invariant: what is read is what was stored, in the order of time, then position in the log. Positions are numbered
//! anew in that order, so that no record is below the fence of an earlier one. It does not know files.

use std::sync::Arc;

use nearshore_core::user::event::{Accepted, Change, Event, Item, Kind, Profile, ShownIn, UserId};
use nearshore_core::user::record::{Offset, Partition, Position, Timestamp};
use serde::{Deserialize, Serialize};

/// All records of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Records(Box<[u8]>);

/// One of them. Times are differences to the record before.
#[derive(Serialize, Deserialize)]
struct Stored {
    after: i64,
    change: StoredChange,
}

/// [`Change`] in a form that does not describe itself.
#[derive(Serialize, Deserialize)]
enum StoredChange {
    Erase,
    /// As JSON, with fields in their order.
    Profile(String),
    Event {
        kind: Kind,
        item: Item,
        qty: u32,
        price: Option<f64>,
        ts: Option<i64>,
        shown_in: Option<(String, Option<u32>)>,
    },
}

impl From<Change> for StoredChange {
    fn from(change: Change) -> Self {
        match change {
            Change::Erase => Self::Erase,
            Change::Profile(profile) => {
                Self::Profile(serde_json::to_string(&profile).expect("keys of a profile are texts"))
            }
            Change::Event(event) => Self::Event {
                kind: event.kind,
                item: event.item,
                qty: event.qty,
                price: event.price,
                ts: event.ts.map(|ts| ts.0),
                shown_in: event.shown_in.map(|it| (it.list_id, it.position)),
            },
        }
    }
}

impl TryFrom<StoredChange> for Change {
    type Error = serde_json::Error;

    fn try_from(stored: StoredChange) -> Result<Self, Self::Error> {
        Ok(match stored {
            StoredChange::Erase => Self::Erase,
            StoredChange::Profile(json) => Self::Profile(serde_json::from_str::<Profile>(&json)?),
            StoredChange::Event {
                kind,
                item,
                qty,
                price,
                ts,
                shown_in,
            } => Self::Event(Event {
                kind,
                item,
                qty,
                price,
                ts: ts.map(Timestamp),
                shown_in: shown_in
                    .map(|(list_id, position)| Box::new(ShownIn { list_id, position })),
            }),
        })
    }
}

impl Records {
    /// Records in their order.
    pub(crate) fn of(records: impl IntoIterator<Item = (Timestamp, Change)>) -> Self {
        let (mut bytes, mut before) = (Vec::new(), 0);
        for (time, change) in records {
            let stored = Stored {
                after: time.0.wrapping_sub(before),
                change: change.into(),
            };
            before = time.0;
            bytes = postcard::to_extend(&stored, bytes).expect("a vector takes all bytes");
        }
        Self(bytes.into())
    }

    /// Records that another process stored; `None` if these bytes are none.
    pub(crate) fn checked(bytes: &[u8]) -> Option<Self> {
        let known = Self(bytes.into());
        known.try_read(&UserId("".into()))?;
        Some(known)
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The records of this user.
    pub(crate) fn read(&self, user: &UserId) -> Vec<Accepted> {
        self.try_read(user).expect("they were stored, or checked")
    }

    /// Those after a time, which an erase leaves, and how many it does not leave.
    pub(crate) fn after(&self, user: &UserId, erased_at: Timestamp) -> (Self, usize) {
        let all = self.read(user);
        let len = all.len();
        let left = all.into_iter().filter(|record| record.time > erased_at);
        let left: Vec<_> = left.map(|record| (record.time, record.change)).collect();
        let gone = len - left.len();
        (Self::of(left), gone)
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn try_read(&self, user: &UserId) -> Option<Vec<Accepted>> {
        let partition = Partition {
            incarnation: 0,
            topic: "log".into(),
            number: 0,
        };
        let (mut rest, mut time, mut all) = (&*self.0, 0i64, Vec::new());
        while !rest.is_empty() {
            let (stored, after) = postcard::take_from_bytes::<Stored>(rest).ok()?;
            rest = after;
            time = time.wrapping_add(stored.after);
            all.push(Accepted {
                user: user.clone(),
                // By user, so that no user's state depends on how many records others have.
                position: Position {
                    partition: partition.clone(),
                    offset: Offset(all.len() as i64),
                },
                time: Timestamp(time),
                change: stored.change.try_into().ok()?,
            });
        }
        Some(all)
    }
}

/// The records of each user, users by id, records by time and position.
pub(crate) fn by_user(records: Vec<Accepted>) -> Vec<(UserId, Records)> {
    // A record of a mapped topic may be several, which have one position and stay in their order. Places are sorted: a
    // stable sort of the records would need half as much memory again.
    let mut places: Vec<u32> = (0..u32::try_from(records.len()).unwrap_or(u32::MAX)).collect();
    let key = |place: &u32| {
        let record = &records[*place as usize];
        (&record.user, record.time, &record.position, *place)
    };
    places.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
    let mut records: Vec<Option<Accepted>> = records.into_iter().map(Some).collect();
    let same = |a: &u32, b: &u32| user_of(&records, *a) == user_of(&records, *b);
    let lens: Vec<usize> = places.chunk_by(same).map(<[u32]>::len).collect();
    let (mut rest, mut users) = (&places[..], Vec::with_capacity(lens.len()));
    for len in lens {
        let (own, after) = rest.split_at(len);
        rest = after;
        let mut id: Option<UserId> = None;
        let taken = own
            .iter()
            .filter_map(|place| records[*place as usize].take());
        let stored = Records::of(taken.map(|record| {
            id.get_or_insert(record.user);
            (record.time, record.change)
        }));
        users.extend(id.map(|id| (id, stored)));
    }
    users
}

fn user_of(records: &[Option<Accepted>], place: u32) -> Option<&Arc<str>> {
    records[place as usize]
        .as_ref()
        .map(|record| &record.user.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(sku: &str) -> Change {
        Change::Event(Event {
            kind: Kind::Cart,
            item: Item::Sku(sku.into()),
            qty: 3,
            price: Some(0.1),
            ts: Some(Timestamp(-5)),
            shown_in: Some(Box::new(ShownIn {
                list_id: "l".into(),
                position: Some(2),
            })),
        })
    }

    fn record((user, offset, time): (&str, i64, i64), change: Change) -> Accepted {
        let partition = Partition {
            incarnation: 0,
            topic: "orders".into(),
            number: 1,
        };
        Accepted {
            user: UserId(user.into()),
            position: Position {
                partition,
                offset: Offset(offset),
            },
            time: Timestamp(time),
            change,
        }
    }

    #[test]
    fn records_are_read_as_they_were_stored() {
        let json = r#"{"age": 30.1, "tags": ["a", null], "at": -0.0}"#;
        let profile = serde_json::from_str(json).expect("a profile");
        let all = [
            (i64::MAX, Change::Erase),
            (-7, Change::Profile(profile)),
            (9, change("s")),
        ];
        let all = all.map(|(at, change)| (Timestamp(at), change));
        let records = Records::of(all.clone());
        let known = Records::checked(records.bytes()).expect("they decode");
        let read = known.read(&UserId("u".into()));
        let offsets: Vec<i64> = read.iter().map(|it| it.position.offset.0).collect();
        assert_eq!(offsets, [0, 1, 2]);
        let read: Vec<_> = read.into_iter().map(|it| (it.time, it.change)).collect();
        assert_eq!(read, all);
        let cut = records.bytes().len() - 1;
        assert_eq!(Records::checked(&records.bytes()[..cut]), None);
    }

    #[test]
    fn what_one_record_of_a_mapped_topic_became_is_all_kept_in_its_order() {
        let of = |sku: &str| record(("u", 7, 5), change(sku));
        let earlier = record(("u", 9, 4), change("first"));
        let other = record(("t", 7, 5), change("t"));
        let users = by_user(vec![of("b"), of("a"), other, of("b"), earlier]);
        let ids: Vec<&str> = users.iter().map(|(id, _)| &*id.0).collect();
        assert_eq!(ids, ["t", "u"]);
        let read = users[1].1.read(&users[1].0);
        let skus: Vec<Change> = read.into_iter().map(|it| it.change).collect();
        assert_eq!(skus, ["first", "b", "a", "b"].map(change));
    }
}
