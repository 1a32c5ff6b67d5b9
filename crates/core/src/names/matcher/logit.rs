//! A multinomial logit with an outside option: which of some products is meant, or none of them.
//!
//! The utility of a product is the sum of its evidence by weights, that of none the sum of its own. Invariant: the
//! penalised likelihood has one maximum, which Newton's method finds from 0, so equal groups give equal weights. It does
//! not know what the numbers say.

/// The products that may be meant by one text.
#[derive(Clone, Debug)]
pub(super) struct Group<const N: usize, const M: usize> {
    /// Evidence of each product.
    pub(super) rows: Vec<[f64; N]>,
    /// Evidence of none.
    pub(super) none: [f64; M],
    /// The place of the right product; absent if none of these is right.
    pub(super) target: Option<usize>,
}

/// Strength of the penalty on squared weights, in groups.
const RIDGE: f64 = 1.0;
const STEPS: usize = 60;

/// The probability of each product, and last that of none.
pub(super) fn chances<const N: usize, const M: usize>(
    rows: &[[f64; N]],
    none: &[f64; M],
    weights: &[f64],
) -> Vec<f64> {
    let dot =
        |values: &[f64], weights: &[f64]| values.iter().zip(weights).map(|(x, w)| x * w).sum();
    let mut utilities: Vec<f64> = rows.iter().map(|row| dot(row, &weights[..N])).collect();
    utilities.push(dot(none, &weights[N..]));
    let greatest = utilities.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for utility in &mut utilities {
        *utility = libm::exp(*utility - greatest);
        sum += *utility;
    }
    utilities.iter_mut().for_each(|utility| *utility /= sum);
    utilities
}

/// The weights that fit the groups best: `N` for products, then `M` for none.
pub(super) fn fit<const N: usize, const M: usize>(groups: &[Group<N, M>]) -> Vec<f64> {
    let mut weights = vec![0.0; N + M];
    let mut before = f64::NEG_INFINITY;
    for _ in 0..STEPS {
        let (value, mut gradient, mut curvature) = moments(groups, &weights);
        solve(&mut curvature, &mut gradient);
        let mut size = 1.0;
        // A full step may overshoot where probabilities are near 0 or 1.
        while size > 1e-4 {
            let next: Vec<f64> = weights
                .iter()
                .zip(&gradient)
                .map(|(w, step)| w + size * step)
                .collect();
            if likelihood(groups, &next) >= value - 1e-12 {
                weights = next;
                break;
            }
            size /= 2.0;
        }
        if (value - before).abs() < 1e-7 * (1.0 + value.abs()) {
            break;
        }
        before = value;
    }
    weights
}

fn likelihood<const N: usize, const M: usize>(groups: &[Group<N, M>], weights: &[f64]) -> f64 {
    let of = |group: &Group<N, M>| {
        let chances = chances(&group.rows, &group.none, weights);
        let chance = chances[group.target.unwrap_or(group.rows.len())];
        libm::log(chance.max(1e-300))
    };
    groups.iter().map(of).sum::<f64>() - penalty(weights)
}

fn penalty(weights: &[f64]) -> f64 {
    RIDGE / 2.0 * weights.iter().map(|w| w * w).sum::<f64>()
}

/// Penalised log-likelihood with its gradient and curvature, row by row.
fn moments<const N: usize, const M: usize>(
    groups: &[Group<N, M>],
    weights: &[f64],
) -> (f64, Vec<f64>, Vec<f64>) {
    let size = N + M;
    let mut value = -penalty(weights);
    let mut gradient: Vec<f64> = weights.iter().map(|w| -RIDGE * w).collect();
    let mut curvature = vec![0.0; size * size];
    (0..size).for_each(|at| curvature[at * size + at] = RIDGE);
    for group in groups {
        let chances = chances(&group.rows, &group.none, weights);
        let target = group.target.unwrap_or(group.rows.len());
        value += libm::log(chances[target].max(1e-300));
        let mut mean = vec![0.0; size];
        for (at, chance) in chances.iter().enumerate() {
            let (from, values) = match group.rows.get(at) {
                Some(row) => (0, &row[..]),
                None => (N, &group.none[..]),
            };
            let sign = f64::from(u8::from(at == target));
            for (i, x) in values.iter().enumerate() {
                mean[from + i] += chance * x;
                gradient[from + i] += sign * x;
                for (j, y) in values.iter().enumerate().take(i + 1) {
                    curvature[(from + i) * size + from + j] += chance * x * y;
                }
            }
        }
        for i in 0..size {
            gradient[i] -= mean[i];
            for j in 0..=i {
                curvature[i * size + j] -= mean[i] * mean[j];
            }
        }
    }
    (value, gradient, curvature)
}

/// Solves `matrix · x = right` for a positive definite matrix of which the lower half is given; `right` becomes `x`.
fn solve(matrix: &mut [f64], right: &mut [f64]) {
    let size = right.len();
    for i in 0..size {
        for j in 0..=i {
            let above: f64 = (0..j)
                .map(|k| matrix[i * size + k] * matrix[j * size + k])
                .sum();
            let rest = matrix[i * size + j] - above;
            matrix[i * size + j] = match i == j {
                true => rest.max(1e-12).sqrt(),
                false => rest / matrix[j * size + j],
            };
        }
    }
    for i in 0..size {
        let above: f64 = (0..i).map(|k| matrix[i * size + k] * right[k]).sum();
        right[i] = (right[i] - above) / matrix[i * size + i];
    }
    for i in (0..size).rev() {
        let below: f64 = (i + 1..size).map(|k| matrix[k * size + i] * right[k]).sum();
        right[i] = (right[i] - below) / matrix[i * size + i];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_solved() {
        let mut right = [5.0, 10.0];
        solve(&mut [4.0, 0.0, 1.0, 3.0], &mut right);
        assert!((right[0] - 5.0 / 11.0).abs() < 1e-12 && (right[1] - 35.0 / 11.0).abs() < 1e-12);
    }

    #[test]
    fn the_weights_reproduce_shares() {
        // Of 400 texts with one product of evidence 1, 300 mean it; without evidence, 100 of 400.
        let of = |evidence: f64, right: usize| {
            (0..400).map(move |n| Group {
                rows: vec![[evidence]],
                none: [1.0],
                target: (n < right).then_some(0),
            })
        };
        let groups: Vec<_> = of(1.0, 300).chain(of(0.0, 100)).collect();
        let weights = fit(&groups);
        for (evidence, expected) in [(1.0, 0.75), (0.0, 0.25)] {
            let chance = chances(&[[evidence]], &[1.0], &weights)[0];
            assert!((chance - expected).abs() < 0.01, "{evidence}: {chance}");
        }
    }

    #[test]
    fn without_groups_everything_is_as_likely() {
        let weights = fit::<2, 1>(&[]);
        assert_eq!(weights, [0.0; 3]);
        assert_eq!(chances(&[[1.0, 0.5]], &[1.0], &weights), [0.5, 0.5]);
    }
}
