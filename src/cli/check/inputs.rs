//! Checks the mappings of topics: each with the samples that are kept beside it.

use super::Item;
use crate::cli::map::mapped;
use crate::config::Config;

/// Maps the samples of each mapping. That it compiles was checked when the configuration was read.
pub(super) async fn check(config: &Config) -> Vec<Item> {
    let mut items = Vec::new();
    for (settings, input) in config
        .inputs
        .iter()
        .filter_map(|settings| Some((settings, config.topics.inputs.get(&settings.topic)?)))
    {
        let item = format!("mapping {}", settings.topic);
        if settings.samples.is_none() {
            let advice = "keep some of its records in a file, and name it in samples";
            items.push(Item::warn(item, "it has no samples").advise(advice));
            continue;
        }
        items.push(match mapped(config, input, None).await {
            Err(error) => Item::fail(item, format!("{error:#}")),
            Ok(shown) => {
                let wrong = shown
                    .iter()
                    .enumerate()
                    .find(|(_, shown)| !shown.is_right());
                match wrong {
                    None => Item::ok(
                        item,
                        format!("{} samples become what they should", shown.len()),
                    ),
                    Some((nth, wrong)) => {
                        let found = format!("sample {}: {}", nth + 1, wrong.wrong());
                        Item::fail(item, found)
                            .advise("see `nearshore map`; correct the mapping or the sample")
                    }
                }
            }
        });
    }
    items
}
