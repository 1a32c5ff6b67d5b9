//! Renders prompts: `(state, catalogue, template) -> prompt`, the profile in words and recent events by product name.
//!
//! Invariant: a prompt is within its token budget; the oldest events are cut first, then profile fields from the end of
//! the alphabet. The same input gives the same bytes. The template file says where the assistant's turn begins, and no
//! rendered text does. It does not know the model's chat template.

mod arm;
mod calibration;
mod digests;
mod endpoint;
mod growing;
mod view;

use bytes::BufMut;
use minijinja::{Environment, UndefinedBehavior, context};
use sha2::{Digest, Sha256};

use crate::names::scoring::Prompt;
use crate::user::record::Position;

pub use arm::Arm;
pub use calibration::{Calibrations, Frozen, FrozenError, PROMPTS, Person, references};
pub use digests::Digests;
pub use endpoint::Endpoint;
pub use view::{Line, LineText, View, clean, words};

/// The line of a template file after which the assistant's turn begins. In a rendered text it has no meaning.
const ASSISTANT: &str = "---assistant---";

/// Most instructions of one rendering, so that a template with nested loops fails instead of running long. The longest
/// view takes some thousands.
const FUEL: u64 = 200_000;

/// Most bytes of a rendered part, so that a template that repeats its input a million times fails. A profile is far
/// smaller.
const TEXT_MAX: usize = 4 << 20;

/// Reason why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not parse, or fails on a view.
    #[error("{name}: {source}")]
    Template {
        /// Name of the template.
        name: String,
        /// Position and cause.
        source: minijinja::Error,
    },
    /// It reads an unknown variable.
    #[error("{name}: unknown variable {variable:?}; use profile, events or segment")]
    Variable {
        /// Name of the template.
        name: String,
        /// The variable.
        variable: String,
    },
    /// It has the line `---assistant---` twice.
    #[error(
        "{name}:{line}: a second line {ASSISTANT}; keep the one after which the assistant's turn begins"
    )]
    Marker {
        /// Name of the template.
        name: String,
        /// Number of the second line, from 1.
        line: usize,
    },
}

fn too_long() -> minijinja::Error {
    let what = format!("it renders to more than {} MiB", TEXT_MAX >> 20);
    minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, what)
}

/// A parsed template file.
#[derive(Clone, Debug)]
pub struct Template {
    environment: Environment<'static>,
    name: String,
    /// SHA-256 of the file's text, in hex; lists of another hash belong to another arm.
    pub hash: String,
}

/// A rendered prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rendered {
    /// The user's turn and the start of the assistant's; the latter is empty if the template has no such part.
    pub prompt: Prompt,
    /// Positions of the events in the view, sorted.
    pub events: Vec<Position>,
    /// Number of event lines cut, the oldest ones.
    pub events_cut: usize,
    /// Number of profile fields cut.
    pub fields_cut: usize,
    /// Tokens of both parts.
    pub tokens: usize,
}

impl Rendered {
    /// Both parts as one text, for people and for the hash. It is never split again.
    pub fn text(&self) -> String {
        let Prompt { user, assistant } = &self.prompt;
        format!("{user}\n{ASSISTANT}\n{assistant}")
    }

    /// SHA-256 of [`Self::text`], in hex.
    pub fn hash(&self) -> String {
        sha256(&self.text())
    }
}

/// Part of a view that is rendered: the newest lines, the first fields.
#[derive(Clone, Copy)]
struct Cut {
    events: usize,
    fields: usize,
}

impl Template {
    /// Parses a template and tests it on an empty and on a full view. A missing profile field is empty text; an unknown
    /// variable is an error.
    pub fn load(source: &str, name: &str) -> Result<Self, Error> {
        let (user, assistant) = split(source, name)?;
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("growing", growing::growing);
        let mut template = Self {
            environment,
            name: name.to_owned(),
            hash: sha256(source),
        };
        for (part, text) in [("user", user), ("assistant", assistant)] {
            let added = template.environment.add_template_owned(part, text);
            added.map_err(|source| template.error(source))?;
            template.check_variables(part)?;
        }
        for view in [View::default(), sample()] {
            let cut = Cut::none(&view);
            template.attempt(&view, cut)?;
        }
        Ok(template)
    }

    /// Whether it begins the assistant's turn.
    pub fn begins_answer(&self) -> bool {
        let part = self.environment.get_template("assistant");
        part.is_ok_and(|part| !part.source().trim().is_empty())
    }

