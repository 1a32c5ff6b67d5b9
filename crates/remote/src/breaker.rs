//! The circuit breaker: whether a server that failed is asked.
//!
//! Closed, everything passes. After `failures_max` failures in a row it opens: nothing passes for `pause`. Then it is
//! half open: one question passes; if it is answered the breaker closes, else it opens again. Invariant: while it is
//! not closed at most one question is on the way that began after it opened. It has no clock: time is since any start.

use std::time::Duration;

/// The state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Duration,
    },
    /// One question is on the way.
    HalfOpen,
}

/// Whether a question may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// It may.
    Yes,
    /// It may, and decides whether the breaker closes: its outcome must be told.
    Probe,
    /// It may not, before this much time has passed.
    No(Duration),
}

/// A circuit breaker.
#[derive(Clone, Debug)]
pub(crate) struct Breaker {
    state: State,
    failures_max: u32,
    pause: Duration,
}

impl Breaker {
    /// A closed one, which opens after so many failures in a row, for `pause`.
    pub(crate) fn new(failures_max: u32, pause: Duration) -> Self {
        Self {
            state: State::Closed { failures: 0 },
            failures_max: failures_max.max(1),
            pause,
        }
    }

    /// Whether a question may pass now. After [`Pass::Probe`] one of the other methods must follow.
    pub(crate) fn ask(&mut self, now: Duration) -> Pass {
        match self.state {
            State::Closed { .. } => Pass::Yes,
            State::Open { until } if now < until => Pass::No(until - now),
            State::Open { .. } => {
                self.state = State::HalfOpen;
                Pass::Probe
            }
            State::HalfOpen => Pass::No(self.pause),
        }
    }

    /// A question that passed was answered.
    pub(crate) fn answered(&mut self, pass: Pass) {
        match (self.state, pass) {
            (State::Closed { .. }, _) | (State::HalfOpen, Pass::Probe) => {
                self.state = State::Closed { failures: 0 };
            }
            // A late answer to what was asked before the breaker opened says nothing of now.
            (State::Open { .. } | State::HalfOpen, _) => {}
        }
    }

    /// A question that passed failed, and the server is at fault.
    pub(crate) fn failed(&mut self, pass: Pass, now: Duration) {
        let open = State::Open {
            until: now.saturating_add(self.pause),
        };
        self.state = match (self.state, pass) {
            (State::Closed { failures }, _) if failures + 1 < self.failures_max => State::Closed {
                failures: failures + 1,
            },
            (State::Closed { .. }, _) | (State::HalfOpen, Pass::Probe) => open,
            (state, _) => state,
        };
    }

    /// A question that passed was given up, or failed by its own fault: nothing is known of the server.
    pub(crate) fn dropped(&mut self, pass: Pass, now: Duration) {
        if (self.state, pass) == (State::HalfOpen, Pass::Probe) {
            self.state = State::Open { until: now };
        }
    }

    /// Whether everything passes.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAUSE: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_by_one_answer() {
        let mut breaker = Breaker::new(3, PAUSE);
        for second in 0..3 {
            assert_eq!(breaker.ask(at(second)), Pass::Yes);
            breaker.failed(Pass::Yes, at(second));
        }
        assert_eq!(breaker.ask(at(5)), Pass::No(at(7)));
        assert!(!breaker.is_closed());
        assert_eq!(breaker.ask(at(12)), Pass::Probe);
        assert_eq!(breaker.ask(at(12)), Pass::No(PAUSE));
        breaker.failed(Pass::Probe, at(13));
        assert_eq!(breaker.ask(at(22)), Pass::No(at(1)));
        assert_eq!(breaker.ask(at(23)), Pass::Probe);
        breaker.answered(Pass::Probe);
        assert!(breaker.is_closed());
    }

    #[test]
    fn an_answer_between_failures_keeps_it_closed() {
        let mut breaker = Breaker::new(2, PAUSE);
        for second in 0..20 {
            breaker.failed(Pass::Yes, at(second));
            breaker.answered(Pass::Yes);
        }
        assert!(breaker.is_closed());
    }

    #[test]
    fn a_probe_that_is_given_up_lets_another_one_pass() {
        let mut breaker = Breaker::new(1, PAUSE);
        breaker.failed(Pass::Yes, at(0));
        assert_eq!(breaker.ask(at(10)), Pass::Probe);
        breaker.dropped(Pass::Probe, at(11));
        assert_eq!(breaker.ask(at(11)), Pass::Probe);
    }

    /// What happens in a history: time passes, a question is asked, one on the way ends.
    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Ask,
        Answered(usize),
        Failed(usize),
        Dropped(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..20).prop_map(Step::Wait),
            Just(Step::Ask),
            (0usize..8).prop_map(Step::Answered),
            (0usize..8).prop_map(Step::Failed),
            (0usize..8).prop_map(Step::Dropped),
        ]
    }

    proptest! {
        #[test]
        fn at_most_one_probe_is_on_the_way_and_no_server_is_left_alone_for_ever(
            steps in proptest::collection::vec(step(), 0..200),
            failures_max in 1u32..5,
        ) {
            let mut breaker = Breaker::new(failures_max, PAUSE);
            let (mut now, mut under_way) = (Duration::ZERO, Vec::new());
            let mut in_a_row = 0;
            for step in steps {
                let was_closed = breaker.is_closed();
                match step {
                    Step::Wait(seconds) => now += at(seconds),
                    Step::Ask => match breaker.ask(now) {
                        Pass::No(wait) => {
                            prop_assert!(!was_closed && wait <= PAUSE);
                        }
                        pass => {
                            prop_assert_eq!(pass == Pass::Yes, was_closed);
                            under_way.push(pass);
                        }
                    },
                    Step::Answered(nth) if nth < under_way.len() => {
                        let pass = under_way.remove(nth);
                        breaker.answered(pass);
                        if was_closed || breaker.is_closed() { in_a_row = 0; }
                        prop_assert!(pass != Pass::Probe || breaker.is_closed());
                    }
                    Step::Failed(nth) if nth < under_way.len() => {
                        let pass = under_way.remove(nth);
                        breaker.failed(pass, now);
                        in_a_row += u32::from(was_closed);
                        if was_closed { prop_assert_eq!(breaker.is_closed(), in_a_row < failures_max); }
                        if pass == Pass::Probe { prop_assert_eq!(breaker.ask(now), Pass::No(PAUSE)); }
                    }
                    Step::Dropped(nth) if nth < under_way.len() => breaker.dropped(under_way.remove(nth), now),
                    _ => {}
                }
                prop_assert!(under_way.iter().filter(|pass| **pass == Pass::Probe).count() <= 1);
            }
            // When all is quiet, a question passes after the pause.
            for pass in under_way {
                breaker.dropped(pass, now);
            }
            prop_assert!(!matches!(breaker.ask(now + PAUSE), Pass::No(_)));
        }
    }
}
