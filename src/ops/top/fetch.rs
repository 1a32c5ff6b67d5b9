//! Fetches `/metrics` of processes: which addresses a name stands for, and one GET each.
//!
//! Invariant: nothing waits longer than its limit, and an answer is at most [`PAGE_MAX`] long.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// Longest page of metrics.
const PAGE_MAX: usize = 16 << 20;

/// One process.
pub(super) struct Target {
    /// The name that was given.
    host: String,
    /// What it stands for, or why that is not known.
    found: Result<SocketAddr, String>,
    /// Whether the name stands for several.
    is_one_of: bool,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.found {
            Ok(address) if self.is_one_of => write!(f, "{address}"),
            _ => f.write_str(&self.host),
        }
    }
}

/// The addresses of the names, looked up anew: a name of a service without its own address stands for all its pods.
pub(super) async fn addresses(targets: &[String], limit: Duration) -> Vec<Target> {
    let mut all = Vec::new();
    for target in targets {
        let host = target.trim_start_matches("http://");
        let host = host.split('/').next().unwrap_or_default().to_owned();
        let found = match timeout(limit, lookup_host(host.clone())).await {
            Err(_) => Err(format!("its name was not found within {limit:?}")),
            Ok(Err(error)) => Err(format!("its name was not found: {error}")),
            Ok(Ok(found)) => Ok(found.collect::<Vec<_>>()),
        };
        match found {
            Err(why) => all.push(Target {
                host,
                found: Err(why),
                is_one_of: false,
            }),
            Ok(mut found) => {
                found.sort();
                found.dedup();
                // localhost is one process under two addresses.
                if found.iter().all(|address| address.ip().is_loopback()) {
                    found.truncate(1);
                }
                let is_one_of = found.len() > 1;
                all.extend(found.into_iter().map(|address| Target {
                    host: host.clone(),
                    found: Ok(address),
                    is_one_of,
                }));
            }
        }
    }
    all
}

/// The page of metrics of a process, or why there is none.
pub(super) async fn metrics(target: &Target, limit: Duration) -> Result<String, String> {
    let address = target.found.clone()?;
    match timeout(limit, get(address, &target.host)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

async fn get(address: SocketAddr, host: &str) -> Result<String, String> {
    let stream = TcpStream::connect(address).await;
    let stream = TokioIo::new(stream.map_err(|error| error.to_string())?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(|error| error.to_string())?;
    let request = Request::get("/metrics")
        .header("host", host)
        .body(String::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("it answers {}", answer.status()));
        }
        let body = axum::body::Body::new(answer.into_body());
        let bytes = axum::body::to_bytes(body, PAGE_MAX).await;
        let bytes = bytes.map_err(|error| error.to_string())?;
        String::from_utf8(bytes.into()).map_err(|_| "its metrics are not UTF-8".to_owned())
    };
    // The connection only moves bytes; what fails there fails in the answer, too.
    let moving = async {
        let _ended = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = answer => answer,
        () = moving => Err("the connection ended".into()),
    }
}
