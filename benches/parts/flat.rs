//! Memory of ingest with ten times as many users as its state cache holds.

use std::time::Duration;

use crate::fold::{fill, site};
use crate::load::Load;
use crate::process::Process;
use crate::{Options, machine};

/// Prints resident memory after each tenth of the events.
pub async fn run(options: &Options) {
    let load = Load {
        events: options.number("events", 2_000_000),
        users: options.number("users", 1_000_000),
        visit: 1,
    };
    let site = site(4).await;
    fill(&site.producer, load.records(&site.topics.user_events)).await;
    println!("memory: {load:?}, 100,000 states cached; {}", machine());
    let process = Process::ready(&site, "ingest").await;
    let topic = format!("topic=\"{}\"", site.topics.user_events);
    let (mut step, mut most) = (0, 0.0_f64);
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let done = process.metric("nearshore_records_total", &topic).await as usize;
        most = most.max(resident(process.pid()));
        while done * 10 >= (step + 1) * load.events {
            step += 1;
            let cached = process.metric("nearshore_state_cached_users", "").await;
            println!("  {done:>8} events: at most {most:.0} MiB, {cached:.0} states cached");
            most = 0.0;
        }
        if done >= load.events {
            break;
        }
    }
    println!("  {}", machine());
}

/// Resident memory, in MiB.
fn resident(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kilobytes.expect("VmRSS is a number") / 1024.0
}
