//! What the model adds with one prompt or another: [`compare_prompts`].
//!
//! A prompt is its template: which profile fields are in it, how many events, in which words. Invariant: every prompt is
//! asked about the same users, and what is written beside the artefacts is the template that was measured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nearshore_core::learn::bootstrap::Interval;
use nearshore_core::learn::model::ModelFit;
use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{AlignOptions, Among, Fitted};
use crate::config::Config;
use crate::ops::evaluate::History;
use crate::ops::evaluate::model::{FittedModel, ModelOptions, fit_weights};

/// The line after which the assistant's turn begins.
const ASSISTANT: &str = "---assistant---";

/// Which prompts are compared with the arm's.
#[derive(Clone, Debug, Default)]
pub(crate) struct PromptOrder {
    /// Other templates.
    pub(crate) templates: Vec<PathBuf>,
    /// The arm's template with these profile fields alone.
    pub(crate) fields: Vec<String>,
    /// The arm's template with so many events at most.
    pub(crate) events: Vec<usize>,
    /// Folder into which the templates of `fields` and `events` are written.
    pub(crate) folder: PathBuf,
}

impl PromptOrder {
    /// Number of prompts beside the arm's.
    pub(crate) fn len(&self) -> usize {
        self.templates.len() + usize::from(!self.fields.is_empty()) + self.events.len()
    }

    /// The templates to be compared, by what they are called in the report.
    fn files(&self, base: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
        let shown = |path: &PathBuf| (format!("--prompt {}", path.display()), path.clone());
        let mut all: Vec<(String, PathBuf)> = self.templates.iter().map(shown).collect();
        let text = std::fs::read_to_string(base)
            .with_context(|| format!("cannot read {}", base.display()))?;
        let mut made = Vec::new();
        if !self.fields.is_empty() {
            let option = format!("--prompt-fields {}", self.fields.join(","));
            made.push((option, preceded(&text, &fields(&self.fields))));
        }
        made.extend(self.events.iter().map(|most| {
            let line = format!("{{% set events = events[:{most}] %}}");
            (format!("--prompt-events {most}"), preceded(&text, &line))
        }));
        for (option, text) in made {
            let hash = hex::encode(&Sha256::digest(&text)[..6]);
            let path = self.folder.join(format!("prompt-{hash}.j2"));
            std::fs::create_dir_all(&self.folder)
                .and_then(|()| std::fs::write(&path, &text))
                .with_context(|| format!("cannot write {}", path.display()))?;
            all.push((option, path));
        }
        Ok(all)
    }
}

/// What the model adds with a prompt.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct PromptRow {
    /// The option, or the arm's own template.
    pub(crate) option: String,
    /// The template.
    pub(crate) template: PathBuf,
    /// Least visible history of the bucket.
    pub(crate) visible: usize,
    /// Users asked about.
    pub(crate) users: usize,
    /// The model's weight, if it can be told from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) weight: Option<f64>,
    /// Recall@10 with the model less that of the mixture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) recall: Option<Interval>,
    /// The same of the mean log-probability of what was bought, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nats: Option<Interval>,
}

/// Asks the model by each prompt, and says what it adds; nothing if no prompt is compared.
pub(super) fn compare_prompts(
    history: &History,
    config: &Config,
    known: (&AlignOptions, &Among<'_>),
    (model, fitted, found): (&ModelOptions, &Fitted, &FittedModel),
    progress: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<Vec<PromptRow>> {
    let order = &known.0.prompts;
    let arm = config.arms.iter().position(|arm| arm.id == model.arm);
    let Some(arm) = arm.filter(|_| order.len() > 0) else {
        return Ok(Vec::new());
    };
    let base = config.resolve(&config.arms[arm].template);
    let mut rows = rows("as configured", &base, &found.fits);
    for (option, template) in order.files(&base)? {
        let template = std::path::absolute(&template)
            .with_context(|| format!("cannot read {}", template.display()))?;
        let mut config = config.clone();
        config.arms[arm]
            .template
            .clone_from(&template.to_string_lossy().into_owned());
        let found = fit_weights(history, &config, known, (model, fitted), progress)
            .with_context(|| option.clone())?;
        rows.extend(self::rows(&option, &template, &found.fits));
    }
    Ok(rows)
}

fn rows(option: &str, template: &Path, fits: &BTreeMap<usize, ModelFit>) -> Vec<PromptRow> {
    let row = |(visible, fit): (&usize, &ModelFit)| PromptRow {
        option: option.to_owned(),
        template: template.into(),
        visible: *visible,
        users: fit.users,
        weight: fit.weight(),
        recall: fit.recall,
        nats: fit.nats,
    };
    fits.iter().map(row).collect()
}

/// A template with a line before each of its parts.
fn preceded(text: &str, line: &str) -> String {
    let mut out = format!("{line}\n");
    for part in text.split_inclusive('\n') {
        out += part;
        if part.trim_end() == ASSISTANT {
            out += line;
            out += "\n";
        }
    }
    out
}

/// Leaves these fields of the profile, of which a user may lack some.
fn fields(names: &[String]) -> String {
    let one = |name: &String| {
        let name = serde_json::Value::from(name.as_str());
        format!("({{{name}: profile[{name}]}} if profile[{name}] else {{}})")
    };
    let all: Vec<String> = names.iter().map(one).collect();
    let (first, rest) = all.split_first().expect("at least one is named");
    let rest: String = rest.iter().map(|one| format!("|chain({one})")).collect();
    format!("{{% set profile = {first}{rest} %}}")
}

#[cfg(test)]
mod tests {
    use nearshore_core::list::prompt::{Line, LineText, Template, View};
    use nearshore_core::user::event::Kind;

    use super::*;

    const TEXT: &str = "{% for field, words in profile|items %}{{ field }}={{ words }};{% endfor %}\n\
                        {% for line in events %}{{ line.name }} {% endfor %}\n---assistant---\n{{ profile.age }}:";

    fn rendered(text: &str) -> String {
        let profile = [("age", "45-54"), ("kids", "2"), ("income", "low")];
        let line = |name: &str| Line {
            kind: Kind::Purchase,
            name: name.into(),
            qty: 1,
            price: None,
            days_ago: 1,
            count: 1,
            since: 1,
            said: LineText::default(),
            positions: Vec::new(),
        };
        let view = View {
            profile: profile.map(|(a, b)| (a.into(), b.into())).into(),
            events: ["milk", "bread", "soap"].map(line).into(),
            ..View::default()
        };
        let template = Template::load(text, "test").expect("a template");
        let words = |text: &str| text.split_whitespace().count();
        template.render(&view, 1000, words).expect("text").text()
    }

    #[test]
    fn a_template_has_fewer_fields_or_events_by_a_line_before_its_parts() {
        let few = fields(&["kids".into(), "absent".into()]);
        let found = rendered(&preceded(TEXT, &few));
        assert!(
            found.starts_with("kids=2;") && found.ends_with("\n:"),
            "{found}"
        );
        assert!(found.contains("milk bread soap"), "{found}");
        let found = rendered(&preceded(TEXT, "{% set events = events[:2] %}"));
        assert!(
            found.contains("milk bread") && !found.contains("soap"),
            "{found}"
        );
        assert!(found.contains("income=low"), "{found}");
    }
}
