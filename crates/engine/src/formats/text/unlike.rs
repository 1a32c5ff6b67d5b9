//! What a template says and Jinja2 renders in another way: found in the syntax tree, and refused.
//!
//! minijinja has no tuples, joins lists by rules of its own, makes false of an empty list before `and`, and gives no
//! negative remainder; none of this can be told to it. Invariant: a template that writes one of these out is refused by
//! name. One that computes it from variables is not found. It does not know how a template is rendered.

use minijinja::machinery::{WhitespaceConfig, parse};
use minijinja::{Error, ErrorKind};
use serde_json::Value;

/// Refuses what would be rendered in another way.
pub(super) fn refuse(template: &str) -> Result<(), Error> {
    let tree = parse(
        template,
        "chat",
        Default::default(),
        WhitespaceConfig::default(),
    )?;
    let tree = serde_json::to_value(&tree).unwrap_or_default();
    match found(&tree, template) {
        None => Ok(()),
        Some(what) => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("{what}, which Jinja2 renders in another way; write it in another way"),
        )),
    }
}

/// The first difference in a node or below it.
fn found(node: &Value, template: &str) -> Option<&'static str> {
    let of_node = printed_tuple(node, template).or_else(|| operation(node));
    of_node.or_else(|| match node {
        Value::Array(items) => items.iter().find_map(|item| found(item, template)),
        Value::Object(fields) => fields.values().find_map(|field| found(field, template)),
        _ => None,
    })
}

/// The content of a node of the tree: beside its kind there are the node itself and its place.
fn content(node: &Value) -> Option<&Value> {
    node.get("inner")?.get(0)
}

fn is(node: &Value, expression: &str) -> bool {
    node.get("expr").and_then(Value::as_str) == Some(expression)
}

fn is_list(node: &Value) -> bool {
    is(node, "List")
}

/// A list whose text begins with a parenthesis, and is printed as it is.
fn printed_tuple(node: &Value, template: &str) -> Option<&'static str> {
    if node.get("stmt")?.as_str()? != "EmitExpr" {
        return None;
    }
    let printed = content(node)?.get("expr")?;
    let start = printed
        .get("inner")?
        .get(1)?
        .get("start_offset")?
        .as_u64()?;
    let text = template.get(usize::try_from(start).ok()?..)?;
    (is_list(printed) && !text.starts_with('[')).then_some("it prints a tuple")
}

fn operation(node: &Value) -> Option<&'static str> {
    if !is(node, "BinOp") {
        return None;
    }
    let (op, left, right) = {
        let content = content(node)?;
        (
            content.get("op")?.as_str()?,
            content.get("left")?,
            content.get("right")?,
        )
    };
    match op {
        "Concat" if is_list(left) || is_list(right) => Some("it joins a list with `~`"),
        "ScAnd" if is_list(left) => Some("it has a list before `and`"),
        "Rem" if is_negative(right) => Some("it has a remainder by a negative number"),
        _ => None,
    }
}

fn is_negative(node: &Value) -> bool {
    let content = content(node).unwrap_or(&Value::Null);
    let number = content.get("value").and_then(Value::as_f64);
    is(node, "UnaryOp") && content.get("op").and_then(Value::as_str) == Some("Neg")
        || number.is_some_and(|number| number < 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_jinja_renders_in_another_way_is_refused_wherever_it_is_written() {
        for (template, what) in [
            ("{{ (1, 'a') }}", "a tuple"),
            (
                "{% if x %}{% for i in y %}{{ ('a',) }}{% endfor %}{% endif %}",
                "a tuple",
            ),
            ("{% set x = 'a' ~ ['b'] %}", "`~`"),
            ("{{ f(['b'] ~ x) }}", "`~`"),
            ("{{ [] and 1 }}", "`and`"),
            ("{% if 7 % -3 == 1 %}a{% endif %}", "remainder"),
        ] {
            let error = refuse(template).expect_err(template).to_string();
            assert!(error.contains(what), "{template}: {error}");
        }
    }

    #[test]
    fn what_is_rendered_alike_is_not_refused() {
        for template in [
            "{{ [1, 'a'] }}{{ (1) }}{{ ('a' ~ 'b') }}{{ (x, y)[0] }}",
            "{% if role in ('user', 'assistant') %}{% set x = ('a', 'b') %}{% endif %}",
            "{{ x ~ y }}{{ -7 % 3 }}{{ x and [] }}{{ 7 - -3 }}",
        ] {
            assert!(refuse(template).is_ok(), "{template}");
        }
    }
}
