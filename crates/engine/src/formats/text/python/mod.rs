//! What Python does in Jinja2 and minijinja does differently: printing, JSON, tests, filters and methods of strings.
//!
//! Decides what a chat template prints for values of each kind. Invariant: as `transformers` renders it, or an error
//! that names what is unknown; the tests of `chat` compare. It does not know messages or models.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat;

mod strings;

/// Gives an environment Python's printing, filters, tests and methods.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(|out, _, value| {
        // minijinja divides by 0 where Python raises an error.
        if f64::try_from(value.clone()).is_ok_and(|number| !number.is_finite()) {
            let what = "a number that is not finite was printed: Python divides by no 0";
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
        // Writing fails only if the text itself cannot be written, which its caller sees.
        match value.as_str() {
            Some(text) => out.write_str(text),
            None => out.write_str(&printed(value)),
        }
        .map_err(Error::from)
    });
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| printed(value));
    environment.add_filter("title", |text: &str| strings::title_of_words(text));
    environment.add_filter("escape", escaped);
    environment.add_filter("e", escaped);
    for name in ["length", "count"] {
        environment.add_filter(name, length);
    }
    // Items of a dictionary are no attributes.
    environment.add_filter("attr", |_: &Value, _: &Value| Value::UNDEFINED);
    environment.add_filter("round", round);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_test("iterable", |value: &Value| match value.kind() {
        ValueKind::None => false,
        _ => value.is_undefined() || value.try_iter().is_ok(),
    });
    environment.add_test("sequence", |value: &Value| {
        use ValueKind::{Map, Seq, String, Undefined};
        matches!(value.kind(), Seq | Map | String | Undefined)
    });
    environment.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
}

fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = strings::method(text, name, args)
    {
        return result;
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

/// A value as Python's `str` writes it.
pub(super) fn printed(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => quoted(value),
    }
}

/// A value as Python's `repr` writes it.
fn quoted(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => quoted_text(value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => number(value),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter().into_iter().flatten();
            let items: Vec<String> = items.map(|item| quoted(&item)).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::Map => {
            let pairs =
                pairs(value).map(|(key, value)| format!("{}: {}", quoted(&key), quoted(&value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        _ => value.to_string(),
    }
}

fn pairs(map: &Value) -> impl Iterator<Item = (Value, Value)> {
    let keys = map.try_iter().into_iter().flatten();
    keys.map(|key| {
        let value = map.get_item(&key).unwrap_or_default();
        (key, value)
    })
}

fn quoted_text(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c == ' ' || !(c.is_control() || c.is_whitespace()) => out.push(c),
            c => {
                let code = u32::from(c);
                // Writing into a String cannot fail.
                let _infallible = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    _ => write!(out, "\\u{code:04x}"),
                };
            }
        }
    }
    out.push(quote);
    out
}

/// A float as Python writes it: `2.0`, `1e+16`.
fn number(value: &Value) -> String {
    let Ok(float) = f64::try_from(value.clone()) else {
        return value.to_string();
    };
    if float.is_nan() {
        return "nan".into();
    }
    let text = format!("{float:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}

/// How JSON is written, as the arguments of `json.dumps` say it.
struct Json {
    /// Text of one level; `None` writes one line.
    indent: Option<String>,
    comma: String,
    colon: String,
    ascii: bool,
    sorted: bool,
}

/// The filter `tojson` of `transformers`: `json.dumps` without escapes for HTML.
fn to_json(value: &Value, args: Rest<Value>) -> Result<String, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let (positional, named): (&[Value], Kwargs) = from_args(&args)?;
    if positional.len() > NAMES.len() {
        return Err(ErrorKind::TooManyArguments.into());
    }
    let option = |nth: usize| -> Result<Option<Value>, Error> {
        let named: Option<Value> = named.get(NAMES[nth])?;
        let value = positional.get(nth).cloned().or(named);
        Ok(value.filter(|value| !value.is_none()))
    };
    let indent = match option(1)? {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(80)),
        }),
    };
    let separators = match option(2)? {
        None => None,
        Some(pair) => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            let [comma, colon] = &pair[..] else {
                let what = "tojson: separators must be two texts";
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            };
            Some((comma.to_string(), colon.to_string()))
        }
    };
    let space = if indent.is_some() { "," } else { ", " };
    let (comma, colon) = separators.unwrap_or((space.into(), ": ".into()));
    let json = Json {
        indent,
        comma,
        colon,
        ascii: option(0)?.is_some_and(|value| value.is_true()),
        sorted: option(3)?.is_some_and(|value| value.is_true()),
    };
    named.assert_all_used()?;
    let mut out = String::new();
    json.write(&mut out, value, 0)?;
    Ok(out)
}

