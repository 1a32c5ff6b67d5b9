//! Compiles `[[inputs]]`: reads the programs that they name.
//!
//! Invariant: every mapping in [`compile`]'s result can make records; for every other one there is a problem by its key.

use std::sync::Arc;

use nearshore_core::map::{self, Inputs};

use super::Config;
use crate::files;
use crate::map::check;

/// The mappings of a configuration, and what is wrong with the others.
pub(super) fn compile(config: &Config) -> (Inputs, Vec<(String, String)>) {
    let (mut inputs, mut found) = (Vec::new(), Vec::new());
    for (nth, settings) in config.inputs.iter().enumerate() {
        let at = |key: &str| format!("inputs[{nth}].{key}");
        let mut program = None;
        if let Some(file) = &settings.program {
            let path = config.resolve(file);
            match files::read_filled(&path, "write a jq program into it") {
                Err(error) => found.push((at("program"), error.to_string())),
                Ok(text) => {
                    if let Err(why) = check(&text) {
                        found.push((at("program"), format!("{}: {why}", path.display())));
                    }
                    program = Some(Arc::from(text));
                }
            }
            if program.is_none() {
                continue;
            }
        }
        match map::compile(settings, program) {
            Ok(input) => inputs.push(input),
            Err(wrong) => found.extend(wrong.into_iter().map(|(key, what)| (at(key), what))),
        }
    }
    (inputs.into_iter().collect(), found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The problems of a configuration with these lines.
    fn problems(text: &str) -> String {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("nearshore.toml");
        std::fs::write(&path, text).expect("written");
        match Config::load(Some(&path), []) {
            Ok(_) => String::new(),
            Err(all) => all.iter().map(|it| format!("{it}\n")).collect(),
        }
    }

    #[test]
    fn a_mapping_that_cannot_work_is_refused_by_its_key() {
        let inputs = "[[inputs]]\ntopic = \"user-events\"\nread_as = \"events\"\nset = { type = \"view\" }\n\
                      [[inputs]]\ntopic = \"a\"\nread_as = \"events\"\nfields = { type = \"/t\", colour = \"/c\" }\n\
                      [[inputs]]\ntopic = \"b\"\nread_as = \"catalog\"\nprogram = \"lost.jq\"\n";
        let found = problems(inputs);
        for (line, what) in [
            (
                2,
                "inputs[0].topic: \"user-events\" is already topics.user_events",
            ),
            (
                8,
                "inputs[1].fields: \"colour\" is no field of our contract",
            ),
            (12, "inputs[2].program: "),
        ] {
            let place = format!("nearshore.toml:{line}:");
            let mut lines = found.lines();
            assert!(
                lines.any(|it| it.contains(&place) && it.contains(what)),
                "{what}: {found}"
            );
        }
        let begin = "[[inputs]]\ntopic = \"a\"\nread_as = \"events\"\nset = { type = \"view\" }\n";
        let pointer = problems(&format!("{begin}key = \"user/id\"\n"));
        assert!(pointer.contains("inputs[0]"), "{pointer}");
        let whole = format!(
            "[kafka.incarnations]\na = 1\n{begin}[inputs.fields]\nsku = [\"/sku\", \"/id\"]\n"
        );
        assert_eq!(problems(&whole), "");
    }
}
