//! Every value that a label may have, as types, so that no caller can misspell one.
//!
//! Invariant: closed sets, few values each; a user, a SKU or a message is never among them.

/// One label's values: an enum whose texts are known before the first is counted.
macro_rules! label {
    ($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$meaning])* $variant,)+ }

        impl $name {
            /// All values, as they are exported.
            pub const ALL: &[&str] = &[$($text),+];

            /// The value as it is exported.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

label! {
    /// What became of a record.
    RecordOutcome {
        /// Changed a state, the catalogue or the lanes.
        Folded = "folded",
        /// At or below a fence.
        Duplicate = "duplicate",
        /// Understood, and without effect: older than an erase, or than what is kept.
        Passed = "passed",
        /// Could not be used.
        Dlq = "dlq",
        /// Deleted by the broker before it was read.
        Lost = "lost",
    }
}

label! {
    /// What kind of record of a user.
    EventType {
        /// Shown.
        Impression = "impression",
        /// Product page.
        View = "view",
        /// Click.
        Click = "click",
        /// Cart.
        Cart = "cart",
        /// Purchase.
        Purchase = "purchase",
        /// Search.
        Search = "search",
        /// A profile.
        Profile = "profile",
        /// A null on the profile topic.
        Erase = "erase",
    }
}

impl From<nearshore_core::user::event::Kind> for EventType {
    fn from(kind: nearshore_core::user::event::Kind) -> Self {
        use nearshore_core::user::event::Kind;
        match kind {
            Kind::Impression => Self::Impression,
            Kind::View => Self::View,
            Kind::Click => Self::Click,
            Kind::Cart => Self::Cart,
            Kind::Purchase => Self::Purchase,
            Kind::Search => Self::Search,
        }
    }
}

label! {
    /// What the fold did with it.
    EventOutcome {
        /// Folded.
        Folded = "folded",
        /// At or below a fence.
        Duplicate = "duplicate",
        /// Only the fence rose.
        Passed = "passed",
    }
}

impl From<nearshore_core::user::fold::Step> for EventOutcome {
    fn from(step: nearshore_core::user::fold::Step) -> Self {
        use nearshore_core::user::fold::Step;
        match step {
            Step::Folded | Step::ProfileChanged | Step::Erased => Self::Folded,
            Step::Passed => Self::Passed,
            Step::Duplicate => Self::Duplicate,
        }
    }
}

label! {
    /// Which lane.
    LaneLabel {
        /// First lists of new and sparse users.
        Urgent = "urgent",
        /// Everyone else who moved.
        Live = "live",
        /// Sweeps and refreshes.
        Backfill = "backfill",
    }
}

impl From<nearshore_core::user::trigger::Lane> for LaneLabel {
    fn from(lane: nearshore_core::user::trigger::Lane) -> Self {
        use nearshore_core::user::trigger::Lane;
        match lane {
            Lane::Urgent => Self::Urgent,
            Lane::Live => Self::Live,
            Lane::Backfill => Self::Backfill,
        }
    }
}

label! {
    /// Why a list is asked for.
    ReasonLabel {
        /// First sight of the user.
        First = "first",
        /// Enough events.
        Activity = "activity",
        /// A profile change that matters.
        Profile = "profile",
        /// The pending request is overdue.
        Overdue = "overdue",
        /// A sweep.
        Sweep = "sweep",
        /// A person.
        Refresh = "refresh",
    }
}

impl From<nearshore_core::user::trigger::Reason> for ReasonLabel {
    fn from(reason: nearshore_core::user::trigger::Reason) -> Self {
        use nearshore_core::user::trigger::Reason;
        match reason {
            Reason::First => Self::First,
            Reason::Activity => Self::Activity,
            Reason::Profile => Self::Profile,
            Reason::Overdue => Self::Overdue,
            Reason::Sweep => Self::Sweep,
            Reason::Refresh => Self::Refresh,
        }
    }
}

label! {
    /// A part of the way from due to published.
    Phase {
        /// From due until taken.
        Queue = "queue",
        /// Taking the user's state from Redis.
        Claim = "claim",
        /// Rendering the prompt, rules and terms.
        Render = "render",
        /// The model, prefill and search.
        Model = "model",
        /// Grounding and selection.
        Select = "select",
        /// The fenced write and the record on `recall-updates`.
        Publish = "publish",
    }
}

label! {
    /// Who made a list.
    Source {
        /// A model.
        Model = "model",
        /// Demand.
        Fallback = "fallback",
    }
}

impl From<nearshore_core::list::document::Source> for Source {
    fn from(source: nearshore_core::list::document::Source) -> Self {
        match source {
            nearshore_core::list::document::Source::Model => Self::Model,
            nearshore_core::list::document::Source::Fallback => Self::Fallback,
        }
    }
}

label! {
    /// Why a publish had no effect.
    Fenced {
        /// A list of this claim or a later one is there.
        Older = "older",
        /// The user was erased meanwhile.
        Erased = "erased",
        /// The state is gone or its claim is lower.
        NoState = "no_state",
        /// The stored list is of a later arm epoch.
        Epoch = "epoch",
        /// A fallback, and there is a list.
        Kept = "kept",
    }
}

label! {
    /// Whether the user had a list before.
    Start {
        /// No list of a model yet.
        Cold = "cold",
        /// A renewal.
        Warm = "warm",
    }
}

label! {
    /// Why a name is not on a list; the labels of [`nearshore_core::list::document::Why`].
    Rejected {
        /// Below the arm's threshold.
        Theta = "theta",
        /// A rule or the need filter forbids it to this user.
        Forbidden = "forbidden",
        /// None of its SKUs is in stock.
        NoStock = "no_stock",
        /// It was there already.
        Repeated = "repeated",
        /// The catalogue has no such name any more.
        Unknown = "unknown",
    }
}

impl From<nearshore_core::list::document::Why> for Rejected {
    fn from(why: nearshore_core::list::document::Why) -> Self {
        use nearshore_core::list::document::Why;
        match why {
            Why::Theta => Self::Theta,
            Why::Forbidden => Self::Forbidden,
            Why::NoStock => Self::NoStock,
            Why::Repeated => Self::Repeated,
            Why::Unknown => Self::Unknown,
        }
    }
}

label! {
    /// Which kind of record went to the dlq.
    Stage {
        /// An event.
        Event = "event",
        /// A profile.
        Profile = "profile",
        /// A SKU.
        Catalog = "catalog",
        /// A request on a lane.
        Request = "request",
    }
}

label! {
    /// Which edge failed.
    Edge {
        /// Kafka.
        Log = "log",
        /// Redis.
        Store = "store",
        /// The model.
        Engine = "engine",
    }
}

label! {
    /// How it failed.
    Failure {
        /// No answer in time.
        Timeout = "timeout",
        /// The partition is no longer ours.
        NotAssigned = "not_assigned",
        /// Refused for good.
        Refused = "refused",
        /// The client or thread is gone.
        Stopped = "stopped",
        /// The connection broke, or not now.
        Unavailable = "unavailable",
        /// A stored value that does not decode.
        Corrupt = "corrupt",
        /// Too few replicas acknowledged.
        NotReplicated = "not_replicated",
        /// Redis is not the one it was: writes may be lost.
        Regressed = "regressed",
        /// A model file that cannot be used.
        Load = "load",
        /// A prompt over the model's context.
        TooLong = "too_long",
        /// The tensor library failed.
        Compute = "compute",
    }
}

label! {
    /// Which way a SKU went.
    StockMove {
        /// Sold out or gone.
        Out = "out",
        /// Back in stock.
        In = "in",
    }
}

label! {
    /// What a rebalance did with partitions.
    Rebalance {
        /// Ours from now on.
        Assigned = "assigned",
        /// No longer ours.
        Revoked = "revoked",
        /// Gone without a chance to commit.
        Lost = "lost",
    }
}

label! {
    /// How a state was found.
    Cache {
        /// In memory.
        Hit = "hit",
        /// In Redis, or nowhere.
        Miss = "miss",
    }
}