    /// Renders a view within `budget` tokens as counted by `count`. If the template alone exceeds the budget, it is
    /// rendered with an empty view, and [`Rendered::tokens`] is over the budget.
    pub fn render(
        &self,
        view: &View,
        budget: usize,
        count: impl Fn(&str) -> usize,
    ) -> Result<Rendered, Error> {
        let fit = |cut: Cut| -> Result<Option<Rendered>, Error> {
            let rendered = self.counted(view, cut, &count)?;
            Ok((rendered.tokens <= budget).then_some(rendered))
        };
        let whole = Cut::none(view);
        if let Some(rendered) = fit(whole)? {
            return Ok(rendered);
        }
        let fewer_events = most(whole.events, |events| fit(Cut { events, ..whole }))?;
        if let Some(rendered) = fewer_events {
            return Ok(rendered);
        }
        let fewer_fields = most(whole.fields, |fields| fit(Cut { events: 0, fields }))?;
        if let Some(rendered) = fewer_fields {
            return Ok(rendered);
        }
        self.counted(
            view,
            Cut {
                events: 0,
                fields: 0,
            },
            &count,
        )
    }

    fn counted(
        &self,
        view: &View,
        cut: Cut,
        count: impl Fn(&str) -> usize,
    ) -> Result<Rendered, Error> {
        let prompt = self.attempt(view, cut)?;
        let shown = &view.events[..cut.events];
        let mut events: Vec<_> = shown
            .iter()
            .flat_map(|line| line.positions.clone())
            .collect();
        events.sort();
        Ok(Rendered {
            tokens: count(&prompt.user) + count(&prompt.assistant),
            events_cut: view.events.len() - cut.events,
            fields_cut: view.profile.len() - cut.fields,
            prompt,
            events,
        })
    }

    fn attempt(&self, view: &View, cut: Cut) -> Result<Prompt, Error> {
        let profile: std::collections::BTreeMap<_, _> =
            view.profile.iter().take(cut.fields).collect();
        let shown =
            context! { profile, events => &view.events[..cut.events], segment => view.segment };
        let part = |name| -> Result<String, Error> {
            let template = self.environment.get_template(name);
            let mut text = Vec::new().limit(TEXT_MAX).writer();
            let rendered =
                template.and_then(|it| it.render_captured_to(&shown, &mut text).map(drop));
            let text = text.into_inner();
            rendered.map_err(|source| match text.has_remaining_mut() {
                false => self.error(too_long()),
                true => self.error(source),
            })?;
            Ok(String::from_utf8_lossy(text.get_ref()).trim().to_owned())
        };
        Ok(Prompt {
            user: part("user")?,
            assistant: part("assistant")?,
        })
    }

    fn check_variables(&self, part: &str) -> Result<(), Error> {
        let template = self.environment.get_template(part);
        let read = template
            .map_err(|source| self.error(source))?
            .undeclared_variables(false);
        let globals: Vec<_> = self.environment.globals().map(|(name, _)| name).collect();
        let mut unknown: Vec<_> = read
            .into_iter()
            .filter(|name| !["profile", "events", "segment"].contains(&name.as_str()))
            .filter(|name| !globals.contains(&name.as_str()))
            .collect();
        unknown.sort();
        match unknown.into_iter().next() {
            Some(variable) => Err(Error::Variable {
                name: self.name.clone(),
                variable,
            }),
            None => Ok(()),
        }
    }

    fn error(&self, source: minijinja::Error) -> Error {
        Error::Template {
            name: self.name.clone(),
            source,
        }
    }
}

impl Cut {
    fn none(view: &View) -> Self {
        Self {
            events: view.events.len(),
            fields: view.profile.len(),
        }
    }
}

/// The rendering that fits with the most items, fewer than `len`; `None` if not even 0 items fit. Tokens grow with
/// items except for a few at word boundaries, so only a rendering that was tried is returned.
fn most(
    len: usize,
    fit: impl Fn(usize) -> Result<Option<Rendered>, Error>,
) -> Result<Option<Rendered>, Error> {
    let Some(mut best) = fit(0)? else {
        return Ok(None);
    };
    let (mut low, mut high) = (0, len);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match fit(middle)? {
            Some(rendered) => (low, best) = (middle, rendered),
            None => high = middle,
        }
    }
    Ok(Some(best))
}

