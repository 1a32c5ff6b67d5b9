//! Compiles and runs one jq program: [`Program`], [`check`].
//!
//! Invariant: a program sees its input and nothing else: neither environment, files, clock nor further inputs, because
//! only the functions of the lists below exist for it. Nothing here bounds time or memory; see `child.rs`.

use jaq_core::data::JustLut;
use jaq_core::load::{self, Arena, File, Loader};
use jaq_core::native::{Filter, Fun, bome, run, v};
use jaq_core::{Compiler, Ctx, DataT, Error as JqError, RunPtr, Vars, compile, unwrap_valr};
use jaq_json::{Val, read};
use jaq_std::ValT;

/// Most records that one record may become.
const OUTPUTS_MAX: usize = 1_000;

/// Most bytes of what one record becomes.
const BYTES_MAX: usize = 4 << 20;

/// Native functions that a program may call, those among them of which definitions are made. None reads anything but its
/// input.
const NATIVES: &[&str] = &[
    "ascii_downcase",
    "ascii_upcase",
    "bsearch",
    "ceil",
    "contains",
    "endswith",
    "error_empty",
    "escape_sh",
    "explode",
    "first",
    "floor",
    "fromdateiso8601",
    "fromjson",
    "group_by",
    "has",
    "implode",
    "indices",
    "key_values",
    "keys_unsorted",
    "last",
    "length",
    "limit",
    "ltrim",
    "ltrimstr",
    "max_by_or_empty",
    "min_by_or_empty",
    "path",
    "path_value",
    "range",
    "reverse",
    "round",
    "rtrim",
    "rtrimstr",
    "skip",
    "sort",
    "sort_by",
    "startswith",
    "tobytes",
    "todateiso8601",
    "tojson",
    "trim",
    "utf8bytelength",
];

/// Definitions of the standard library that need what a program may not call, or what this build leaves out: regular
/// expressions, and functions of a pocket calculator.
const LEFT_OUT: &[(&str, usize)] = &[
    ("@base64", 0),
    ("@base64d", 0),
    ("@html", 0),
    ("@htmld", 0),
    ("@uri", 0),
    ("@urid", 0),
    ("capture", 1),
    ("capture", 2),
    ("debug", 0),
    ("debug", 1),
    ("drem", 2),
    ("gamma", 0),
    ("gsub", 2),
    ("gsub", 3),
    ("halt", 0),
    ("halt_error", 0),
    ("halt_error", 1),
    ("logb", 0),
    ("match", 1),
    ("match", 2),
    ("nexttoward", 2),
    ("pow10", 0),
    ("scalb", 2),
    ("scan", 1),
    ("scan", 2),
    ("scan_", 2),
    ("significand", 0),
    ("split", 2),
    ("splits", 1),
    ("splits", 2),
    ("stderr", 0),
    ("sub", 2),
    ("sub", 3),
    ("test", 1),
    ("test", 2),
    ("env", 0),
    ("input", 0),
    ("inputs", 0),
    ("input_line_number", 0),
    ("now", 0),
];

type Data = JustLut<Val>;

/// A compiled program.
pub(super) struct Program(jaq_core::Filter<Data>);

/// Says why a program does not compile.
pub(crate) fn check(text: &str) -> Result<(), String> {
    Program::compile(text).map(drop)
}

impl Program {
    /// Compiles a program.
    pub(super) fn compile(text: &str) -> Result<Self, String> {
        let defs = jaq_core::defs()
            .chain(jaq_std::defs())
            .chain(jaq_json::defs())
            .filter(|def| !LEFT_OUT.contains(&(def.name, def.args.len())));
        let funs = jaq_core::funs::<Data>()
            .chain(jaq_std::base_funs())
            .chain(jaq_json::funs())
            .chain(times())
            .filter(|(name, ..)| NATIVES.contains(name));
        let arena = Arena::default();
        let file = File {
            code: text,
            path: (),
        };
        let modules = Loader::new(defs)
            .load(&arena, file)
            .map_err(|errors| loading(&errors))?;
        let compiled = Compiler::default().with_funs(funs).compile(modules);
        compiled.map(Self).map_err(|errors| compiling(&errors))
    }

    /// Runs it on a JSON text; the JSON texts that it makes, as a JSON array.
    pub(super) fn run(&self, input: &str) -> Result<String, String> {
        let input = read::parse_single(input.as_bytes()).map_err(|error| error.to_string())?;
        let context = Ctx::<Data>::new(&self.0.lut, Vars::new([]));
        let mut all = String::from("[");
        for (nth, output) in self.0.id.run((context, input)).map(unwrap_valr).enumerate() {
            if nth == OUTPUTS_MAX {
                return Err(format!("it made more than {OUTPUTS_MAX} records of one"));
            }
            let output = output.map_err(|error| in_words(&error.to_string()))?;
            if nth > 0 {
                all.push(',');
            }
            all.push_str(&output.to_string());
            if all.len() > BYTES_MAX {
                return Err(format!("it made more than {BYTES_MAX} bytes of one record"));
            }
        }
        all.push(']');
        Ok(all)
    }
}

