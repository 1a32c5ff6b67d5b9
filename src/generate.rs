//! The generate role: log -> lanes -> take -> engine -> list -> store -> log.
//!
//! Invariant: a request's offset becomes committable only when its list is published and told, or
//! when it is covered, refused or failed for good. Between two calls nothing is in memory that the
//! lanes' topics could not bring back. Work in hand may be done twice; tickets decide.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::arms::arm_of;
use crate::compose::{Brief, Made, brief, fallback, finish};
use crate::engine::{self, Answer, Ask, Info, Names};
use crate::event::UserId;
use crate::ingest::{Error, update_record};
use crate::lanes::{Lanes, Policy, Work};
use crate::log::{self, Batch, Log, Outgoing, dlq};
use crate::metrics;
use crate::offsets::InHand;
use crate::prompt::{Arm, Template};
use crate::record::{Partition, Position, Timestamp};
use crate::shop::Shop;
use crate::store::{Peek, Publish, Published, Store, Stored, Take, Taken};
use crate::takes::{Need, Standing, need};
use crate::topics::Topics;
use crate::trigger::{Lane, Reason, Request};

/// Whoever answers a batch of questions: the engine's thread, or a table in the simulation.
pub trait Answers: Send + Sync {
    /// Makes `names` the catalogue.
    fn set_names(&self, names: Arc<Names>) -> impl Future<Output = Result<(), engine::Error>> + Send;

    /// Answers in the order of `asks`.
    fn generate(
        &self,
        asks: Vec<Ask>,
    ) -> impl Future<Output = Result<Vec<Answer>, engine::Error>> + Send;
}

/// One arm, ready to be used.
pub struct Loaded<A> {
    /// Its configuration.
    pub arm: Arm,
    /// Its template.
    pub template: Template,
    /// Its model's name and revision.
    pub info: Info,
    /// The way to its model.
    pub engine: A,
}

/// What the role needs to know; from configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Topic names.
    pub topics: Topics,
    /// How lanes share the engine.
    pub lanes: Policy,
    /// Seed of the arms' hash.
    pub arm_seed: String,
    /// How SKUs are chosen.
    pub selection: crate::select::Policy,
    /// The clock, only to wait and to measure.
    pub clock: fn() -> Timestamp,
}

/// What one turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Lists published.
    pub published: u64,
    /// Requests skipped because a list covers them.
    pub covered: u64,
    /// Takes made.
    pub takes: u64,
}

/// One member of the generate group.
pub struct Generate<L, S, A> {
    log: L,
    store: S,
    shop: Arc<ArcSwap<Shop>>,
    arms: Vec<Loaded<A>>,
    settings: Settings,
    lanes: Lanes,
    in_hand: InHand,
    /// Cut, not yet done: kept over an error, so that the next turn goes on with it.
    current: Vec<Work>,
    /// Version of the names that the engines know.
    names: Option<u64>,
}

/// A user who was taken, on the way to a list.
struct Job<'a> {
    work: &'a Work,
    arm: usize,
    taken: Taken,
    brief: Brief,
}

impl<L: Log, S: Store, A: Answers> Generate<L, S, A> {
    /// A member that has nothing in hand. `arms` must not be empty.
    pub fn new(
        log: L,
        store: S,
        shop: Arc<ArcSwap<Shop>>,
        (arms, settings): (Vec<Loaded<A>>, Settings),
    ) -> Self {
        Self {
            log,
            store,
            shop,
            arms,
            lanes: Lanes::new(settings.lanes.clone()),
            settings,
            in_hand: InHand::default(),
            current: Vec::new(),
            names: None,
        }
    }

    /// The log, to wait for deliveries.
    pub fn log(&mut self) -> &mut L {
        &mut self.log
    }

    /// Ends the member and hands its log back, to be closed.
    pub fn into_log(self) -> L {
        self.log
    }

    /// The lanes, to know how long to wait and what to measure.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Whether nothing is held: neither waiting nor cut.
    pub fn idle(&self) -> bool {
        self.current.is_empty() && self.lanes.is_empty()
    }

    /// Partitions are no longer ours: what is in hand of them is the new owner's.
    pub fn revoked(&mut self, partitions: &[Partition]) {
        self.lanes.revoke(partitions);
        self.in_hand.revoke(partitions);
        self.current.retain(|work| {
            work.positions.iter().any(|position| !partitions.contains(&position.partition))
        });
    }

