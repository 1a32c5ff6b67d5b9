//! Ways to break the double, to see a checker notice: [`Flaws`].

/// Guards that a broken double lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flaws {
    /// Deltas of counts apply whatever fence is stored.
    pub no_fence: bool,
    /// A fold overwrites whatever version is stored.
    pub blind_write: bool,
    /// Nobody looks at the tombstone or at the erased_at of a state.
    pub no_tombstone: bool,
    /// A publish overwrites whatever list is stored, by whatever claim.
    pub blind_publish: bool,
    /// Writes that were made for another lineage have effect.
    pub blind_lineage: bool,
    /// Checkpoints survive what the writes that they stand for do not.
    pub stray_checkpoint: bool,
    /// Checkpoints say of every partition that all of it is written.
    pub blind_checkpoint: bool,
}
