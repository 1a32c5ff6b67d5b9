//! Everything that runs in a chaos run, and the execution of its faults.
//!
//! Invariant: when the faults are over, members, brokers, stores and networks are as before. A fault that could not be
//! executed is an error of the harness, not a pass.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use redis::Commands;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Journal;
use crate::brokers::Brokers;
use crate::checker::groups;
use crate::load::{Draft, Writer};
use crate::members::{Member, MemberSpec};
use crate::plan::{Break, Fault, Lane, Net, Plan, Size, Step, Stores};
use crate::proxy::{Proxy, Rewrites, Text};
use crate::servers::Servers;
use crate::site::Site;
use crate::topics::Reader;

/// Everything of a run.
pub struct World {
    pub size: Size,
    pub site: Arc<Site>,
    pub brokers: Brokers,
    pub servers: Arc<Servers>,
    pub members: Vec<Arc<Member>>,
    pub proxies: Vec<Proxy>,
    pub journal: Arc<Journal>,
    pub drafts: Arc<Vec<Draft>>,
    /// Number of drafts that were written.
    pub written: Arc<AtomicUsize>,
    /// Number of failovers in progress: meanwhile readers may find older lists.
    pub failing: Arc<AtomicUsize>,
}

/// The texts that the proxies rewrite for a break, each of the same length, so that the protocol stays valid.
fn rewrites(broken: Option<Break>) -> Vec<Text> {
    let delta = include_str!("../../crates/redis/src/lua/delta.lua");
    let fold = include_str!("../../crates/redis/src/lua/fold.lua");
    let claim = include_str!("../../crates/redis/src/lua/claim.lua");
    let publish = include_str!("../../crates/redis/src/lua/publish.lua");
    // A script, with texts in it and their replacements.
    let changes: &[(&str, &[(&str, &str)])] = match broken {
        Some(Break::NoFence) => &[(delta, &[("fence ~= ARGV[2]", "nil == ARGV[2]  ")])],
        Some(Break::BlindWrite) => &[(
            fold,
            &[("ver ~= tonumber(ARGV[1])", "nil == tonumber(ARGV[1])")],
        )],
        Some(Break::NoTombstone) => &[
            (fold, &[("'GET', KEYS[3]", "'GET', 'nobod'")]),
            (claim, &[("'GET', KEYS[3]", "'GET', 'nobod'")]),
            (
                publish,
                &[
                    ("'GET', KEYS[2]", "'GET', 'nobod'"),
                    (
                        "tonumber(ARGV[2]) < erased_at",
                        "tonumber(ARGV[2]) < 0        ",
                    ),
                    (
                        "tonumber(ARGV[2]) ~= erased_at",
                        "tonumber(ARGV[2]) == 'x'      ",
                    ),
                ],
            ),
        ],
        Some(Break::CommitEarly | Break::ForgetInHand) | None => &[],
    };
    let mut out = Vec::new();
    for (script, texts) in changes {
        let mut changed = (*script).to_owned();
        for (old, new) in *texts {
            assert!(
                old.len() == new.len() && changed.contains(old),
                "{old} -> {new}"
            );
            changed = changed.replace(old, new);
        }
        // A script is called by its hash, which has changed.
        for text in [*script, &changed] {
            assert_eq!(text.len(), script.len());
        }
        let hash = |text: &str| redis::Script::new(text).get_hash().as_bytes().to_vec();
        out.push((script.as_bytes().to_vec(), changed.clone().into_bytes()));
        out.push((hash(script), hash(&changed)));
    }
    if broken == Some(Break::NoTombstone) {
        // The command by which the store reads a tombstone: one text per length; ids have at most ten bytes.
        for length in 24..=33 {
            let ask = |what: &str| format!("GET\r\n${length}\r\nnearshore:{what}:{{").into_bytes();
            out.push((ask("erased"), ask("nobody")));
        }
    }
    out
}

