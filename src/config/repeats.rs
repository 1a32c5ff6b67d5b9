//! Leaves out log lines that repeat: [`Repeats`].
//!
//! While a broker or Redis is away, each client and each loop says so at each try. One line tells as much. Invariant:
//! of the lines about Kafka (target `kafka`), of those that name its fault by our key (`kafka::fault`), of those about
//! Redis (target `redis`), and of the warnings of any one place in the code, a minute shows the first [`most`]; how many
//! were left out, and since when they come minute after minute, is said in the next one: no line is added. It knows of
//! the format only whether a line is JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How long lines are counted together.
const WINDOW: Duration = Duration::from_secs(60);

/// What lines are counted together: all of a service, or those of one place in the code.
type Source = (&'static str, Option<u32>);

/// The lines of one source in its window.
#[derive(Debug)]
struct Counted {
    began: Instant,
    /// The time of day at which the first of them came, as log lines write it, after a minute without any.
    since: String,
    lines: u32,
    left_out: u64,
}

/// Whether a line is shown.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    LeftOut,
    /// It is shown, and behind so many that were left out in the minute before; such lines come since a time.
    Shown(Option<(u64, String)>),
}

/// Formats events by `F`, and leaves out what repeats.
pub(super) struct Repeats<F> {
    inner: F,
    is_json: bool,
    sources: Mutex<BTreeMap<Source, Counted>>,
}

impl<F> Repeats<F> {
    pub(super) fn new(inner: F, is_json: bool) -> Self {
        Self {
            inner,
            is_json,
            sources: Mutex::default(),
        }
    }

    fn fate(&self, metadata: &'static Metadata<'static>, now: Instant) -> Fate {
        let Some((source, most)) = source(metadata) else {
            return Fate::Shown(None);
        };
        let mut sources = self.sources.lock();
        let fresh = || Counted {
            began: now,
            since: time_of_day(),
            lines: 0,
            left_out: 0,
        };
        let counted = sources.entry(source).or_insert_with(fresh);
        let mut before = None;
        if now.duration_since(counted.began) >= WINDOW {
            let is_same = now.duration_since(counted.began) < 2 * WINDOW;
            let last = std::mem::replace(counted, fresh());
            if is_same {
                counted.since.clone_from(&last.since);
            }
            before = (last.left_out > 0).then_some((last.left_out, last.since));
        }
        if counted.lines >= most {
            counted.left_out += 1;
            return Fate::LeftOut;
        }
        counted.lines += 1;
        Fate::Shown(before)
    }
}

/// The source of a line and how many of its lines a minute shows; `None` if all are.
fn source(metadata: &'static Metadata<'static>) -> Option<(Source, u32)> {
    match metadata.target() {
        "kafka" | "kafka::fault" | "redis" if *metadata.level() != Level::ERROR => {
            Some(((metadata.target(), None), 1))
        }
        _ if *metadata.level() > Level::WARN => None,
        _ => Some(((metadata.file()?, metadata.line()), 10)),
    }
}

/// The time now, as log lines write it.
pub(super) fn time_of_day() -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _infallible = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

impl<S, N, F> FormatEvent<S, N> for Repeats<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let Fate::Shown(before) = self.fate(metadata, Instant::now()) else {
            return Ok(());
        };
        let Some((left_out, since)) = before else {
            return self.inner.format_event(context, writer, event);
        };
        let mut line = String::new();
        (self.inner).format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        let said = match self.is_json {
            true => with_fields(line, left_out, &since),
            false => {
                format!("{line} ({left_out} lines like this one were left out, since {since})")
            }
        };
        writeln!(writer, "{said}")
    }
}