    /// Takes requests in. A record that is no request goes to `dlq`.
    pub async fn receive(&mut self, batch: &Batch, now: Timestamp) -> Result<(), Error> {
        for record in &batch.records {
            let parsed = crate::event::decode_request(record);
            match parsed {
                Ok(request) => {
                    self.in_hand.began(&record.position);
                    let merged = self.lanes.offer(request, record.position.clone(), now);
                    metrics::coalesced(u64::from(merged));
                }
                Err(reject) => {
                    let letter = dlq::letter(&self.settings.topics.dlq, record, "request", &reject);
                    self.log.send(vec![letter]).await?;
                    metrics::dead(&batch.partition.topic, "request", reject.code());
                    self.in_hand.began(&record.position);
                    self.in_hand.done(&record.position);
                }
            }
        }
        Ok(())
    }

    /// Serves what is due. After an error call it again: what was cut is kept.
    pub async fn turn(&mut self, now: Timestamp) -> Result<Turn, Error> {
        if self.current.is_empty() {
            self.current = self.lanes.cut(now, self.settings.lanes.batch_max);
        }
        if self.current.is_empty() {
            return Ok(Turn::default());
        }
        self.sync_names().await;
        let works = std::mem::take(&mut self.current);
        let turn = self.serve(&works).await;
        match &turn {
            Ok(_) => {
                for position in works.iter().flat_map(|work| &work.positions) {
                    self.in_hand.done(position);
                }
            }
            Err(_) => self.current = works,
        }
        turn
    }

