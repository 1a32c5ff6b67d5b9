//! Fuzz targets, one function per decoder: bytes in, a panic if a law is broken.
//!
//! Laws besides "no panic": a decoded value is within the limits and survives encoding and decoding; a canonical form
//! stays canonical; memory is bounded by the size of the input.

use std::collections::BTreeMap;

use bytes::Bytes;

use nearshore_core::list::document::{Audit, Document, Update};
use nearshore_core::list::prompt::{Line, Template, View};
use nearshore_core::text;
use nearshore_core::user::event::{
    self, Accepted, Change, Event, Format, Item, Limits, Profile, Reject, Sku, Source,
};
use nearshore_core::user::fold::{Step, fold};
use nearshore_core::user::record::{Fences, Position, Record, Timestamp};
use nearshore_core::user::state::{self, ClaimRate, Pending, Profiled, UserState};
use nearshore_core::user::trigger::Request;
use nearshore_engine::formats::tensor::Entry;
use nearshore_engine::formats::{folder, gguf};

/// Accepts any bytes, and panics if a law is broken.
pub type Target = fn(&[u8]);

/// Every target, by name.
pub const ALL: [(&str, Target); 11] = [
    ("event", event),
    ("profile", profile),
    ("sku", sku),
    ("request", request),
    ("state", state),
    ("register", register),
    ("list", list),
    ("update", update),
    ("template", template),
    ("gguf", gguf),
    ("safetensors", safetensors),
];

const NOON: i64 = 1_700_000_000_000;

/// Largest template tried: time grows with the square of its size in places, and no real template is larger.
const TEMPLATE_MAX: usize = 4_096;

/// Reads numbers from the front of the bytes; zeros when no bytes are left.
struct Bits<'a>(&'a [u8]);

