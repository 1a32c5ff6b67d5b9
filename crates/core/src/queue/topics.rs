//! Names of the topics: `[topics]` of the configuration.
//!
//! Names alone; [`crate::user::event`] and [`crate::user::trigger`] define the records.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::map::{Inputs, ReadAs};
use crate::user::event::{Format, Source};
use crate::user::trigger::Lane;

/// Topic names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Topics {
    /// Events of users.
    pub user_events: Arc<str>,
    /// Profiles of users; compacted.
    pub profile_changes: Arc<str>,
    /// SKUs; compacted.
    pub catalog: Arc<str>,
    /// Requests for first lists of new and sparse users.
    pub regen_urgent: Arc<str>,
    /// Requests of all other active users.
    pub regen_live: Arc<str>,
    /// Requests of sweeps and refreshes.
    pub regen_backfill: Arc<str>,
    /// Lists as published; compacted.
    pub recall_updates: Arc<str>,
    /// Records that cannot be decoded.
    pub dlq: Arc<str>,
    /// Format of `profile_changes`.
    pub profile_format: Format,
    /// Topics of the shop that are mapped, besides the ones above.
    #[serde(skip)]
    pub inputs: Arc<Inputs>,
}

impl Default for Topics {
    fn default() -> Self {
        Self {
            user_events: "user-events".into(),
            profile_changes: "profile-changes".into(),
            catalog: "catalog".into(),
            regen_urgent: "regen-urgent".into(),
            regen_live: "regen-live".into(),
            regen_backfill: "regen-backfill".into(),
            recall_updates: "recall-updates".into(),
            dlq: "dlq".into(),
            profile_format: Format::Plain,
            inputs: Arc::default(),
        }
    }
}

impl Topics {
    /// The topic of a lane.
    pub fn lane(&self, lane: Lane) -> Arc<str> {
        match lane {
            Lane::Urgent => self.regen_urgent.clone(),
            Lane::Live => self.regen_live.clone(),
            Lane::Backfill => self.regen_backfill.clone(),
        }
    }

    /// How to decode a user's record of this topic; of a mapped one, what its mapping makes.
    pub fn source(&self, topic: &str) -> Source {
        if let Some(input) = self.inputs.get(topic) {
            return input.read_as.source().unwrap_or(Source::Events);
        }
        if *topic == *self.profile_changes {
            Source::Profiles(self.profile_format)
        } else {
            Source::Events
        }
    }

    /// The topics that are read as this: ours, then those of the shop.
    pub fn read_as(&self, read_as: ReadAs) -> Vec<Arc<str>> {
        let mapped = self.inputs.iter().filter(|input| input.read_as == read_as);
        let ours = [self.own(read_as).clone()];
        let mapped = mapped.map(|input| input.topic.clone());
        ours.into_iter().chain(mapped).collect()
    }

    /// Our topic of such records.
    pub fn own(&self, read_as: ReadAs) -> &Arc<str> {
        match read_as {
            ReadAs::Events => &self.user_events,
            ReadAs::Profiles => &self.profile_changes,
            ReadAs::Catalog => &self.catalog,
        }
    }

    /// The topics whose records are of users.
    pub fn of_users(&self) -> Vec<Arc<str>> {
        let mut topics = self.read_as(ReadAs::Events);
        topics.extend(self.read_as(ReadAs::Profiles));
        topics
    }

    /// The three lanes, most urgent first.
    pub fn lanes(&self) -> [Arc<str>; 3] {
        [Lane::Urgent, Lane::Live, Lane::Backfill].map(|lane| self.lane(lane))
    }

    /// Key in `[topics]` and name of each topic, in the order of the configuration.
    pub fn keyed(&self) -> [(&'static str, &str); 8] {
        [
            ("user_events", &self.user_events),
            ("profile_changes", &self.profile_changes),
            ("catalog", &self.catalog),
            ("regen_urgent", &self.regen_urgent),
            ("regen_live", &self.regen_live),
            ("regen_backfill", &self.regen_backfill),
            ("recall_updates", &self.recall_updates),
            ("dlq", &self.dlq),
        ]
    }

    /// All names.
    pub fn all(&self) -> [Arc<str>; 8] {
        [
            self.user_events.clone(),
            self.profile_changes.clone(),
            self.catalog.clone(),
            self.regen_urgent.clone(),
            self.regen_live.clone(),
            self.regen_backfill.clone(),
            self.recall_updates.clone(),
            self.dlq.clone(),
        ]
    }
}
