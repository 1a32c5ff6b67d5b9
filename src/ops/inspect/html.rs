//! Renders a [`View`] as an HTML page: one embedded template, everything escaped, no script.

use minijinja::{Environment, Value, context};

use super::{View, moment};
use nearshore_core::user::record::Timestamp;

/// What the page shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Page {
    /// The form alone: no user was asked for.
    Ask,
    /// The user was found.
    Found {
        /// What is known of the user.
        view: Box<View>,
        /// The product that was asked for; empty if none was.
        product: String,
        /// Why it is not on the list.
        why_not: String,
    },
    /// Nothing is stored of this user.
    Absent {
        /// The user.
        user: String,
    },
    /// Reading the user failed.
    Failed {
        /// The user.
        user: String,
        /// Why it failed.
        why: String,
    },
}

/// Style sheet of all pages; their templates include it as `style.css`.
pub const STYLE: &str = include_str!("style.css");

/// Renders the page. An error means that the template is wrong, so a test renders every kind of page.
pub fn html(page: &Page) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    // The name ends in .html: minijinja escapes every value.
    environment.add_template("page.html", include_str!("page.html"))?;
    environment.add_template("style.css", STYLE)?;
    environment.add_filter("plain", plain);
    environment.add_filter("moment", |time: i64| moment(Timestamp(time)));
    environment.add_filter("fixed", |value: f64, digits: usize| {
        format!("{value:.digits$}")
    });
    let (user, view, parts, message) = match page {
        Page::Ask => ("", None, Vec::new(), String::new()),
        Page::Found { view, .. } => {
            let parts = view.audit.as_ref().map(|audit| audit.times.parts());
            (
                view.user.as_str(),
                Some(view),
                parts.unwrap_or_default(),
                String::new(),
            )
        }
        Page::Absent { user } => (
            user.as_str(),
            None,
            Vec::new(),
            "Nothing is stored of this user.".into(),
        ),
        Page::Failed { user, why } => (
            user.as_str(),
            None,
            Vec::new(),
            format!("Reading this user failed: {why}"),
        ),
    };
    let (product, why_not) = match page {
        Page::Found {
            product, why_not, ..
        } => (product.as_str(), why_not.as_str()),
        _ => ("", ""),
    };
    let whole = view.and_then(|view| view.audit.as_ref()?.times.whole());
    environment.get_template("page.html")?.render(context! {
        user, message, parts, whole, product, why_not,
        view => view.map(Value::from_serialize),
    })
}

/// A profile's value: text as it is, anything else as JSON. The result is a plain string, so that it is escaped.
fn plain(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => serde_json::to_string(value).unwrap_or_else(|_| value.to_string()),
    }
}
