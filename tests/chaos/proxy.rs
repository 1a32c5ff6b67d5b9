//! A TCP proxy that misbehaves when told to: it passes, delays, swallows or resets, and may rewrite what a client
//! sends, which is how a script of ours is broken on a real Redis without a word of it in the product.
//!
//! Invariant: a rewritten text has the length of the original, so the protocol around it stays right. What a black
//! hole swallowed arrives when it ends, as from a network that delivers late.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::plan::Net;

/// Texts of a client that are replaced on their way.
pub type Rewrites = Arc<Vec<(Vec<u8>, Vec<u8>)>>;

/// One listening port.
pub struct Proxy {
    pub port: u16,
    net: watch::Sender<Net>,
    pub rewritten: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens on `port` (0: a free one) and leads to whoever `target` says at the time of a connection.
    pub async fn start(
        port: u16,
        target: watch::Receiver<SocketAddr>,
        rewrites: Rewrites,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let port = listener.local_addr()?.port();
        let (net, told) = watch::channel(Net::Pass);
        let rewritten = Arc::new(AtomicU64::new(0));
        let count = rewritten.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let way = Way {
                    net: told.clone(),
                    rewrites: rewrites.clone(),
                    rewritten: count.clone(),
                };
                let to = *target.borrow();
                tokio::spawn(async move { way.join(client, to).await });
            }
        });
        Ok(Self {
            port,
            net,
            rewritten,
        })
    }

    /// How the network is from now on.
    pub fn set(&self, net: Net) {
        self.net.send_replace(net);
    }
}

#[derive(Clone)]
struct Way {
    net: watch::Receiver<Net>,
    rewrites: Rewrites,
    rewritten: Arc<AtomicU64>,
}

impl Way {
    async fn join(mut self, client: TcpStream, to: SocketAddr) {
        if *self.net.borrow() == Net::Reset {
            return reset(client);
        }
        // A network that swallows packets lets nobody connect; what is asked meanwhile waits here.
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
        let back = pump(self, (from_server, to_client), Arc::default());
        tokio::select! {
            () = async { tokio::join!(there, back); } => {}
            // Dropping the halves closes both ends; what was under way is gone.
            _ = net.wait_for(|net| *net == Net::Reset) => {}
        }
    }

    /// Waits while nothing gets through.
    async fn open(&mut self) {
        let _ = self.net.wait_for(|net| *net != Net::BlackHole).await;
    }
}

fn reset(stream: TcpStream) {
    // A close with nothing lingering is an RST.
    let _ = stream.set_zero_linger();
}

async fn pump(mut way: Way, (mut from, mut to): (OwnedReadHalf, OwnedWriteHalf), texts: Rewrites) {
    let mut buffer = vec![0; 64 * 1024];
    let mut held: Vec<u8> = Vec::new();
    loop {
        way.open().await;
        let Ok(read) = from.read(&mut buffer).await else {
            return;
        };
        if read == 0 {
            let _ = to.write_all(&held).await;
            let _ = to.shutdown().await;
            return;
        }
        way.open().await;
        let late = match *way.net.borrow() {
            Net::Delay(late) => Some(late),
            Net::Pass | Net::BlackHole | Net::Reset => None,
        };
        if let Some(late) = late {
            tokio::time::sleep(Duration::from_millis(late)).await;
        }
        held.extend_from_slice(&buffer[..read]);
        let (ready, changed) = rewrite(&mut held, &texts);
        way.rewritten.fetch_add(changed, Ordering::Relaxed);
        if to.write_all(&ready).await.is_err() {
            return;
        }
    }
}

/// What may go on, with the texts replaced; an end that may be the beginning of a text is held back. A request
/// ends with a line break, which begins none, so nothing is held back for ever.
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

/// See [`rewrite`] work, a byte at a time: a proxy that rewrote nothing would make every break pass for a find.
pub fn proven() -> Result<(), String> {
    let texts = [(b"fence".to_vec(), b"FENCE".to_vec())];
    let said = b"*1\r\n a fen fence fenfence\r\n";
    let (mut held, mut out, mut changed) = (Vec::new(), Vec::new(), 0);
    for byte in said {
        held.push(*byte);
        let (ready, n) = rewrite(&mut held, &texts);
        out.extend(ready);
        changed += n;
    }
    if out == b"*1\r\n a fen FENCE fenFENCE\r\n" && changed == 2 && held.is_empty() {
        return Ok(());
    }
    Err(format!("rewrote {:?}", String::from_utf8_lossy(&out)))
}
