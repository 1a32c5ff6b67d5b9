//! The other side of a program's process: [`Child`].
//!
//! Invariant: one question costs at most [`ANSWER_MAX`] twice, whatever the program does with it. A batch is first asked
//! as a whole. If it is not answered in time, or the process dies, a new process is asked the same questions and answers
//! one by one: the question after its last answer is the one to blame, and it goes on with those behind it in another new
//! process. A call that is dropped ends its process, so that no answer of it is taken for another's.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};

use super::worker::{FAILED, MADE};

/// The longest that a batch, or one question asked alone, may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The longest that a process may take until it has compiled its program.
const START_MAX: Duration = Duration::from_secs(20);

/// Most questions of a batch: a whole batch is asked again for one bad question.
const BATCH: usize = 256;

/// Longest answer that is read.
const ANSWER_BYTES: usize = 16 << 20;

/// Why a program has no answer to a question, in words.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failed(pub(super) String);

/// What a program made of a question.
pub(super) type Answer = Result<Vec<Value>, Failed>;

/// A program, and the process that runs it.
pub(super) struct Child {
    program: Arc<str>,
    running: Option<Running>,
}

/// A process that has compiled the program.
struct Running {
    process: tokio::process::Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// How a batch ended before its last answer.
enum Ended {
    /// It did not answer in time.
    Late,
    /// The process is gone.
    Died(String),
}

impl Child {
    /// A program that no process runs yet.
    pub(super) fn new(program: Arc<str>) -> Self {
        Self {
            program,
            running: None,
        }
    }

    /// Asks all questions; one answer each. An error only if no process can be started.
    pub(super) async fn ask(&mut self, questions: &[&str]) -> std::io::Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(questions.len());
        for batch in questions.chunks(BATCH) {
            let (mut found, ended) = self.batch(batch, false).await?;
            if ended.is_some() {
                found = self.one_by_one(batch).await?;
            }
            answers.append(&mut found);
        }
        Ok(answers)
    }

    /// Asks questions so that each answer is known at once, and blames the one that has none.
    async fn one_by_one(&mut self, questions: &[&str]) -> std::io::Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(questions.len());
        while answers.len() < questions.len() {
            let (mut found, ended) = self.batch(&questions[answers.len()..], true).await?;
            answers.append(&mut found);
            match ended {
                None => {}
                Some(Ended::Late) => {
                    let why = format!("it did not end within {ANSWER_MAX:?}");
                    answers.push(Err(Failed(why)));
                }
                Some(Ended::Died(how)) => {
                    let why = format!(
                        "its process ended ({how}): it recursed too deeply, or needed more memory than it may"
                    );
                    answers.push(Err(Failed(why)));
                }
            }
        }
        Ok(answers)
    }

    /// Asks a batch, and returns the answers up to where it ended. The process stays only if it answered them all.
    async fn batch(
        &mut self,
        questions: &[&str],
        one_by_one: bool,
    ) -> std::io::Result<(Vec<Answer>, Option<Ended>)> {
        // Taken out: if this call is dropped, or fails, the process ends with it.
        let mut running = match self.running.take() {
            Some(running) => running,
            None => Running::start(&self.program).await?,
        };
        let mut bytes = header(questions.len(), one_by_one);
        for question in questions {
            bytes.extend(frame(question.as_bytes()));
        }
        let mut answers = Vec::with_capacity(questions.len());
        let Running { input, output, .. } = &mut running;
        // Both at once: a program that answers much fills the pipe before it has read all questions.
        let write = async {
            // A process that died is noticed by the reader.
            let _ = input.write_all(&bytes).await;
            let _ = input.flush().await;
        };
        let read = async {
            let mut deadline = tokio::time::Instant::now() + ANSWER_MAX;
            while answers.len() < questions.len() {
                if one_by_one {
                    deadline = tokio::time::Instant::now() + ANSWER_MAX;
                }
                match tokio::time::timeout_at(deadline, read_answer(output)).await {
                    Err(_) => return Some(Ended::Late),
                    Ok(Err(_)) => return Some(Ended::Died(String::new())),
                    Ok(Ok(answer)) => answers.push(answer),
                }
            }
            None
        };
        let ended = {
            tokio::pin!(write);
            tokio::pin!(read);
            tokio::select! {
                ended = &mut read => ended,
                () = &mut write => read.await,
            }
        };
        match ended {
            None => {
                self.running = Some(running);
                Ok((answers, None))
            }
            Some(Ended::Late) => Ok((answers, Some(Ended::Late))),
            Some(Ended::Died(_)) => {
                let how = match tokio::time::timeout(ANSWER_MAX, running.process.wait()).await {
                    Ok(Ok(status)) => status.to_string(),
                    _ => "unknown".to_owned(),
                };
                Ok((answers, Some(Ended::Died(how))))
            }
        }
    }
}

impl Running {
    async fn start(program: &str) -> std::io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("run-program")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let missing = || std::io::Error::other("the process has no pipes");
        let input = process.stdin.take().ok_or_else(missing)?;
        let output = BufReader::new(process.stdout.take().ok_or_else(missing)?);
        let mut running = Self {
            process,
            input,
            output,
        };
        let hello = async {
            running.input.write_all(&frame(program.as_bytes())).await?;
            running.input.flush().await?;
            let (tag, bytes) = read_frame(&mut running.output).await?;
            match tag {
                MADE => Ok(()),
                _ => Err(std::io::Error::other(String::from_utf8_lossy(&bytes))),
            }
        };
        tokio::time::timeout(START_MAX, hello)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?;
        Ok(running)
    }
}

async fn read_answer(output: &mut BufReader<ChildStdout>) -> std::io::Result<Answer> {
    let (tag, bytes) = read_frame(output).await?;
    if tag == FAILED {
        return Ok(Err(Failed(String::from_utf8_lossy(&bytes).into_owned())));
    }
    // What jq writes may be no JSON: NaN, for example.
    Ok(serde_json::from_slice(&bytes)
        .map_err(|error| Failed(format!("it made a value that is no JSON: {error}"))))
}

/// Reads the tag and the bytes of a frame.
async fn read_frame(output: &mut BufReader<ChildStdout>) -> std::io::Result<(u8, Vec<u8>)> {
    let length = output.read_u32_le().await? as usize;
    if length == 0 || length > ANSWER_BYTES {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let tag = output.read_u8().await?;
    let mut bytes = vec![0; length - 1];
    output.read_exact(&mut bytes).await?;
    Ok((tag, bytes))
}

/// A frame: four bytes of length, then the bytes.
pub(super) fn frame(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes()[..], bytes].concat()
}

/// The frame before a batch: whether each answer is to be written at once, and the number of questions.
pub(super) fn header(questions: usize, one_by_one: bool) -> Vec<u8> {
    let count = u32::try_from(questions).unwrap_or(u32::MAX).to_le_bytes();
    frame(&[&[u8::from(one_by_one)][..], &count].concat())
}
