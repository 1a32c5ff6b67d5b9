//! Tests pages and texts of one made-up user, whose every field holds markup and control characters.

use serde_json::json;

use super::*;

const EVIL: &str = "<script>alert('x')</script>\u{1b}[31m&\"";

fn view() -> View {
    serde_json::from_value(json!({
        "user": EVIL,
        "namespace": "main",
        "segment": EVIL,
        "profile": { "time": 1_700_000_000_000i64, "position": "0/profile-changes/1:7",
            "fields": { "age": 41, EVIL: EVIL, "tags": [EVIL] } },
        "events": [{ "time": 1_700_000_001_234i64, "position": "0/user-events/3:12", "kind": "purchase",
            "item": EVIL, "name": EVIL, "qty": 2, "price": 3.5 },
            { "time": 1_700_000_002_000i64, "position": "0/user-events/3:13", "kind": "view",
            "item": "42", "qty": 1 }],
        "state": { "fences": ["0/user-events/3:13"], "ver": 9, "claim": 4, "activity": 0.25,
            "pending": { "source": "0/user-events/3:13", "due": 1_700_000_031_234i64 } },
        "list": { "list_id": "main-4", "source": "model", "note": EVIL, "arm": "a", "epoch": 2,
            "claim": 4, "seen": ["0/user-events/3:12"], "at": 1_700_000_001_234i64,
            "names": [{ "name": EVIL, "pu": "p", "score": -2.5, "terms": { "model": -2.0, "demand": -0.5 },
                "skus": [{ "sku": EVIL, "title": EVIL, "ee": 0.75, "sold_out": true }] }] },
        "audit": { "rules": ["adults-only", EVIL], "dropped": [{ "name": EVIL, "reason": "stock" }],
            "versions": { "model": EVIL },
            "times": { "event": 1_700_000_001_234i64, "due": 1_700_000_031_234i64,
                "taken": 1_700_000_031_634i64, "generated": 1_700_000_033_134i64,
                "published": 1_700_000_033_144i64 } },
        "prompt": { "text": EVIL, "hash": "abcd", "moved_on": true },
    }))
    .expect("a View")
}

fn page(page: &Page) -> String {
    // minijinja escapes slashes too.
    html(page)
        .expect("the template renders")
        .replace("&#x2f;", "/")
}

fn found(view: View) -> Page {
    Page::Found {
        view: Box::new(view),
        product: String::new(),
        why_not: String::new(),
    }
}

#[test]
fn stored_text_is_escaped_on_pages_and_in_text() {
    let pages = [
        page(&found(view())),
        page(&Page::Absent { user: EVIL.into() }),
        page(&Page::Failed {
            user: EVIL.into(),
            why: EVIL.into(),
        }),
    ];
    for page in pages {
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains("value=\"<"), "{page}");
        assert!(page.contains("&lt;script&gt;"), "{page}");
    }
    assert!(!view().text().contains('\u{1b}'));
}

