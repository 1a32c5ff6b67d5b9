//! The plan of a backfill: made once from the broker's offsets, stored in Redis, resumed after any interruption.
//!
//! Invariant: the stored plan decides, not the arguments of a later start: a plan under way keeps its starts, its ends
//! and its `now`. If two processes write at once, one write is refused; that process reads the plan and tries again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::members::ingest::group;
use nearshore_core::map::ReadAs;
use nearshore_core::ports::store::Store;
use nearshore_core::queue::replay::{Kept, Moment, Plan, Point, Since, Stage, ends, starts};
use nearshore_core::user::record::{Partition, Resume, Timestamp};
use nearshore_kafka::{Admin, probe};

/// What a backfill is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackfillOrder {
    /// Where to start; `None` resumes the stored plan.
    pub from: Option<String>,
    /// Where to end; `None` is `latest`.
    pub to: Option<String>,
    /// Drops a plan under way and makes a new one.
    pub restart: bool,
}

/// How far a backfill is, to be shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The stage under way.
    pub stage: Stage,
    /// Records done of this stage.
    pub done: u64,
    /// Offsets of this stage; more than its records where compaction left gaps.
    pub all: u64,
    /// Records per second, over the last seconds.
    pub rate: f64,
    /// Time left of this stage, at this rate.
    pub time_left: Option<Duration>,
    /// Users that the sweep has seen.
    pub users: u64,
    /// Lists that the sweep has requested.
    pub lists: u64,
    /// Whether it waits because live is behind its objective.
    pub waiting: bool,
}

/// Digest of the settings that decide how records are folded: with another digest the same records fold differently.
pub(super) fn digest(config: &Config) -> String {
    let mut parts = serde_json::json!({
        "window": config.state.window,
        "max_ahead": config.time.max_ahead.as_millis() as u64,
        "topics": [&config.topics.user_events, &config.topics.profile_changes],
        "format": config.topics.profile_format,
        "incarnations": config.kafka.incarnations,
        "segments": config.segments,
    });
    // Left out where it is empty, so that a backfill of an earlier version goes on.
    if !config.events.ignore.is_empty() {
        parts["ignore"] = serde_json::json!(config.events.ignored());
    }
    // So is a mapping: its whole text, for any change of it may make other records.
    if !config.topics.inputs.is_empty() {
        parts["inputs"] = format!("{:?}", config.topics.inputs).into();
    }
    hex::encode(&Sha256::digest(parts.to_string())[..8])
}

/// The stored plan of a namespace, and its text, which the next write compares.
pub struct PlanStore<S> {
    store: S,
    ns: String,
    text: String,
    plan: Plan,
}

impl<S: Store> PlanStore<S> {
    /// Reads the plan to resume, or makes and stores a new one; the second value is true for a new plan.
    pub async fn open(
        config: &Config,
        store: S,
        order: &BackfillOrder,
    ) -> anyhow::Result<(Self, bool)> {
        let ns = config.namespace.clone();
        let stored = store.plan(&ns).await?;
        let old = stored
            .as_deref()
            .map(|text| Plan::parse(text).with_context(|| format!("{ns}:plan")))
            .transpose()?;
        if let (Some(text), Some(plan)) = (&stored, &old)
            && resumes(config, plan, order)?
        {
            let plans = Self {
                store,
                ns,
                text: text.clone(),
                plan: plan.clone(),
            };
            return Ok((plans, false));
        }
        let (users, _) = store.scan(&ns, None).await?;
        let plan = make(config, order, old.as_ref(), !users.is_empty()).await?;
        let text = plan.to_json();
        let written = store.set_plan(&ns, &text, stored.as_deref()).await?;
        ensure!(
            written,
            "another process just stored a plan of namespace {ns}; start again to join it"
        );
        let note = serde_json::json!({"created_at": plan.created_at, "by": "backfill"});
        if !store.namespaces().await?.contains_key(&ns) {
            store.enroll(&ns, Some(&note.to_string())).await?;
        }
        let plans = Self {
            store,
            ns,
            text,
            plan,
        };
        Ok((plans, true))
    }

    /// The plan as this process last read or wrote it.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Applies a change to the stored plan; if another process changed it, to that newer plan.
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
            let stored = self.store.plan(&self.ns).await?;
            let missing = || {
                format!(
                    "namespace {} no longer has a plan; if it was retired, start the backfill again",
                    self.ns
                )
            };
            self.text = stored.with_context(missing)?;
            self.plan = Plan::parse(&self.text).with_context(|| format!("{}:plan", self.ns))?;
        }
    }

    /// Enters a stage, unless another process has entered a later one; true if this call changed the stage.
    pub async fn enter(&mut self, stage: Stage) -> anyhow::Result<bool> {
        let before = self.plan.stage;
        self.change(|plan| plan.stage = plan.stage.max(stage))
            .await?;
        Ok(before < stage && self.plan.stage == stage)
    }
}