    /// Commits what is done.
    pub async fn commit(&mut self) -> Result<(), Error> {
        let done = self.in_hand.take_commits();
        if done.is_empty() {
            return Ok(());
        }
        match self.log.commit(&done).await {
            Err(error) if error.remedy() != log::Remedy::Drop => {
                self.in_hand.give_back(&done);
                Err(error.into())
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Tells the engines the catalogue's names when they changed. A failure leaves the old ones:
    /// indices are stable, so that an answer over old names is still right.
    async fn sync_names(&mut self) {
        let shop = self.shop.load_full();
        let version = shop.catalogue.names_version();
        if self.names == Some(version) {
            return;
        }
        let names = Arc::new(Names { version, names: shop.catalogue.names() });
        for loaded in &self.arms {
            if let Err(error) = loaded.engine.set_names(names.clone()).await {
                metrics::error("engine", "names");
                tracing::error!(arm = loaded.arm.id, %error, "the engine keeps the old names");
                return;
            }
        }
        self.names = Some(version);
    }

    async fn serve(&self, works: &[Work]) -> Result<Turn, Error> {
        let mut namespaces: BTreeMap<&str, Vec<&Work>> = BTreeMap::new();
        for work in works {
            namespaces.entry(&work.request.ns).or_default().push(work);
        }
        let mut sum = Turn::default();
        for (ns, works) in namespaces {
            let turn = self.serve_namespace(ns, &works).await?;
            sum.published += turn.published;
            sum.covered += turn.covered;
            sum.takes += turn.takes;
        }
        Ok(sum)
    }

    async fn serve_namespace(&self, ns: &str, works: &[&Work]) -> Result<Turn, Error> {
        let users: Vec<UserId> = works.iter().map(|work| work.request.user.clone()).collect();
        let peeks = self.store.peek(ns, &users).await?;
        let (mut again, mut due) = (Vec::new(), Vec::new());
        for (&work, peek) in works.iter().zip(peeks) {
            match self.need(work, &peek) {
                Need::Take => due.push(work),
                Need::Covered => again.push((work, peek)),
                Need::Gone => metrics::gone(1),
            }
        }
        metrics::covered(again.len() as u64);
        let covered = again.len() as u64;
        self.tell_again(ns, again).await?;
        let takes: Vec<Take> = due
            .iter()
            .map(|work| Take { user: work.request.user.clone(), due: work.request.due })
            .collect();
        let taken = if takes.is_empty() { Vec::new() } else { self.store.take(ns, &takes).await? };
        let shop = self.shop.load_full();
        let jobs: Vec<Job> = due
            .into_iter()
            .zip(taken)
            .filter_map(|(work, taken)| self.job(work, taken?, &shop))
            .collect();
        let takes = jobs.len() as u64;
        let made = self.make(&jobs, &shop).await;
        let published = self.publish(ns, &jobs, made).await?;
        Ok(Turn { published, covered, takes })
    }

    fn need(&self, work: &Work, peek: &Peek) -> Need {
        let list = peek.list.as_ref().filter(|list| list.ticket > 0);
        let standing = Standing {
            list: list.map(|list| (list.covers.clone(), list.epoch)),
            state: peek.fences.clone(),
            pending: peek.pending.clone(),
        };
        need(&work.request, &work.sources, (&standing, self.arms[self.arm(&work.request)].arm.epoch))
    }

    fn arm(&self, request: &Request) -> usize {
        arm_of(&request.user.0, &self.settings.arm_seed, self.arms.iter().map(|a| a.arm.share))
    }

    fn job<'a>(&self, work: &'a Work, taken: Taken, shop: &Shop) -> Option<Job<'a>> {
        let arm = self.arm(&work.request);
        let loaded = &self.arms[arm];
        let brief = brief(&taken, &work.request, shop, (&loaded.arm, &loaded.template));
        Some(Job { work, arm, taken, brief })
    }

    /// Answers per job: a list of the model, or the fallback with its reason.
    async fn make(&self, jobs: &[Job<'_>], shop: &Shop) -> Vec<Made> {
        let mut made: Vec<Option<Made>> = jobs.iter().map(|_| None).collect();
        for (arm, loaded) in self.arms.iter().enumerate() {
            let mine: Vec<usize> =
                (0..jobs.len()).filter(|&j| jobs[j].arm == arm && !jobs[j].work.late).collect();
            if mine.is_empty() {
                continue;
            }
            let asks: Vec<Ask> = mine.iter().map(|&j| jobs[j].brief.ask.clone()).collect();
            let start = (self.settings.clock)();
            match loaded.engine.generate(asks).await {
                Ok(answers) => {
                    let took = (self.settings.clock)().since(start);
                    metrics::generated(&loaded.arm.id, &answers, took);
                    for (&j, answer) in mine.iter().zip(&answers) {
                        made[j] = Some(self.finish(&jobs[j], answer, shop));
                    }
                }
                Err(error) => {
                    metrics::error("engine", "generate");
                    tracing::error!(arm = loaded.arm.id, %error, users = mine.len(), "generation failed; fallbacks stand in");
                }
            }
        }
        let stand_in = |job: &Job, made: Option<Made>| {
            let reason = if job.work.late { "late" } else { "generation failed" };
            made.unwrap_or_else(|| fallback(&job.brief, shop, reason))
        };
        jobs.iter().zip(made).map(|(job, made)| stand_in(job, made)).collect()
    }

    fn finish(&self, job: &Job, answer: &Answer, shop: &Shop) -> Made {
        let made = finish(&job.brief, answer, shop, &self.settings.selection);
        for (reason, n) in &made.dropped {
            metrics::names_rejected(reason, *n);
        }
        made
    }

    async fn publish(&self, ns: &str, jobs: &[Job<'_>], made: Vec<Made>) -> Result<u64, Error> {
        let now = (self.settings.clock)();
        let lists: Vec<Publish> = jobs
            .iter()
            .zip(&made)
            .map(|(job, made)| Publish {
                user: job.work.request.user.clone(),
                list: Stored {
                    doc: made.document.to_json(),
                    ticket: job.taken.ticket,
                    covers: job.taken.state.fences.clone(),
                    epoch: self.arms[job.arm].arm.epoch,
                    at: job.work.request.time,
                    audit: made.audit_at(now),
                },
                life: job.taken.state.life,
                force: job.work.request.reason == Reason::Refresh,
                only_if_absent: !made.by_model,
            })
            .collect();
        if lists.is_empty() {
            return Ok(0);
        }
        let outcomes = self.store.publish(ns, &lists).await?;
        let mut out = Vec::new();
        let mut published = 0;
        for ((list, outcome), (job, made)) in lists.iter().zip(outcomes).zip(jobs.iter().zip(&made)) {
            let arm = &self.arms[job.arm].arm.id;
            metrics::published(outcome, (arm, job.work.lane, made.by_model));
            if outcome == Published::Stored {
                published += 1;
                let cold = matches!(job.work.request.reason, Reason::First);
                metrics::event_to_list(job.work.lane, cold, now.since(job.work.oldest));
                out.push(self.update(ns, &list.user, &list.list));
            }
        }
        self.log.send(out).await?;
        Ok(published)
    }

    /// A crash between publish and its record loses the record; whoever finds the list covered tells it again.
    async fn tell_again(&self, ns: &str, covered: Vec<(&Work, Peek)>) -> Result<(), Error> {
        let out: Vec<Outgoing> = covered
            .iter()
            .filter_map(|(work, peek)| Some(self.update(ns, &work.request.user, peek.list.as_ref()?)))
            .collect();
        if !out.is_empty() {
            self.log.send(out).await?;
        }
        Ok(())
    }

    fn update(&self, ns: &str, user: &UserId, list: &Stored) -> Outgoing {
        let value = crate::list::update(list.ticket, &list.covers.to_string(), (&list.doc, &list.audit));
        update_record(&self.settings.topics, ns, user, Some(value))
    }
}

/// A request's place in a lane, for logs.
pub fn lane_of(topics: &Topics, position: &Position) -> Lane {
    let topic = &position.partition.topic;
    if *topic == topics.regen_urgent {
        Lane::Urgent
    } else if *topic == topics.regen_live {
        Lane::Live
    } else {
        Lane::Backfill
    }
}
