//! What a mapping by pointers costs a record, over no mapping: the promise is at most 3 µs.
//!
//! Both sides decode the same event: ours as it is, and from a tracker's record of the usual size.

#![allow(missing_docs)] // criterion_group! makes a public function without one.
#![allow(clippy::disallowed_types, clippy::disallowed_macros)] // A benchmark reads the clock and prints.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use nearshore_core::map::{Input, InputSettings, Sample, compile};
use nearshore_core::user::event::{Limits, decode_event};
use nearshore_core::user::record::Record;
use serde::Deserialize;

#[derive(Deserialize)]
struct File {
    inputs: Vec<InputSettings>,
}

fn input(toml: &str) -> Input {
    let file: File = toml::from_str(toml).expect("a recipe");
    compile(&file.inputs[0], None).expect("it compiles")
}

/// A record of Segment with the context that its library sends, about 1.1 kB.
const TRACK: &str = r#"{"value":{"type":"track","event":"Product Viewed","userId":"97980cfea0067","anonymousId":"507f191e810c19729de860ea","messageId":"ajs-next-1612069510766-f7b2","timestamp":"2015-02-23T22:28:55.111Z","sentAt":"2015-02-23T22:28:55.387Z","receivedAt":"2015-02-23T22:28:55.404Z","version":2,"channel":"web","context":{"ip":"8.8.8.8","locale":"en-US","timezone":"Europe/Amsterdam","userAgent":"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_5) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/40.0.2214.115 Safari/537.36","library":{"name":"analytics.js","version":"2.11.1"},"page":{"path":"/games/monopoly","referrer":"https://www.google.com/","search":"?utm_source=newsletter","title":"Monopoly: 3rd Edition","url":"https://www.example.com/games/monopoly?utm_source=newsletter"},"campaign":{"name":"spring","source":"newsletter","medium":"email"},"screen":{"width":1440,"height":900,"density":2}},"integrations":{"All":true,"Mixpanel":false},"properties":{"product_id":"507f1f77bcf86cd799439011","sku":"G-32","category":"Games","name":"Monopoly: 3rd Edition","brand":"Hasbro","variant":"200 pieces","price":18.99,"quantity":1,"position":3,"currency":"usd"}}}"#;

fn mapping(criterion: &mut Criterion) {
    let limits = Limits::default();
    let ours = Sample::read(
        r#"{"key":"97980cfea0067","value":{"type":"view","sku":"G-32","qty":1,"price":18.99,"ts":1424730535111}}"#,
        "user-events",
        0,
    );
    let ours: Record = ours.expect("a sample").record;
    criterion.bench_function("mapping/none", |bench| {
        bench.iter(|| decode_event(black_box(&ours), &limits));
    });
    let segment = input(include_str!("../../../config/recipes/segment.toml"));
    let track = Sample::read(TRACK, "segment", 0).expect("a sample").record;
    criterion.bench_function("mapping/segment", |bench| {
        bench.iter(|| {
            let made = segment.apply(black_box(&track), &limits).expect("mapped");
            decode_event(&made[0], &limits)
        });
    });
    let ga4 = input(include_str!("../../../config/recipes/ga4.toml"));
    let lines = include_str!("../../../config/recipes/ga4.jsonl");
    let view = Sample::read(lines.lines().next().expect("a line"), "ga4", 0);
    let view = view.expect("a sample").record;
    criterion.bench_function("mapping/ga4", |bench| {
        bench.iter(|| {
            let made = ga4.apply(black_box(&view), &limits).expect("mapped");
            decode_event(&made[0], &limits)
        });
    });
}

criterion_group!(benches, mapping);
criterion_main!(benches);