#[test]
fn the_page_shows_every_step_from_event_to_list() {
    let page = page(&found(view()));
    for part in [
        "2023-11-14T22:13:21.234Z",
        "0/user-events/3:12",
        "adults-only",
        "p 0.750",
        "sold out since",
        "demand -0.50",
        "-2.500",
        "quiet 30.0 s",
        "queue 400 ms",
        "generation 1.5 s",
        "publish 10 ms",
        "<strong>31.9 s</strong>",
        "The user has newer events",
        "not in the catalogue",
        "epoch 2",
        "abcd",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
}

#[test]
fn the_text_shows_every_step_from_event_to_list() {
    let text = view().text();
    for part in [
        "2023-11-14T22:13:21.234Z",
        "0/user-events/3:12",
        "adults-only",
        "p 0.750",
        "SOLD OUT SINCE",
        "demand -0.50",
        "31.9 s = quiet 30.0 s + queue 400 ms + generation 1.5 s + publish 10 ms",
        "trails the state",
        "(not in the catalogue)",
        "changed after the list was made",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn a_user_without_state_or_list_has_a_page_and_a_text() {
    let bare = View {
        user: "u".into(),
        ..View::default()
    };
    assert!(bare.text().contains("fallback is served"));
    assert!(page(&found(bare)).contains("fallback is served"));
    assert!(page(&Page::Ask).contains("Type the id of a user"));
}

#[test]
fn a_clock_that_is_behind_gives_a_part_of_zero() {
    let times = Times {
        event: Some(Timestamp(10_000)),
        due: Some(Timestamp(9_000)),
        published: Some(Timestamp(9_500)),
        ..Times::default()
    };
    let parts: Vec<_> = times
        .parts()
        .iter()
        .map(|part| (part.name, part.took.clone()))
        .collect();
    assert_eq!(
        parts,
        [
            ("quiet", "0 ms".to_owned()),
            ("publish", "500 ms".to_owned())
        ]
    );
    assert_eq!(Times::default().parts(), []);
}

fn tea() -> nearshore_core::user::event::Sku {
    serde_json::from_value(
        json!({ "sku": "s1", "pu": "TEA", "pu_id": "tea", "title": "Green tea",
        "stock": 3, "category": null, "price": null, "attributes": {} }),
    )
    .expect("a SKU")
}

fn document() -> nearshore_core::list::document::Document {
    serde_json::from_value(json!({ "schema": 1, "list_id": "l", "arm": "a", "source": "model",
        "at": 5, "segment": "default", "names": ["TEA"], "pus": ["tea"], "scores": [-1.5], "skus": [["s1"]] })).expect("a document")
}

fn audit() -> nearshore_core::list::document::Audit {
    serde_json::from_value(json!({ "list_id": "l", "claim": 2, "seen": "0/user-events/3:12", "arm": "a",
        "epoch": 4, "template": "t", "prompt": "p", "prompt_tokens": 9, "events": [], "events_cut": 0,
        "rules": ["r"], "rules_unknown": ["r", "off"], "segment": "default", "demand": "d", "catalogue": 1,
        "names": [{ "pu": "tea", "score": -1.5, "terms": { "model": -1.5 }, "skus": [{ "sku": "s1", "ee": 0.5 }] }],
        "dropped": [{ "pu": "gone", "score": -3.0, "why": "no_stock" }],
        "times": { "source": 1000, "due": 31000, "queued": 0.4, "generated": 1.5, "published": 0.01 } })).expect("an audit")
}

#[test]
fn a_view_is_built_from_state_list_audit_and_catalogue() {
    use nearshore_core::shop::catalogue::Catalogue;
    use nearshore_core::user::event::{Item, Kind};
    use nearshore_core::user::state::{LoadedUser, WindowEvent};

    let position: nearshore_core::user::record::Position =
        "0/user-events/3:12".parse().expect("a position");
    let mut loaded = LoadedUser {
        ver: 3,
        claim: 2,
        ..LoadedUser::default()
    };
    loaded.activity.score = 70;
    loaded.state.fences.raise(&position);
    loaded.state.window.push(WindowEvent {
        time: Timestamp(1_700_000_000_000),
        position,
        kind: Kind::Purchase,
        item: Item::Sku("s1".into()),
        qty: 1,
        price: None,
    });
    let catalogue = Catalogue::load(vec![tea()]);
    let (document, audit) = (document(), audit());
    let prompt = nearshore_core::list::prompt::Rendered {
        prompt: "Tea?".into(),
        ..Default::default()
    };
    let sold_out = std::collections::BTreeSet::from(["s1".to_owned()]);
    let view = View::of(&Sources {
        user: "u",
        namespace: "main",
        segment: "default",
        loaded: &loaded,
        document: Some(&document),
        audit: Some(&audit),
        catalogue: &catalogue,
        sold_out: &sold_out,
        prompt: Some(&prompt),
    });
    assert_eq!(view.events[0].name.as_deref(), Some("TEA"));
    assert_eq!(view.events[0].kind, "purchase");
    assert!((view.state.activity - 0.7).abs() < 1e-9);
    let list = view.list.as_ref().expect("a list");
    assert!(list.current);
    assert_eq!((list.epoch, list.claim), (4, 2));
    let name = &list.names[0];
    assert_eq!(name.terms["model"], -1.5);
    let expected = SkuView {
        sku: "s1".into(),
        title: "Green tea".into(),
        ee: Some(0.5),
        sold_out: true,
    };
    assert_eq!(name.skus, [expected]);
    let audit = view.audit.as_ref().expect("an audit");
    assert_eq!(audit.versions["rules that could not be applied"], "off");
    assert_eq!(
        audit.rules,
        ["r (a field of the profile is missing or cannot be compared)"]
    );
    assert_eq!(
        audit.dropped[0],
        DroppedView {
            name: "gone".into(),
            reason: "no stock".into()
        }
    );
    assert_eq!(audit.times.whole().as_deref(), Some("31.9 s"));
    assert!(view.prompt.as_ref().is_some_and(|prompt| prompt.moved_on));
}

#[test]
fn the_page_explains_a_product_and_escapes_what_is_said() {
    let page = page(&Page::Found {
        view: Box::new(view()),
        product: "<b>wine".into(),
        why_not: "no: forbidden by <rule>\nrank now 3".into(),
    });
    assert!(
        page.contains("no: forbidden by &lt;rule&gt;\nrank now 3"),
        "{page}"
    );
    assert!(page.contains("value=\"&lt;b&gt;wine\""), "{page}");
    assert!(!page.contains("<b>") && !page.contains("<rule>"), "{page}");
}
