//! A chat template: one user message -> the text that a model reads.
//!
//! Decides which variables a template gets: one user message, no tools, thinking off, no clock. Invariant: the same
//! message gives the same text on any day. It does not know tokens.

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, context};

/// The most bytes of a template: most have a few kilobytes, the longest some tens.
const LENGTH_MAX: usize = 1 << 20;

/// The most steps of the template engine for one text.
const FUEL: u64 = 2_000_000;

/// A compiled chat template.
pub(super) struct Chat {
    environment: Environment<'static>,
}

impl Chat {
    /// Compiles a template with the settings of Hugging Face's library.
    pub(super) fn new(template: String) -> Result<Self, Error> {
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
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // Without `strftime_now` templates write a fixed date: a list must not depend on the day.
        environment.add_function("raise_exception", |text: String| -> Result<Value, _> {
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        environment.add_template_owned("chat", template)?;
        Ok(Self { environment })
    }

    /// Renders the text up to the start of the assistant's turn.
    pub(super) fn render(&self, user: &str, bos: &str, eos: &str) -> Result<String, Error> {
        self.environment.get_template("chat")?.render(context! {
            messages => [context! { role => "user", content => user }],
            add_generation_prompt => true,
            // A name must follow at once, so thinking is switched off.
            enable_thinking => false,
            tools => (),
            documents => (),
            bos_token => bos,
            eos_token => eos,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> String {
        let chat = Chat::new(template.into()).expect("compiles");
        chat.render("ab ", "<s>", "</s>").expect("renders")
    }

    #[test]
    fn templates_can_use_methods_of_python() {
        let cases = [
            (
                "{% if messages[0]['content'].startswith('a') %}\n{{ messages[0].content.strip() | upper }}\n{% endif %}\n",
                "AB\n",
            ),
            (
                "{{ 'a</think>\n\nb\n'.split('</think>')[-1].lstrip('\n') }}",
                "b\n",
            ),
            ("{{ 'xxbxx'.strip('x') }}{{ 'bxx'.rstrip('x') }}", "bb"),
            (
                "{% for m in messages[::-1] %}{{ m.get('role') }}{% endfor %}",
                "user",
            ),
            (
                "{% for k, v in messages[0].items() %}{{ k }} {% endfor %}",
                "role content ",
            ),
        ];
        for (template, expected) in cases {
            assert_eq!(render(template), expected, "{template}");
        }
    }

    #[test]
    fn a_template_has_no_tools_no_thinking_and_no_clock() {
        let template = "{% if tools is not none %}tools{% endif %}\
            {% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}\
            {% if strftime_now is defined %}{{ strftime_now('%d') }}{% else %}26 Jul 2024{% endif %}";
        assert_eq!(render(template), "<think>\n\n</think>26 Jul 2024");
    }

    #[test]
    fn a_template_that_fails_or_takes_too_many_steps_is_an_error() {
        assert!(Chat::new("{% if %}".into()).is_err());
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
            let error = Chat::new(template.into()).and_then(|chat| chat.render("a", "", ""));
            let error = error.expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
