//! Ways to break the store's double, to prove that a check notices: [`Flaws`].

/// Guards that a broken double leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flaws {
    /// Deltas of counts are applied whatever fence is stored.
    pub no_fence: bool,
    /// A fold overwrites whatever version is stored.
    pub blind_write: bool,
    /// Neither the tombstone nor a state's `erased_at` is compared.
    pub no_tombstone: bool,
    /// A publish overwrites any stored list, whatever the claim numbers.
    pub blind_publish: bool,
    /// Writes for another lineage have effect.
    pub blind_lineage: bool,
    /// Checkpoints survive a loss of the writes that they stand for.
    pub stray_checkpoint: bool,
    /// Checkpoints claim that all records of every partition are written.
    pub blind_checkpoint: bool,
}
