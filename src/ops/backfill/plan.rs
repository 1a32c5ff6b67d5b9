//! The plan of a replay: made with the broker's answers, written down once, gone on with after any end.
//!
//! Invariant: what is written decides, not what is asked for again: a plan under way keeps its starts, its ends
//! and its `now`. A write by two at once is refused to one, who reads again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::members::ingest::group;
use nearshore_core::ports::store::Store;
use nearshore_core::queue::replay::{Kept, Moment, Plan, Point, Since, Stage, ends, starts};
use nearshore_core::user::record::{Partition, Resume, Timestamp};
use nearshore_kafka::{Admin, probe};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Where to start; `None`: go on with the plan that is written down.
    pub from: Option<String>,
    /// Where to end.
    pub to: Option<String>,
    /// Drops a plan that is under way.
    pub restart: bool,
}

/// How far a replay is, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// What it is doing.
    pub stage: Stage,
    /// Records done of this stage.
    pub done: u64,
    /// Records of this stage; with gaps of compaction more than there are.
    pub all: u64,
    /// Records per second, lately.
    pub rate: f64,
    /// Time left of this stage, at this rate.
    pub left: Option<Duration>,
    /// Users seen by the sweep, and lists asked for.
    pub users: u64,
    /// Lists asked for.
    pub lists: u64,
    /// Whether it waits because live is behind its objective.
    pub held: bool,
}

/// Digest of what decides how records are folded: another one means another fold.
pub fn digest(config: &Config) -> String {
    let parts = serde_json::json!({
        "window": config.state.window,
        "max_ahead": config.time.max_ahead.as_millis() as u64,
        "topics": [&config.topics.user_events, &config.topics.profile_changes],
        "format": config.topics.profile_format,
        "incarnations": config.kafka.incarnations,
        "segments": config.segments,
    });
    hex::encode(&Sha256::digest(parts.to_string())[..8])
}

/// The plan as it is written down, with what is needed to write it anew.
pub struct Book<S> {
    store: S,
    ns: String,
    text: String,
    plan: Plan,
}

impl<S: Store> Book<S> {
    /// The plan to go on with, or a new one; the second value tells which.
    pub async fn open(config: &Config, store: S, order: &Order) -> anyhow::Result<(Self, bool)> {
        let ns = config.namespace.clone();
        let held = store.plan(&ns).await?;
        let old = held
            .as_deref()
            .map(|text| Plan::parse(text).with_context(|| format!("{ns}:plan")))
            .transpose()?;
        if let (Some(text), Some(plan)) = (&held, &old)
            && goes_on(config, plan, order)?
        {
            let book = Self {
                store,
                ns,
                text: text.clone(),
                plan: plan.clone(),
            };
            return Ok((book, false));
        }
        let (users, _) = store.scan(&ns, None).await?;
        let plan = make(config, order, (old.as_ref(), !users.is_empty())).await?;
        let text = plan.to_json();
        let written = store.set_plan(&ns, &text, held.as_deref()).await?;
        ensure!(
            written,
            "another process is writing a plan of {ns}; start again to join it"
        );
        let note = serde_json::json!({"created_at": plan.created_at, "by": "backfill"});
        if !store.namespaces().await?.contains_key(&ns) {
            store.enroll(&ns, Some(&note.to_string())).await?;
        }
        let book = Self {
            store,
            ns,
            text,
            plan,
        };
        Ok((book, true))
    }

    /// The plan as it was when last read or written.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Changes the plan as it is now, whoever else changed it.
    pub async fn change(&mut self, change: impl Fn(&mut Plan)) -> anyhow::Result<()> {
        loop {
            let mut plan = self.plan.clone();
            change(&mut plan);
            let text = plan.to_json();
            if self
                .store
                .set_plan(&self.ns, &text, Some(&self.text))
                .await?
            {
                (self.plan, self.text) = (plan, text);
                return Ok(());
            }
            let held = self.store.plan(&self.ns).await?;
            let gone = || format!("the plan of {} is gone: was it retired?", self.ns);
            self.text = held.with_context(gone)?;
            self.plan = Plan::parse(&self.text).with_context(|| format!("{}:plan", self.ns))?;
        }
    }

    /// Moves on to a stage, unless another process has gone further; true if this call moved it.
    pub async fn enter(&mut self, stage: Stage) -> anyhow::Result<bool> {
        let before = self.plan.stage;
        self.change(|plan| plan.stage = plan.stage.max(stage))
            .await?;
        Ok(before < stage && self.plan.stage == stage)
    }
}

