//! Computes the probability of each of several Beta variables to be the highest.
//!
//! P(i is best) = ∫ f_i Π_{j≠i} F_j, by the trapezoid rule over the logit t = ln(x / (1 - x)), where a Beta's density
//! has neither poles nor edges: f(t) ∝ exp(a ln x + b ln(1 - x)), highest at ln(a / b), of width √(1/a + 1/b). Source:
//! Scott 2010, "A modern Bayesian look at the multi-armed bandit", doi:10.1002/asmb.874.
//!
//! Invariant: the probabilities sum to 1, equal variables have equal probabilities, and the order of the variables
//! changes nothing. It does not know SKUs nor draws.

/// A Beta distribution by its two pseudo-counts, both over 0 and finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beta {
    /// Successes.
    pub yes: f64,
    /// Failures.
    pub no: f64,
}

/// Integration nodes per width of a density.
const NODES_PER_WIDTH: f64 = 4.0;
/// Widths on each side of the peak that have nodes at that spacing.
const WIDTHS: f64 = 5.0;
/// Nodes in a tail beyond these widths, in steps of 1/a (or 1/b), over each of which the density falls by a factor of
/// e.
const TAIL: [f64; 18] = [
    0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0, 17.0, 22.0,
];
/// A tail that starts below this share of the peak has no nodes.
const TAIL_MIN: f64 = 1e-9;
/// Most pseudo-counts of a Beta; larger ones are scaled down. Beyond it the logarithms lose all digits, and more counts
/// would not change which variable is the highest.
const COUNTS_MAX: f64 = 1e9;
/// Share of a density that may lie below the integrated region.
const BELOW_MAX: f64 = 1e-5;

impl Beta {
    /// Mean.
    pub fn mean(self) -> f64 {
        self.yes / (self.yes + self.no)
    }

    /// Standard deviation.
    pub(crate) fn deviation(self) -> f64 {
        (self.mean() * (1.0 - self.mean()) / (self.yes + self.no + 1.0)).sqrt()
    }

    fn with_counts_max(self) -> Self {
        let by = (COUNTS_MAX / (self.yes + self.no)).min(1.0);
        Self {
            yes: self.yes * by,
            no: self.no * by,
        }
    }

    fn width(self) -> f64 {
        (1.0 / self.yes + 1.0 / self.no).sqrt()
    }

    fn log(self, node: Node) -> f64 {
        self.yes * node.ln_x + self.no * node.ln_rest
    }
}

/// A point on the logit axis.
#[derive(Clone, Copy)]
struct Node {
    t: f64,
    /// ln x
    ln_x: f64,
    /// ln (1 - x)
    ln_rest: f64,
}

impl Node {
    fn at(t: f64) -> Self {
        // Computed so that neither logarithm cancels on its side.
        let ln_x = t.min(0.0) - (-t.abs()).exp().ln_1p();
        Self {
            t,
            ln_x,
            ln_rest: ln_x - t,
        }
    }
}

/// One density with its integration nodes.
struct Density {
    of: Beta,
    peak: f64,
    nodes: Vec<f64>,
    /// Its integral over its own nodes.
    total: f64,
    /// Point below which a share of less than [`BELOW_MAX`] lies.
    floor: f64,
}

impl Density {
    fn new(of: Beta) -> Self {
        let (top, width) = ((of.yes / of.no).ln(), of.width());
        let peak = of.log(Node::at(top));
        let value = |t: f64| (of.log(Node::at(t)) - peak).exp();
        let mut nodes = Vec::new();
        let (left, right) = (top - WIDTHS * width, top + WIDTHS * width);
        if value(left) > TAIL_MIN {
            nodes.extend(TAIL.iter().rev().map(|step| left - step / of.yes));
        }
        let steps = (2.0 * WIDTHS * NODES_PER_WIDTH) as i32;
        nodes.extend((0..=steps).map(|n| left + f64::from(n) * width / NODES_PER_WIDTH));
        if value(right) > TAIL_MIN {
            nodes.extend(TAIL.iter().map(|step| right + step / of.no));
        }
        let values: Vec<f64> = nodes.iter().map(|t| value(*t)).collect();
        let area = |at: usize| (nodes[at + 1] - nodes[at]) * (values[at] + values[at + 1]) / 2.0;
        let total: f64 = (0..nodes.len() - 1).map(area).sum();
        let (mut under, mut at) = (0.0, 0);
        while at + 1 < nodes.len() && under + area(at) < BELOW_MAX * total {
            under += area(at);
            at += 1;
        }
        Self {
            of,
            peak,
            floor: nodes[at],
            nodes,
            total,
        }
    }

