//! Sets up log lines as `[log]` configures them, on standard error: standard output is for results.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format;

use super::repeats::Repeats;
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
