//! Leaves out log lines that repeat: [`Repeats`].
//!
//! While a broker or Redis is away, each client and each loop says so at each try. One line tells as much. Invariant:
//! of the lines about Kafka (target `kafka`), of those that name its fault by our key (`kafka::fault`), of those about
//! Redis (target `redis`), and of the warnings of any one place in the code, a minute shows the first [`most`]; how many
//! were left out, and since when, is said with the next one. It does not know the format of a line.

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
    /// The time of day at which it began, as log lines write it.
    since: String,
    lines: u32,
    left_out: u64,
}

/// Whether a line is shown.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    LeftOut,
    /// It is shown, and behind so many that were left out since a time.
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
            let last = std::mem::replace(counted, fresh());
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
        if let Some((lines, since)) = before {
            let (now, target) = (time_of_day(), metadata.target());
            let message = format!("{lines} lines like the next one were left out since {since}");
            match self.is_json {
                true => writeln!(
                    writer,
                    "{}",
                    serde_json::json!({"timestamp": now, "level": "INFO", "message": message, "target": target})
                )?,
                false => writeln!(writer, "{now}  INFO {target}: {message}")?,
            }
        }
        self.inner.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Lines written by a function under this formatter.
    fn written(is_json: bool, work: impl FnOnce()) -> Vec<String> {
        let buffer = Arc::new(Mutex::new(Vec::new()));
        let sink = buffer.clone();
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
        let format = tracing_subscriber::fmt::format();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || Sink(sink.clone()))
            .event_format(Repeats::new(format, is_json))
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        let text = String::from_utf8(buffer.lock().clone()).expect("text");
        text.lines().map(str::to_owned).collect()
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
    }
}