    /// Density and distribution function at the nodes. The part above each node is integrated and subtracted from 1, so
    /// the part below the first node is not needed.
    fn along(&self, nodes: &[Node]) -> (Vec<f64>, Vec<f64>) {
        let value = |node: &Node| (self.of.log(*node) - self.peak).exp() / self.total;
        let density: Vec<f64> = nodes.iter().map(value).collect();
        let mut under = vec![1.0; nodes.len()];
        let mut over = 0.0;
        for at in (0..nodes.len().saturating_sub(1)).rev() {
            over += (nodes[at + 1].t - nodes[at].t) * (density[at] + density[at + 1]) / 2.0;
            under[at] = (1.0 - over).max(0.0);
        }
        (density, under)
    }
}

/// The probability of each variable to be the highest, with an error of about 0.001.
pub fn chances(betas: &[Beta]) -> Vec<f64> {
    if betas.len() < 2 {
        return vec![1.0; betas.len()];
    }
    let betas: Vec<Beta> = betas.iter().map(|beta| beta.with_counts_max()).collect();
    // Most SKUs have no counts, so many variables are equal: each distinct one is integrated once.
    let mut kinds: Vec<(Beta, i32)> = Vec::new();
    let mut order: Vec<usize> = (0..betas.len()).collect();
    let key = |beta: &Beta| (beta.yes.to_bits(), beta.no.to_bits());
    order.sort_by_key(|at| key(&betas[*at]));
    let mut kind_of = vec![0; betas.len()];
    for at in order {
        match kinds.last_mut() {
            Some((kind, count)) if *kind == betas[at] => *count += 1,
            _ => kinds.push((betas[at], 1)),
        }
        kind_of[at] = kinds.len() - 1;
    }
    let densities: Vec<Density> = kinds.iter().map(|(beta, _)| Density::new(*beta)).collect();
    let nodes = common_nodes(&densities);
    let curves: Vec<_> = densities.iter().map(|one| one.along(&nodes)).collect();
    let mut wins = vec![0.0; kinds.len()];
    let mut before = vec![1.0; kinds.len() + 1];
    for at in 0..nodes.len() {
        let reach = |from: usize, to: usize| nodes[to].t - nodes[from].t;
        let last = nodes.len() - 1;
        let weight = reach(at.saturating_sub(1), (at + 1).min(last)) / 2.0;
        for (kind, (_, count)) in kinds.iter().enumerate() {
            before[kind + 1] = before[kind] * curves[kind].1[at].powi(*count);
        }
        let mut after = weight;
        for (kind, (_, count)) in kinds.iter().enumerate().rev() {
            let (density, under) = (curves[kind].0[at], curves[kind].1[at]);
            let equals = under.powi(count - 1);
            wins[kind] += density * equals * before[kind] * after;
            after *= equals * under;
        }
    }
    let sum: f64 = wins
        .iter()
        .zip(&kinds)
        .map(|(win, (_, count))| win * f64::from(*count))
        .sum();
    kind_of.iter().map(|kind| wins[*kind] / sum).collect()
}

