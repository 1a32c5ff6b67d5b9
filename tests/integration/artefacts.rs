//! Promise: a running process takes the artefact that its pointer file names, without a restart and without a lost list;
//! what is damaged, of another catalogue or needs more than the process has is refused, and the one before stays.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nearshore_core::list::terms::artefact::{self, Made, Optional, Tables};

use crate::harness::eventually;
use crate::process::{LIMIT, PRODUCTS, Process, Site};

/// What the log says of each renewed artefact that was taken.
const TAKEN: &str = "a renewed artefact makes the lists";

/// Artefacts beside a site's configuration, and the file that points to one of them.
struct Volume {
    site: Site,
}

impl Volume {
    /// A site whose arm names the pointer file.
    async fn open() -> Self {
        let site = Site::open(&[]).await;
        site.edit(&[("weights = { model = 1.0 }", "artefact = \"current\"")]);
        site.catalogue().await;
        Self { site }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.folder().join(name)
    }

    /// Writes an artefact that knows these products; its hash, which also names its folder.
    fn artefact(&self, seed: u64, term: &str, products: &[&str]) -> String {
        let weights = std::array::from_fn(|_| BTreeMap::from([(term.to_owned(), 1.0)]));
        let tables = Tables {
            products: products.iter().map(|&id| id.to_owned()).collect(),
            ..Tables::default()
        };
        let made = Made {
            seed,
            until: seed as i64 * 1_000,
            ..Made::default()
        };
        let files = artefact::write(&made, &weights, &tables, Optional::default());
        let folder = self.path(&files.hash);
        std::fs::create_dir(&folder).expect("a new artefact");
        for (name, content) in &files.content {
            std::fs::write(folder.join(name), content).expect("written");
        }
        files.hash
    }

    /// An artefact of the site's products.
    fn good(&self, seed: u64) -> String {
        self.artefact(seed, "demand", &PRODUCTS.map(|(name, _)| name))
    }

    fn point(&self, target: &str) {
        let part = self.path("current.part");
        std::fs::write(&part, format!("{target}\n")).expect("written");
        std::fs::rename(part, self.path("current")).expect("renamed");
    }

    /// Sends events until so many artefacts were refused: one of another catalogue is when a list is made.
    async fn refused(&self, process: &Process, times: f64) {
        let mut nth = 0;
        eventually(LIMIT, || {
            nth += 1;
            async move {
                self.site.send(vec![self.site.bought("eve", nth)]).await;
                let name = "nearshore_artefacts_refused_total";
                match process.metric(name, "arm=\"test\"").await {
                    found if found == times => Ok(()),
                    found => Err(format!("{found} refused, not {times}")),
                }
            }
        })
        .await;
    }

    /// Sends events of a user until a list of theirs is by this artefact.
    async fn lists_are_by(&self, user: &str, hash: &str) {
        let mut nth = 0;
        eventually(LIMIT, || {
            nth += 1;
            async move {
                self.site.send(vec![self.site.bought(user, nth)]).await;
                let list = self.site.peek(user).await.list.ok_or("no list")?;
                let audit = list.audit.read().map_err(|error| error.to_string())?;
                match audit.artefact == hash {
                    true => Ok(()),
                    false => Err(format!("by {:?}", audit.artefact)),
                }
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_artefact_is_taken_and_a_bad_one_leaves_the_one_before() {
    let volume = Volume::open().await;
    let [first, second, third] = [1, 2, 3].map(|seed| volume.good(seed));
    volume.point(&first);
    let process = Process::ready(&volume.site, "all").await;
    volume.lists_are_by("ann", &first).await;
    volume.point(&second);
    volume.lists_are_by("ann", &second).await;
    volume.refused(&process, 0.0).await;
    // Cut short, as a copy is that has not ended.
    let tables = volume.path(&third).join("tables.json");
    let whole = std::fs::read(&tables).expect("it is there");
    std::fs::write(&tables, &whole[..whole.len() / 2]).expect("written");
    volume.point(&third);
    volume.refused(&process, 1.0).await;
    let foreign = volume.artefact(4, "demand", &["SPANNER", "HAMMER"]);
    volume.point(&foreign);
    volume.refused(&process, 2.0).await;
    // The process has loaded no model.
    let modelled = volume.artefact(5, "model", &PRODUCTS.map(|(name, _)| name));
    volume.point(&modelled);
    volume.refused(&process, 3.0).await;
    std::fs::remove_file(volume.path("current")).expect("removed");
    volume.refused(&process, 4.0).await;
    volume.lists_are_by("bob", &second).await;
    let bound = process.metric("nearshore_artefact_bound", "").await;
    assert_eq!(bound, 1.0, "the one before is still bound");
    let until = "nearshore_artefact_until_timestamp_seconds";
    assert_eq!(process.metric(until, "arm=\"test\"").await, 2.0);
    let log = process.log();
    for told in [
        "tables.json is not the file that",
        "is of another catalogue",
        "did not load the arm's model; restart it",
        "current/artefact.json cannot be read",
    ] {
        assert_eq!(log.matches(told).count(), 1, "{told}\n{log}");
    }
    std::fs::write(&tables, whole).expect("written");
    volume.point(&third);
    volume.lists_are_by("bob", &third).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn artefacts_that_are_swapped_under_load_cost_no_list() {
    let volume = Volume::open().await;
    let both = [1, 2].map(|seed| volume.good(seed));
    volume.point(&both[0]);
    let process = Process::ready(&volume.site, "all").await;
    let users: Vec<String> = (0..40).map(|nth| format!("u{nth}")).collect();
    let mut round = 0;
    eventually(LIMIT, || {
        round += 1;
        let bought = users.iter().map(|user| volume.site.bought(user, round));
        let bought = bought.collect();
        volume.point(&both[round % 2]);
        let taken = process.log().matches(TAKEN).count();
        let volume = &volume;
        async move {
            volume.site.send(bought).await;
            match taken {
                0..3 => Err(format!("{taken} renewed artefacts were taken")),
                _ => Ok(()),
            }
        }
    })
    .await;
    volume.point(&both[1]);
    for user in &users {
        volume.lists_are_by(user, &both[1]).await;
    }
    volume.refused(&process, 0.0).await;
    let fallbacks = process
        .metric("nearshore_lists_published_total", "source=\"fallback\"")
        .await;
    assert_eq!(fallbacks, 0.0, "no list was made without the arm's terms");
}
