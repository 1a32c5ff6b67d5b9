//! A TCP proxy with faults: it forwards, delays, holds or resets, and may rewrite what a client sends. That is how the
//! product's Lua scripts are broken on a real Redis without code for it in the product.
//!
//! Invariant: a rewritten text has the length of the original, so the protocol around it stays valid. What a black hole
//! held arrives when it ends, as from a network that delivers late.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::plan::Net;

/// Share of answers that are lost under [`Net::LoseAnswers`].
const LOST: f64 = 0.12;

/// A text and its replacement.
pub type Text = (Vec<u8>, Vec<u8>);

/// The texts of clients that are replaced; all proxies of a run share them.
#[derive(Default)]
pub struct Rewrites {
    known: Vec<Text>,
    /// Hashes of scripts that begin with a lineage, which is known only when they are loaded.
    learnt: Mutex<Vec<Text>>,
}

/// First line of a script for a lineage, without its value; the script follows the line.
const LINEAGE: &[u8] = b"-- lineage ";
/// Bytes that are kept of what was forwarded last: more than that line has.
const TAIL: usize = 1_024;

impl Rewrites {
    pub fn of(known: Vec<Text>) -> Arc<Self> {
        Arc::new(Self {
            known,
            learnt: Mutex::default(),
        })
    }

    fn learnt(&self) -> MutexGuard<'_, Vec<Text>> {
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Text> {
        if self.known.is_empty() {
            return Vec::new();
        }
        self.known.iter().chain(&*self.learnt()).cloned().collect()
    }

    /// See [`rewrite`]; `tail` is what was forwarded last.
    fn apply(&self, held: &mut Vec<u8>, tail: &mut Vec<u8>) -> (Vec<u8>, u64) {
        if self.known.is_empty() {
            return (std::mem::take(held), 0);
        }
        self.learn(&[&tail[..], &held[..]].concat());
        let (ready, changed) = rewrite(held, &self.all());
        tail.extend_from_slice(&ready);
        tail.drain(..tail.len().saturating_sub(TAIL));
        (ready, changed)
    }

    /// Adds the hashes of scripts that are loaded for a lineage.
    fn learn(&self, said: &[u8]) {
        for (old, new) in &self.known {
            let places = (0..said.len()).filter(|at| said[*at..].starts_with(old));
            for at in places {
                let line = said[..at].strip_suffix(b"\n").unwrap_or_default();
                let start = line.windows(LINEAGE.len()).rposition(|it| it == LINEAGE);
                let Some(line) = start.map(|start| &line[start..]) else {
                    continue;
                };
                let hash = |script: &[u8]| {
                    let whole = [line, b"\n", script].concat();
                    let whole = redis::Script::new(&String::from_utf8_lossy(&whole));
                    whole.get_hash().as_bytes().to_vec()
                };
                let text = (hash(old), hash(new));
                let mut learnt = self.learnt();
                if !line.contains(&b'\n') && !learnt.contains(&text) {
                    learnt.push(text);
                }
            }
        }
    }
}

/// One listening port.
pub struct Proxy {
    pub port: u16,
    net: watch::Sender<Net>,
    pub rewritten: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens on `port` (0: a free one) and connects each client to what `target` is at that time.
    pub async fn start(
        port: u16,
        target: watch::Receiver<SocketAddr>,
        rewrites: Arc<Rewrites>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let port = listener.local_addr()?.port();
        let (net, state) = watch::channel(Net::Pass);
        let rewritten = Arc::new(AtomicU64::new(0));
        let count = rewritten.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let route = Route {
                    net: state.clone(),
                    answers: false,
                    rewrites: rewrites.clone(),
                    rewritten: count.clone(),
                };
                let to = *target.borrow();
                tokio::spawn(async move { route.join(client, to).await });
            }
        });
        Ok(Self {
            port,
            net,
            rewritten,
        })
    }

    /// Sets what the network does from now on.
    pub fn set(&self, net: Net) {
        self.net.send_replace(net);
    }
}

#[derive(Clone)]
struct Route {
    net: watch::Receiver<Net>,
    answers: bool,
    rewrites: Arc<Rewrites>,
    rewritten: Arc<AtomicU64>,
}

