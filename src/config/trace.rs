//! Sets up log lines as `[log]` configures them, on standard error: standard output is for results.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format;

use super::repeats::{Repeats, time_of_day};
use super::{Color, Format, Lines};

/// Sets up log lines for this process; a second call changes nothing.
///
/// A `level` that does not parse is refused by [`super::Config::load`]; here it would mean `info`.
pub fn init_tracing(lines: &Lines) {
    let filter = EnvFilter::try_new(&lines.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(has_colors(lines.color))
        .with_writer(std::io::stderr);
    // An error means that a test or an embedding program has set its own subscriber, which stays in use.
    let _already = match lines.format {
        Format::Text => builder
            .event_format(Repeats::new(format(), false))
            .try_init(),
        Format::Json => {
            let format = format().json().flatten_event(true);
            builder
                .json()
                .event_format(Repeats::new(format, true))
                .try_init()
        }
    };
}

/// Writes panics as log lines of their own if lines are JSON: the default hook writes text of several lines.
pub fn log_panics(lines: &Lines) {
    if lines.format == Format::Json {
        std::panic::set_hook(Box::new(|panic| note!("{}", panic_line(panic))));
    }
}

/// A panic as a line of JSON, with the place in the code.
fn panic_line(panic: &PanicHookInfo<'_>) -> String {
    let reason = panic.payload_as_str().unwrap_or("a panic without text");
    let place = panic
        .location()
        .map_or_else(String::new, |at| format!(", at {at}"));
    error_line(&format!("panicked: {reason}{place}"))
}

/// An error as a line of JSON, with the fields of every other line.
///
/// It does not go through the subscriber, whose level or limit of repeats may leave a line out: why a process ended is
/// always said.
pub fn error_line(reason: &str) -> String {
    serde_json::json!({
        "timestamp": time_of_day(), "level": "ERROR", "message": reason, "target": "nearshore"
    })
    .to_string()
}

/// Whether log lines have colours. <https://no-color.org>: `NO_COLOR`, present and not empty, means none.
fn has_colors(color: Color) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            std::io::stderr().is_terminal() && !unwanted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_many_lines_and_quotes_is_one_line_of_json() {
        let reason = "the broker said \"no\"\nand \u{1b}[31mmore";
        let line = error_line(reason);
        assert_eq!(line.lines().count(), 1, "{line}");
        let parsed: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(parsed["message"], reason);
        assert_eq!(parsed["level"], "ERROR");
        assert!(
            parsed["timestamp"]
                .as_str()
                .is_some_and(|at| at.contains('T'))
        );
    }
}
