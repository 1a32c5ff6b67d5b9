//! A TCP proxy to Redis that records the commands, so that a client without a fold can send the same.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// Commands that were sent together, before the next answer was read.
pub struct Burst {
    /// The commands as they were sent.
    pub bytes: Vec<u8>,
    /// Number of commands.
    pub commands: usize,
}

#[derive(Default)]
struct Recording {
    bytes: Vec<u8>,
    /// Places where an answer came.
    cuts: Vec<usize>,
}

/// A proxy that records.
pub struct Recorder {
    pub port: u16,
    recordings: Arc<Mutex<Vec<Arc<Mutex<Recording>>>>>,
}

impl Recorder {
    /// Starts a proxy to the Redis at this port.
    pub fn start(redis: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let recordings: Arc<Mutex<Vec<Arc<Mutex<Recording>>>>> = Arc::default();
        let all = recordings.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let recording = Arc::new(Mutex::new(Recording::default()));
                all.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(recording.clone());
                let server = TcpStream::connect(("127.0.0.1", redis)).expect("Redis listens");
                forward(client, server, recording);
            }
        });
        Self { port, recordings }
    }

    /// Bursts of the connection that sent most.
    pub fn bursts(&self) -> Vec<Burst> {
        let recordings = self
            .recordings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let longest = recordings.iter().max_by_key(|recording| {
            recording
                .lock()
                .map_or(0, |recording| recording.bytes.len())
        });
        let longest = longest.expect("a client connected");
        let recording = longest.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut bursts, mut from) = (Vec::new(), 0);
        for cut in recording
            .cuts
            .iter()
            .copied()
            .chain([recording.bytes.len()])
        {
            let bytes = &recording.bytes[from..cut];
            // An answer may have begun before the commands were read to their end.
            if let Some(commands) = commands(bytes).filter(|many| *many > 0) {
                bursts.push(Burst {
                    bytes: bytes.to_vec(),
                    commands,
                });
                from = cut;
            }
        }
        bursts
    }
}

/// Forwards both directions and records the first.
fn forward(client: TcpStream, server: TcpStream, recording: Arc<Mutex<Recording>>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from, mut to) = (
        client.try_clone().expect("cloned"),
        server.try_clone().expect("cloned"),
    );
    let commands = recording.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(many @ 1..) = from.read(&mut buffer) {
            let mut recording = commands.lock().unwrap_or_else(PoisonError::into_inner);
            recording.bytes.extend_from_slice(&buffer[..many]);
            drop(recording);
            if to.write_all(&buffer[..many]).is_err() {
                return;
            }
        }
    });
    let (mut from, mut to) = (server, client);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(many @ 1..) = from.read(&mut buffer) {
            let mut recording = recording.lock().unwrap_or_else(PoisonError::into_inner);
            let here = recording.bytes.len();
            if recording.cuts.last() != Some(&here) {
                recording.cuts.push(here);
            }
            drop(recording);
            if to.write_all(&buffer[..many]).is_err() {
                return;
            }
        }
    });
}

/// Number of commands in these bytes; `None` if they end within one.
fn commands(mut bytes: &[u8]) -> Option<usize> {
    let mut many = 0;
    while !bytes.is_empty() {
        let words = number(&mut bytes, b'*')?;
        for _ in 0..words {
            let length = number(&mut bytes, b'$')?;
            bytes = bytes.get(length + 2..)?;
        }
        many += 1;
    }
    Some(many)
}

fn number(bytes: &mut &[u8], sign: u8) -> Option<usize> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (first, text) = bytes.get(..end)?.split_first()?;
    *bytes = bytes.get(end + 1..)?;
    let text = std::str::from_utf8(text).ok()?.trim_end();
    text.parse().ok().filter(|_| *first == sign)
}

/// The words of each command.
pub fn words(mut bytes: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let Some(many) = number(&mut bytes, b'*') else {
            break;
        };
        let word = |_| {
            let length = number(&mut bytes, b'$').expect("whole commands");
            let (word, rest) = bytes.split_at(length);
            bytes = &rest[2..];
            word.to_vec()
        };
        all.push((0..many).map(word).collect());
    }
    all
}