/// Nodes for all densities: the nodes of each above the highest floor, thinned to the spacing of the narrowest density.
fn common_nodes(densities: &[Density]) -> Vec<Node> {
    let floor = densities
        .iter()
        .map(|one| one.floor)
        .fold(f64::MIN, f64::max);
    let narrow = densities
        .iter()
        .map(|one| one.of.width())
        .fold(f64::MAX, f64::min);
    let all = densities.iter().flat_map(|one| &one.nodes).copied();
    let mut all: Vec<f64> = all.filter(|t| *t >= floor).collect();
    all.sort_by(f64::total_cmp);
    let mut nodes: Vec<Node> = Vec::with_capacity(all.len());
    for t in all {
        if nodes
            .last()
            .is_none_or(|last| t - last.t >= 0.5 * narrow / NODES_PER_WIDTH)
        {
            nodes.push(Node::at(t));
        }
    }
    nodes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::Distribution;

    use super::*;

    /// The same probabilities by drawing.
    fn drawn(betas: &[Beta], draws: usize) -> Vec<f64> {
        let beta = |beta: &Beta| rand_distr::Beta::new(beta.yes, beta.no).expect("over 0");
        let variables: Vec<_> = betas.iter().map(beta).collect();
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut wins = vec![0.0; betas.len()];
        for _ in 0..draws {
            let mut best = (0, f64::MIN);
            for (at, variable) in variables.iter().enumerate() {
                let value: f64 = variable.sample(&mut random);
                if value > best.1 {
                    best = (at, value);
                }
            }
            wins[best.0] += 1.0 / draws as f64;
        }
        wins
    }

    fn of(counts: &[(f64, f64)]) -> Vec<Beta> {
        counts
            .iter()
            .map(|(yes, no)| Beta { yes: *yes, no: *no })
            .collect()
    }

    #[test]
    fn two_variables_have_the_exact_probability() {
        // P(Beta(81, 21) > Beta(71, 31)) = 0.94760 by the closed sum for whole counts (computed apart, in Python).
        let chances = chances(&of(&[(81.0, 21.0), (71.0, 31.0)]));
        assert!((chances[0] - 0.94760).abs() < 1e-3, "{chances:?}");
    }

    #[test]
    fn narrow_wide_and_skewed_variables_together_equal_drawing() {
        for counts in [
            &[(1.0, 1.0), (5e4, 5e4)][..],
            &[(0.02, 1.98), (0.02, 1.98), (3.0, 300.0)],
            &[(1.9, 0.1), (40.0, 2.0), (1.0, 1.0)],
            &[
                (1.0, 200.0),
                (30.0, 5000.0),
                (2.0, 300.0),
                (1.0, 200.0),
                (1.0, 200.0),
            ],
            &[(0.5, 0.5), (0.5, 0.5)],
        ] {
            let (computed, drawn_share) = (chances(&of(counts)), drawn(&of(counts), 200_000));
            for (computed, drawn_share) in computed.iter().zip(&drawn_share) {
                assert!(
                    (computed - drawn_share).abs() < 0.006,
                    "{counts:?}: {computed} {drawn_share}"
                );
            }
        }
    }

    #[test]
    fn huge_counts_still_have_a_winner() {
        let huge = chances(&of(&[(1e30, 3e30), (2e30, 2e30), (1.0, 60.0)]));
        assert!(
            huge[1] > 0.999 && huge.iter().all(|it| it.is_finite()),
            "{huge:?}"
        );
        let same = chances(&of(&[(1e30, 3e30), (1e30, 3e30)]));
        assert_eq!(same, [0.5, 0.5]);
    }

    fn some() -> impl Strategy<Value = Vec<Beta>> {
        let one = (-1.0f64..4.5, -4.0f64..1.0).prop_map(|(size, logit)| {
            let (all, mean) = (
                2.0 * 10f64.powf(size.max(0.0)),
                1.0 / (1.0 + (-logit).exp()),
            );
            Beta {
                yes: all * mean,
                no: all * (1.0 - mean),
            }
        });
        prop::collection::vec(one, 1..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn chances_equal_drawing(betas in some(), twice in any::<bool>()) {
            let mut betas = betas;
            if twice {
                betas.extend(betas.clone());
            }
            let (computed, drawn_share) = (chances(&betas), drawn(&betas, 40_000));
            prop_assert!((computed.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            for (computed, drawn_share) in computed.iter().zip(&drawn_share) {
                prop_assert!((computed - drawn_share).abs() < 0.015, "{computed} {drawn_share}");
            }
            let mut backward = betas.clone();
            backward.reverse();
            let mut reversed = chances(&backward);
            reversed.reverse();
            prop_assert_eq!(computed, reversed);
        }
    }
}
