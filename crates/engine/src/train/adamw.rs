//! AdamW: the steps of training, with moments that can be written and read again.
//!
//! Decides the length of a step of each number. Invariant: numbers and moments after a step depend on those before it,
//! the gradient, the rate and the number of the step, and on nothing else. It does not know losses.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

/// How much of the mean of gradients, and of the mean of their squares, is kept from one step to the next.
const KEPT: (f64, f64) = (0.9, 0.999);

/// Added to the root of the mean square.
const EPSILON: f64 = 1e-8;

/// Means of gradients and of their squares, per tensor.
pub(super) struct Moments {
    pub(super) first: Vec<Tensor>,
    pub(super) second: Vec<Tensor>,
}

impl Moments {
    /// Moments before the first step.
    pub(super) fn new(vars: &[Var]) -> Result<Self> {
        let zeros = || -> Result<Vec<Tensor>> { vars.iter().map(|var| var.zeros_like()).collect() };
        Ok(Self {
            first: zeros()?,
            second: zeros()?,
        })
    }

    /// Changes the numbers by step `nth`, counted from 0.
    pub(super) fn step(
        &mut self,
        vars: &[Var],
        gradients: &[Tensor],
        (nth, rate, decay): (usize, f64, f64),
    ) -> Result<()> {
        let power = i32::try_from(nth + 1).unwrap_or(i32::MAX);
        let whole = (1.0 - KEPT.0.powi(power), 1.0 - KEPT.1.powi(power));
        for (at, (var, gradient)) in vars.iter().zip(gradients).enumerate() {
            let first = ((&self.first[at] * KEPT.0)? + (gradient * (1.0 - KEPT.0))?)?;
            let second = ((&self.second[at] * KEPT.1)? + (gradient.sqr()? * (1.0 - KEPT.1))?)?;
            let root = ((&second / whole.1)?.sqrt()? + EPSILON)?;
            let change = ((&first / (whole.0 / rate))? / root)?;
            let number = var.as_tensor().detach();
            var.set(&((number * (1.0 - rate * decay))? - change)?)?;
            (self.first[at], self.second[at]) = (first.detach(), second.detach());
        }
        Ok(())
    }
}

/// The sum of some cases' gradients.
pub(super) struct Sum(Vec<Tensor>);

impl Sum {
    /// No cases yet.
    pub(super) fn new(vars: &[Var]) -> Result<Self> {
        let zeros: Result<Vec<Tensor>> = vars.iter().map(|var| var.zeros_like()).collect();
        zeros.map(Self)
    }

    /// Adds the gradients of one case.
    pub(super) fn add(&mut self, vars: &[Var], gradients: &GradStore) -> Result<()> {
        for (sum, var) in self.0.iter_mut().zip(vars) {
            // A tensor that a case does not use has none.
            if let Some(gradient) = gradients.get(var) {
                *sum = (sum.detach() + gradient.detach())?;
            }
        }
        Ok(())
    }

    /// The mean over `cases`, shortened to the length `clip`; and its length before that.
    pub(super) fn mean(self, cases: usize, clip: f64) -> Result<(Vec<Tensor>, f64)> {
        let mut square = 0.0;
        for sum in &self.0 {
            square += f64::from(sum.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        let length = square.sqrt() / cases as f64;
        let factor = (clip / length).min(1.0) / cases as f64;
        let mean: Result<Vec<Tensor>> = self.0.iter().map(|sum| sum * factor).collect();
        Ok((mean?, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn steps_are_those_of_the_formula() {
        let first = Tensor::new(&[1.0f32, -2.0], &Device::Cpu).expect("a tensor");
        let vars = [Var::from_tensor(&first).expect("a variable")];
        let mut moments = Moments::new(&vars).expect("moments");
        let (rate, decay) = (0.1, 0.5);
        let (mut x, mut m, mut v) = ([1.0f64, -2.0], [0.0; 2], [0.0; 2]);
        for (nth, gradient) in [[0.5f64, -0.25], [1.0, 0.0], [-3.0, 2.0]]
            .into_iter()
            .enumerate()
        {
            let all = gradient.map(|x| x as f32);
            let all = [Tensor::new(&all, &Device::Cpu).expect("a tensor")];
            moments
                .step(&vars, &all, (nth, rate, decay))
                .expect("a step");
            for at in 0..2 {
                m[at] = 0.9 * m[at] + 0.1 * gradient[at];
                v[at] = 0.999 * v[at] + 0.001 * gradient[at] * gradient[at];
                let power = nth as i32 + 1;
                let (m, v) = (
                    m[at] / (1.0 - 0.9f64.powi(power)),
                    v[at] / (1.0 - 0.999f64.powi(power)),
                );
                x[at] -= rate * decay * x[at] + rate * m / (v.sqrt() + 1e-8);
            }
            let found = vars[0].to_vec1::<f32>().expect("numbers");
            for (found, x) in found.iter().zip(x) {
                assert!(
                    (f64::from(*found) - x).abs() < 1e-5,
                    "step {nth}: {found} {x}"
                );
            }
        }
    }

    #[test]
    fn a_long_gradient_is_shortened_and_a_short_one_is_not() {
        let sum = |x: f32| {
            Sum(vec![
                Tensor::new(&[3.0 * x, 4.0 * x], &Device::Cpu).expect("a tensor"),
            ])
        };
        for (times, length, expected) in [(2.0f32, 5.0, [0.6f32, 0.8]), (0.2, 0.5, [0.3, 0.4])] {
            let (mean, found) = sum(times).mean(2, 1.0).expect("a mean");
            assert!((found - length).abs() < 1e-5, "{found}");
            let mean = mean[0].to_vec1::<f32>().expect("numbers");
            assert!((mean[0] - expected[0]).abs() < 1e-6, "{mean:?}");
            assert!((mean[1] - expected[1]).abs() < 1e-6, "{mean:?}");
        }
    }
}
