//! What a table of nf_tables is to have, and the least that makes it so where something else is: a change of one port
//! among many is a few messages, whatever else is there. No I/O.

use std::collections::BTreeMap;

use super::expressions::{Kind, Value};
use crate::network::nft::{Batch, Hook, Rule};

/// What is in a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Sets and maps, by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains, by name.
    pub chains: BTreeMap<String, Chain>,
}

/// A set, or a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    kind: Kind,
    elements: BTreeMap<Vec<u8>, Element>,
}

/// What a set has for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// What belongs to it.
    pub value: Value,
    /// Whose it is, for those who look at it.
    pub words: String,
}

/// A chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where packets come in; none if others jump here.
    pub hook: Option<Hook>,
    /// Its rules, and whose they are.
    pub rules: Vec<(Rule, String)>,
}

impl Set {
    /// An empty one.
    pub fn of(kind: Kind) -> Set {
        Set {
            kind,
            elements: BTreeMap::new(),
        }
    }

    /// Puts something in, unless its key is there.
    pub fn put(&mut self, key: Vec<u8>, value: Value, words: &str) {
        self.elements.entry(key).or_insert_with(|| Element {
            value,
            words: words.to_owned(),
        });
    }
}

impl Table {
    /// Makes a set, and puts things in.
    pub fn set(&mut self, name: &str, kind: Kind) -> &mut Set {
        let sets = &mut self.sets;
        sets.entry(name.to_owned()).or_insert_with(|| Set::of(kind))
    }

    /// Adds a rule to a chain, which is made if need be.
    pub fn rule(&mut self, chain: &str, rule: Rule, words: &str) {
        let chain = self.chains.entry(chain.to_owned()).or_default();
        chain.rules.push((rule, words.to_owned()));
    }

    /// How many rules there are.
    pub fn rules(&self) -> usize {
        self.chains.values().map(|chain| chain.rules.len()).sum()
    }

    /// Names of sets, and how much is in each.
    pub fn counts(&self) -> impl Iterator<Item = (&str, usize)> {
        let sets = self.sets.iter();
        sets.map(|(name, set)| (name.as_str(), set.elements.len()))
    }

    /// What makes this of what is there: it is taken away first, where nothing leads to it any more, and what others
    /// need is there before them.
    pub fn change(&self, there: &Table, mut batch: Batch) -> Batch {
        for (name, old) in &there.sets {
            let gone = old.elements.iter().filter(|(key, element)| {
                self.kept(name, old)
                    .is_none_or(|new| new.elements.get(*key) != Some(element))
            });
            let gone: Vec<_> = gone.map(|(key, _)| key.clone()).collect();
            batch = batch.take(name, &gone);
        }
        let rewritten = |name: &String, old: &Chain| self.chains.get(name) != Some(old);
        let remade = |name: &String, old: &Chain| {
            let new = self.chains.get(name);
            new.is_none_or(|new| new.hook != old.hook)
        };
        for (name, old) in &there.chains {
            if rewritten(name, old) && !old.rules.is_empty() {
                batch = batch.flush_chain(name);
            }
        }
        for (name, old) in &there.sets {
            if self.kept(name, old).is_none() {
                batch = batch.delete_set(name);
            }
        }
        for (name, old) in &there.chains {
            if remade(name, old) {
                batch = batch.delete_chain(name);
            }
        }
        for (name, new) in &self.sets {
            if there.kept(name, new).is_none() {
                batch = batch.new_set_of(name, new.kind);
            }
        }
        for (name, new) in &self.chains {
            if there
                .chains
                .get(name)
                .is_none_or(|old| new.hook != old.hook)
            {
                batch = match new.hook {
                    Some(hook) => batch.chain(name, hook),
                    None => batch.side_chain(name),
                };
            }
        }
        for (name, new) in &self.sets {
            let old = there.kept(name, new);
            let more = new.elements.iter().filter(|(key, element)| {
                old.is_none_or(|old| old.elements.get(*key) != Some(element))
            });
            let more: Vec<_> = more
                .map(|(key, element)| (key.as_slice(), &element.value, element.words.as_str()))
                .collect();
            batch = batch.fill(name, &more);
        }
        for (name, new) in &self.chains {
            if there.chains.get(name) != Some(new) {
                for (rule, words) in &new.rules {
                    batch = batch.noted_rule(name, rule.clone(), words);
                }
            }
        }
        batch
    }

    /// The set of this name, if it is of the same kind as another.
    fn kept(&self, name: &str, other: &Set) -> Option<&Set> {
        self.sets.get(name).filter(|set| set.kind == other.kind)
    }
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
