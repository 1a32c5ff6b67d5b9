//! A wire to Redis that writes down what goes over it, so that a client without a fold can say the same again.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// What was asked in one go, before the next answer was read.
pub struct Burst {
    /// Commands as they went over the wire.
    pub bytes: Vec<u8>,
    /// How many.
    pub commands: usize,
}

#[derive(Default)]
struct Tape {
    bytes: Vec<u8>,
    /// Where an answer came.
    cuts: Vec<usize>,
}

/// See the module.
pub struct Recorder {
    pub port: u16,
    tapes: Arc<Mutex<Vec<Arc<Mutex<Tape>>>>>,
}

impl Recorder {
    /// A wire to the Redis at this port.
    pub fn start(redis: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let tapes: Arc<Mutex<Vec<Arc<Mutex<Tape>>>>> = Arc::default();
        let all = tapes.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let tape = Arc::new(Mutex::new(Tape::default()));
                all.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(tape.clone());
                let server = TcpStream::connect(("127.0.0.1", redis)).expect("redis listens");
                wire(client, server, tape);
            }
        });
        Self { port, tapes }
    }

    /// The bursts of the connection that said most.
    pub fn bursts(&self) -> Vec<Burst> {
        let tapes = self.tapes.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = tapes
            .iter()
            .max_by_key(|tape| tape.lock().map_or(0, |tape| tape.bytes.len()));
        let longest = longest.expect("somebody connected");
        let tape = longest.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut bursts, mut from) = (Vec::new(), 0);
        for cut in tape.cuts.iter().copied().chain([tape.bytes.len()]) {
            let bytes = &tape.bytes[from..cut];
            // An answer may have begun before the question was read to its end.
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

fn wire(client: TcpStream, server: TcpStream, tape: Arc<Mutex<Tape>>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from, mut to) = (
        client.try_clone().expect("cloned"),
        server.try_clone().expect("cloned"),
    );
    let asked = tape.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(many @ 1..) = from.read(&mut buffer) {
            let mut tape = asked.lock().unwrap_or_else(PoisonError::into_inner);
            tape.bytes.extend_from_slice(&buffer[..many]);
            drop(tape);
            if to.write_all(&buffer[..many]).is_err() {
                return;
            }
        }
    });
    let (mut from, mut to) = (server, client);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(many @ 1..) = from.read(&mut buffer) {
            let mut tape = tape.lock().unwrap_or_else(PoisonError::into_inner);
            let here = tape.bytes.len();
            if tape.cuts.last() != Some(&here) {
                tape.cuts.push(here);
            }
            drop(tape);
            if to.write_all(&buffer[..many]).is_err() {
                return;
            }
        }
    });
}

/// How many whole commands these bytes are; none if they end within one.
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

/// The words of each command of a burst.
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
