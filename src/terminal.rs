//! Prints results and notes. `println!` panics when the reader of a pipe is gone (`nearshore dlq list | head`); a
//! result that nobody reads any more ends the process quietly instead, and a note is left out.
//!
//! Invariant: the command line prints through these macros alone; a lint says where it does not.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// Prints a line of a result on standard output.
macro_rules! out {
    () => { $crate::terminal::result(format_args!("\n")) };
    ($($word:tt)*) => { $crate::terminal::result(format_args!("{}\n", format_args!($($word)*))) };
}

/// Prints a part of a result on standard output.
macro_rules! out_part {
    ($($word:tt)*) => { $crate::terminal::result(format_args!($($word)*)) };
}

/// Prints a line for people on standard error.
macro_rules! note {
    ($($word:tt)*) => { $crate::terminal::note(format_args!($($word)*)) };
}

#[allow(
    clippy::disallowed_methods,
    reason = "no caller can do anything without standard output"
)]
pub(crate) fn result(text: Arguments<'_>) {
    let mut stdout = std::io::stdout().lock();
    let Err(error) = stdout.write_fmt(text).and_then(|()| stdout.flush()) else {
        return;
    };
    // The reader has what it wanted. Any other failure, such as a full disk, loses a result and is said.
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    note(format_args!("nearshore: standard output: {error}"));
    std::process::exit(1);
}

pub(crate) fn note(text: Arguments<'_>) {
    // There is no place left to say that standard error is gone.
    let _lost = writeln!(std::io::stderr().lock(), "{text}");
}
