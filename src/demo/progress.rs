//! Draws the demo's progress bars on standard error.

use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar on stderr; without a terminal nothing is drawn.
pub(super) fn bar(what: &'static str, len: usize) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg:>14} {wide_bar} {pos}/{len} {per_sec} {elapsed}");
    let bar = ProgressBar::new(len as u64).with_message(what);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
