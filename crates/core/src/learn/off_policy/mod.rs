//! Off-policy evaluation: what another policy of choosing SKUs would have earned, from lists that this one made.
//!
//! A name shows SKUs in ordered places, each drawn with a known probability given the places before it. A place is worth
//! what was bought of its SKU while the name stood. What another policy would have earned is the mean of these rewards,
//! each weighted by how much likelier the other policy shows these SKUs in this order: [`evaluate`].
//!
//! Invariant: the weight of a place is the product over the places up to it, so a reward may depend on what stands above
//! it, not on what stands below (the cascade). Nothing is claimed where the weights rest on too little ([`Refusal`]). It
//! does not know lists, logs nor SKUs: only numbers.

mod arrivals;
mod estimate;
mod policy;
mod rates;

#[cfg(test)]
mod tests;

use crate::learn::bootstrap::Resampling;

use arrivals::{Arrivals, OLD_MIN};
pub use estimate::{Estimate, Found, PlaceFound};
use policy::Placing;
pub use policy::{Candidate, Candidates, Weighing};
use rates::{BINS, FOLDS, Rates, bin};

/// Milliseconds of a day.
const DAY_MS: f64 = 86_400_000.0;

/// Fewest users.
const USERS_MIN: usize = 100;

/// Most names, of 1, whose propensities may differ from those of the policy that they say they were shown by.
const DIFFERENT_MAX: f64 = 0.01;

/// Most by which two propensities may differ, as a part of the first: shares are told with six digits, and those of SKUs
/// that are not listed in groups.
const ROUNDING: f64 = 0.02;

/// A SKU in its place under a name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShownPlace {
    /// Its number among the listed candidates.
    pub candidate: usize,
    /// The published probability with which it took this place, given the places before.
    pub propensity: f64,
    /// Milliseconds until it was bought; none if it was not.
    pub delay: Option<i64>,
}

/// A name that was shown to a user.
#[derive(Clone, Debug, PartialEq)]
pub struct ShownName {
    /// Number of the user.
    pub user: u32,
    /// Milliseconds from the showing to the end of the log.
    pub elapsed: i64,
    /// The policy by which its SKUs were chosen.
    pub logged: Weighing,
    /// The SKUs that could have been shown.
    pub candidates: Candidates,
    /// The SKUs that were shown, in order.
    pub places: Vec<ShownPlace>,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Question {
    /// The policy to be judged.
    pub target: Weighing,
    /// Milliseconds after the showing in which purchases count.
    pub window: i64,
    /// Places of a name that are judged.
    pub places: usize,
    /// How intervals are drawn.
    pub how: Resampling,
}

/// Why a policy cannot be judged by a log.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Too few users.
    #[error(
        "{found} users were shown names with candidates, and {USERS_MIN} are needed; wait for more lists, or raise audit.candidates"
    )]
    Users {
        /// Users.
        found: usize,
    },
    /// A propensity that is no probability above 0.
    #[error("a propensity in the log is {found}; it must be above 0 and at most 1")]
    Propensity {
        /// The number.
        found: f64,
    },
    /// The log's propensities are not those of its policy.
    #[error(
        "{different} of {names} names have other propensities than the policy that their audits name: one says {found} where it is {wanted}; \
         the log is damaged, or of a release that chose SKUs in another way"
    )]
    Different {
        /// Names whose propensities differ.
        different: usize,
        /// All names.
        names: usize,
        /// The first one's propensity.
        found: f64,
        /// What the policy would have published.
        wanted: f64,
    },
    /// Nearly all of the log is younger than the window.
    #[error(
        "only {old} names were shown at least {window:.1} days before the end of the log, and {OLD_MIN} are needed to know how late purchases come; \
         give a --window of at most {longest:.1} days"
    )]
    Young {
        /// Names as old as the window.
        old: usize,
        /// Days of the window.
        window: f64,
        /// Days of the longest window that would do.
        longest: f64,
    },
    /// The weights leave too few effective names.
    #[error(
        "this policy is too far from the one that made the lists: weighted, the {shown} names shown are worth {found:.0} in place {place}, and {needed:.0} \
         are needed; {}",
        remedy(.enough)
    )]
    Names {
        /// The place, from 1.
        place: usize,
        /// Effective number of names.
        found: f64,
        /// How many are needed.
        needed: f64,
        /// Names in the log.
        shown: usize,
        /// The most places that could be judged; 0 if none.
        enough: usize,
    },
    /// The weights leave too few effective rewards.
    #[error(
        "too little was bought to judge this policy: weighted, {bought} purchases are worth {found:.0}, and {needed:.0} are needed; {}",
        remedy(.enough)
    )]
    Rewards {
        /// Effective number of rewards.
        found: f64,
        /// How many are needed.
        needed: f64,
        /// Rewards in the log.
        bought: usize,
        /// The most places that could be judged; 0 if none.
        enough: usize,
    },
}