/// Times as text and back. Those of jaq-std come with a clock.
fn times<D: for<'a> DataT<V<'a> = Val>>() -> impl Iterator<Item = Fun<D>> {
    natives().into_vec().into_iter().map(run)
}

fn natives<D: for<'a> DataT<V<'a> = Val>>() -> Box<[Filter<RunPtr<D>>]> {
    Box::new([
        ("fromdateiso8601", v(0), |cv| bome(seconds_of(&cv.1))),
        ("todateiso8601", v(0), |cv| bome(text_of(&cv.1))),
    ])
}

fn seconds_of(text: &Val) -> Result<Val, JqError<Val>> {
    let text = text.try_as_utf8_bytes()?;
    let time = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let time = time.ok_or_else(|| JqError::str("not a time of RFC 3339"))?;
    Ok(match time.subsec_nanosecond() {
        0 => Val::from(time.as_second() as isize),
        _ => Val::from(time.as_millisecond() as f64 / 1_000.0),
    })
}

fn text_of(seconds: &Val) -> Result<Val, JqError<Val>> {
    let ms = seconds
        .as_f64()
        .map(|seconds| (seconds * 1_000.0).round() as i64);
    let time = ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let time = time.ok_or_else(|| JqError::str("not seconds since 1970"))?;
    Ok(Val::from(time.to_string()))
}

/// Why a program cannot be parsed.
fn loading(errors: &load::Errors<&str, ()>) -> String {
    let each = errors.iter().map(|(file, error)| {
        let at = |rest: &str| place(file.code, rest);
        match error {
            load::Error::Io(all) => format!("{all:?}"),
            load::Error::Lex(all) => {
                let each = all.iter();
                let each = each
                    .map(|(expect, rest)| format!("{}: expected {}", at(rest), expect.as_str()));
                each.collect::<Vec<_>>().join("; ")
            }
            load::Error::Parse(all) => {
                let each = all.iter();
                let each = each
                    .map(|(expect, rest)| format!("{}: expected {}", at(rest), expect.as_str()));
                each.collect::<Vec<_>>().join("; ")
            }
        }
    });
    each.collect::<Vec<_>>().join("; ")
}

/// Why a program cannot be compiled.
fn compiling(errors: &compile::Errors<&str, ()>) -> String {
    let each = errors.iter().flat_map(|(file, all)| {
        all.iter().map(|(name, undefined)| {
            format!(
                "{}: there is no {} {name:?}",
                place(file.code, name),
                undefined.as_str()
            )
        })
    });
    each.collect::<Vec<_>>().join("; ")
}

/// Line and column of a part of a program.
fn place(code: &str, part: &str) -> String {
    let at = (part.as_ptr() as usize).wrapping_sub(code.as_ptr() as usize);
    let before = code.get(..at).unwrap_or(code);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    format!("line {line}, column {column}")
}

/// An error as it is told: a text that a program gave to `error` without its quotes, and not too long.
fn in_words(error: &str) -> String {
    let text = serde_json::from_str::<String>(error);
    short(text.as_deref().unwrap_or(error))
}

fn short(text: &str) -> String {
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(program: &str, input: &str) -> Result<String, String> {
        Program::compile(program)?.run(input)
    }

    #[test]
    fn a_program_makes_none_one_or_many() {
        let input = r#"{"value":{"ids":[1,2],"at":"2026-01-31T17:30:00Z"}}"#;
        for (program, expected) in [
            ("empty", "[]"),
            (".value.ids | length", "[2]"),
            (
                ".value.ids[] | {key: tostring, value: {sku: .}}",
                r#"[{"key":"1","value":{"sku":1}},{"key":"2","value":{"sku":2}}]"#,
            ),
            (".value.at | fromdate", "[1769880600]"),
            ("1769880600.25 | todate", r#"["2026-01-31T17:30:00.25Z"]"#),
            (
                r#""a-b" | split("-") | map(ascii_upcase)"#,
                r#"[["A","B"]]"#,
            ),
        ] {
            assert_eq!(made(program, input).as_deref(), Ok(expected), "{program}");
        }
        assert_eq!(made("error(\"no\")", "{}"), Err("no".into()));
        assert!(made("range(2000)", "{}").is_err_and(|why| why.contains("1000")));
    }

    #[test]
    fn what_a_program_may_not_call_does_not_exist() {
        for name in [
            "env",
            "now",
            "input",
            "inputs",
            "halt",
            "debug",
            "stderr",
            "halt_error",
            "localtime",
            "$ENV",
            "input_filename",
        ] {
            let refused = check(name).expect_err(name);
            assert!(refused.contains("line 1, column 1"), "{name}: {refused}");
        }
        assert!(check("import \"a\" as a; .").is_err() && check("include \"a\"; .").is_err());
        assert!(
            check(".value |\n {key: ")
                .expect_err("cut off")
                .contains("line 2")
        );
    }
}