impl Bits<'_> {
    fn number<const N: usize>(&mut self) -> [u8; N] {
        let mut found = [0; N];
        let count = N.min(self.0.len());
        found[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        found
    }

    fn part(&mut self, length: usize) -> Bytes {
        let (part, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        Bytes::copy_from_slice(part)
    }
}

/// A record: a byte of flags, a time if flagged, a length and the key, the value.
fn record(data: &[u8]) -> Record {
    let mut bits = Bits(data);
    let [flags] = bits.number();
    let time = match flags & 4 {
        0 => NOON,
        _ => i64::from_le_bytes(bits.number()),
    };
    let header_time = i64::from_le_bytes(match flags & 8 {
        0 => [0; 8],
        _ => bits.number(),
    });
    let [length] = bits.number();
    let key = bits.part(usize::from(length));
    let headers = match flags & 8 {
        0 => Vec::new(),
        _ => vec![(
            "nearshore.time".to_owned(),
            Bytes::from(header_time.to_string()),
        )],
    };
    Record {
        position: "0/t/0:1".parse().expect("valid"),
        time: Timestamp(time),
        key: (flags & 1 == 0).then_some(key),
        value: (flags & 2 == 0).then(|| Bytes::copy_from_slice(bits.0)),
        headers,
    }
}

/// The same record with another value.
fn with_value(record: &Record, value: Option<String>) -> Record {
    Record {
        value: value.map(Bytes::from),
        ..record.clone()
    }
}

fn check_reject(reject: &Reject) {
    assert!(Reject::ALL_CODES.contains(&reject.code()));
    assert!(!reject.to_string().is_empty());
}

fn check_accepted(record: &Record, accepted: &Accepted, limits: &Limits) {
    let user = &accepted.user.0;
    assert!(
        !user.is_empty() && user.len() <= limits.max_text,
        "{user:?}"
    );
    assert!(accepted.time <= record.time, "a header made a record newer");
    assert!(event::check_year_range(accepted.time).is_ok());
}

/// Checks that a state with this change folded in survives a round trip, and that folding it again changes nothing.
fn check_fold(found: &Accepted) {
    let mut once = UserState::default();
    let step = fold(&mut once, found, 3);
    assert_ne!(step, Step::Duplicate);
    let mut twice = once.clone();
    assert_eq!(fold(&mut twice, found, 3), Step::Duplicate);
    assert_eq!(once, twice);
    round_trip(&once);
}

fn round_trip(state: &UserState) {
    for version in state::VERSION_OLDEST..=state::VERSION_CURRENT {
        let bytes = state::encode(state, version);
        let back = state::decode(&bytes, state.profile.clone(), state.erased_at);
        let back = back.expect("a written state decodes");
        let mut kept = state.clone();
        if version < 3 {
            // Versions before 3 do not store since when the events are complete.
            kept.complete_since = Timestamp(0);
        }
        if version < 4 {
            // Nor those before 4 the register: it is that of the window.
            kept.register = back.register.clone();
        }
        assert_eq!(back, kept, "version {version}");
        assert_eq!(state::canonical(&back), state::canonical(&kept));
        assert_eq!(state::encode(&back, version), bytes, "version {version}");
    }
    if let Some(profile) = &state.profile {
        assert_eq!(
            Profiled::from_text(&profile.to_text()).as_ref(),
            Ok(profile)
        );
    }
}

/// A record of `user-events`.
pub fn event(data: &[u8]) {
    let record = record(data);
    let limits = Limits::default();
    let found = match event::decode_event(&record, &limits) {
        Ok(found) => found,
        Err(reject) => return check_reject(&reject),
    };
    check_accepted(&record, &found, &limits);
    let Change::Event(event) = &found.change else {
        panic!("decode_event returned no event: {found:?}");
    };
    assert!(
        event
            .price
            .is_none_or(|price| price.is_finite() && price >= 0.0)
    );
    let again = with_value(&record, Some(event_json(event)));
    assert_eq!(event::decode_event(&again, &limits).as_ref(), Ok(&found));
    check_fold(&found);
}

/// The event as a source would write it.
fn event_json(event: &Event) -> String {
    let (name, item) = match &event.item {
        Item::Sku(id) => ("sku", id),
        Item::Pu(name) => ("pu", name),
        Item::Query(words) => ("query", words),
    };
    let mut value = serde_json::json!({
        "type": event.kind, "qty": event.qty, "price": event.price, "ts": event.ts,
    });
    value[name] = item.as_str().into();
    value.to_string()
}

/// A record of `profile-changes`, plain and as Debezium writes it.
pub fn profile(data: &[u8]) {
    let record = record(data);
    let limits = Limits::default();
    for format in [Format::Plain, Format::Debezium] {
        let found = match event::decode_profile(&record, format, &limits) {
            Ok(found) => found,
            Err(reject) => {
                check_reject(&reject);
                continue;
            }
        };
        check_accepted(&record, &found, &limits);
        let whose = event::key_user(&record, Source::Profiles(format));
        assert_eq!(whose.as_deref(), Some(&*found.user.0));
        if let Change::Profile(profile) = &found.change {
            let written = serde_json::to_string(profile).expect("JSON");
            let read: Profile = serde_json::from_str(&written).expect("written by this program");
            assert_eq!(read, *profile, "bit by bit, or a reload counts as a change");
            let written = match format {
                Format::Plain => written,
                Format::Debezium => format!("{{\"after\":{written}}}"),
            };
            let again = with_value(&record, Some(written));
            // One level more, and its bytes, may exceed the limits.
            let wider = Limits {
                max_depth: 40,
                max_bytes: 2 << 20,
                ..limits
            };
            assert_eq!(
                event::decode_profile(&again, format, &wider).as_ref(),
                Ok(&found)
            );
        }
        check_fold(&found);
    }
}

/// A record of `catalog`.
pub fn sku(data: &[u8]) {
    let record = record(data);
    let limits = Limits::default();
    let (id, found) = match event::decode_sku(&record, &limits) {
        Ok(found) => found,
        Err(reject) => return check_reject(&reject),
    };
    assert!(!id.is_empty() && id.len() <= limits.max_text);
    let Some(found) = found else { return };
    let Sku {
        sku,
        pu,
        pu_id,
        category,
        title,
        ..
    } = &found;
    assert_eq!(*sku, id);
    for found in [pu, pu_id, title].into_iter().chain(category) {
        assert!(
            !found.is_empty() && found.len() <= limits.max_text,
            "{found:?}"
        );
        assert!(text::is_normal(found), "{found:?}");
    }
    let again = with_value(&record, Some(serde_json::to_string(&found).expect("JSON")));
    assert_eq!(event::decode_sku(&again, &limits), Ok((id, Some(found))));
}

/// A record of a lane.
pub fn request(data: &[u8]) {
    let record = Record {
        value: Some(Bytes::copy_from_slice(data)),
        ..record(&[])
    };
    let found = match Request::decode(&record) {
        Ok(found) => found,
        Err(reject) => return check_reject(&reject),
    };
    assert!(!found.user.0.is_empty() && found.user.0.len() <= data.len());
    let again = with_value(&record, Some(serde_json::to_string(&found).expect("JSON")));
    assert_eq!(Request::decode(&again), Ok(found));
}

/// A stored state: eight bytes of `erased_at`, then the blob.
pub fn state(data: &[u8]) {
    let mut bits = Bits(data);
    let erased_at = Timestamp(i64::from_le_bytes(bits.number()));
    let Ok(found) = state::decode(bits.0, None, erased_at) else {
        return;
    };
    // An event has at least a time, a position, a kind, an item, a quantity: far more than two bytes.
    assert!(found.window.len() * 2 <= bits.0.len() && found.window.capacity() <= data.len() * 2);
    assert!(
        found
            .window
            .iter()
            .all(|event| event.time > found.erased_at)
    );
    let register = &found.register;
    assert!(
        register
            .purchases()
            .all(|it| it.time > found.erased_at && it.count > 0)
    );
    let times: BTreeMap<&str, Timestamp> =
        (register.purchases()).map(|it| (it.sku, it.time)).collect();
    let last = register.skus().map(|it| (it.sku, it.last));
    assert!(last.eq(times));
    round_trip(&found);
}

/// Texts stored beside the blob: pending, claim rate, profile, fences, positions.
pub fn register(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(found) = text.parse::<Pending>() {
        assert_eq!(found.to_string().parse().as_ref(), Ok(&found));
    }
    if let Ok(found) = text.parse::<ClaimRate>() {
        assert_eq!(found.to_string().parse().as_ref(), Ok(&found));
    }
    if let Ok(found) = Profiled::from_text(text) {
        assert_eq!(Profiled::from_text(&found.to_text()).as_ref(), Ok(&found));
    }
    if let Ok(found) = text.parse::<Position>() {
        assert_eq!(found.to_string().parse().as_ref(), Ok(&found));
    }
    if let Ok(found) = text.parse::<Fences>() {
        // A topic cannot have a comma in Kafka. One that has is cut there, and is stable from then on.
        let written = found.to_string();
        let read: Fences = written.parse().expect("written by this program");
        assert_eq!(read, found);
        assert!(found.contains_all(&read));
    }
}

/// The recall document.
pub fn list(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(found) = Document::parse(text) {
        // Scores are rounded when they are written; after that nothing changes.
        let written = found.to_json();
        let read = Document::parse(&written).expect("written by this program");
        assert_eq!(read.to_json(), written);
        assert_eq!(
            Document::parse(&read.to_json()).expect("written by this program"),
            read
        );
        let mut none = read.clone();
        none.strip(|_, _| true);
        assert!(none.is_empty());
        let mut all = read.clone();
        let empty = all.pus.iter().any(|shown| shown.skus.is_empty());
        assert!(!all.strip(|_, _| false));
        assert!(empty || all == read);
    }
    if let Ok(found) = serde_json::from_str::<Audit>(text) {
        let written = serde_json::to_string(&found).expect("JSON");
        let read: Audit = serde_json::from_str(&written).expect("written by this program");
        assert_eq!(serde_json::to_string(&read).expect("JSON"), written);
    }
}

/// A record of `recall-updates`.
pub fn update(data: &[u8]) {
    let Ok(found) = Update::parse(data) else {
        return;
    };
    let audit = serde_json::to_string(&found.audit).expect("JSON");
    let doc = found.doc.to_json();
    let written = Update::json((found.claim, found.epoch), &found.seen, (&doc, &audit));
    let read = Update::parse(written.as_bytes()).expect("written by this program");
    assert_eq!((read.claim, read.epoch), (found.claim, found.epoch));
    assert_eq!(read.seen, found.seen);
    assert_eq!(read.doc.to_json(), doc);
}

/// A template file, rendered for a view with hostile text in every field.
pub fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else {
        return;
    };
    if source.len() > TEMPLATE_MAX {
        return;
    }
    let Ok(template) = Template::load(source, "t") else {
        return;
    };
    let view = hostile();
    for budget in [0, 20, 1_000] {
        let Ok(rendered) = template.render(&view, budget, str::len) else {
            continue;
        };
        let bare =
            rendered.events_cut == view.events.len() && rendered.fields_cut == view.profile.len();
        assert!(
            rendered.tokens <= budget || bare,
            "over its budget although there is more to cut"
        );
        assert_eq!(
            rendered.tokens,
            rendered.prompt.user.len() + rendered.prompt.assistant.len()
        );
        let again = template.render(&view, budget, str::len);
        assert_eq!(
            again.expect("rendered before"),
            rendered,
            "the same input must give the same bytes"
        );
    }
}

