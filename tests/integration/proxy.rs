//! A TCP proxy inside the test: it can drop, delay or reset traffic, and connect to another server.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// It forwards them.
    Pass,
    /// It drops them, and their connection forwards nothing from then on and stays open: as when a firewall forgets it.
    Drop,
    /// It forwards them after this long.
    Late(Duration),
    /// It forwards them; names of fields in answers to INFO are changed, as if the service left these fields out.
    HideFields(&'static [&'static str]),
    /// It resets the connection and every new one.
    Reset,
}

#[derive(Clone, Copy, Debug)]
struct Route {
    to: u16,
    fate: Fate,
}

/// A listening port; it closes when dropped.
pub struct Proxy {
    pub port: u16,
    route: Arc<watch::Sender<Route>>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts a proxy to a port on this machine.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let listening = listener.local_addr().expect("bound").port();
        let route = Route {
            to: port,
            fate: Fate::Pass,
        };
        let route = Arc::new(watch::Sender::new(route));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, route.clone()));
        Self {
            port: listening,
            route,
            _tasks: tasks,
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What happens to bytes from now on.
    pub fn set(&self, fate: Fate) {
        self.route.send_modify(|route| route.fate = fate);
    }

    /// Connects new clients to this port; open connections stay, as when a DNS name changes.
    pub fn redirect(&self, port: u16) {
        self.route.send_modify(|route| route.to = port);
    }
}

async fn accept(listener: TcpListener, route: Arc<watch::Sender<Route>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(carry(client, route.subscribe()));
    }
}

async fn carry(client: TcpStream, mut route: watch::Receiver<Route>) {
    let start = *route.borrow_and_update();
    match start.fate {
        Fate::Reset => return reset(&client),
        // Accepted and never answered.
        Fate::Drop => return std::future::pending().await,
        Fate::Pass | Fate::Late(_) | Fate::HideFields(_) => {}
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", start.to)).await else {
        return reset(&client);
    };
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = pump(&mut from_client, &mut to_server, route.clone());
    let back = pump(&mut from_server, &mut to_client, route.clone());
    let ended = tokio::select! {
        ended = there => ended,
        ended = back => ended,
        () = resets(&mut route) => End::Reset,
    };
    match ended {
        End::Closed => {}
        End::Reset => {
            if let Ok(client) = from_client.reunite(to_client) {
                reset(&client);
            }
        }
        End::Dropped => std::future::pending().await,
    }
}

async fn resets(route: &mut watch::Receiver<Route>) {
    if route
        .wait_for(|route| route.fate == Fate::Reset)
        .await
        .is_err()
    {
        std::future::pending().await
    }
}

enum End {
    Closed,
    Reset,
    Dropped,
}

async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut route: watch::Receiver<Route>,
) -> End {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = route.wait_for(|route| route.fate == Fate::Drop) => return End::Dropped,
        };
        let Ok(count @ 1..) = read else {
            return End::Closed;
        };
        let fate = route.borrow().fate;
        match fate {
            Fate::Pass => {}
            Fate::Drop => return End::Dropped,
            Fate::Late(by) => tokio::time::sleep(by).await,
            Fate::HideFields(names) => hide(&mut buffer[..count], names),
            Fate::Reset => return End::Reset,
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return End::Reset;
        }
    }
}

/// Changes the first letter of each line that is a field with such a name; lengths stay.
fn hide(bytes: &mut [u8], names: &[&str]) {
    for name in names {
        let line = format!("\n{name}:");
        let places: Vec<usize> = bytes
            .windows(line.len())
            .enumerate()
            .filter_map(|(at, found)| (found == line.as_bytes()).then_some(at + 1))
            .collect();
        for at in places {
            bytes[at] = b'_';
        }
    }
}

/// Closes the connection with RST.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}
