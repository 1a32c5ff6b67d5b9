//! Nearshore: near-line recall for recommenders.
//!
//! The way of one event, by file:
//!
//! 1. [`log`] polls on a thread of its own and hands batches, by partition, over bounded channels.
//! 2. [`ingest`] has [`event`] decode them, groups a batch by user, loads the states it lacks from [`store`].
//! 3. [`fold`] makes the new [`state`]: a function of the *set* of records.
//! 4. [`trigger`] says whether the user moved enough to ask for a list.
//! 5. One conditional write of the state, one chained delta of counts per shard, then the request;
//!    when all is acknowledged, [`offsets`] lets the batch's offsets be committed.
//! 6. [`generate`] reads the lanes, [`lanes`] merges requests and cuts a batch, the store *takes* the user.
//! 7. [`prompt`] renders, [`engine`] scores names of the [`trie`] by [`search`]; [`rules`]
//!    and [`select`] keep what is permitted and choose SKUs.
//! 8. [`list`] becomes the document that the store publishes, fenced.

#![warn(missing_docs)]

// pure: values in, values out
pub mod arms;
pub mod best;
pub mod catalogue;
pub mod compose;
pub mod demand;
pub mod differ;
pub mod event;
pub mod fold;
pub mod ground;
pub mod inspect;
pub mod intake;
pub mod lanes;
pub mod list;
pub mod naming;
pub mod offsets;
pub mod prompt;
pub mod record;
pub mod replay;
pub mod rules;
pub mod search;
pub mod select;
pub mod shop;
pub mod state;
pub mod takes;
pub mod topics;
pub mod trie;
pub mod trigger;

// edges: one outside thing each
pub mod config;
pub mod engine;
pub mod http;
pub mod log;
pub mod metrics;
pub mod store;

// roles: wiring
pub mod checkpoints;
pub mod cli;
pub mod demo;
pub mod forget;
pub mod generate;
pub mod ingest;
pub mod keeper;
pub mod namespace;
pub mod run;
pub mod stock;
