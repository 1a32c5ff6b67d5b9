//! The rights of this client on topics and groups: what the ACL of the brokers permits, without trying it.

use std::collections::{BTreeMap, BTreeSet};

use super::Admin;
use super::native::{self, Resource};
use nearshore_core::ports::log::Error;

/// What an ACL permits on a topic or a group, by Kafka's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Reading records, joining the group, committing.
    Read,
    /// Writing records.
    Write,
    /// Metadata and offsets of a topic; members and positions of a group.
    Describe,
    /// The configuration of a topic.
    DescribeConfigs,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// Operations by the name of a topic or group; `None` where the broker does not say.
pub type Permitted = BTreeMap<String, Option<BTreeSet<Operation>>>;

impl Admin {
    /// What this client may do on these topics. A topic that does not exist is not known.
    pub async fn rights_on_topics(&self, topics: &[&str]) -> Result<Permitted, Error> {
        self.rights(Resource::Topic, topics).await
    }

    /// What this client may do in these consumer groups.
    pub async fn rights_in_groups(&self, groups: &[&str]) -> Result<Permitted, Error> {
        self.rights(Resource::Group, groups).await
    }

    async fn rights(&self, resource: Resource, names: &[&str]) -> Result<Permitted, Error> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        if names.is_empty() {
            return Ok(Permitted::new());
        }
        self.ask(move |admin| {
            let client = admin.native();
            native::operations(client, resource, &names, admin.limit()).map_err(|reason| {
                Error::Refused {
                    what: "rights of this client".into(),
                    reason,
                }
            })
        })
        .await
    }
}
