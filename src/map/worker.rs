//! The process that runs one program: [`serve`], behind the hidden command `nearshore run-program`.
//!
//! Reads the program, then batches of questions, and writes an answer to each. Invariant: an answer is written for each
//! question, in order, or the process dies. Everything that bounds it is outside (`child.rs`), but for its memory: the
//! process limits its own address space before it reads anything.

use std::io::{self, BufReader, BufWriter, Read, Write};

use super::jq::Program;

/// Bytes of address space that a program may use beyond what the process has at its start.
const MEMORY: u64 = 256 << 20;

/// Longest frame that is read; longer ones mean that the stream is damaged.
const FRAME_MAX: usize = 64 << 20;

/// Stack of the thread that runs the program: deep recursion overflows it, and the process dies.
const STACK: usize = 32 << 20;

/// What an answer begins with: records, or a failure in words.
pub(super) const MADE: u8 = 0;
pub(super) const FAILED: u8 = 1;

/// Serves one program until the other side closes its end.
pub(crate) fn serve() -> io::Result<()> {
    limit_memory();
    let runner = std::thread::Builder::new().stack_size(STACK);
    let served = runner.spawn(|| answer(io::stdin().lock(), io::stdout().lock()))?;
    served
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the program panicked")))
}

/// Best effort: without it the deadline is what ends a program that allocates without end.
fn limit_memory() {
    let pages = std::fs::read_to_string("/proc/self/statm");
    let used = pages
        .ok()
        .and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let limit = used.map_or(2 << 30, |pages| pages * 4_096 + STACK as u64 + MEMORY);
    let limit = libc::rlimit {
        rlim_cur: limit,
        rlim_max: limit,
    };
    let no_core = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls read one plain struct that lives until they return.
    unsafe {
        libc::setrlimit(libc::RLIMIT_AS, &limit);
        libc::setrlimit(libc::RLIMIT_CORE, &no_core);
    }
}

fn answer(input: impl Read, output: impl Write) -> io::Result<()> {
    let (mut input, mut output) = (BufReader::new(input), BufWriter::new(output));
    let Some(text) = read_frame(&mut input)? else {
        return Ok(());
    };
    let program = match Program::compile(&String::from_utf8_lossy(&text)) {
        Ok(program) => {
            write_frame(&mut output, MADE, b"")?;
            program
        }
        Err(why) => {
            write_frame(&mut output, FAILED, why.as_bytes())?;
            return output.flush();
        }
    };
    output.flush()?;
    while let Some(batch) = read_frame(&mut input)? {
        let &[one_by_one, a, b, c, d] = &batch[..] else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        for _ in 0..u32::from_le_bytes([a, b, c, d]) {
            let Some(question) = read_frame(&mut input)? else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            match program.run(&String::from_utf8_lossy(&question)) {
                Ok(made) => write_frame(&mut output, MADE, made.as_bytes())?,
                Err(why) => write_frame(&mut output, FAILED, why.as_bytes())?,
            }
            if one_by_one != 0 {
                output.flush()?;
            }
        }
        output.flush()?;
    }
    Ok(())
}

/// Reads a frame: four bytes of length, then the bytes. `None` at the end of the stream.
fn read_frame(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

/// Writes a frame that begins with a tag.
fn write_frame(output: &mut impl Write, tag: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len() + 1).map_err(|_| io::ErrorKind::InvalidData)?;
    output.write_all(&length.to_le_bytes())?;
    output.write_all(&[tag])?;
    output.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::child::{frame, header};

    #[test]
    fn each_question_has_an_answer_in_order() {
        let mut input = frame(b".value | if . > 1 then {key: \"k\", value: .} elif . < 0 then error(\"low\") else empty end");
        input.extend(header(4, true));
        for value in [2, 0, -1, 3] {
            input.extend(frame(format!("{{\"value\":{value}}}").as_bytes()));
        }
        let mut output = Vec::new();
        answer(&input[..], &mut output).expect("served");
        let mut output = &output[..];
        let mut answers = Vec::new();
        while let Some(bytes) = read_frame(&mut output).expect("whole frames") {
            answers.push((bytes[0], String::from_utf8_lossy(&bytes[1..]).into_owned()));
        }
        let expected = [
            (MADE, ""),
            (MADE, r#"[{"key":"k","value":2}]"#),
            (MADE, "[]"),
            (FAILED, "low"),
            (MADE, r#"[{"key":"k","value":3}]"#),
        ];
        let answers: Vec<(u8, &str)> = answers.iter().map(|(tag, text)| (*tag, &**text)).collect();
        assert_eq!(answers, expected);
    }
}