impl World {
    /// Starts everything and waits until all members are ready.
    pub async fn start(size: Size, dir: &std::path::Path) -> anyhow::Result<Arc<Self>> {
        let journal = Arc::new(Journal::default());
        journal.say(format!(
            "brokers: {}, stores: {:?}",
            size.brokers, size.stores
        ));
        let (brokers, servers) = tokio::join!(
            Brokers::start(size.brokers, dir),
            Servers::start(size.stores, dir)
        );
        let (brokers, servers) = (brokers?, servers?);
        let ns = format!("chaos-{}", size.seed % 1_000_000);
        let site = Arc::new(Site::new(&ns, dir, &brokers.addresses));
        site.topics(&size).await?;
        let config = site.write(&size)?;
        let writing = site.clone();
        tokio::task::spawn_blocking(move || Writer::new(&writing.brokers)?.catalogue(&writing))
            .await??;
        let proxies = proxies(&size, &servers).await?;
        if size.stores == Stores::Cluster {
            servers.join().await?;
        } else {
            tokio::spawn(servers.clone().follow());
        }
        let mut members = Vec::new();
        for nth in 0..size.ingest + size.generate {
            let role = if nth < size.ingest {
                "ingest"
            } else {
                "generate"
            };
            let log_is_broken =
                matches!(size.broken, Some(Break::CommitEarly | Break::ForgetInHand));
            let spec = MemberSpec {
                nth,
                role,
                config: config.clone(),
                redis: address(&size, &servers, &proxies, nth),
                broken: size.broken.filter(|_| log_is_broken && role == "ingest"),
            };
            members.push(Member::new(spec, journal.clone())?);
        }
        let world = Arc::new(Self {
            drafts: Arc::new(crate::load::drafts(&size)),
            size,
            site,
            brokers,
            servers,
            members,
            proxies,
            journal,
            written: Arc::default(),
            failing: Arc::default(),
        });
        world.bring_up().await?;
        Ok(world)
    }

    async fn bring_up(&self) -> anyhow::Result<()> {
        for member in &self.members {
            member.start().await?;
        }
        for member in &self.members {
            member.ready().await?;
            tokio::spawn(member.clone().keep());
        }
        self.journal
            .say(format!("{} members are ready", self.members.len()));
        Ok(())
    }

    /// Runs load and faults until both are over.
    pub async fn disturb(self: &Arc<Self>, plan: Plan) -> anyhow::Result<()> {
        self.journal.begin();
        let start = Instant::now();
        let mut work: JoinSet<anyhow::Result<()>> = JoinSet::new();
        let world = self.clone();
        work.spawn_blocking(move || {
            let writer = Writer::new(&world.site.brokers)?;
            let many = writer.run(
                &world.site,
                (&world.drafts, world.size.load),
                &world.written,
            )?;
            world
                .journal
                .say(format!("load: {many} records are acknowledged"));
            Ok(())
        });
        for (lane, steps) in plan.lanes {
            let world = self.clone();
            work.spawn(async move { world.execute_lane(lane, steps, start).await });
        }
        all_of(work).await
    }

    /// An error if the run was to break scripts and the proxies rewrote nothing.
    pub fn breaks_took_effect(&self) -> anyhow::Result<()> {
        let rewritten = self
            .proxies
            .iter()
            .map(|proxy| proxy.rewritten.load(Ordering::Relaxed));
        let texts: u64 = rewritten.sum();
        let scripts = matches!(
            self.size.broken,
            Some(Break::NoFence | Break::BlindWrite | Break::NoTombstone)
        );
        ensure!(!scripts || texts > 0, "the proxies rewrote nothing");
        if scripts {
            self.journal.say(format!(
                "{texts} texts were rewritten between clients and Redis"
            ));
        }
        Ok(())
    }

    async fn execute_lane(
        self: Arc<Self>,
        lane: Lane,
        steps: Vec<Step>,
        start: Instant,
    ) -> anyhow::Result<()> {
        let mut faults: JoinSet<anyhow::Result<()>> = JoinSet::new();
        for step in steps {
            tokio::time::sleep_until((start + step.at).into()).await;
            // Faults of members may overlap, except the one that ends all of them.
            if lane == Lane::Members && step.fault != Fault::Replay {
                let world = self.clone();
                faults.spawn(async move { world.execute(step.fault).await });
            } else {
                let done = self.execute(step.fault).await;
                faults.spawn(async move { done });
            }
        }
        all_of(faults).await
    }

