//! What multiplies on this machine, in words: [`on_this_machine`].
//!
//! It decides nothing: [`packed`] has chosen. It does not know weights.

use super::packed;
use crate::precision::{Isa, MAX_ISA, Precision};

/// What multiplies on this machine's CPU with instructions up to `isa_max`, and why it was chosen, for people.
///
/// `bf16` is the fastest form that keeps the lists of `f32` (overlap of the first 20 at least .98, docs/engine.md).
pub fn on_this_machine(precision: Precision, isa_max: Option<Isa>) -> String {
    let (tier, is_half) = (packed::tier(precision, isa_max), packed::has_fast_halves());
    let why = match (precision, tier) {
        (Precision::F32, _) => "floats of 32 bits: the reference, and the slowest",
        (Precision::Bf16, Isa::Avx512) if is_half => {
            "floats of 16 bits (f16), the fastest here that keep the lists of f32"
        }
        (Precision::Bf16, Isa::Avx512) => {
            "floats of 16 bits (bf16), the fastest here that keep the lists of f32"
        }
        (Precision::Bf16, Isa::Avx2 | Isa::AvxVnni) => {
            "integers of 16 bits (int16), the fastest here that keep the lists of f32"
        }
        (Precision::Bf16, Isa::Plain) => {
            "weights of 16 bits, products of 32: half the memory of f32"
        }
        (Precision::Int8, Isa::Avx2) => {
            "integers of 8 bits, weights of 7: faster than bf16, and do not keep all lists of f32"
        }
        (Precision::Int8, _) => {
            "integers of 8 bits: faster than bf16, and do not keep all lists of f32"
        }
    };
    let capped = match packed::tier(precision, None) < packed::tier_of_the_machine(precision) {
        true => format!(", capped by {MAX_ISA}"),
        false => String::new(),
    };
    format!("{precision} by {}{capped}: {why}", title(tier))
}

/// What people call instructions.
fn title(isa: Isa) -> &'static str {
    match isa {
        Isa::Plain => "plain instructions",
        Isa::Avx2 => "AVX2",
        Isa::AvxVnni => "AVX-VNNI",
        Isa::Avx512 => "AVX-512",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_precision_names_its_instructions_and_whether_it_keeps_the_lists() {
        for (precision, says) in [
            (Precision::F32, "the reference"),
            (Precision::Bf16, "half the memory"),
            (Precision::Int8, "do not keep all lists"),
        ] {
            let text = on_this_machine(precision, Some(Isa::Plain));
            let begins = format!("{precision} by plain instructions");
            assert!(text.starts_with(&begins) && text.contains(says), "{text}");
        }
        let text = on_this_machine(Precision::Bf16, None);
        if packed::tier(Precision::Bf16, None) > Isa::Plain {
            assert!(
                text.contains("the fastest here that keep the lists of f32"),
                "{text}"
            );
        }
    }
}