impl Json {
    fn write(&self, out: &mut String, value: &Value, level: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&printed(value)),
            ValueKind::String => self.text(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.all(out, ('[', ']'), &items, level, |out, item| {
                    self.write(out, item, level + 1)
                })?;
            }
            ValueKind::Map => {
                let mut items: Vec<(Value, Value)> = pairs(value).collect();
                if self.sorted {
                    items.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.all(out, ('{', '}'), &items, level, |out, (key, value)| {
                    match key.kind() {
                        ValueKind::String => self.text(out, key.as_str().unwrap_or_default()),
                        ValueKind::Bool | ValueKind::None | ValueKind::Number => {
                            let mut text = String::new();
                            self.write(&mut text, key, 0)?;
                            self.text(out, &text);
                        }
                        kind => return Err(not_json(kind)),
                    }
                    out.push_str(&self.colon);
                    self.write(out, value, level + 1)
                })?;
            }
            kind => return Err(not_json(kind)),
        }
        Ok(())
    }

    /// Writes items between brackets, in lines if there is an indent.
    fn all<T>(
        &self,
        out: &mut String,
        (open, close): (char, char),
        items: &[T],
        level: usize,
        mut one: impl FnMut(&mut String, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |out: &mut String, level: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(level));
            }
        };
        out.push(open);
        for (nth, item) in items.iter().enumerate() {
            if nth > 0 {
                out.push_str(&self.comma);
            }
            line(out, level + 1);
            one(out, item)?;
        }
        if !items.is_empty() {
            line(out, level);
        }
        out.push(close);
        Ok(())
    }

    fn text(&self, out: &mut String, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        for c in quoted.chars() {
            if self.ascii && !c.is_ascii() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing into a String cannot fail.
                    let _infallible = write!(out, "\\u{unit:04x}");
                }
            } else {
                out.push(c);
            }
        }
    }
}

fn not_json(kind: ValueKind) -> Error {
    let what = format!("tojson: {kind} has no JSON");
    Error::new(ErrorKind::InvalidOperation, what)
}

/// The filter `escape`, with the entities of Python's markupsafe.
fn escaped(value: &Value) -> String {
    let mut out = String::new();
    for c in printed(value).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// The filter `length`: what is undefined has none.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| {
        let what = format!("a value of type {} has no length", value.kind());
        Error::new(ErrorKind::InvalidOperation, what)
    })
}

/// The filter `round`: halves to the even neighbour, as Python does it.
fn round(
    value: &Value,
    precision: Option<Value>,
    method: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let precision = precision.map_or_else(|| named.get("precision"), |value| Ok(Some(value)))?;
    let method = method.map_or_else(|| named.get("method"), |value| Ok(Some(value)))?;
    named.assert_all_used()?;
    let method = method.map_or_else(|| "common".into(), |method: Value| method.to_string());
    if value.is_integer() && method == "common" {
        return Ok(value.clone());
    }
    let places = precision.map_or(Ok(0), usize::try_from)?.min(17);
    let float = f64::try_from(value.clone())?;
    let scale = 10f64.powi(i32::try_from(places).unwrap_or(0));
    Ok(Value::from(match method.as_str() {
        // Formatting rounds the exact value of the float, and halves to even.
        "common" => format!("{float:.places$}").parse().unwrap_or(float),
        "ceil" => (float * scale).ceil() / scale,
        "floor" => (float * scale).floor() / scale,
        other => {
            let what = format!("round: the method {other} is unknown");
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
    }))
}

/// The filter `int`: a text that is no number is the default.
fn int(value: &Value, default: Option<Value>) -> Value {
    let found = match value.as_str() {
        Some(text) => {
            let text = text.trim();
            let whole = text.parse::<i64>().ok();
            whole.or_else(|| text.parse::<f64>().ok().map(|float| float.trunc() as i64))
        }
        None if value.is_integer() => return value.clone(),
        None => f64::try_from(value.clone())
            .ok()
            .map(|float| float.trunc() as i64),
    };
    found.map_or_else(|| default.unwrap_or_else(|| Value::from(0)), Value::from)
}

/// The filter `float`: a text that is no number is the default.
fn float(value: &Value, default: Option<Value>) -> Value {
    let found = match value.as_str() {
        Some(text) => text.trim().parse::<f64>().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    found.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from)
}