/// Whether the stored plan is resumed; an error if it contradicts the arguments or the configuration.
fn resumes(config: &Config, plan: &Plan, order: &BackfillOrder) -> anyhow::Result<bool> {
    let under_way = plan.stage != Stage::Done;
    if order.restart || (!under_way && order.from.is_some()) {
        return Ok(false);
    }
    let differs =
        |given: &Option<String>, planned: &str| given.as_ref().is_some_and(|it| it != planned);
    if under_way && (differs(&order.from, &plan.from) || differs(&order.to, &plan.to)) {
        bail!(
            "namespace {} has a plan under way, made at {}, from {} to {}: leave out --from and --to to resume it, \
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
            "the settings that decide how records are folded (state.window, time.max_ahead, topics, inputs, \
             incarnations, segments) have changed since the plan was made at {} (digest {} then, {now} now): records folded from \
             now on would differ from those folded before; fill another namespace, or use --restart",
            Moment(plan.created_at),
            plan.config
        );
    }
    Ok(true)
}

async fn make(
    config: &Config,
    order: &BackfillOrder,
    old: Option<&Plan>,
    filled: bool,
) -> anyhow::Result<Plan> {
    let from = order.from.as_deref().context(
        "there is no plan to resume: say where to start with --from (earliest, a time, last=7d, or topic:partition=offset,...)",
    )?;
    let to = order.to.as_deref().unwrap_or("latest");
    let created_at = wall_clock();
    let (mut first, mut last) = (Since::new(), Since::new());
    for topic in config.topics.read_as(ReadAs::Profiles) {
        for kept in kept(config, &topic).await? {
            // Profiles are read whole, whatever --from says: an event is counted in the segment of its user's profile.
            first.insert(kept.partition.clone(), Resume(kept.begin.0));
            last.insert(kept.partition, Resume(kept.end.0));
        }
    }
    let events = span(config, from, to, created_at).await?;
    let complete_since = match (filled, old) {
        (true, Some(old)) => old.complete_since.clone(),
        // Records folded before may be older than the log.
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

/// The offsets that each partition of a topic holds, and its oldest record time.
pub(super) async fn kept(config: &Config, topic: &str) -> anyhow::Result<Vec<Kept>> {
    let found = probe::oldest(&config.kafka, topic)
        .await
        .with_context(|| format!("topic {topic}; see kafka.brokers and `nearshore check`"))?;
    ensure!(
        !found.is_empty(),
        "topic {topic} does not exist; see [topics] and `nearshore check`"
    );
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

/// Offsets of events from one point to another; times are looked up on the broker.
pub(super) async fn span(
    config: &Config,
    from: &str,
    to: &str,
    now: Timestamp,
) -> anyhow::Result<(Since, Since)> {
    let topics = config.topics.read_as(ReadAs::Events);
    let mut all = Vec::new();
    for topic in &topics {
        all.extend(kept(config, topic).await?);
    }
    let kept = all;
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
        let mut since = Since::new();
        for topic in &topics {
            since.extend(admin.since(topic, time).await?);
        }
        Ok((point, since, time))
    };
    let (from, since, time) = lookup(from).await?;
    let (to, until, _) = lookup(to).await?;
    Ok((
        starts(&from, &kept, (&since, time))?,
        ends(&to, &kept, &until)?,
    ))
}

/// The time of the first folded record of each partition whose earlier records are not folded.
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

/// Sets the group's positions to the plan's starts. Kafka refuses while the group has members, and a killed member
/// counts until its session times out.
pub(crate) async fn place(config: &Config, starts: &Since) -> anyhow::Result<()> {
    let admin = Admin::new(&config.kafka)?;
    let group = group(&config.kafka, &config.namespace);
    let limit = config.kafka.session_timeout + Duration::from_secs(5);
    let start = Instant::now();
    loop {
        let members = admin.members(&group).await?;
        if members == 0 {
            return admin
                .place(&group, starts)
                .await
                .with_context(|| format!("consumer group {group}"));
        }
        ensure!(
            start.elapsed() < limit,
            "consumer group {group} has {members} members: stop `nearshore run --namespace {}` first; the backfill \
             sets the positions of this group",
            config.namespace
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
