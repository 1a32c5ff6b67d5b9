//! Reads Prometheus' text format, as far as [`super`] needs it.
//!
//! Invariant: a line that is no sample is passed over, so that what a later release adds hides nothing. Names and
//! labels are kept as they are written.

use std::collections::BTreeMap;

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    /// Its labels.
    pub(super) labels: BTreeMap<String, String>,
    /// Its value.
    pub(super) value: f64,
}

/// All samples of one scrape, by the name of the metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Exposition(BTreeMap<String, Vec<Sample>>);

impl Exposition {
    /// Reads a page.
    pub(super) fn read(text: &str) -> Self {
        let mut all = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, sample)) = sample(line) {
                all.0.entry(name).or_default().push(sample);
            }
        }
        all
    }

    /// Whether nothing was read.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The samples of a metric that have these labels.
    pub(super) fn of<'a>(
        &'a self,
        name: &str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Sample> {
        let all = self.0.get(name).into_iter().flatten();
        all.filter(move |sample| {
            let has = |(name, value): &(&str, &str)| {
                sample.labels.get(*name).is_some_and(|it| it == value)
            };
            labels.iter().all(has)
        })
    }

    /// The sum of those samples; `None` if there is none.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let values = self.of(name, labels).map(|sample| sample.value);
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// The largest of those samples.
    pub(super) fn max(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let values = self.of(name, labels).map(|sample| sample.value);
        values.max_by(f64::total_cmp)
    }
}

/// Name, labels and value of a line.
fn sample(line: &str) -> Option<(String, Sample)> {
    let line = line.trim();
    let (name, labels, rest) = match line.find('{') {
        Some(at) => {
            let (labels, rest) = labels(&line[at + 1..])?;
            (&line[..at], labels, rest)
        }
        None => {
            let at = line.find(char::is_whitespace)?;
            (&line[..at], BTreeMap::new(), &line[at..])
        }
    };
    // A timestamp may follow the value.
    let value = rest.split_whitespace().next()?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        value => value.parse().ok()?,
    };
    Some((name.to_owned(), Sample { labels, value }))
}

/// Labels up to the closing brace, and what follows it.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = text.trim_start_matches([',', ' ']);
    while !rest.starts_with('}') {
        let (name, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.trim().to_owned(), value);
        rest = quoted[end + 1..].trim_start_matches([',', ' ']);
    }
    Some((labels, &rest[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_with_commas_braces_and_quotes_are_read() {
        let page = "# HELP a b\n# TYPE a counter\na{x=\"1,}\\\"\\\\\\n\",y=\"2\",} 3 1763000000000\na 4\nb +Inf\nb{\nno\n";
        let read = Exposition::read(page);
        let all: Vec<_> = read.of("a", &[]).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].labels["x"], "1,}\"\\\n");
        assert_eq!(read.sum("a", &[("y", "2")]), Some(3.0));
        assert_eq!(read.sum("a", &[]), Some(7.0));
        assert_eq!(read.max("b", &[]), Some(f64::INFINITY));
        assert_eq!(read.sum("c", &[]), None);
    }
}