/// Says what to do, and how many places could be judged, if any.
fn remedy(enough: &usize) -> String {
    match enough {
        0 => "wait for more lists, or ask for a nearer policy".to_owned(),
        enough => format!(
            "wait for more lists, ask for a nearer policy, or judge the first places alone with --places {enough}"
        ),
    }
}

/// A place with the probabilities of both policies, before rewards are weighed.
#[derive(Clone, Debug)]
struct WeighedPlace {
    /// What the other policy would do, given the places before.
    target: f64,
    /// What the logged policy does by its audit, given the places before.
    logged: f64,
    /// Probability of each bin of shares under the other policy.
    bins: [f64; BINS],
    /// Probability, under the other policy, of candidates that the logged one could not show here.
    unsupported: f64,
}

/// A place ready to be weighed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Place {
    /// The other policy's probability divided by the logged one's.
    ratio: f64,
    reward: f64,
    /// The reward that the model expects of the SKU that is there.
    fitted: f64,
    /// The reward that the model expects of what the other policy would place there.
    expected: f64,
    unsupported: f64,
}

/// A name ready to be weighed.
#[derive(Clone, Debug, PartialEq)]
struct Exposure {
    user: u32,
    places: Vec<Place>,
}

/// Names ready to be weighed.
#[derive(Clone, Debug)]
struct Weighed {
    exposures: Vec<Exposure>,
    arrivals: Arrivals,
    /// As how much of an exposure each counts.
    counts: Vec<f64>,
}

/// Judges a policy by what was shown and bought.
pub fn evaluate(names: &[ShownName], question: &Question) -> Result<Found, Refusal> {
    estimate::found(&weighed(names, question)?, question.how)
}

fn weighed(names: &[ShownName], question: &Question) -> Result<Weighed, Refusal> {
    let mut users: Vec<u32> = names.iter().map(|name| name.user).collect();
    users.sort_unstable();
    users.dedup();
    if users.len() < USERS_MIN {
        return Err(Refusal::Users { found: users.len() });
    }
    check_age(names, question.window)?;
    let weighed = probabilities(names, question)?;
    let elapsed: Vec<i64> = names.iter().map(|name| name.elapsed).collect();
    let rewards = names.iter().enumerate().flat_map(|(nth, name)| {
        let delays = delays(name, question).flatten();
        delays.map(move |delay| (nth, delay))
    });
    let rewards: Vec<(usize, i64)> = rewards.collect();
    let arrivals = Arrivals::new(&elapsed, &rewards, question.window);
    let counts = arrivals.shares(&vec![1.0; names.len()]);
    let fitted = fitted(names, &counts, question);
    let exposure = |(name, weighed): (&ShownName, Vec<WeighedPlace>)| {
        let rates = &fitted[fold(name.user)];
        let place = |(nth, (weighed, delay)): (usize, (WeighedPlace, Option<i64>))| {
            let shown = &name.places[nth];
            let expected = weighed.bins.iter().zip(rates[nth]);
            Place {
                ratio: weighed.target / shown.propensity,
                reward: f64::from(u8::from(delay.is_some())),
                fitted: rates[nth][bin(name.candidates.listed[shown.candidate].share)],
                expected: expected.map(|(chance, rate)| chance * rate).sum(),
                unsupported: weighed.unsupported,
            }
        };
        let places = weighed.into_iter().zip(delays(name, question));
        Exposure {
            user: name.user,
            places: places.enumerate().map(place).collect(),
        }
    };
    Ok(Weighed {
        exposures: names.iter().zip(weighed).map(exposure).collect(),
        arrivals,
        counts,
    })
}