impl Route {
    async fn join(mut self, client: TcpStream, to: SocketAddr) {
        let now = *self.net.borrow();
        if now == Net::Reset {
            return reset(client);
        }
        // A black hole admits no connection; requests wait here until it ends.
        self.open().await;
        let Ok(server) = TcpStream::connect(to).await else {
            return reset(client);
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let mut net = self.net.clone();
        let rewrites = self.rewrites.clone();
        let there = pump(self.clone(), (from_client, to_server), rewrites);
        let answers = Self {
            answers: true,
            ..self.clone()
        };
        let back = pump(answers, (from_server, to_client), Arc::default());
        tokio::pin!(there, back);
        tokio::select! {
            // A client that has sent everything still gets its answers; one whose answer is lost gets no more.
            () = &mut there => back.await,
            () = &mut back => {}
            // Dropping the halves closes both ends and loses what was in flight.
            _ = async { net.wait_for(|net| *net == Net::Reset).await.map(drop) } => {}
        }
    }

    /// Waits until the black hole ends.
    async fn open(&mut self) {
        let _ = self.net.wait_for(|net| *net != Net::BlackHole).await;
    }
}

fn reset(stream: TcpStream) {
    // With a zero linger the close sends RST.
    let _ = stream.set_zero_linger();
}

async fn pump(
    mut route: Route,
    (mut from, mut to): (OwnedReadHalf, OwnedWriteHalf),
    texts: Arc<Rewrites>,
) {
    let mut buffer = vec![0; 64 * 1024];
    let (mut held, mut tail) = (Vec::new(), Vec::new());
    loop {
        route.open().await;
        let Ok(read) = from.read(&mut buffer).await else {
            return;
        };
        if read == 0 {
            let _ = to.write_all(&held).await;
            let _ = to.shutdown().await;
            return;
        }
        route.open().await;
        let now = *route.net.borrow();
        if route.answers && now == Net::LoseAnswers && rand::random_bool(LOST) {
            return;
        }
        if let Net::Delay(late) = now {
            tokio::time::sleep(Duration::from_millis(late)).await;
        }
        held.extend_from_slice(&buffer[..read]);
        let (ready, changed) = texts.apply(&mut held, &mut tail);
        route.rewritten.fetch_add(changed, Ordering::Relaxed);
        if to.write_all(&ready).await.is_err() {
            return;
        }
    }
}

/// Takes from `held` what may be forwarded, with the texts replaced. An end that may be the beginning of a text stays
/// in `held`; not for ever, because a request ends with a line break, which begins no text.
fn rewrite(held: &mut Vec<u8>, texts: &[(Vec<u8>, Vec<u8>)]) -> (Vec<u8>, u64) {
    let mut changed = 0;
    for (old, new) in texts {
        let mut from = 0;
        while let Some(at) = find(&held[from..], old) {
            held[from + at..from + at + old.len()].copy_from_slice(new);
            from += at + old.len();
            changed += 1;
        }
    }
    let begun = |old: &Vec<u8>| {
        let longest = old.len().saturating_sub(1).min(held.len());
        (1..=longest)
            .rev()
            .find(|n| held[held.len() - n..] == old[..*n])
    };
    let keep = texts.iter().filter_map(|(old, _)| begun(old)).max();
    let rest = held.split_off(held.len() - keep.unwrap_or(0));
    (std::mem::replace(held, rest), changed)
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|it| it == text)
}

/// Checks that texts are replaced when they come byte by byte: with a proxy that rewrites nothing no break would be
/// made.
pub fn self_test() -> Result<(), String> {
    let sha = |script: &str| redis::Script::new(script).get_hash().to_owned();
    let call = |script: &str| sha(&format!("-- lineage abc\n{script}"));
    let texts = Rewrites::of(vec![(b"fence".to_vec(), b"FENCE".to_vec())]);
    let said = |fence: &str| {
        let hash = call(fence);
        format!("*1\r\n a fen {fence} fen{fence}\r\n$9\r\n-- lineage abc\n{fence}\r\n{hash}\r\n")
    };
    let (mut held, mut tail) = (Vec::new(), Vec::new());
    let (mut out, mut changed) = (Vec::new(), 0);
    for byte in said("fence").into_bytes() {
        held.push(byte);
        let (ready, n) = texts.apply(&mut held, &mut tail);
        out.extend(ready);
        changed += n;
    }
    if out == said("FENCE").into_bytes() && changed == 4 && held.is_empty() {
        return Ok(());
    }
    Err(format!("rewrote {:?}", String::from_utf8_lossy(&out)))
}
