//! The load of measurements: a catalogue of 5,000 SKUs, and users with visits of 20 events each.

use std::sync::Arc;

use nearshore_core::ports::log::Outgoing;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

/// SKUs of the catalogue, ten to a product.
pub const SKUS: usize = 5_000;

/// Size of a load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Number of events.
    pub events: usize,
    /// Number of users.
    pub users: usize,
    /// Events of one visit of a user.
    pub visit: usize,
}

/// Users whose visits are interleaved: a flush of 4,000 records with visits of 20 has 200 users.
const AT_ONCE: usize = 200;

/// Kinds of events with their shares, in hundredths.
const KINDS: [(&str, u32); 6] = [
    ("impression", 40),
    ("view", 30),
    ("click", 15),
    ("cart", 5),
    ("purchase", 8),
    ("search", 2),
];

impl Load {
    /// The events in order: interleaved visits of 200 users, then of the next 200.
    pub fn records(self, topic: &Arc<str>) -> impl Iterator<Item = Outgoing> + use<> {
        let mut rng = StdRng::seed_from_u64(5);
        let topic = topic.clone();
        let block = AT_ONCE * self.visit;
        (0..self.events).map(move |nth| {
            let user = (nth / block * AT_ONCE + nth % AT_ONCE) % self.users;
            Outgoing {
                topic: topic.clone(),
                key: Some(format!("user-{user:08}").into()),
                value: Some(event(&mut rng, nth).into()),
                headers: Vec::new(),
                time: None,
            }
        })
    }
}

fn event(rng: &mut StdRng, nth: usize) -> String {
    let mut at = rng.random_range(0..100);
    let kind = KINDS.iter().find(|(_, share)| {
        let found = at < *share;
        at = at.saturating_sub(*share);
        found
    });
    let kind = kind.map_or("view", |(kind, _)| *kind);
    let ts = 1_790_000_000_000_i64 + nth as i64;
    if kind == "search" {
        return json!({"type": kind, "query": format!("vitamin {}", at), "ts": ts}).to_string();
    }
    // Some SKUs are far more popular than others.
    let sku = (rng.random::<f64>().powi(2) * SKUS as f64) as usize;
    let price = f64::from(100 + (sku as u32 * 7) % 5_000) / 100.0;
    json!({
        "type": kind, "sku": format!("sku-{sku:06}"), "qty": 1, "price": price, "ts": ts,
        "context": {"page": "home", "device": "phone"},
    })
    .to_string()
}

/// Records of the catalogue.
pub fn catalogue(topic: &Arc<str>) -> Vec<Outgoing> {
    let sku = |nth: usize| {
        let pu = format!("PRODUCT {}", nth / 10);
        let value = json!({
            "pu": pu, "category": format!("CATEGORY {}", nth / 100), "title": format!("{pu} no {}", nth % 10),
            "stock": 9, "price": 2.5,
        });
        Outgoing {
            topic: topic.clone(),
            key: Some(format!("sku-{nth:06}").into()),
            value: Some(value.to_string().into()),
            headers: Vec::new(),
            time: None,
        }
    };
    (0..SKUS).map(sku).collect()
}