/// A line of JSON with how many lines like it were left out; a line that is no object stays as it is.
fn with_fields(line: &str, left_out: u64, since: &str) -> String {
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line) {
        Ok(mut fields) => {
            fields.insert("left_out".into(), left_out.into());
            fields.insert("since".into(), since.into());
            serde_json::Value::Object(fields).to_string()
        }
        Err(_) => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(self.0.lock().clone()).expect("text");
            text.lines().map(str::to_owned).collect()
        }
    }

    /// Lines written by a function under this formatter.
    fn written(is_json: bool, work: impl FnOnce()) -> Vec<String> {
        let (buffer, format) = (Sink::default(), tracing_subscriber::fmt::format());
        let sink = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || sink.clone())
            .event_format(Repeats::new(format, is_json))
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        buffer.lines()
    }

    /// A minute in which seven lines of Redis were left out.
    fn minute() -> BTreeMap<Source, Counted> {
        let counted = Counted {
            began: Instant::now() - WINDOW,
            since: "then".into(),
            lines: 1,
            left_out: 7,
        };
        [(("redis", None), counted)].into()
    }

    #[test]
    fn what_was_left_out_is_said_in_the_line_itself() {
        let buffer = Sink::default();
        let sink = buffer.clone();
        let format = tracing_subscriber::fmt::format();
        let mut repeats = Repeats::new(format.clone().with_ansi(false), false);
        repeats.sources = Mutex::new(minute());
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || sink.clone())
            .event_format(repeats)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "redis", "refused");
            tracing::warn!(target: "redis", "refused again");
        });
        let lines = buffer.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("refused"), "{lines:?}");
        let said = "(7 lines like this one were left out, since then)";
        assert!(lines[0].ends_with(said), "{lines:?}");

        let sink = Sink::default();
        let buffer = sink.clone();
        let mut repeats = Repeats::new(format.json().flatten_event(true), true);
        repeats.sources = Mutex::new(minute());
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_writer(move || sink.clone())
            .event_format(repeats)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "redis", shard = 3, "refused");
        });
        let lines = buffer.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let line: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
        let found = [
            &line["message"],
            &line["left_out"],
            &line["since"],
            &line["shard"],
        ];
        let expected = serde_json::json!(["refused", 7, "then", 3]);
        assert_eq!(serde_json::json!(found), expected, "{line}");
    }

    #[test]
    fn an_outage_is_one_line_a_minute_and_each_service_has_its_own() {
        let lines = written(false, || {
            for nth in 0..1_000 {
                tracing::warn!(target: "kafka", "127.0.0.1:9092 refused, try {nth}");
                tracing::info!(target: "kafka", "and again");
                tracing::warn!(target: "redis", "refused, try {nth}");
                tracing::info!("news");
            }
        });
        let of = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
        assert_eq!((of("kafka"), of("redis"), of("news")), (1, 1, 1_000));
    }

    #[test]
    fn a_place_that_warns_without_end_shows_ten_lines_a_minute_and_hides_no_other() {
        let lines = written(true, || {
            for nth in 0..1_000 {
                tracing::error!("one place: {nth}");
            }
            tracing::error!("another place");
        });
        assert_eq!(lines.len(), 11, "{lines:?}");
        assert!(lines[10].contains("another place"));
    }

    #[test]
    fn the_first_line_of_the_next_minute_says_how_many_were_left_out() {
        let repeats = Repeats::new((), false);
        let metadata = {
            static CALLSITE: tracing::callsite::DefaultCallsite =
                tracing::callsite::DefaultCallsite::new(&META);
            static META: Metadata<'static> = tracing::metadata! {
                name: "n", target: "redis", level: Level::WARN, fields: &[], callsite: &CALLSITE,
                kind: tracing::metadata::Kind::EVENT,
            };
            &META
        };
        let start = Instant::now();
        assert_eq!(repeats.fate(metadata, start), Fate::Shown(None));
        for _ in 0..5 {
            assert_eq!(repeats.fate(metadata, start + WINDOW / 2), Fate::LeftOut);
        }
        match repeats.fate(metadata, start + WINDOW) {
            Fate::Shown(Some((5, since))) => assert!(since.contains('T'), "{since}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(repeats.fate(metadata, start + WINDOW), Fate::LeftOut);
        // The outage began before that minute; after a minute without a line another one begins.
        let since = |repeats: &Repeats<()>| repeats.sources.lock()[&("redis", None)].since.clone();
        repeats
            .sources
            .lock()
            .get_mut(&("redis", None))
            .expect("counted")
            .since = "then".into();
        repeats.fate(metadata, start + 2 * WINDOW);
        assert_eq!(since(&repeats), "then");
        repeats.fate(metadata, start + 4 * WINDOW);
        assert_ne!(since(&repeats), "then");
    }
}
