//! A TCP proxy in the test's own process: it can swallow, delay and reset what passes, and lead elsewhere.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// They pass.
    Pass,
    /// They vanish, and their connection is deaf from then on, without a word: as when a firewall forgets it.
    Swallow,
    /// They come late.
    Late(Duration),
    /// The connection is reset, and so is any new one.
    Reset,
}

#[derive(Clone, Copy, Debug)]
struct Way {
    to: u16,
    fate: Fate,
}

/// Ends with the test.
pub struct Proxy {
    pub port: u16,
    way: Arc<watch::Sender<Way>>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Leads to a port on this machine.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own = listener.local_addr().expect("bound").port();
        let way = Way {
            to: port,
            fate: Fate::Pass,
        };
        let way = Arc::new(watch::Sender::new(way));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, way.clone()));
        Self {
            port: own,
            way,
            _tasks: tasks,
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// From now on.
    pub fn set(&self, fate: Fate) {
        self.way.send_modify(|way| way.fate = fate);
    }

    /// New connections lead there; the old ones stay, as when a name moves.
    pub fn lead(&self, port: u16) {
        self.way.send_modify(|way| way.to = port);
    }
}

async fn accept(listener: TcpListener, way: Arc<watch::Sender<Way>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(carry(client, way.subscribe()));
    }
}

async fn carry(client: TcpStream, mut way: watch::Receiver<Way>) {
    let start = *way.borrow_and_update();
    match start.fate {
        Fate::Reset => return reset(&client),
        // Taken in, and never answered.
        Fate::Swallow => return std::future::pending().await,
        Fate::Pass | Fate::Late(_) => {}
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", start.to)).await else {
        return reset(&client);
    };
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = pump(&mut from_client, &mut to_server, way.clone());
    let back = pump(&mut from_server, &mut to_client, way.clone());
    let ended = tokio::select! {
        ended = there => ended,
        ended = back => ended,
        () = resets(&mut way) => End::Reset,
    };
    match ended {
        End::Closed => {}
        End::Reset => {
            if let Ok(client) = from_client.reunite(to_client) {
                reset(&client);
            }
        }
        End::Deaf => std::future::pending().await,
    }
}

async fn resets(way: &mut watch::Receiver<Way>) {
    if way.wait_for(|way| way.fate == Fate::Reset).await.is_err() {
        std::future::pending().await
    }
}

enum End {
    Closed,
    Reset,
    Deaf,
}

async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut way: watch::Receiver<Way>,
) -> End {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = way.wait_for(|way| way.fate == Fate::Swallow) => return End::Deaf,
        };
        let Ok(count @ 1..) = read else {
            return End::Closed;
        };
        let fate = way.borrow().fate;
        match fate {
            Fate::Pass => {}
            Fate::Swallow => return End::Deaf,
            Fate::Late(by) => tokio::time::sleep(by).await,
            Fate::Reset => return End::Reset,
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return End::Reset;
        }
    }
}

/// Closed with RST.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}
