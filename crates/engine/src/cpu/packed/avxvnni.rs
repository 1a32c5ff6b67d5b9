//! Kernels for AVX-VNNI: products of bytes and of 16-bit integers that are added as they are made, in 256 bits.
//!
//! For machines that have these instructions and no AVX-512, as Intel's since Alder Lake. Invariant: the integers of a
//! group are added without rounding, so int8 gives the same bits as on AVX-512, and integers of 16 bits those of AVX2.

use std::arch::x86_64::*;

use super::avx2::{self, COLUMNS, bytes, integers, two};
use super::portable;
use super::{Kernel, Scales, Tile};

/// Integers of 13 bits times integers of 14 bits, sign included: [`avx2::Int16`] with one instruction for two.
pub(super) struct Int16;

impl Kernel for Int16 {
    type Weight = [i16; 2];
    type Input = [i16; 2];
    const STEP: usize = 2;
    const COLUMNS: usize = COLUMNS;
    const ROWS: usize = 6;
    const SCALES: Scales = Scales::Groups;
    const NAME: &'static str = "int16";

    fn pack(row: &[f32], units: &mut [[i16; 2]], scales: &mut [f32]) {
        avx2::Int16::pack(row, units, scales);
    }

    fn convert(row: &[f32], units: &mut [[i16; 2]], scales: &mut [f32]) {
        avx2::Int16::convert(row, units, scales);
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        #[target_feature(enable = "avx2,fma,avxvnni")]
        unsafe fn inner<const M: usize>(tile: Tile<Int16>) {
            let add = |sum, x, w| _mm256_dpwssd_avx_epi32(sum, x, w);
            // SAFETY: the caller keeps the contract of this function.
            unsafe { integers::<Int16, M>(tile, |w| two(w), add) }
        }
        // SAFETY: the caller keeps the contract of this function.
        unsafe { inner::<M>(tile) }
    }
}

/// Products of four bytes. Inputs are shifted by 128, because the instruction needs them unsigned.
pub(super) struct Int8;

impl Kernel for Int8 {
    type Weight = [i8; 4];
    type Input = [u8; 4];
    const STEP: usize = 4;
    const COLUMNS: usize = COLUMNS;
    const ROWS: usize = 6;
    const SCALES: Scales = Scales::Groups;
    const NAME: &'static str = "int8";
    const SHIFTED: bool = true;

    fn pack(row: &[f32], units: &mut [[i8; 4]], scales: &mut [f32]) {
        portable::Int8::pack(row, units, scales);
    }

    fn offset(units: &[[i8; 4]]) -> i32 {
        let sum: i32 = units.as_flattened().iter().map(|w| i32::from(*w)).sum();
        -128 * sum
    }

    fn convert(row: &[f32], units: &mut [[u8; 4]], scales: &mut [f32]) {
        // SAFETY: `tier` detected the instructions before this kernel was chosen.
        unsafe { avx2::convert_bytes(row, units, scales) }
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        #[target_feature(enable = "avx2,fma,avxvnni")]
        unsafe fn inner<const M: usize>(tile: Tile<Int8>) {
            let add = |sum, x, w| _mm256_dpbusd_avx_epi32(sum, x, w);
            // SAFETY: the caller keeps the contract of this function.
            unsafe { bytes::<Int8, M>(tile, add) }
        }
        // SAFETY: the caller keeps the contract of this function.
        unsafe { inner::<M>(tile) }
    }
}
