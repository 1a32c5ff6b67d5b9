//! Why an evaluation is not possible, and what to do.

use nearshore_core::user::event::{Change, Profile};

use super::History;
use super::result::Log;
use crate::config::Config;
use crate::ops::files::Logs;

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
    /// Files say nothing of users who were erased later.
    #[error(
        "files do not say who was erased since they were written: give --erased FILE, which `nearshore forget --export FILE` writes, or --no-erases if nobody was"
    )]
    Erased,
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
    /// A namespace has no list that is known.
    #[error(
        "no list of namespace {namespace} is found; `nearshore namespace list` shows the namespaces. Lists come from the topic recall-updates, \
         or with --events and --catalog from Redis"
    )]
    NoList {
        /// The namespace.
        namespace: String,
    },
    /// No purchase can be judged by the lists.
    #[error(
        "no purchase was made after lists of both namespaces that have not seen it ({without_list} were left out): keep both fed \
         (`nearshore run --namespace NAME`) until users have bought something, and ask again"
    )]
    NotBought {
        /// Purchases whose user had no such list.
        without_list: usize,
    },
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
            | Self::Erased
            | Self::Baseline { .. }
            | Self::Cut { .. }
            | Self::Span { .. }
            | Self::Field { .. } => true,
            Self::Rejects { .. }
            | Self::Catalogue { .. }
            | Self::NoPurchase { .. }
            | Self::Users { .. }
            | Self::Part { .. }
            | Self::NoList { .. }
            | Self::NotBought { .. }
            | Self::NoTarget => false,
        }
    }
}

/// Refuses a log from which nothing can be measured.
pub(super) fn check(history: &History, log: &Log) -> Result<(), Problem> {
    let products = history.catalogue.pus().len();
    if products < 2 {
        return Err(Problem::Catalogue { products });
    }
    if history.users.is_empty() {
        return Err(Problem::NoPurchase {
            records: log.records,
            unknown: history.unknown,
        });
    }
    if history.users.len() < 3 {
        return Err(Problem::Users {
            users: history.users.len(),
        });
    }
    Ok(())
}

/// Refuses a rule or segment whose field no profile has: one wrong letter would switch it off for everyone.
pub(super) fn check_fields(logs: &Logs, config: &Config) -> Result<(), Problem> {
    let profiles: Vec<&Profile> = logs
        .records
        .iter()
        .filter_map(|record| match &record.change {
            Change::Profile(profile) => Some(profile),
            Change::Event(_) | Change::Erase => None,
        })
        .collect();
    let rules = config.rules.iter().map(|it| ("rule", &it.id, &it.when));
    let segments = config.segments.iter();
    let segments =
        segments.flat_map(|it| it.when.iter().map(move |when| ("segment", &it.id, when)));
    let mut asked = rules.chain(segments);
    let absent = asked.find(|(_, _, when)| profiles.iter().all(|one| when.is_absent(one)));
    let Some((kind, id, when)) = absent.filter(|_| !profiles.is_empty()) else {
        return Ok(());
    };
    let mut known: Vec<&str> = profiles
        .iter()
        .flat_map(|it| it.0.keys().map(String::as_str))
        .collect();
    known.sort_unstable();
    known.dedup();
    Err(Problem::Field {
        kind,
        id: id.clone(),
        field: when.field.clone(),
        profiles: profiles.len(),
        known: known.join(", "),
    })
}
