//! Plans and parts: what is written is read back, and what does not belong together is refused by its name.

use std::collections::BTreeMap;

use nearshore_core::user::event::{Change, Event, Item, Kind, Profile, UserId};
use nearshore_core::user::record::Timestamp;

use super::part::Header;
use super::*;
use crate::config::Config;
use crate::ops::evaluate::records::Records;
use crate::ops::topics::decoding;

fn plan(parts: u32, hash: &str) -> Plan {
    let files = [("--events file 1".to_owned(), hash.to_owned())].into();
    Plan::new(
        "test",
        parts,
        Extent::Files(files),
        &decoding(&Config::default()),
    )
}

fn user(id: &str, times: &[i64]) -> (UserId, Records) {
    let event = |sku: &str| {
        Change::Event(Event {
            kind: Kind::Purchase,
            item: Item::Sku(sku.into()),
            qty: 2,
            price: Some(1.5),
            ts: None,
            shown_in: None,
        })
    };
    let profile = Profile([("age".to_owned(), serde_json::json!(30.5))].into());
    let first = std::iter::once((Timestamp(times[0]), Change::Profile(profile)));
    let events = times.iter().map(|at| (Timestamp(*at), event("s1")));
    (UserId(id.into()), Records::of(first.chain(events)))
}

fn write(folder: &Path, plan: &Plan, part: u32, users: &[(UserId, Records)]) -> Header {
    write_part(folder, (plan, part), users, 0).expect("written")
}

fn join(folder: &Path, plan: &Plan) -> Result<Vec<(UserId, Records)>, Problem> {
    joined(folder, plan, &BTreeMap::new(), &|_| {}).map(|(users, _)| users)
}

#[test]
fn users_of_all_parts_are_joined_by_id_without_what_was_erased() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = agree(folder.path(), plan(2, "a")).expect("a plan");
    let (a, b, c) = (user("a", &[5, 9]), user("b", &[1]), user("c", &[2, 3]));
    write(folder.path(), &plan, 2, std::slice::from_ref(&b));
    write(folder.path(), &plan, 1, &[a.clone(), c.clone()]);
    let all = [a.clone(), b.clone(), c.clone()];
    assert_eq!(join(folder.path(), &plan).expect("joined"), all);
    let erased = [(a.0.clone(), Timestamp(5)), (c.0.clone(), Timestamp(3))].into();
    let (left, gone) = joined(folder.path(), &plan, &erased, &|_| {}).expect("joined");
    assert_eq!(gone, 2 + 3, "the profile and one purchase of a, all of c");
    let ids: Vec<&UserId> = left.iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [&a.0, &b.0]);
    assert_eq!(left[0].1.read(&a.0).len(), 1);
}

#[test]
fn a_missing_a_half_and_a_foreign_part_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let own = agree(folder.path(), plan(2, "a")).expect("a plan");
    write(folder.path(), &own, 1, &[user("a", &[5])]);
    let text = join(folder.path(), &own)
        .expect_err("one is missing")
        .to_string();
    assert!(
        text.contains("1 of 2") && text.contains("part-test-00002-of-00002"),
        "{text}"
    );
    write(folder.path(), &own, 2, &[user("b", &[5, 6, 7])]);
    join(folder.path(), &own).expect("both are there");
    let path = folder.path().join("part-test-00002-of-00002.users");
    let whole = std::fs::read(&path).expect("a file");
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).expect("written");
        let text = join(folder.path(), &own)
            .expect_err("it is half")
            .to_string();
        assert!(
            text.contains("part-test-00002") && text.contains("not whole"),
            "{cut}: {text}"
        );
    }
    for place in 0..whole.len() {
        let mut other = whole.clone();
        other[place] ^= 0x10;
        std::fs::write(&path, &other).expect("written");
        let text = join(folder.path(), &own)
            .expect_err("a bit differs")
            .to_string();
        assert!(text.contains("part-test-00002"), "{place}: {text}");
    }
    let other = Plan::new(
        "test",
        2,
        Extent::Files(BTreeMap::new()),
        &decoding(&Config::default()),
    );
    write(folder.path(), &other, 2, &[user("b", &[5])]);
    let text = join(folder.path(), &own)
        .expect_err("it is foreign")
        .to_string();
    assert!(
        text.contains("part-test-00002") && text.contains("another alignment"),
        "{text}"
    );
}

#[test]
fn processes_agree_on_the_first_plan_and_refuse_another_log_or_number() {
    let folder = tempfile::tempdir().expect("a folder");
    let topics = |end: i64| Extent::Topics([("0/user-events/0".to_owned(), end)].into());
    let decoding = decoding(&Config::default());
    let first = Plan::new("test", 2, topics(10), &decoding);
    assert_eq!(agree(folder.path(), first.clone()).expect("a plan"), first);
    let later = Plan::new("test", 2, topics(99), &decoding);
    assert_eq!(
        agree(folder.path(), later).expect("it fits"),
        first,
        "the ends of the first"
    );
    let of_three = Plan::new("test", 3, topics(10), &decoding);
    let text = agree(folder.path(), of_three)
        .expect_err("another number")
        .to_string();
    assert!(
        text.contains("plan-test.json") && text.contains("number of parts is 2"),
        "{text}"
    );
    let text = agree(folder.path(), plan(2, "a"))
        .expect_err("files")
        .to_string();
    assert!(text.contains("one is of files"), "{text}");
    // A new run removes what another one left: it is a file of persons.
    write(folder.path(), &first, 1, &[user("a", &[5])]);
    let next = Plan::new("next", 2, topics(99), &decoding);
    agree(folder.path(), next.clone()).expect("a plan");
    let left: Vec<PathBuf> = files(folder.path()).expect("a folder");
    assert_eq!(left, [folder.path().join("plan-next.json")]);
    remove_run(folder.path(), "next").expect("removed");
    let text = read_plan(folder.path(), "next")
        .expect_err("gone")
        .to_string();
    assert!(text.contains("plan-next.json"), "{text}");
}

#[test]
fn a_part_can_be_read_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let plan = agree(folder.path(), plan(1, "a")).expect("a plan");
    write(folder.path(), &plan, 1, &[user("a", &[5])]);
    let path = folder.path().join("part-test-00001-of-00001.users");
    let mode = std::fs::metadata(path)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}
