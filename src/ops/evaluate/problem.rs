//! Why an evaluation is not possible, and what to do.

/// A log, or an order, from which nothing can be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// Some files are given, and some that are needed are not.
    #[error(
        "{missing} is missing: give {missing} FILE too, or no file at all to read the topics of the configuration"
    )]
    Files {
        /// The option.
        missing: &'static str,
    },
    /// With --strict, records that the decoders refuse.
    #[error("{count} records cannot be used, and --strict is set; first: {first}")]
    Rejects {
        /// How many.
        count: u64,
        /// The first one.
        first: String,
    },
    /// No route has the name of the baseline.
    #[error("--baseline {name:?} is not a route; the routes are: {known}")]
    Baseline {
        /// The name.
        name: String,
        /// The names of routes.
        known: String,
    },
    /// The catalogue is empty or has one product.
    #[error(
        "the catalogue has {products} product(s): there is nothing to rank; give all SKUs with --catalog, or fill the topic catalog"
    )]
    Catalogue {
        /// Products.
        products: usize,
    },
    /// No purchases.
    #[error(
        "there is no purchase of a product that the catalogue has ({records} records of users, {unknown} purchases of other SKUs): events of type \"purchase\" \
         whose sku or pu is in the catalogue are needed, by --events or in the topic user-events"
    )]
    NoPurchase {
        /// Records of users.
        records: usize,
        /// Purchases of SKUs that the catalogue does not have.
        unknown: u64,
    },
    /// Too few users.
    #[error(
        "{users} user(s) with purchases cannot be split into train, tune and test; give the logs of at least some hundreds"
    )]
    Users {
        /// Users with purchases.
        users: usize,
    },
    /// A part of the users is empty.
    #[error(
        "no user is a {part} user with --seed {seed}, of {users} with purchases; give the logs of more users, or another --seed"
    )]
    Part {
        /// `train`, `tune` or `test`.
        part: &'static str,
        /// The seed.
        seed: u64,
        /// Users with purchases.
        users: usize,
    },
    /// The log is too short for a cut.
    #[error(
        "purchases span {days} days, from {from} to {to}, and the window after the cut needs {window}; give a shorter --window, such as --window {suggested}days"
    )]
    Span {
        /// Days from first to last purchase.
        days: i64,
        /// First purchase.
        from: String,
        /// Last purchase.
        to: String,
        /// Days of the window.
        window: i64,
        /// A window that would do.
        suggested: i64,
    },
    /// A cut outside the log.
    #[error("--cut {cut} is not between the first purchase, {from}, and the last one, {to}")]
    Cut {
        /// The cut.
        cut: String,
        /// First purchase.
        from: String,
        /// Last purchase.
        to: String,
    },
    /// Nobody bought anything after any cut.
    #[error(
        "no test user bought a product of the catalogue after a cut; give an earlier --cut, a longer --window or more users"
    )]
    NoTarget,
    /// A rule or segment asks for a field that no profile has.
    #[error(
        "{kind} {id:?} asks for the profile field {field:?}, which none of {profiles} profiles has; correct the name, or the profiles: they have {known}"
    )]
    Field {
        /// `rule` or `segment`.
        kind: &'static str,
        /// Its id.
        id: String,
        /// The field.
        field: String,
        /// Profiles read.
        profiles: usize,
        /// Fields that profiles have.
        known: String,
    },
}

impl Problem {
    /// Whether the arguments or the configuration are wrong, not the log.
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            Self::Files { .. }
            | Self::Baseline { .. }
            | Self::Cut { .. }
            | Self::Span { .. }
            | Self::Field { .. } => true,
            Self::Rejects { .. }
            | Self::Catalogue { .. }
            | Self::NoPurchase { .. }
            | Self::Users { .. }
            | Self::Part { .. }
            | Self::NoTarget => false,
        }
    }
}
