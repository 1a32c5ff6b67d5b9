//! How many users have a list of the model that has seen all of their state: [`coverage`].
//!
//! Invariant: it only reads. Erased users are not counted: their state holds fences alone, and no list is due to them.

use std::collections::BTreeSet;

use nearshore_core::list::document::Document;
use nearshore_core::ports::store::{self, Peek, ShownDoc, Store};
use nearshore_core::user::event::UserId;

/// Users of a namespace, and how many of them are covered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// Users whose list [`is_covered`].
    pub(crate) covered: u64,
    /// Users with a state, erased ones left out.
    pub(crate) users: u64,
}

impl Coverage {
    /// Share of covered users; 0 if there are no users.
    pub(crate) fn share(&self) -> f64 {
        match self.users {
            0 => 0.0,
            users => self.covered as f64 / users as f64,
        }
    }
}

/// Counts the users of namespace `of` whose lists in namespace `ns` are covered. It stops at the first page of the scan
/// after `sample` users; `None` counts all. A scan goes by hash, so its first pages are a sample.
pub(crate) async fn coverage<S: Store>(
    store: &S,
    of: &str,
    ns: &str,
    sample: Option<u64>,
) -> Result<Coverage, store::Error> {
    let mut found = Coverage::default();
    let mut cursor = None;
    loop {
        let (users, next): (Vec<UserId>, _) = store.scan(of, cursor).await?;
        if !users.is_empty() {
            let page = page(store, (of, ns), users).await?;
            found.users += page.users;
            found.covered += page.covered;
        }
        match next {
            Some(next) if sample.is_none_or(|sample| found.users < sample) => cursor = Some(next),
            Some(_) | None => return Ok(found),
        }
    }
}

/// Counts the users of one page. Those of whom a stored value cannot be used are left out.
async fn page<S: Store>(
    store: &S,
    (of, ns): (&str, &str),
    mut users: Vec<UserId>,
) -> Result<Coverage, store::Error> {
    loop {
        let counted = async {
            let peeks = store.peek(ns, &users).await?;
            let peeks = users.iter().zip(&peeks);
            let uncovered = peeks.filter(|(_, peek)| !is_covered(peek));
            let uncovered: Vec<UserId> = uncovered.map(|(user, _)| user.clone()).collect();
            let vacant = vacant_users(store, of, &uncovered).await?;
            Ok(Coverage {
                covered: (users.len() - uncovered.len()) as u64,
                users: (users.len() - vacant.len()) as u64,
            })
        };
        match counted.await {
            Err(error) => leave_out(error, &mut users)?,
            counted => return counted,
        }
    }
}

/// Takes the user of whom a stored value cannot be used out of `users`, so that one bad value does not end a scan. Any
/// other error is returned.
pub(crate) fn leave_out(error: store::Error, users: &mut Vec<UserId>) -> Result<(), store::Error> {
    let store::Error::Corrupt {
        user: Some(user), ..
    } = &error
    else {
        return Err(error);
    };
    let before = users.len();
    users.retain(|one| one != user);
    if users.len() == before {
        return Err(error);
    }
    tracing::warn!(%error, "a stored value of one user cannot be used; the scan leaves the user out");
    Ok(())
}

/// The lists of `users` as clients read them; users of whom a stored value cannot be used are taken out of `users`.
pub(crate) async fn shown<S: Store>(
    store: &S,
    ns: &str,
    users: &mut Vec<UserId>,
) -> Result<Vec<Option<ShownDoc>>, store::Error> {
    loop {
        match store.shown(ns, users).await {
            Err(error) => leave_out(error, users)?,
            Ok(shown) => return Ok(shown),
        }
    }
}

/// Those of `users` that have a state but neither events nor a profile: they were erased, and no list is due to them.
pub(crate) async fn vacant_users<S: Store>(
    store: &S,
    ns: &str,
    users: &[UserId],
) -> Result<BTreeSet<UserId>, store::Error> {
    if users.is_empty() {
        return Ok(BTreeSet::new());
    }
    let loaded = users.iter().zip(store.load(ns, users).await?);
    let vacant = loaded.filter(|(_, user)| user.ver > 0 && user.state.is_vacant());
    Ok(vacant.map(|(user, _)| user.clone()).collect())
}

/// Whether the list is one of an arm and has seen all of the state.
pub fn is_covered(peek: &Peek) -> bool {
    peek.list.as_ref().is_some_and(|list| {
        let of_arm = Document::parse(&list.doc).is_ok_and(|doc| doc.source.is_exposure());
        of_arm && list.seen.contains_all(&peek.fences)
    })
}
