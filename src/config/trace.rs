//! Log lines as `[log]` asks for them, on standard error so that standard output stays for answers.

use tracing_subscriber::EnvFilter;

use super::{Format, Lines};

/// Starts log lines for this process; a second call changes nothing.
///
/// A `level` that does not parse was refused by [`super::Config::load`]; here it would mean `info`.
pub fn init_tracing(lines: &Lines) {
    let filter = EnvFilter::try_new(&lines.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error here means that a test or an embedding program has set its own subscriber: it keeps it.
    let _already = match lines.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}
