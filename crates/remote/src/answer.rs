//! What an OpenAI-compatible server answers: completions, models, errors.
//!
//! Decides what of it is used. Invariant: any bytes are an answer or an error; unknown fields are ignored.

use std::time::Duration;

use serde::Deserialize;

use crate::Error;

/// Most characters that are kept of an error.
const SAID_MAX: usize = 300;

/// What the model wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Whether it ends because of the limit of tokens.
    pub is_cut: bool,
    /// Tokens of the prompt, as the server counts them; 0 if it does not say.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
}

#[derive(Deserialize)]
struct Completed {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
}

fn unreadable(what: &str) -> Error {
    Error::Answer {
        what: what.to_owned(),
    }
}

/// The completion in a body.
pub(crate) fn completion(body: &[u8]) -> Result<Completion, Error> {
    let completed: Completed = serde_json::from_slice(body)
        .map_err(|_| unreadable("the answer is not the JSON of a chat completion"))?;
    let usage = completed.usage.unwrap_or_default();
    let first = completed.choices.into_iter().next();
    let first = first.ok_or_else(|| unreadable("the answer has no choice"))?;
    Ok(Completion {
        text: first.message.content.unwrap_or_default(),
        is_cut: first.finish_reason.as_deref() == Some("length"),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
    })
}

/// Names of the models in a body.
pub(crate) fn models(body: &[u8]) -> Result<Vec<String>, Error> {
    let models: Models = serde_json::from_slice(body)
        .map_err(|_| unreadable("the answer to GET /models is not a list of models"))?;
    Ok(models.data.into_iter().map(|model| model.id).collect())
}

/// The error of a status that is not 200.
pub(crate) fn error(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Error {
    let said = said(body);
    match status {
        401 | 403 => Error::Login { status, said },
        404 => Error::Missing { said },
        429 => Error::Busy { retry_after },
        400..500 => Error::Refused { status, said },
        _ => Error::Server {
            status,
            said,
            retry_after,
        },
    }
}

/// The message of an error, or the beginning of its body.
fn said(body: &[u8]) -> String {
    let value: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = value.as_ref().and_then(|value| {
        let places = ["/error/message", "/message", "/detail", "/error"];
        places
            .iter()
            .find_map(|place| value.pointer(place)?.as_str())
    });
    let text = message.map_or_else(|| String::from_utf8_lossy(body), Into::into);
    text.trim().chars().take(SAID_MAX).collect()
}

/// The seconds of a header `Retry-After`; its other form, a date, is not read.
pub(crate) fn retry_after(value: &str) -> Option<Duration> {
    let seconds: f64 = value.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_completion_is_read_with_what_is_optional_or_null() {
        let body = br#"{"id":"x","choices":[{"index":0,"finish_reason":"length","message":{"role":"assistant","content":"1. Milk"}}],
            "usage":{"prompt_tokens":12,"completion_tokens":4,"total_tokens":16}}"#;
        let wanted = Completion {
            text: "1. Milk".into(),
            is_cut: true,
            prompt_tokens: 12,
            completion_tokens: 4,
        };
        assert_eq!(completion(body).expect("a completion"), wanted);
        let bare = br#"{"choices":[{"message":{"content":null}}],"usage":null}"#;
        assert_eq!(
            completion(bare).expect("a completion"),
            Completion::default()
        );
        for wrong in [&b"{}"[..], b"", b"<html>", br#"{"choices":[]}"#] {
            assert!(matches!(completion(wrong), Err(Error::Answer { .. })));
        }
        let two = br#"{"object":"list","data":[{"id":"a"},{"id":"b"}]}"#;
        assert_eq!(models(two).expect("a list"), ["a", "b"]);
    }

    #[test]
    fn an_error_is_told_by_its_status_and_what_the_server_said_is_kept_apart() {
        let body = br#"{"error":{"message":"the prompt SECRET is too long","code":400}}"#;
        for (status, wanted) in [
            (400, "status 400"),
            (401, "endpoint.api_key_file"),
            (404, "endpoint.url or model"),
            (429, "endpoint.concurrency"),
            (500, "status 500"),
        ] {
            let error = error(status, None, body);
            let text = error.to_string();
            assert!(text.contains(wanted) && !text.contains("SECRET"), "{text}");
            let said = error.said().is_none_or(|said| said.contains("SECRET"));
            assert!(said);
        }
        let plain = error(502, Some(Duration::from_secs(1)), b" bad gateway \n");
        assert_eq!(plain.said(), Some("bad gateway"));
        assert_eq!(plain.retry_after(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn seconds_of_retry_after_are_read_and_nothing_else() {
        assert_eq!(retry_after(" 2 "), Some(Duration::from_secs(2)));
        assert_eq!(retry_after("0.5"), Some(Duration::from_millis(500)));
        for wrong in ["", "-1", "NaN", "1e300", "Mon, 30 Nov 2026 16:00:00 GMT"] {
            assert_eq!(retry_after(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..200), status: u16) {
            let _ = (completion(&body), models(&body));
            let error = error(status, None, &body);
            prop_assert!(error.said().is_none_or(|said| said.chars().count() <= SAID_MAX));
        }
    }
}