    async fn execute(&self, fault: Fault) -> anyhow::Result<()> {
        let begun = self.journal.now();
        let member = |nth: usize| &self.members[nth];
        let how = match fault {
            Fault::Kill(nth) => member(nth).kill().await,
            Fault::Term(nth) => member(nth).terminate().await,
            Fault::Stop(nth, long) => member(nth).stop(long).await,
            Fault::Cut(nth, net, long) => {
                self.proxies[nth].set(net);
                tokio::time::sleep(long).await;
                self.proxies[nth].set(Net::Pass);
                Ok(String::new())
            }
            Fault::Broker(nth, down) => self.brokers.kill(nth, down).await,
            Fault::Primary(nth, down) => self.failing(self.servers.kill(nth, down)).await,
            Fault::Freeze(long) => self.failing(self.servers.freeze(long)).await,
            Fault::Flush => self.servers.flush_scripts().await,
            Fault::Replay => self.replay().await,
        };
        let how = how.with_context(|| fault.to_string())?;
        self.journal.fault(begun, fault, &how);
        Ok(())
    }

    async fn failing<T>(&self, work: impl Future<Output = T>) -> T {
        self.failing.fetch_add(1, Ordering::SeqCst);
        let done = work.await;
        self.failing.fetch_sub(1, Ordering::SeqCst);
        done
    }

    /// Kills every ingest member, lets states of erased and silent users expire, and commits the beginning of the
    /// topics.
    async fn replay(&self) -> anyhow::Result<String> {
        let ingest = &self.members[..self.size.ingest];
        for member in ingest {
            member.away().await;
        }
        // A primary may be down at this moment.
        let expired = crate::servers::until("expiry", || async { self.expire() }).await;
        let site = self.site.clone();
        // The group accepts offsets only when its members have timed out.
        let rewind = tokio::task::spawn_blocking(move || rewind(&site, Duration::from_secs(300)));
        let rewound = rewind.await?;
        for member in ingest {
            member.start().await?;
        }
        rewound?;
        let expired = expired?;
        Ok(format!("{expired} states of silent users expired"))
    }

    /// Deletes states of erased and silent users, as their lifetime would; tombstones are kept. How many.
    fn expire(&self) -> anyhow::Result<usize> {
        let written = self.written.load(Ordering::SeqCst);
        let mut last: std::collections::BTreeMap<&str, usize> = Default::default();
        for (nth, draft) in self.drafts.iter().enumerate() {
            if let Some(key) = &draft.key {
                last.insert(key, nth);
            }
        }
        let mut erased: BTreeSet<&str> = BTreeSet::new();
        for (user, nth) in last {
            if nth < written && self.drafts[nth].value.is_none() && !self.drafts[nth].events {
                erased.insert(user);
            }
        }
        let mut expired = 0;
        for port in self.servers.read_ports() {
            let mut conn = redis::Client::open(("127.0.0.1", port))?.get_connection()?;
            let keys: Vec<String> = conn
                .scan_match::<_, String>("*:state")?
                .collect::<Result<_, _>>()?;
            for key in keys {
                let Some(user) = user_of(&key) else { continue };
                let recall = key.replace(":state", ":recall");
                let silent = erased.contains(user.as_str()) && !conn.exists::<_, bool>(recall)?;
                let erased_at: i64 = conn
                    .hget::<_, _, Option<i64>>(&key, "erased_at")?
                    .unwrap_or(0);
                // A pending request is from an event after the erase: that user is not silent.
                let pending: Option<String> = conn.hget(&key, "pending")?;
                if silent && erased_at > 0 && pending.is_none_or(|it| it.is_empty()) {
                    expired += conn.del::<_, usize>(&key)?;
                }
            }
        }
        Ok(expired)
    }

