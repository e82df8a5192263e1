//! Selectors: what labels must say.

use std::collections::BTreeSet;

use super::host::Labels;

/// All of its terms must hold. Without terms it matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// The terms.
    pub terms: Vec<Term>,
}

/// What one label must say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    /// The label's name.
    pub key: String,
    /// What holds of its value.
    pub rule: Rule,
}

/// What holds of a label's value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// It is one of these.
    In(BTreeSet<String>),
    /// It is none of these, or the label is not there.
    NotIn(BTreeSet<String>),
    /// The label is there.
    Exists,
    /// The label is not there.
    Absent,
}

impl Selector {
    /// The one that wants exactly these values.
    pub fn equal<K: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let term = |(key, value): (K, V)| Term {
            key: key.into(),
            rule: Rule::In([value.into()].into()),
        };
        Selector {
            terms: pairs.into_iter().map(term).collect(),
        }
    }

    /// Whether these labels are what it wants.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.terms.iter().all(|term| term.holds(labels))
    }

    /// A label that everything has which it matches, if its terms name one: an index begins there.
    pub(super) fn anchor(&self) -> Option<(&str, &str)> {
        self.terms.iter().find_map(|term| match &term.rule {
            Rule::In(values) if values.len() == 1 => {
                values.first().map(|v| (term.key.as_str(), v.as_str()))
            }
            _ => None,
        })
    }

    /// How many words it is made of.
    pub(super) fn words(&self) -> usize {
        let words = |term: &Term| match &term.rule {
            Rule::In(values) | Rule::NotIn(values) => 1 + values.len(),
            Rule::Exists | Rule::Absent => 1,
        };
        self.terms.iter().map(words).sum()
    }
}

impl Term {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.rule {
            Rule::In(values) => value.is_some_and(|v| values.contains(v)),
            Rule::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
            Rule::Exists => value.is_some(),
            Rule::Absent => value.is_none(),
        }
    }
}
