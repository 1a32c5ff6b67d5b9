//! Promise: an alignment that several processes share gives the bytes of one, and one that is killed leaves nothing half.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::align::content;
use crate::evaluate::{Slice, write_to_topics};
use crate::process::{Site, record};

/// A log in files, and what is made of it.
struct Shop {
    folder: tempfile::TempDir,
    files: [PathBuf; 3],
}

impl Shop {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Slice::read().json_lines(folder.path());
        Self { folder, files }
    }

    fn path(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("a path").to_owned()
    }

    fn command(&self, more: &[&str]) -> Command {
        let [events, profiles, catalog] = &self.files;
        let mut command = Command::new(env!("CARGO_BIN_EXE_nearshore"));
        command.args(["align", "--json", "--samples", "300", "--events"]);
        command.arg(events).arg("--profiles").arg(profiles);
        command.arg("--catalog").arg(catalog);
        if !more.contains(&"--erased") {
            command.arg("--no-erases");
        }
        command.args(more);
        command
    }

    fn align(&self, more: &[&str]) -> Output {
        self.command(more).output().expect("the binary starts")
    }

    fn part(&self, part: &str, parts: &str) -> Value {
        found(&self.align(&["--part", part, "--partials", parts]))
    }
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn found(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", error(output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Names in a folder, hidden ones too; none if it is not there.
fn names(folder: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries
        .map(|entry| name(entry.expect("an entry")))
        .collect()
}

fn artefact(report: &Value) -> String {
    format!("artefact-{}", report["artefact"].as_str().expect("a hash"))
}

#[test]
fn parts_of_any_number_give_the_bytes_of_one_process() {
    let shop = Shop::new();
    let alone = shop.path("alone");
    let expected = found(&shop.align(&["--out", &alone]));
    let name = artefact(&expected);
    for parts in [1, 2, 5] {
        let folder = shop.path(&format!("parts {parts}"));
        // The last part first: their order does not matter.
        let users: u64 = (1..=parts)
            .rev()
            .map(|part| {
                let found = shop.part(&format!("{part}/{parts}"), &folder);
                found["users"].as_u64().expect("a number")
            })
            .sum();
        assert_eq!(users, 250, "each user is in one of {parts}");
        let out = shop.path(&format!("out {parts}"));
        let point = shop.path(&format!("current {parts}"));
        let joined = ["--partials", &folder, "--out", &out, "--point", &point];
        assert_eq!(found(&shop.align(&joined)), expected, "{parts} parts");
        let both = [&alone, &out].map(|out| content(&Path::new(out).join(&name)));
        assert!(both[0] == both[1], "{parts} parts");
        assert!(names(&folder).is_empty(), "parts are files of persons");
        let text = error(&shop.align(&joined));
        assert!(text.contains("plan-align.json is not there"), "{text}");
    }
}

#[test]
fn pods_of_a_job_share_a_log_and_the_first_one_learns() {
    let shop = Shop::new();
    let expected = found(&shop.align(&["--out", &shop.path("alone")]));
    let (folder, out) = (shop.path("parts"), shop.path("out"));
    let pod = |index: &str| {
        let more = [
            "--part",
            "job/3",
            "--partials",
            &folder,
            "--run",
            "weekly-1",
            "--reduce",
            "--wait",
            "60s",
            "--out",
            &out,
        ];
        let mut command = shop.command(&more);
        command.env("JOB_COMPLETION_INDEX", index);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the binary starts")
    };
    // What an earlier run left is removed by the next.
    shop.part("1/2", &folder);
    let pods = ["0", "1", "2"].map(pod);
    let [first, second, third] = pods.map(|pod| found(&pod.wait_with_output().expect("it ends")));
    assert_eq!(first, expected);
    assert_eq!((&second["part"], &third["part"]), (&json!(2), &json!(3)));
    assert!(names(&folder).is_empty(), "{:?}", names(&folder));
    let outside = pod("3").wait_with_output().expect("it ends");
    let text = error(&outside);
    assert!(
        !outside.status.success() && text.contains("JOB_COMPLETION_INDEX is 3"),
        "{text}"
    );
}

#[test]
fn who_is_erased_after_the_parts_were_written_is_not_learned_from() {
    let shop = Shop::new();
    let expected = found(&shop.align(&["--out", &shop.path("alone")]));
    let folder = shop.path("parts");
    for part in ["1/2", "2/2"] {
        shop.part(part, &folder);
    }
    let first = std::fs::read_to_string(&shop.files[1]).expect("profiles");
    let first: Value = serde_json::from_str(first.lines().next().expect("one")).expect("JSON");
    let erased = shop.path("erased.jsonl");
    let line = json!({"user": first["key"], "at": 4_000_000_000_000i64});
    std::fs::write(&erased, format!("{line}\n")).expect("written");
    let without = ["--erased", &erased, "--out"];
    let [two, three] = ["two", "three"].map(|name| shop.path(name));
    let alone = found(&shop.align(&[&without[..], &[&two]].concat()));
    assert_ne!(alone, expected);
    let joined = ["--partials", &folder, "--keep-partials"];
    let again = [&joined[..], &without[..], &[&three]].concat();
    assert_eq!(found(&shop.align(&again)), alone);
    assert_eq!(names(&folder).len(), 3, "two parts and their plan are kept");
}

#[test]
fn what_does_not_belong_together_is_refused_by_name() {
    let shop = Shop::new();
    let folder = shop.path("parts");
    let out = shop.path("out");
    shop.part("1/2", &folder);
    let join = ["--partials", &folder, "--out", &out];
    let refused = |more: &[&str], says: &[&str]| {
        let output = shop.align(more);
        let text = error(&output);
        assert!(
            !output.status.success() && !text.contains("panicked"),
            "{text}"
        );
        for says in says {
            assert!(text.contains(says), "{says} is not in {text}");
        }
    };
    refused(
        &join,
        &[
            "1 of 2 parts are missing",
            "part-align-00002-of-00002",
            "--part I/2",
        ],
    );
    let of_three = ["--part", "2/3", "--partials", &folder];
    refused(&of_three, &["plan-align.json", "number of parts is 2"]);
    refused(&["--part", "3/2", "--partials", &folder], &["is not I/N"]);
    refused(&["--part", "1/2"], &["--partials"]);
    shop.part("2/2", &folder);
    let second = format!("{folder}/part-align-00002-of-00002.users");
    let whole = std::fs::read(&second).expect("a part");
    std::fs::write(&second, &whole[..whole.len() / 2]).expect("written");
    refused(
        &join,
        &[
            "part-align-00002-of-00002",
            "not whole",
            "run the part again",
        ],
    );
    // Half of a part is no part: it is read again.
    assert_eq!(
        shop.part("2/2", &folder)["kept"],
        false,
        "its hash is looked at"
    );
    assert_eq!(shop.part("2/2", &folder)["kept"], true);
    let mut events = std::fs::read_to_string(&shop.files[0]).expect("events");
    let last = events.lines().last().expect("one").to_owned();
    events += &format!("{last}\n");
    std::fs::write(&shop.files[0], events).expect("written");
    refused(&join, &["--events file 1 has another content"]);
    refused(
        &["--part", "2/2", "--partials", &folder],
        &["--events file 1 has another content"],
    );
    assert!(names(&out).is_empty());
}

/// Starts a command, and kills it after a time; whether it had ended before.
fn killed_after(mut command: Command, time: Duration) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("the binary starts");
    let start = Instant::now();
    loop {
        if child.try_wait().expect("a child").is_some() {
            return true;
        }
        if start.elapsed() >= time {
            // SIGKILL: nothing is tidied up.
            child.kill().expect("killed");
            child.wait().expect("it ended");
            return false;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_part_or_a_join_that_is_killed_leaves_nothing_half_and_goes_on() {
    let shop = Shop::new();
    let alone = shop.path("alone");
    let start = Instant::now();
    let expected = found(&shop.align(&["--out", &alone]));
    let took = start.elapsed();
    let name = artefact(&expected);
    let whole = content(&Path::new(&alone).join(&name));
    let (folder, out, current) = (shop.path("parts"), shop.path("out"), shop.path("current"));
    let start = Instant::now();
    shop.part("1/2", &shop.path("other parts"));
    let part_took = start.elapsed();
    // Killed later and later, until it is done.
    let mut kills = 0;
    for nth in 0.. {
        let command = shop.command(&["--part", "1/2", "--partials", &folder]);
        let done = killed_after(command, part_took * nth / 12);
        let part = "part-align-00001-of-00002.users";
        if done {
            assert!(names(&folder).contains(part));
            break;
        }
        kills += 1;
        if names(&folder).contains(part) {
            let found = shop.part("1/2", &folder);
            assert_eq!(
                found["kept"], true,
                "a part that is there is whole: {found}"
            );
            break;
        }
    }
    // At once, and once later at least: the time that was measured may be that of a busier machine.
    assert!(kills > 1, "it was killed {kills} times");
    shop.part("2/2", &folder);
    let join = ["--partials", &folder, "--out", &out, "--point", &current];
    kills = 0;
    let mut has_ended = false;
    for nth in 0.. {
        let done = killed_after(shop.command(&join), took * nth / 12);
        for folder in names(&out).iter().filter(|it| it.starts_with("artefact-")) {
            assert!(
                content(&Path::new(&out).join(folder)) == whole,
                "an artefact is whole"
            );
        }
        let points = Path::new(&current).exists();
        assert!(
            !points || names(&out).contains(&name),
            "nothing points to what is not there"
        );
        if done || points {
            has_ended = done;
            break;
        }
        kills += 1;
    }
    assert!(kills > 1, "it was killed {kills} times");
    // The plan is removed first: what a kill after that leaves is of no run, and the next run removes it.
    if names(&folder).contains("plan-align.json") {
        found(&shop.align(&join));
        has_ended = true;
    }
    assert!(content(&Path::new(&out).join(&name)) == whole);
    let left = names(&out);
    assert_eq!(
        left.len(),
        1,
        "nothing of the killed ones is left: {left:?}"
    );
    let left = names(&folder);
    assert!(left.is_empty() || !has_ended, "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_topics_end_where_the_first_one_began() {
    let slice = Slice::read();
    let keep: &[(&str, &str)] = &[("retention.ms", "-1")];
    let topics = ["user_events", "profile_changes"];
    let site = Site::open(&topics.map(|topic| (topic, 3, keep))).await;
    write_to_topics(&slice, &site).await;
    let path = |name: &str| {
        let path = site.folder().join(name);
        path.to_str().expect("a path").to_owned()
    };
    let (parts, alone, out) = (path("parts"), path("alone"), path("out"));
    let align = async |words: &[&str]| -> Value {
        let order = ["align", "--json", "--samples", "300"];
        let text = site.output(&[&order[..], words].concat()).await;
        serde_json::from_str(&text).expect("JSON")
    };
    let expected = align(&["--out", &alone]).await;
    align(&["--part", "1/2", "--partials", &parts]).await;
    // What comes after the first part has begun is in no part, nor in the catalogue.
    let file = std::fs::read_to_string(&slice.json_lines(site.folder())[0]).expect("events");
    let events = file.lines().take(200).map(|line| {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let user = row["key"].as_str().expect("a user");
        record(&site.topics.user_events, user, &row["value"])
    });
    let sku = record(
        &site.topics.catalog,
        "later",
        &json!({"pu": "LATER", "category": "C", "stock": 5}),
    );
    site.send(events.chain([sku]).collect()).await;
    align(&["--part", "2/2", "--partials", &parts]).await;
    let joined = align(&["--partials", &parts, "--out", &out]).await;
    assert_eq!(joined, expected);
    let name = artefact(&expected);
    let both = [&alone, &out].map(|out| content(&Path::new(out).join(&name)));
    assert!(both[0] == both[1]);
    assert_ne!(
        align(&["--out", &out]).await,
        expected,
        "there is more by now"
    );
}
