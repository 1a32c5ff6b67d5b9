//! A chat template: one user message -> the text that a model reads.
//!
//! Decides which variables a template gets: one user message, no tools, thinking off, no clock. Invariant: the same
//! message gives the same text on any day, and a template that loses the message is refused. It does not know tokens.

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, context};

use super::{python, unlike};

/// The most bytes of a template: most have a few kilobytes, the longest some tens.
const LENGTH_MAX: usize = 1 << 20;

/// The most steps of the template engine for one text.
const FUEL: u64 = 2_000_000;

/// The message with which a template is tested: letters and digits, which no template changes but for their case.
const PROBE: &str = "nearshore probe 4711";

/// A compiled chat template.
pub(super) struct Chat {
    environment: Environment<'static>,
    form: Form,
}

/// How a template wants the content of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// As a text.
    Text,
    /// As a list of parts, each with a type, as templates of models that read images do.
    Parts,
}

impl Chat {
    /// Compiles a template with the settings of Hugging Face's library, and tests it with a message.
    pub(super) fn new(template: &str, bos: Option<&str>, eos: &str) -> Result<Self, Error> {
        let mut chat = Self::compile(template)?;
        let mut failed = None;
        for form in [Form::Text, Form::Parts] {
            chat.form = form;
            match chat.render(PROBE, bos, eos) {
                Ok(text) if text.to_lowercase().contains(PROBE) => return Ok(chat),
                Ok(_) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let lost = "it renders a user's message without the message's text; take the template of the model's own \
                    repository";
        Err(failed.unwrap_or_else(|| Error::new(ErrorKind::InvalidOperation, lost)))
    }

    /// Compiles a template.
    fn compile(template: &str) -> Result<Self, Error> {
        if template.len() > LENGTH_MAX {
            let what = format!(
                "a chat template of {} bytes is over {LENGTH_MAX}",
                template.len()
            );
            return Err(Error::new(ErrorKind::SyntaxError, what));
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        // Debug output of an error has the variables, and so the user's words.
        environment.set_debug(false);
        python::install(&mut environment);
        // Without `strftime_now` templates write a fixed date: a list must not depend on the day.
        environment.add_function("raise_exception", |text: String| -> Result<Value, _> {
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        // As Jinja2 does it with the lines of a source.
        let template = template.replace("\r\n", "\n").replace('\r', "\n");
        let template = without_generation(&template);
        unlike::refuse(&template)?;
        environment.add_template_owned("chat", template)?;
        Ok(Self {
            environment,
            form: Form::Text,
        })
    }

    /// Renders the text up to the start of the assistant's turn.
    pub(super) fn render(&self, user: &str, bos: Option<&str>, eos: &str) -> Result<String, Error> {
        let content = match self.form {
            Form::Text => Value::from(user),
            Form::Parts => Value::from_serialize([context! { type => "text", text => user }]),
        };
        let rendered = self.environment.get_template("chat")?.render(context! {
            messages => [context! { role => "user", content }],
            add_generation_prompt => true,
            // A name must follow at once, so thinking is switched off.
            enable_thinking => false,
            tools => (),
            documents => (),
            bos_token => bos.map_or(Value::UNDEFINED, Value::from),
            eos_token => eos,
        });
        rendered.map_err(|error| match error.detail() {
            Some(detail) if detail.contains("strftime_now") => {
                let what = "it calls strftime_now, and lists must not depend on the day; write a fixed date into the \
                            template, in a file chat_template.jinja of the model's folder";
                Error::new(ErrorKind::InvalidOperation, what).with_source(error)
            }
            _ => error,
        })
    }
}

/// Replaces the tags `generation` and `endgeneration` of `transformers`, which mark what a model is trained on, by tags
/// of a block of variables: both print what is between them, and keep what is set between them.
fn without_generation(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        let (replaced, after) = match name.strip_prefix("generation") {
            Some(after) => ("with", after),
            None => match name.strip_prefix("endgeneration") {
                Some(after) => ("endwith", after),
                None => {
                    rest = tag;
                    continue;
                }
            },
        };
        let ends = after.trim_start().trim_start_matches(['-', '+']);
        rest = if ends.starts_with("%}") {
            out.push_str(&tag[..tag.len() - name.len()]);
            out.push_str(replaced);
            after
        } else {
            tag
        };
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases that are refused here although Jinja2 renders them, and what names the cause.
    const REFUSED: [(&str, &str); 9] = [
        ("a tuple", "prints a tuple"),
        ("concatenation with a list", "joins a list with `~`"),
        ("what and gives of an empty list", "a list before `and`"),
        ("a remainder of a negative number", "by a negative number"),
        ("a namespace of a dictionary", "too many arguments"),
        ("a negative power", "unable to calculate 2 ** -1"),
        ("a plus before a number", "unexpected `+`"),
        ("the percent sign", "tried to use % operator"),
        ("arguments of a macro", "too many arguments"),
    ];

    #[test]
    fn snippets_of_templates_are_rendered_as_by_transformers_or_refused_with_the_cause() {
        let fixture: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/fixtures/chat_templates.json"))
                .expect("JSON");
        let content = fixture["content"].as_str().expect("a text");
        let cases = fixture["cases"].as_array().expect("cases");
        assert!(cases.len() > 130, "{}", cases.len());
        let mut wrong = Vec::new();
        for case in cases {
            let name = case["name"].as_str().expect("a name");
            let template = case["template"].as_str().expect("a template");
            let of = |all: &[(&'static str, &'static str)]| {
                let found = all.iter().find(|(of, _)| *of == name);
                found.map(|(_, what)| *what)
            };
            let rendered = Chat::compile(template)
                .and_then(|chat| chat.render(content, Some("<s>"), "</s>"))
                .map_err(|error| error.to_string());
            let is_right = match (&rendered, case["text"].as_str()) {
                (Err(error), text) => {
                    let cause = of(&REFUSED);
                    cause.map_or(text.is_none(), |cause| error.contains(cause))
                }
                (Ok(ours), theirs) => theirs == Some(ours.as_str()),
            };
            if !is_right {
                wrong.push(format!("{name}: {rendered:?}, transformers: {case}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    fn render(template: &str) -> Result<String, Error> {
        Chat::compile(template).and_then(|chat| chat.render("ab ", Some("<s>"), "</s>"))
    }

    #[test]
    fn a_template_has_no_tools_no_thinking_and_no_clock() {
        let template = "{% if tools is not none %}tools{% endif %}\
            {% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}\
            {% if strftime_now is defined %}{{ strftime_now('%d') }}{% else %}26 Jul 2024{% endif %}";
        let rendered = render(template).expect("renders");
        assert_eq!(rendered, "<think>\n\n</think>26 Jul 2024");
        let error = render("{{ strftime_now('%d') }}").expect_err("no clock");
        assert!(error.to_string().contains("write a fixed date"), "{error}");
    }

    #[test]
    fn a_template_that_fails_or_takes_too_many_steps_is_an_error() {
        assert!(render("{% if %}").is_err());
        let cases = [
            (
                "{{ raise_exception('only with a system message') }}",
                "only with a system message",
            ),
            (
                "{% for i in range(9000) %}{% for j in range(9000) %}{{ j }}{% endfor %}{% endfor %}",
                "fuel",
            ),
        ];
        for (template, expected) in cases {
            let error = render(template).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_template_that_loses_the_message_is_refused() {
        let cases = [
            "",
            "{{ bos_token }}",
            "{% for m in messages %}{{ m.role }}{% endfor %}",
            "{{ messages[0].text }}",
            "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}",
        ];
        for template in cases {
            let error = Chat::new(template, None, "").err().expect(template);
            assert!(
                error.to_string().contains("without the message's text"),
                "{error}"
            );
        }
        let failing = "{{ raise_exception('no') }}";
        let error = Chat::new(failing, None, "").err().expect("it fails");
        assert!(error.to_string().contains("no"), "{error}");
    }

    #[test]
    fn a_template_that_wants_parts_gets_parts() {
        let template = "{% for part in messages[0].content %}{% if part.type == 'text' %}[{{ part.text }}]\
            {% endif %}{% endfor %}";
        let chat = Chat::new(template, None, "").expect("loads");
        assert_eq!(chat.render("a b", None, "").expect("renders"), "[a b]");
    }

    #[test]
    fn only_the_tags_of_generation_are_replaced() {
        let template = "{%- generation -%}generation{{ 'endgeneration' }}{% endgeneration %}{% set generation = 1 %}{%";
        let expected =
            "{%- with -%}generation{{ 'endgeneration' }}{% endwith %}{% set generation = 1 %}{%";
        assert_eq!(without_generation(template), expected);
    }
}
