//! Who may see `/inspect`: on loopback everyone; elsewhere who knows the token of `http.inspect_token_file`.
//!
//! Invariant: where the listener is not on loopback, no view is shown without the token, and a token that cannot be
//! read lets nobody in. The file is read for every request, so that a changed token needs no restart.

use std::path::PathBuf;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

/// Who may see `/inspect`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// File with the token.
    pub(super) token_file: Option<PathBuf>,
    /// Whether a token is needed.
    pub(super) is_public: bool,
}

impl Access {
    /// Refuses a request that has not the token, if one is needed or configured.
    pub(super) async fn permit(&self, headers: &HeaderMap) -> Result<(), Box<Response>> {
        let Some(file) = &self.token_file else {
            return match self.is_public {
                false => Ok(()),
                true => Err(refused(
                    StatusCode::FORBIDDEN,
                    "the inspect page shows what single users did: set http.inspect_token_file, or use `nearshore inspect`\n",
                )),
            };
        };
        let token = tokio::fs::read_to_string(file).await;
        let token = token.as_deref().map(str::trim).unwrap_or_default();
        if token.is_empty() {
            tracing::error!(file = %file.display(), "http.inspect_token_file is empty or cannot be read; /inspect answers 503");
            return Err(refused(
                StatusCode::SERVICE_UNAVAILABLE,
                "the token of the inspect page cannot be read\n",
            ));
        }
        match given(headers).is_some_and(|given| is_equal(&given, token)) {
            true => Ok(()),
            false => Err(unauthorized()),
        }
    }
}

/// The token that a request has: of `Bearer` (RFC 6750), or the password of `Basic` (RFC 7617), which browsers ask for.
fn given(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(rest.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    text.split_once(':')
        .map(|(_, password)| password.to_owned())
}

/// Compares hashes: how long that takes says nothing of how much of a token is right.
fn is_equal(given: &str, token: &str) -> bool {
    Sha256::digest(given) == Sha256::digest(token)
}

fn unauthorized() -> Box<Response> {
    let mut response = refused(
        StatusCode::UNAUTHORIZED,
        "the inspect page needs its token\n",
    );
    let challenges = [
        "Bearer realm=\"nearshore\"",
        "Basic realm=\"nearshore inspect\", charset=\"UTF-8\"",
    ];
    for challenge in challenges {
        let value = HeaderValue::from_static(challenge);
        response
            .headers_mut()
            .append(header::WWW_AUTHENTICATE, value);
    }
    response
}

fn refused(status: StatusCode, text: &'static str) -> Box<Response> {
    Box::new((status, text).into_response())
}