/// Whether the plan is gone on with; an error if that is not what was asked for.
fn goes_on(config: &Config, plan: &Plan, order: &Order) -> anyhow::Result<bool> {
    let under_way = plan.stage != Stage::Done;
    if order.restart || (!under_way && order.from.is_some()) {
        return Ok(false);
    }
    let other =
        |asked: &Option<String>, planned: &str| asked.as_ref().is_some_and(|it| it != planned);
    if under_way && (other(&order.from, &plan.from) || other(&order.to, &plan.to)) {
        bail!(
            "namespace {} has a plan under way, made at {}, from {} to {}: leave --from and --to out to go on with it, \
             or drop it with --restart",
            config.namespace,
            Moment(plan.created_at),
            plan.from,
            plan.to
        );
    }
    let now = digest(config);
    if under_way && plan.config != now {
        bail!(
            "the configuration that decides how records are folded (state.window, time.max_ahead, topics, \
             incarnations, segments) is another one than at {}, when the plan was made ({} then, {now} now): what is \
             folded already would differ from the rest; use another namespace, or --restart",
            Moment(plan.created_at),
            plan.config
        );
    }
    Ok(true)
}

async fn make(
    config: &Config,
    order: &Order,
    (old, filled): (Option<&Plan>, bool),
) -> anyhow::Result<Plan> {
    let from = order.from.as_deref().context(
        "where is the replay to start? --from earliest, a time, last=7d, or topic:partition=offset,...",
    )?;
    let to = order.to.as_deref().unwrap_or("latest");
    let created_at = wall_clock();
    let (mut first, mut last) = (Since::new(), Since::new());
    for kept in kept(config, &config.topics.profile_changes).await? {
        // Whole, whatever is asked: an event is counted in the segment of its user's profile.
        first.insert(kept.partition.clone(), Resume(kept.begin.0));
        last.insert(kept.partition, Resume(kept.end.0));
    }
    let events = span(config, (from, to), created_at).await?;
    let complete_since = match (filled, old) {
        (true, Some(old)) => old.complete_since.clone(),
        // What is folded already may be older than the log.
        (true, None) => BTreeMap::new(),
        (false, _) => cut_off(config, &events.0, created_at).await?,
    };
    first.extend(events.0);
    last.extend(events.1);
    let plan = Plan {
        v: 1,
        from: from.into(),
        to: to.into(),
        starts: first,
        ends: last,
        complete_since,
        created_at,
        config: digest(config),
        stage: Stage::Placing,
        cursor: None,
        totals: Default::default(),
    };
    plan.check()?;
    Ok(plan)
}

/// What each partition of a topic holds.
pub(super) async fn kept(config: &Config, topic: &str) -> anyhow::Result<Vec<Kept>> {
    let found = probe::oldest(&config.kafka, topic)
        .await
        .with_context(|| format!("topic {topic}; see kafka.brokers and `nearshore check`"))?;
    ensure!(!found.is_empty(), "there is no topic {topic}");
    Ok(found
        .into_iter()
        .map(|(extent, oldest)| Kept {
            partition: extent.partition,
            begin: extent.begin,
            end: extent.end,
            oldest,
        })
        .collect())
}

/// Offsets of events from one point to another, looked up on the broker.
pub(super) async fn span(
    config: &Config,
    (from, to): (&str, &str),
    now: Timestamp,
) -> anyhow::Result<(Since, Since)> {
    let topic = &config.topics.user_events;
    let kept = kept(config, topic).await?;
    let admin = Admin::new(&config.kafka)?;
    let lookup = async |text: &str| -> anyhow::Result<(Point, Since, Timestamp)> {
        let point: Point = text.parse()?;
        let time = match &point {
            Point::Time(time) => *time,
            Point::Last(length) => Timestamp(now.0 - i64::try_from(length.as_millis())?),
            Point::Earliest | Point::Latest | Point::Offsets(_) => {
                return Ok((point, Since::new(), now));
            }
        };
        let since = admin.since(topic, time).await?;
        Ok((point, since, time))
    };
    let (from, since, time) = lookup(from).await?;
    let (to, until, _) = lookup(to).await?;
    Ok((
        starts(&from, &kept, (&since, time))?,
        ends(&to, &kept, &until)?,
    ))
}

/// For each partition whose first records are not folded: the time of the first that is.
async fn cut_off(
    config: &Config,
    starts: &Since,
    now: Timestamp,
) -> anyhow::Result<BTreeMap<Partition, Timestamp>> {
    let cut: Since = starts
        .iter()
        .filter(|(_, at)| at.0 > 0)
        .map(|(p, at)| (p.clone(), *at))
        .collect();
    let mut times = probe::times(&config.kafka, cut.clone()).await?;
    let time = |partition: Partition| {
        let time = times.remove(&partition).unwrap_or(now);
        (partition, time)
    };
    Ok(cut.into_keys().map(time).collect())
}

/// Puts the group to the plan's starts. Kafka refuses while it has members, of which a killed one counts for a while.
pub(crate) async fn place(config: &Config, starts: &Since) -> anyhow::Result<()> {
    let admin = Admin::new(&config.kafka)?;
    let group = group(&config.namespace);
    let patience = config.kafka.session_timeout + Duration::from_secs(5);
    let asked = Instant::now();
    loop {
        let members = admin.members(&group).await?;
        if members == 0 {
            return admin
                .place(&group, starts)
                .await
                .with_context(|| format!("consumer group {group}"));
        }
        ensure!(
            asked.elapsed() < patience,
            "consumer group {group} has {members} members: stop `nearshore run --namespace {}` first, for its place in \
             the log is about to move",
            config.namespace
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
