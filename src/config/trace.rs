//! Sets up log lines as `[log]` configures them, on standard error: standard output is for results.

use tracing_subscriber::EnvFilter;

use super::{Format, Lines};

/// Sets up log lines for this process; a second call changes nothing.
///
/// A `level` that does not parse is refused by [`super::Config::load`]; here it would mean `info`.
pub fn init_tracing(lines: &Lines) {
    let filter = EnvFilter::try_new(&lines.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error means that a test or an embedding program has set its own subscriber, which stays in use.
    let _already = match lines.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}
