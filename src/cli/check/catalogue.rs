//! Checks the catalogue, and what of rules, needs and blocks can match nothing in it.

use super::Item;
use crate::config::Config;
use crate::ops::namespace::{ReadCatalogue, read_catalogue};
use nearshore_core::ports::store::{Block, Stock};
use nearshore_core::shop::rules::{unmatched, unmatched_blocks, unmatched_merchant};
use nearshore_redis::RedisStore;

/// Most names that several products have which are shown one by one.
const NAMES_MAX: usize = 10;

/// Reads the catalogue and the blocks, and checks them.
pub(super) async fn check(config: &Config) -> Vec<Item> {
    let read = match read_catalogue(config).await {
        Ok(read) => read,
        Err(error) => return vec![Item::fail("catalogue", format!("{error:#}"))],
    };
    // A Redis that does not answer has a line of its own.
    let blocks = match RedisStore::new(config.redis.clone()) {
        Ok(store) => store.blocks().await.unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    items(config, &read, &blocks)
}

fn items(config: &Config, read: &ReadCatalogue, blocks: &[Block]) -> Vec<Item> {
    let catalogue = &read.catalogue;
    let with_skus = catalogue.pus().iter().filter(|pu| !pu.skus.is_empty());
    let skus: usize = with_skus.clone().map(|pu| pu.skus.len()).sum();
    let mut items = Vec::new();
    if skus == 0 {
        let found = format!(
            "topic {} has no SKU: no list can be made",
            config.topics.catalog
        );
        items.push(
            Item::warn("catalogue", found).advise("write the SKUs to it, see docs/contract.md"),
        );
    } else {
        let found = format!("{} products, {skus} SKUs", with_skus.count());
        items.push(Item::ok("catalogue", found));
    }
    if let Some((position, reject)) = &read.first_refused {
        let refused = read.refused;
        let found = format!("{refused} records cannot be used; the first, {position}: {reject}");
        let advice = "correct them at their source; the newest record of a key counts";
        items.push(Item::warn("catalogue", found).advise(advice));
    }
    items.extend(names(read));
    items.extend(super::texts::of_catalogue(config, catalogue));
    let mut all = unmatched(&config.rules, &config.needs, catalogue);
    let ids = |pu: bool| {
        let blocks = blocks.iter().filter(move |block| block.pu == pu);
        blocks.map(|block| block.id.as_str())
    };
    all.extend(unmatched_blocks(ids(true), ids(false), catalogue));
    all.extend(unmatched_merchant(&config.merchant, catalogue));
    items.extend(all.into_iter().map(|it| {
        let item = format!("{} {}", <&str>::from(it.kind), it.id);
        let advice = format!("correct it, or {}", it.kind.otherwise());
        Item::warn(item, it.what).advise(advice)
    }));
    items
}

/// The names that several products have.
fn names(read: &ReadCatalogue) -> Vec<Item> {
    let repeated = read.catalogue.repeated_labels();
    let more = repeated.len().saturating_sub(NAMES_MAX);
    let shown = repeated.iter().take(NAMES_MAX).map(|(name, ids)| {
        let found = format!(
            "the products {} have this name and category",
            ids.join(", ")
        );
        let advice = "a list has one of them: give them one pu_id, or names that tell them apart";
        Item::warn(format!("name {name}"), found).advise(advice)
    });
    let rest = (more > 0).then(|| {
        let found = format!("{more} further names are those of several products");
        Item::warn("names", found)
    });
    shown.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use nearshore_core::shop::catalogue::Catalogue;
    use nearshore_core::user::event::{Reject, Sku};
    use nearshore_core::user::record::Timestamp;

    use super::*;
    use crate::cli::check::Mark;

    fn sku(id: &str, pu_id: &str, pu: &str) -> Sku {
        Sku {
            sku: id.into(),
            pu: pu.into(),
            pu_id: pu_id.into(),
            category: Some("DRINKS".into()),
            title: pu.into(),
            stock: 1,
            price: None,
            attributes: Default::default(),
        }
    }

    fn config(text: &str) -> Config {
        toml::from_str(text).expect("a configuration")
    }

    fn block(id: &str, pu: bool) -> Block {
        Block {
            id: id.into(),
            pu,
            skus: Vec::new(),
            reason: "a test".into(),
            by: "a test".into(),
            at: Timestamp(0),
        }
    }

    #[test]
    fn a_rule_a_need_and_a_block_that_match_nothing_are_warned_of() {
        let config = config(
            "[needs]\nnot_again_within = { Drinks = \"20d\" }\n[[rules]]\nid = \"minors\"\n\
             when = { field = \"age\", below = 18 }\nforbid = { pus = [\"red wine\"] }\n",
        );
        let read = ReadCatalogue {
            catalogue: Catalogue::load(vec![sku("s1", "RED WINE", "RED WINE")]),
            ..ReadCatalogue::default()
        };
        let blocks = [
            block("s999", false),
            block("s1", false),
            block("RED  WINE", true),
        ];
        let items = items(&config, &read, &blocks);
        let lines: Vec<_> = items
            .iter()
            .map(|it| (it.mark, it.item.as_str(), it.found.as_str()))
            .collect();
        let product = "no product has the id \"red wine\"; did you mean \"RED WINE\"?";
        let category = "no product has the category \"Drinks\"; did you mean \"DRINKS\"?";
        assert_eq!(
            lines,
            [
                (Mark::Ok, "catalogue", "1 products, 1 SKUs"),
                (Mark::Warn, "rule minors", product),
                (Mark::Warn, "need Drinks", category),
                (Mark::Warn, "block s999", "no SKU has the id \"s999\""),
            ]
        );
    }

    #[test]
    fn an_empty_catalogue_refused_records_and_repeated_names_are_warned_of() {
        let config = Config::default();
        let found = items(&config, &ReadCatalogue::default(), &[block("s999", false)]);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].found,
            "topic catalog has no SKU: no list can be made"
        );
        let position = "0/catalog/0:7".parse().expect("a position");
        let read = ReadCatalogue {
            catalogue: Catalogue::load(vec![sku("s1", "1", "BEER"), sku("s2", "2", "BEER")]),
            refused: 2,
            first_refused: Some((position, Reject::MissingField("pu"))),
        };
        let found = items(&config, &read, &[]);
        let lines: Vec<_> = found
            .iter()
            .map(|it| (it.item.as_str(), it.found.as_str()))
            .collect();
        assert_eq!(
            lines[1..],
            [
                (
                    "catalogue",
                    "2 records cannot be used; the first, 0/catalog/0:7: pu is missing or empty"
                ),
                (
                    "name BEER (DRINKS)",
                    "the products 1, 2 have this name and category"
                ),
            ]
        );
    }
}