/// The expected rewards by fold, place and bin.
fn fitted(names: &[ShownName], counts: &[f64], question: &Question) -> [Vec<[f64; BINS]>; FOLDS] {
    let mut rates = Rates::default();
    for (name, counts) in names.iter().zip(counts) {
        let rewards = delays(name, question).map(|it| f64::from(u8::from(it.is_some())));
        for (nth, (place, reward)) in name.places.iter().zip(rewards).enumerate() {
            let bin = bin(name.candidates.listed[place.candidate].share);
            rates.add((fold(name.user), nth, bin), reward, *counts);
        }
    }
    rates.fitted()
}

/// The fold of a user.
fn fold(user: u32) -> usize {
    user as usize % FOLDS
}

/// The delay of each place that is judged, if it is within the window and the log.
fn delays<'a>(
    name: &'a ShownName,
    question: &Question,
) -> impl Iterator<Item = Option<i64>> + use<'a> {
    let most = question.window.min(name.elapsed);
    let places = name.places.iter().take(question.places);
    places.map(move |place| place.delay.filter(|delay| *delay <= most))
}

/// Refuses a log of which too little is as old as the window.
fn check_age(names: &[ShownName], window: i64) -> Result<(), Refusal> {
    let mut elapsed: Vec<i64> = names.iter().map(|name| name.elapsed).collect();
    elapsed.sort_unstable_by(|a, b| b.cmp(a));
    let old = elapsed.partition_point(|it| *it >= window);
    if old >= OLD_MIN {
        return Ok(());
    }
    let longest = elapsed.get(OLD_MIN - 1).or(elapsed.last());
    Err(Refusal::Young {
        old,
        window: window as f64 / DAY_MS,
        // Down to a tenth of a day, so that what is advised is enough.
        longest: (longest.copied().unwrap_or_default() as f64 / DAY_MS * 10.0).floor() / 10.0,
    })
}

/// The probabilities of both policies for all names.
fn probabilities(
    names: &[ShownName],
    question: &Question,
) -> Result<Vec<Vec<WeighedPlace>>, Refusal> {
    let mut all = Vec::with_capacity(names.len());
    let mut different = 0;
    let mut first = None;
    for name in names {
        let shown = name.places.iter().take(question.places);
        let mut propensities = shown.map(|place| place.propensity);
        if let Some(found) = propensities.find(|it| !(*it > 0.0 && *it <= 1.0 + 1e-9)) {
            return Err(Refusal::Propensity { found });
        }
        let weighed = weigh(name, question);
        let both = weighed.iter().zip(&name.places);
        let mut far = both.filter(|(weighed, place)| {
            (weighed.logged - place.propensity).abs() > ROUNDING * place.propensity
        });
        if let Some((weighed, place)) = far.next() {
            different += 1;
            first = first.or(Some((place.propensity, weighed.logged)));
        }
        all.push(weighed);
    }
    match first {
        Some((found, wanted)) if different as f64 > DIFFERENT_MAX * names.len() as f64 => {
            Err(Refusal::Different {
                different,
                names: names.len(),
                found,
                wanted,
            })
        }
        _ => Ok(all),
    }
}

fn weigh(name: &ShownName, question: &Question) -> Vec<WeighedPlace> {
    let mut target = Placing::new(&question.target, &name.candidates);
    let mut logged = Placing::new(&name.logged, &name.candidates);
    let listed = &name.candidates.listed;
    let place = |shown: &ShownPlace| {
        let (would, did) = (target.next(), logged.next());
        let mut bins = [0.0; BINS];
        let mut unsupported = 0.0;
        for ((candidate, would), did) in listed.iter().zip(&would).zip(&did) {
            bins[bin(candidate.share)] += would;
            unsupported += if *did > 0.0 { 0.0 } else { *would };
        }
        target.place(shown.candidate);
        logged.place(shown.candidate);
        WeighedPlace {
            target: would[shown.candidate],
            logged: did[shown.candidate],
            bins,
            unsupported,
        }
    };
    let places = name.places.iter().take(question.places);
    places.map(place).collect()
}