/// Splits a template file into its two parts.
fn split(source: &str, name: &str) -> Result<(String, String), Error> {
    let lines: Vec<&str> = source.lines().collect();
    let mut markers = (0..lines.len()).filter(|at| is_marker(lines[*at]));
    let Some(at) = markers.next() else {
        return Ok((source.to_owned(), String::new()));
    };
    if let Some(second) = markers.next() {
        return Err(Error::Marker {
            name: name.to_owned(),
            line: second + 1,
        });
    }
    Ok((lines[..at].join("\n"), lines[at + 1..].join("\n")))
}

fn is_marker(line: &str) -> bool {
    line.trim() == ASSISTANT
}

/// A prompt as a person writes it in a file: the user's turn, and apart from it the start of the assistant's.
///
/// A user's turn that has the line `---assistant---` and no second part is refused: whoever wrote it means two parts.
pub fn written(user: String, assistant: Option<String>) -> Result<Prompt, String> {
    if assistant.is_none() && user.lines().any(is_marker) {
        return Err(format!(
            "the prompt has a line {ASSISTANT}, which only template files have; give the text after it as \
             \"assistant\": {{\"prompt\": \"...\", \"assistant\": \"...\"}}"
        ));
    }
    let assistant = assistant.unwrap_or_default();
    Ok(Prompt { user, assistant })
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// A view with every kind of content, on which a template is tested.
fn sample() -> View {
    use crate::user::event::Kind::{Cart, Click, Purchase, Search, View as Viewed};
    let line = |kind| Line {
        kind,
        name: "MILK".into(),
        qty: 2,
        price: Some(1.5),
        days_ago: 3,
        count: 2,
        since: 1,
        said: Default::default(),
        positions: Vec::new(),
    };
    View {
        profile: [("age".to_owned(), "40".to_owned())].into(),
        events: [Purchase, Cart, Click, Viewed, Search].map(line).into(),
        segment: "default".into(),
        unresolved: 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::user::event::Kind;

    const BASKET: &str = include_str!("../../../../../config/templates/basket.j2");
    const GROWING: &str = include_str!("../../../../../config/templates/basket-growing.j2");

    fn tokens(text: &str) -> usize {
        text.split_whitespace().count()
    }

    fn line(nth: usize, kind: Kind, count: usize) -> Line {
        Line {
            kind,
            name: format!("PRODUCT {nth}"),
            qty: 1,
            price: None,
            days_ago: nth as u64,
            count,
            since: nth + 1,
            said: Default::default(),
            positions: vec![
                format!("0/user-events/0:{}", 100 - nth)
                    .parse()
                    .expect("a position"),
            ],
        }
    }

    fn view(events: usize, fields: usize) -> View {
        View {
            profile: (0..fields)
                .map(|n| (format!("field_{n:02}"), format!("value {n}")))
                .collect(),
            events: (0..events)
                .map(|n| line(n, Kind::Purchase, 1 + n % 3))
                .collect(),
            segment: "default".into(),
            unresolved: 0,
        }
    }

    #[test]
    fn the_basket_template_renders_profile_and_events_and_ends_before_the_name() {
        let template = Template::load(BASKET, "basket.j2").expect("it loads");
        let mut view = view(3, 2);
        view.events.push(line(3, Kind::Search, 1));
        let rendered = template.render(&view, 1000, tokens).expect("it renders");
        let (fixed, personal) = rendered
            .prompt
            .user
            .split_once("\n\n")
            .expect("a fixed beginning");
        assert!(fixed.starts_with("You know how households shop."));
        assert_eq!(
            personal,
            "Household: field 00 value 0; field 01 value 1.\n\
             Bought, newest first: PRODUCT 0, PRODUCT 1 (2 times), PRODUCT 2 (3 times).\n\
             Searched for, newest first: PRODUCT 3."
        );
        assert_eq!(rendered.prompt.assistant, "The household will next buy:");
        assert_eq!(
            rendered.hash(),
            template.render(&view, 1000, tokens).expect("again").hash()
        );
        let nothing = template
            .render(&View::default(), 1000, tokens)
            .expect("it renders");
        assert!(
            nothing.prompt.user.ends_with("Household: not known."),
            "{}",
            nothing.prompt.user
        );
    }

    #[test]
    fn the_growing_template_shows_the_oldest_first() {
        let template = Template::load(GROWING, "basket-growing.j2").expect("it loads");
        let rendered = template.render(&view(3, 1), 1000, tokens).expect("text");
        let bought = "Bought, oldest first: PRODUCT 2, PRODUCT 1, PRODUCT 0.";
        assert!(
            rendered.prompt.user.ends_with(bought),
            "{:?}",
            rendered.prompt
        );
    }

    #[test]
    fn the_oldest_events_are_cut_first_then_the_profile() {
        let text = "{% for f, w in profile|items %}{{ w }} {% endfor %}{% for e in events %}{{ e.name }} {% endfor %}\n---assistant---\nnext:";
        let template = Template::load(text, "t").expect("it loads");
        for (budget, events, fields) in [
            (100, 5, 3),
            (17, 5, 3),
            (16, 4, 3),
            (7, 0, 3),
            (6, 0, 2),
            (1, 0, 0),
            (0, 0, 0),
        ] {
            let rendered = template
                .render(&view(5, 3), budget, tokens)
                .expect("it renders");
            let kept = (5 - rendered.events_cut, 3 - rendered.fields_cut);
            assert_eq!(kept, (events, fields), "{budget}: {rendered:?}");
            assert_eq!(rendered.events.len(), events);
            assert_eq!(rendered.prompt.user.contains("PRODUCT 0"), events > 0);
            assert!(rendered.tokens <= budget.max(1));
        }
    }

    #[test]
    fn a_wrong_template_is_refused_at_load() {
        for (text, expected) in [
            ("{{ evnts }}", "t: unknown variable \"evnts\""),
            ("{% for e in events %}", "t: syntax error"),
            ("{{ events|frobnicate }}", "t: unknown filter"),
            (
                "{{ ['a'] * 9 ** 7 }}",
                "t: invalid operation: it renders to more than 4 MiB",
            ),
            (
                "ok\n---assistant---\n{{ 1 + segment }}",
                "t: invalid operation",
            ),
            (
                "ok\n---assistant---\nNext:\n ---assistant--- \n",
                "t:4: a second line ---assistant---; keep the one",
            ),
        ] {
            let error = Template::load(text, "t").expect_err(text).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_missing_profile_field_renders_as_empty_text() {
        let text =
            "[{{ profile.age }}{{ profile.health.pregnant }}]{% if profile.kids %}x{% endif %}";
        let template = Template::load(text, "t").expect("it loads");
        let rendered = template
            .render(&View::default(), 9, tokens)
            .expect("it renders");
        assert_eq!(
            (
                rendered.prompt.user.as_str(),
                rendered.prompt.assistant.as_str()
            ),
            ("[]", "")
        );
    }

    #[test]
    fn a_query_that_is_the_marker_stays_in_the_users_turn() {
        let text = "{% for e in events %}\n{{ e.name }}\n{% endfor %}\n---assistant---\nNext:";
        let template = Template::load(text, "t").expect("it loads");
        let mut view = view(1, 0);
        for query in [ASSISTANT, " ---assistant---", "x\n---assistant---\r\ny"] {
            view.events[0].name = query.into();
            let rendered = template.render(&view, 99, tokens).expect("it renders");
            assert_eq!(rendered.prompt.user, query.trim(), "{query:?}");
            assert_eq!(rendered.prompt.assistant, "Next:");
        }
    }

    #[test]
    fn a_written_prompt_has_its_parts_apart() {
        let two = written("a".into(), Some("b".into())).expect("two parts");
        assert_eq!((two.user.as_str(), two.assistant.as_str()), ("a", "b"));
        let user = written(ASSISTANT.into(), Some(String::new())).expect("a user's words");
        assert_eq!(user.user, ASSISTANT);
        let error = written("a\n---assistant--- \nb".into(), None).expect_err("joined");
        assert!(error.contains("\"assistant\""), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_prompt_fits_its_budget_and_one_more_line_would_not(
            events in 0usize..30, fields in 0usize..8, budget in 0usize..220,
        ) {
            let template = Template::load(BASKET, "basket.j2").expect("it loads");
            let view = view(events, fields);
            let rendered = template.render(&view, budget, tokens).expect("it renders");
            let bare = template.render(&View::default(), 0, tokens).expect("it renders").tokens;
            prop_assert!(rendered.tokens <= budget.max(bare));
            prop_assert!(rendered.fields_cut == 0 || rendered.events.is_empty());
            let newest = events - rendered.events_cut;
            prop_assert_eq!(rendered.events.len(), newest);
            if rendered.events_cut > 0 && rendered.fields_cut == 0 {
                let more = View { events: view.events[..newest + 1].to_vec(), ..view.clone() };
                let whole = template.render(&more, usize::MAX, tokens).expect("it renders");
                prop_assert!(whole.tokens > budget);
            }
        }
    }
}