    /// Waits until all groups have read to the ends and no request is pending, three times in a row.
    pub async fn rest(&self, limit: Duration) -> Result<Duration, String> {
        let (start, mut quiet) = (Instant::now(), 0);
        loop {
            let (site, ports) = (self.site.clone(), self.servers.read_ports());
            let look = tokio::task::spawn_blocking(move || unrest(&site, &ports)).await;
            let last = match look {
                Ok(Ok(None)) => {
                    quiet += 1;
                    if quiet == 3 {
                        return Ok(start.elapsed());
                    }
                    String::new()
                }
                Ok(Ok(Some(what))) => {
                    quiet = 0;
                    what
                }
                Ok(Err(error)) => format!("{error:#}"),
                Err(error) => error.to_string(),
            };
            if start.elapsed() > limit {
                return Err(format!("not at rest after {limit:?}: {last}"));
            }
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    }
}

/// Waits for all tasks; then the first error, if any.
async fn all_of(mut work: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut first = Ok(());
    while let Some(done) = work.join_next().await {
        let done = done?;
        if first.is_ok() {
            first = done;
        }
    }
    first
}

fn user_of(key: &str) -> Option<String> {
    let inner = key.split_once(":{")?.1.strip_suffix("}:state")?;
    percent_encoding::percent_decode_str(inner)
        .decode_utf8()
        .ok()
        .map(Into::into)
}

/// What is still to be done, in words; `None` at rest.
fn unrest(site: &Site, ports: &[u16]) -> anyhow::Result<Option<String>> {
    let reader = Reader::new(&site.brokers);
    for (group, topics) in groups(site) {
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let lag: i64 = reader.lag(&group, &topics)?.values().sum();
        if lag > 0 {
            return Ok(Some(format!("{group} is {lag} records behind")));
        }
    }
    for port in ports {
        let mut conn = redis::Client::open(("127.0.0.1", *port))?.get_connection()?;
        let keys: Vec<String> = conn
            .scan_match::<_, String>("*:state")?
            .collect::<Result<_, _>>()?;
        for key in keys {
            let pending: Option<String> = conn.hget(&key, "pending")?;
            if pending.is_some_and(|pending| !pending.is_empty()) {
                return Ok(Some(format!("{key} has a pending request")));
            }
        }
    }
    Ok(None)
}

/// Commits the beginning of the topics for the ingest group, as soon as the group is empty.
fn rewind(site: &Site, limit: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &site.brokers)
        .set("group.id", site.ingest_group())
        .set("enable.auto.commit", "false")
        .create()?;
    let set_back = || {
        let mut list = TopicPartitionList::new();
        for topic in [&site.events, &site.profiles] {
            let known = consumer.fetch_metadata(Some(topic), Duration::from_secs(60))?;
            for partition in known.topics().iter().flat_map(|topic| topic.partitions()) {
                // Half of the profile partitions are not read again, as if events were retained for longer: of the
                // erases there only the tombstones are left.
                if *topic == site.events || partition.id() % 2 == 1 {
                    list.add_partition_offset(topic, partition.id(), Offset::Offset(0))?;
                }
            }
        }
        consumer.commit(&list, CommitMode::Sync)
    };
    loop {
        match set_back() {
            Ok(()) => return Ok(()),
            Err(error) => ensure!(
                start.elapsed() < limit,
                "offsets could not be set back: {error}"
            ),
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "one poll of a wait with a deadline"
        )]
        std::thread::sleep(Duration::from_millis(200));
    }
}

async fn proxies(size: &Size, servers: &Servers) -> anyhow::Result<Vec<Proxy>> {
    let texts = Rewrites::of(rewrites(size.broken));
    let mut proxies = Vec::new();
    match size.stores {
        Stores::Sentinel if size.direct => {}
        Stores::Sentinel => {
            for _ in 0..size.ingest + size.generate {
                proxies.push(Proxy::start(0, servers.primary(), texts.clone()).await?);
            }
        }
        Stores::Cluster => {
            for (port, announced) in servers.ports().iter().zip(&servers.announced) {
                let (_, node) = watch::channel(SocketAddr::from(([127, 0, 0, 1], *port)));
                proxies.push(Proxy::start(*announced, node, texts.clone()).await?);
            }
        }
    }
    Ok(proxies)
}

fn address(size: &Size, servers: &Servers, proxies: &[Proxy], nth: usize) -> String {
    match size.stores {
        Stores::Sentinel if size.direct => servers.by_sentinels(),
        Stores::Sentinel => format!("redis://127.0.0.1:{}", proxies[nth].port),
        Stores::Cluster => {
            let nodes = servers
                .announced
                .iter()
                .map(|port| format!("127.0.0.1:{port}"));
            format!("redis+cluster://{}", nodes.collect::<Vec<_>>().join(","))
        }
    }
}
