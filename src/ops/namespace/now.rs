//! What a list of a user would be made from now: state, stored list, snapshot and the terms of the user's arm.
//!
//! Invariant: nothing is written, and no model is loaded. What the lists of a worker have beside it is named by
//! [`UserNow::unknown`], so that no answer passes over it in silence.

use std::sync::Arc;

use anyhow::Context;
use nearshore_core::list::compose::{ClaimedUser, ListContext};
use nearshore_core::list::document::Document;
use nearshore_core::list::terms::Texts;
use nearshore_core::list::terms::bound::Learned;
use nearshore_core::ports::store::Store;
use nearshore_core::shop::arms::{arm_of, arms_for};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event::{Kind, UserId};
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::state::LoadedUser;
use nearshore_core::user::trigger::{Lane, Reason, Request};

use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::members::snapshot::stored_snapshot;
use crate::ops::evaluate::Plain;
use crate::run::{Roles, loader_settings};

/// What a list of a user would be made from now.
pub(super) struct UserNow<'a> {
    /// The configuration.
    pub(super) config: &'a Config,
    /// The namespace that was read.
    pub(super) ns: String,
    /// The user's arm.
    pub(super) arm: String,
    /// Catalogue, rules and demand.
    pub(super) snapshot: Arc<Snapshot>,
    /// The user's state and claim number.
    pub(super) loaded: LoadedUser,
    /// The stored list.
    pub(super) list: Option<Document>,
    request: Request,
    ranking: Plain,
    learned: Option<Learned>,
    texts: Option<Texts>,
}

impl<'a> UserNow<'a> {
    /// Reads it for a command, with this catalogue and the counts of Redis.
    pub(super) async fn read<S: Store>(
        config: &'a Config,
        store: S,
        user: &UserId,
        catalogue: Catalogue,
    ) -> anyhow::Result<Self> {
        let ns = store.active().await?;
        let ns = ns.unwrap_or_else(|| config.namespace.clone());
        let no_roles = Roles {
            ingest: false,
            generate: false,
        };
        let settings = loader_settings(config, no_roles);
        let snapshot = stored_snapshot(&store, &settings, (catalogue, &ns)).await?;
        Self::of(config, &store, (user, &ns), Arc::new(snapshot)).await
    }

    /// Reads it with the serving snapshot of this process.
    pub(super) async fn of<S: Store>(
        config: &'a Config,
        store: &S,
        (user, ns): (&UserId, &str),
        snapshot: Arc<Snapshot>,
    ) -> anyhow::Result<Self> {
        let users = std::slice::from_ref(user);
        let loaded = store.load(ns, users).await?.pop().unwrap_or_default();
        let stored = store.peek(ns, users).await?.pop().unwrap_or_default();
        let list = stored.list.and_then(|list| Document::parse(&list.doc).ok());
        let arms = arms_for(ns, &config.arms);
        let arm = arm_of(&user.0, &config.arm_seed, &arms).or(arms.first());
        let arm = arm.with_context(|| format!("namespace {ns} has no arm; see [[arms]]"))?;
        // It reads the arm's artefact.
        let ranking = tokio::task::block_in_place(|| Plain::by_terms(config, arm))?;
        let artefact = ranking.artefact();
        let catalogue = &snapshot.catalogue;
        let learned = artefact.map(|artefact| Learned::bind(artefact, catalogue));
        let learned = learned.transpose()?;
        let vectors = artefact.and_then(|artefact| artefact.vectors.clone());
        let texts = Texts::bind(vectors.into_iter().collect(), catalogue);
        Ok(Self {
            config,
            ns: ns.to_owned(),
            arm: arm.id.clone(),
            request: request(ns, user, wall_clock()),
            snapshot,
            loaded,
            list,
            learned,
            texts,
            ranking,
        })
    }

    /// The user as a claim would give them.
    pub(super) fn claimed(&self) -> ClaimedUser<'_> {
        ClaimedUser {
            request: &self.request,
            state: &self.loaded.state,
            claim: self.loaded.claim,
        }
    }

    /// Time of the request.
    pub(super) fn time(&self) -> Timestamp {
        self.request.time
    }

    /// What lists of the arm are made with, but the model and the reader of texts.
    pub(super) fn context(&self) -> ListContext<'_> {
        ListContext {
            learned: self.learned.as_ref(),
            texts: self.texts.as_ref(),
            ..self.ranking.context()
        }
    }

    /// Shares of a score that are not in what is said here, and why, for people.
    pub(super) fn unknown(&self) -> Vec<String> {
        let mut unknown = Vec::new();
        let weights = self.context().weights;
        if weights.ask_model() {
            unknown.push(format!(
                "model: arm {} gives the model a part for some of its users, and the model is not asked here",
                self.arm
            ));
        }
        let text = &self.config.text;
        let state = &self.loaded.state;
        let has_text = state.window.iter().any(|event| event.kind == Kind::Search)
            || (state.profile.is_some() && !text.profile_fields.is_empty());
        if !text.matcher.is_empty() && has_text {
            unknown.push(
                "meant: [text] reads the user's searches and free texts when a list is made, and they are not read here: \
                 neither what they ask for nor what they exclude"
                    .into(),
            );
        }
        unknown
    }
}

/// A request as of now, which nothing sends.
fn request(ns: &str, user: &UserId, now: Timestamp) -> Request {
    Request {
        v: 1,
        ns: ns.into(),
        user: user.clone(),
        reason: Reason::Refresh,
        source: None,
        time: now,
        due: now,
        lane: Lane::Backfill,
        force: false,
    }
}