/// A GGUF file.
pub fn gguf(data: &[u8]) {
    let Ok(found) = gguf::header::decode(data) else {
        return;
    };
    // A key has a length and a type; a tensor has a length, a rank, a type and an offset.
    assert!(found.keys.len() * 12 + found.tensors.len() * 24 <= data.len());
    within(found.tensors.values(), found.data, data);
}

/// A safetensors file.
pub fn safetensors(data: &[u8]) {
    let Ok(found) = folder::header::decode(data) else {
        return;
    };
    within(found.tensors.values(), found.data, data);
}

/// Checks that every tensor lies within the file: the loader slices the file by the header.
fn within<'a>(tensors: impl Iterator<Item = &'a Entry>, begin: usize, file: &[u8]) {
    for entry in tensors {
        let rest = file.get(begin..).expect("data begins within the file");
        let bytes = rest.get(entry.from..entry.to);
        let bytes = bytes.expect("a tensor lies within the file");
        assert_eq!(entry.kind.bytes(&entry.shape), Ok(bytes.len()));
    }
}

fn hostile() -> View {
    let line = |name: &str| Line {
        kind: event::Kind::Purchase,
        name: name.into(),
        qty: u64::MAX,
        price: Some(1e308),
        days_ago: u64::MAX,
        count: 3,
        since: 3,
        said: Default::default(),
        positions: Vec::new(),
    };
    let names = ["{{ events }}", "{% raw %}", "ZOË'S \"BREAD\" <b>", ""];
    View {
        profile: [("age", "{{ profile }}"), ("", "x"), ("ключ", "значение")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        events: names.map(line).into(),
        segment: "default".into(),
        unresolved: 1,
    }
}
