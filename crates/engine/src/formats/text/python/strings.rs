//! Methods of Python's strings that `minijinja_contrib` lacks, or has by bytes where Python has letters.

use minijinja::value::{Value, from_args};
use minijinja::{Error, ErrorKind};

/// Calls a method of a string; `None` if it is not one of these.
pub(super) fn method(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match name {
        "islower" | "isupper" | "isspace" | "isdigit" | "isnumeric" | "isdecimal" | "isalpha"
        | "isalnum" => is(text, name, args),
        "find" | "rfind" | "index" | "rindex" => place(text, name, args),
        "count" => count(text, args),
        "title" => nothing(args).map(|()| Value::from(title(text))),
        "casefold" => nothing(args).map(|()| Value::from(text.to_lowercase())),
        "swapcase" => nothing(args).map(|()| Value::from(swapped(text))),
        "removeprefix" => from_args(args)
            .map(|(part,): (&str,)| Value::from(text.strip_prefix(part).unwrap_or(text))),
        "removesuffix" => from_args(args)
            .map(|(part,): (&str,)| Value::from(text.strip_suffix(part).unwrap_or(text))),
        "partition" | "rpartition" => partition(text, name, args),
        "rsplit" => rsplit(text, args),
        "zfill" => from_args(args).map(|(width,): (usize,)| Value::from(zfill(text, width))),
        "ljust" | "rjust" | "center" => padded(text, name, args),
        _ => return None,
    })
}

fn nothing(args: &[Value]) -> Result<(), Error> {
    from_args(args)
}

/// Whether all letters are of a kind; never of an empty text.
fn is(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    nothing(args)?;
    let cased = |upper: bool| {
        let mut letters = text
            .chars()
            .filter(|c| c.is_lowercase() || c.is_uppercase());
        let mut any = false;
        letters.all(|c| {
            any = true;
            c.is_uppercase() == upper
        }) && any
    };
    let all = |kind: fn(char) -> bool| !text.is_empty() && text.chars().all(kind);
    Ok(Value::from(match name {
        "islower" => cased(false),
        "isupper" => cased(true),
        "isspace" => all(char::is_whitespace),
        "isdecimal" => all(|c| c.is_ascii_digit()),
        "isdigit" | "isnumeric" => all(char::is_numeric),
        "isalpha" => all(char::is_alphabetic),
        _ => all(char::is_alphanumeric),
    }))
}

/// Place of a part, in letters.
fn place(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (part,): (&str,) = from_args(args)?;
    let found = match name {
        "find" | "index" => text.find(part),
        _ => text.rfind(part),
    };
    match found {
        Some(at) => Ok(Value::from(text[..at].chars().count())),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => {
            let what = format!("{name}: substring not found");
            Err(Error::new(ErrorKind::InvalidOperation, what))
        }
    }
}

fn count(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (part,): (&str,) = from_args(args)?;
    Ok(Value::from(text.matches(part).count()))
}

/// Python's `title`: a letter after anything but a letter is a capital.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut begins = true;
    for c in text.chars() {
        match begins {
            true => out.extend(c.to_uppercase()),
            false => out.extend(c.to_lowercase()),
        }
        begins = !(c.is_lowercase() || c.is_uppercase());
    }
    out
}

/// Jinja2's filter `title`: a letter after white space, a hyphen or an opening bracket is a capital.
pub(super) fn title_of_words(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut begins = true;
    for c in text.chars() {
        match begins {
            true => out.extend(c.to_uppercase()),
            false => out.extend(c.to_lowercase()),
        }
        begins = c.is_whitespace() || "-({[<".contains(c);
    }
    out
}

fn swapped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_uppercase() {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
    }
    out
}

fn partition(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (by,): (&str,) = from_args(args)?;
    let parts = match name {
        "partition" => text
            .split_once(by)
            .map_or([text, "", ""], |(a, b)| [a, by, b]),
        _ => text
            .rsplit_once(by)
            .map_or(["", "", text], |(a, b)| [a, by, b]),
    };
    Ok(Value::from(parts.map(Value::from).to_vec()))
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (by, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let Some(by) = by else {
        let what = "rsplit: without a separator it is not known here; use split";
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    };
    let most = most.and_then(|most| usize::try_from(most).ok());
    let mut parts: Vec<Value> = match most {
        Some(most) => text.rsplitn(most + 1, by).map(Value::from).collect(),
        None => text.rsplit(by).map(Value::from).collect(),
    };
    parts.reverse();
    Ok(Value::from(parts))
}

fn zfill(text: &str, width: usize) -> String {
    let missing = missing(text, width);
    let (sign, digits) = match text.chars().next() {
        Some('+' | '-') => text.split_at(1),
        _ => ("", text),
    };
    format!("{sign}{}{digits}", "0".repeat(missing))
}

fn padded(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let missing = missing(text, width);
    let before = match name {
        "ljust" => 0,
        "rjust" => missing,
        _ => missing / 2 + (missing & width & 1),
    };
    let fill = fill.unwrap_or(" ");
    let (before, after) = (fill.repeat(before), fill.repeat(missing - before));
    Ok(Value::from(format!("{before}{text}{after}")))
}

/// Letters that a text lacks to a width; no template pads further than a line.
fn missing(text: &str, width: usize) -> usize {
    width.min(1000).saturating_sub(text.chars().count())
}
