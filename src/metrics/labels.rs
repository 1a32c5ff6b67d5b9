//! Declares the label values that only metrics have, as enums, so that no caller can misspell one.
//!
//! Invariant: every set is closed and small, and never holds a user, a SKU or a message. An enum of the domain (lane,
//! reason, source) is its own label and has no copy here.

use nearshore_core::user::event::Kind;
use nearshore_core::user::fold::Step;
use strum::{IntoStaticStr, VariantNames};

/// Derives a set of label values: each is its variant's name in snake case.
macro_rules! label {
    ($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $variant:ident,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantNames)]
        #[strum(serialize_all = "snake_case")]
        pub enum $name { $($(#[$meaning])* $variant,)+ }
    };
}

label! {
    /// What was done with a record.
    RecordOutcome {
        /// It changed a state, the catalogue or a lane.
        Folded,
        /// It was at or below a fence.
        Duplicate,
        /// It was understood and had no effect: older than an erase, or than what is kept.
        Passed,
        /// It could not be used and went to the dlq.
        Dlq,
        /// An event of a type in `events.ignore`.
        Ignored,
        /// The broker deleted it before it was read.
        Lost,
    }
}

label! {
    /// Why a request ended without the model's list; its list without the model stays.
    Refused {
        /// It waited longer than `lanes.max_wait`.
        Late,
        /// More users waited than there is room for, and the model was expected to gain less here.
        Crowded,
        /// The model failed, or left no name that may be offered.
        Failed,
        /// The user's history has changed, and the arm gives the model no part for as much of it.
        NoWeight,
        /// Nothing is stored of the user any more.
        Gone,
        /// A list of the model by the user's newest claim is stored already.
        Superseded,
    }
}

/// The type of a record of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventType {
    /// An event of this kind.
    Event(Kind),
    /// A profile.
    Profile,
    /// A null value on the profile topic, which erases the user.
    Erase,
}

impl EventType {
    /// All values: the kinds of events, then the two of the profile topic.
    pub const ALL: &[&str] = &{
        let kinds = Kind::VARIANTS;
        let mut all = ["profile"; Kind::VARIANTS.len() + 2];
        let mut nth = 0;
        while nth < kinds.len() {
            all[nth] = kinds[nth];
            nth += 1;
        }
        all[nth + 1] = "erase";
        all
    };

    /// The value as it is exported.
    pub fn text(self) -> &'static str {
        match self {
            Self::Event(kind) => kind.into(),
            Self::Profile => "profile",
            Self::Erase => "erase",
        }
    }
}

impl From<Kind> for EventType {
    fn from(kind: Kind) -> Self {
        Self::Event(kind)
    }
}

label! {
    /// What the fold did with a record of a user.
    EventOutcome {
        /// It changed the state.
        Folded,
        /// It was at or below a fence.
        Duplicate,
        /// It had no effect on the state except its fence.
        Passed,
    }
}

impl From<Step> for EventOutcome {
    fn from(step: Step) -> Self {
        match step {
            Step::Folded | Step::ProfileChanged | Step::Erased => Self::Folded,
            Step::Passed => Self::Passed,
            Step::Duplicate => Self::Duplicate,
        }
    }
}

label! {
    /// A phase of making a list, from due to published.
    Phase {
        /// From due until the claim begins.
        Queue,
        /// Claiming the user's state in Redis.
        Claim,
        /// Rendering the prompt, and computing permitted products and terms.
        Render,
        /// The model: prefill and search.
        Model,
        /// Choosing names and SKUs.
        Select,
        /// The fenced write, and the record on `recall-updates`.
        Publish,
    }
}

label! {
    /// Why a publish had no effect.
    Fenced {
        /// The stored list has this claim number or a higher one.
        Older,
        /// The user was erased since the claim.
        Erased,
        /// The state is gone, or its claim number is lower.
        NoState,
        /// The stored list has a higher arm epoch.
        Epoch,
        /// The list is a fallback, and the user has a list.
        Kept,
    }
}

label! {
    /// Whether the user had a list before.
    Start {
        /// The user's first list.
        Cold,
        /// A renewal.
        Warm,
    }
}

label! {
    /// Whether a list of an arm has seen all of a user's state.
    Covered {
        /// It has.
        Covered,
        /// It has not, or there is none.
        Uncovered,
    }
}

label! {
    /// What a record that went to the dlq should have been.
    Stage {
        /// An event.
        Event,
        /// A profile.
        Profile,
        /// A SKU.
        Catalog,
        /// A request on a lane.
        Request,
        /// A record of a topic of the shop, before its mapping.
        Map,
    }
}

impl Stage {
    /// The value as it is exported.
    pub fn text(self) -> &'static str {
        self.into()
    }
}

label! {
    /// What failed.
    Edge {
        /// Kafka.
        Log,
        /// Redis.
        Store,
        /// The model.
        Engine,
        /// A server that has a model.
        Remote,
    }
}

label! {
    /// How it failed.
    Failure {
        /// No answer came in time.
        Timeout,
        /// The partition is assigned to another member.
        NotAssigned,
        /// The call was refused permanently.
        Refused,
        /// The client or the engine's thread has ended.
        Stopped,
        /// The connection broke, or Redis cannot serve now.
        Unavailable,
        /// A stored value cannot be decoded.
        Corrupt,
        /// Too few replicas acknowledged.
        NotReplicated,
        /// Redis was restarted or a replica took over: writes may be lost.
        Regressed,
        /// A model file cannot be used.
        Load,
        /// A prompt is longer than the model's context.
        TooLong,
        /// The tensor library failed.
        Compute,
        /// The server has too many requests.
        Busy,
        /// The server failed before and is left alone for a while.
        LeftAlone,
        /// The server answers half, or something else.
        Answer,
        /// The server does not know the key, the path or the model.
        Unknown,
    }
}

label! {
    /// How a SKU's stock changed.
    StockChange {
        /// Sold out or gone.
        Out,
        /// Back in stock.
        In,
    }
}

label! {
    /// How a rebalance changed a member's partitions.
    Rebalance {
        /// Assigned to this member.
        Assigned,
        /// Taken from this member, after a chance to commit.
        Revoked,
        /// Taken from this member without a chance to commit.
        Lost,
    }
}

label! {
    /// Where a state was found.
    Cache {
        /// In memory.
        Hit,
        /// In Redis, or nowhere.
        Miss,
    }
}

label! {
    /// What became of a clause of a text.
    TextResult {
        /// It means a product or a need term.
        Matched,
        /// It means nothing that is likely enough.
        Unmatched,
        /// It is negated, whatever it means.
        Negated,
    }
}

label! {
    /// For whom the reading of a text is kept.
    TextsKept {
        /// For all users: enough of them typed it.
        All,
        /// For one user.
        One,
    }
}
