//! The template filter `growing`: event lines in an order in which later events come last.
//!
//! An engine that keeps the keys and values of earlier prompts computes a prompt anew from the first token that differs.
//! So the filter gives the oldest lines first, each at the place of its first event, and begins at a line that stays the
//! beginning while events are added: the newest one, at least so many lines before the end, whose text has a certain
//! hash. That is how content-defined chunking finds borders which do not move with what is inserted (Muthitacharoen et
//! al. 2001, LBFS). Invariant: the lines and their order depend on the lines alone. It does not know engines.

use std::hash::Hasher;

use fnv::FnvHasher;
use minijinja::{Error, Value};

/// One line in so many can be a beginning.
const ONE_IN: u64 = 8;

/// At least `least` lines of `events`, if there are so many, the oldest first.
pub(super) fn growing(events: Vec<Value>, least: usize) -> Result<Vec<Value>, Error> {
    let mut lines: Vec<(u64, Value)> = Vec::with_capacity(events.len());
    for line in events {
        let since = line.get_attr("since")?.as_usize().unwrap_or_default();
        lines.push((since as u64, line));
    }
    // Lines of which both are in the window since the same event are the clauses of one; their order stays.
    lines.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
    let last = lines.len().saturating_sub(least);
    let mut first = 0;
    for nth in (0..=last).rev() {
        let Some((_, line)) = lines.get(nth) else {
            continue;
        };
        let mut hash = FnvHasher::default();
        for part in ["kind", "name"] {
            hash.write(line.get_attr(part)?.to_string().as_bytes());
            hash.write_u8(0);
        }
        if hash.finish().is_multiple_of(ONE_IN) {
            first = nth;
            break;
        }
    }
    Ok(lines.drain(..).skip(first).map(|(_, line)| line).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Template, View};
    use crate::shop::catalogue::Catalogue;
    use crate::shop::catalogue::tests::sku;
    use crate::user::event::{Item, Kind};
    use crate::user::record::Timestamp;
    use crate::user::state::{UserState, WindowEvent};

    const PRODUCTS: usize = 60;

    /// What the template says after each event of a user whose window has the newest 50.
    fn prompts(bought: &[usize], least: usize) -> Vec<String> {
        let skus = (0..PRODUCTS).map(|nth| {
            let (id, name) = (format!("s{nth}"), format!("product-{nth}"));
            sku(&id, &name, serde_json::json!({}))
        });
        let catalogue = Catalogue::load(skus.collect());
        let text =
            format!("{{% for e in events|growing({least}) %}}{{{{ e.name }}}} {{% endfor %}}");
        let template = Template::load(&text, "growing").expect("it loads");
        let event = |(nth, product): (usize, &usize)| WindowEvent {
            time: Timestamp(nth as i64 * 3_600_000),
            position: format!("0/user-events/0:{nth}")
                .parse()
                .expect("a position"),
            kind: Kind::Purchase,
            item: Item::Sku(format!("s{product}")),
            qty: 1,
            price: None,
        };
        let all: Vec<WindowEvent> = bought.iter().enumerate().map(event).collect();
        (1..=all.len())
            .map(|count| {
                let state = UserState {
                    window: all[count.saturating_sub(50)..count].to_vec(),
                    ..UserState::default()
                };
                let at = Timestamp(count as i64 * 3_600_000);
                let view = View::new((&state, None), &catalogue, "default", at);
                let words = |text: &str| text.split_whitespace().count();
                let rendered = template.render(&view, 10_000, words).expect("it renders");
                rendered.prompt.user
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn at_least_the_newest_lines_are_shown_each_once(
            bought in prop::collection::vec(0..PRODUCTS, 1..120), least in 0usize..30,
        ) {
            for (nth, prompt) in prompts(&bought, least).iter().enumerate() {
                let shown: Vec<&str> = prompt.split_whitespace().collect();
                let window = &bought[(nth + 1).saturating_sub(50)..=nth];
                let mut firsts: Vec<usize> = Vec::new();
                for product in window {
                    if !firsts.contains(product) {
                        firsts.push(*product);
                    }
                }
                let expected: Vec<String> = firsts.iter().map(|it| format!("product-{it}")).collect();
                prop_assert!(shown.len() >= least.min(expected.len()));
                prop_assert_eq!(&shown[..], &expected[expected.len() - shown.len()..]);
            }
        }
    }

    #[test]
    fn most_prompts_only_add_to_the_one_before() {
        // A user who buys another product each time, far beyond the window.
        let bought: Vec<usize> = (0..400).map(|nth| nth * 37 % PRODUCTS).collect();
        let all = prompts(&bought, 12);
        let grows = |pair: &&[String]| pair[1].starts_with(&pair[0]);
        let grown = all.windows(2).filter(grows).count();
        assert!(grown * 4 > all.len() * 3, "{grown} of {}", all.len());
    }
}
