//! The syntax of structured flags, `key=value,key=[a,b]`, as a serde format: what JSON can
//! configure, flags can, with the same types and the same errors.
//!
//! Values are text, `"quoted text"`, or `[lists]`. Numbers take K, M, G and T (powers of 1024) and
//! 0x; switches are on or off. `0@[1,2]` is a pair, for the first two fields of a structure, and
//! `2-4` in a list stands for 2,3,4.

use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer, StringDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, VariantAccess, Visitor,
};
use thiserror::Error;

/// Nesting that is accepted; nothing needs more than two.
const MAX_DEPTH: usize = 8;
/// Numbers that one range may stand for.
const MAX_RANGE: u64 = 4096;
/// Items of one list.
const MAX_ITEMS: usize = 8192;

/// Why an option could not be understood.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct OptionError(String);

impl de::Error for OptionError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        OptionError(message.to_string())
    }
}

fn error<T>(message: impl Into<String>) -> Result<T, OptionError> {
    Err(OptionError(message.into()))
}

/// Reads an option's value.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, OptionError> {
    let mut parser = Parser {
        rest: text,
        depth: 0,
    };
    let map = nested(parser.pairs()?);
    T::deserialize(Node::Map(map))
}

/// Cloud Hypervisor's flags write what is nested in JSON with prefixes: `bw_size=` for
/// `rate_limiter_config.bandwidth.size`.
fn nested(pairs: Vec<(String, Node)>) -> Vec<(String, Node)> {
    let (mut plain, mut limits) = (Vec::new(), [Vec::new(), Vec::new()]);
    for (key, value) in pairs {
        match (key.strip_prefix("bw_"), key.strip_prefix("ops_")) {
            (Some(key), _) => limits[0].push((key.to_owned(), value)),
            (_, Some(key)) => limits[1].push((key.to_owned(), value)),
            _ => plain.push((key, value)),
        }
    }
    let names = ["bandwidth", "ops"].map(str::to_owned).into_iter();
    let given = names.zip(limits).filter(|(_, limit)| !limit.is_empty());
    let limiter: Vec<_> = given
        .map(|(name, limit)| (name, Node::Map(limit)))
        .collect();
    if !limiter.is_empty() {
        plain.push(("rate_limiter_config".to_owned(), Node::Map(limiter)));
    }
    plain
}

#[derive(Debug, Clone)]
enum Node {
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
    Pair(String, Box<Node>),
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn pairs(&mut self) -> Result<Vec<(String, Node)>, OptionError> {
        let mut pairs: Vec<(String, Node)> = Vec::new();
        while !self.rest.is_empty() {
            let end = self.rest.find(['=', ',']).unwrap_or(self.rest.len());
            let (key, rest) = self.rest.split_at(end);
            let Some(rest) = rest.strip_prefix('=') else {
                return error(format!("`{key}` has no value: write {key}=VALUE"));
            };
            if pairs.iter().any(|(k, _)| k == key) {
                return error(format!("`{key}` is given twice"));
            }
            self.rest = rest;
            let value = self.value(false)?;
            pairs.push((key.to_owned(), value));
            match self.rest.strip_prefix(',') {
                Some("") => return error("the option ends with a comma"),
                Some(rest) => self.rest = rest,
                None if self.rest.is_empty() => {}
                None => return error(format!("`{}` follows the value of `{key}`", self.rest)),
            }
        }
        Ok(pairs)
    }

    fn value(&mut self, in_list: bool) -> Result<Node, OptionError> {
        if let Some(rest) = self.rest.strip_prefix('[') {
            self.rest = rest;
            return self.list();
        }
        if let Some(rest) = self.rest.strip_prefix('"') {
            let Some((text, rest)) = rest.split_once('"') else {
                return error("a quotation mark is not closed");
            };
            self.rest = rest;
            return Ok(Node::Text(text.to_owned()));
        }
        let ends: &[char] = if in_list { &[',', ']', '@'] } else { &[','] };
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        if in_list && let Some(rest) = rest.strip_prefix('@') {
            self.rest = rest;
            self.deeper()?;
            let value = self.value(true)?;
            self.depth -= 1;
            return Ok(Node::Pair(text.to_owned(), Box::new(value)));
        }
        Ok(Node::Text(text.to_owned()))
    }

    fn deeper(&mut self) -> Result<(), OptionError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return error("lists are nested too deeply");
        }
        Ok(())
    }

    fn list(&mut self) -> Result<Node, OptionError> {
        self.deeper()?;
        let mut items = Vec::new();
        loop {
            if items.len() > MAX_ITEMS {
                return error(format!("a list has more than {MAX_ITEMS} items"));
            }
            if let Some(rest) = self.rest.strip_prefix(']') {
                self.rest = rest;
                self.depth -= 1;
                return Ok(Node::List(items));
            }
            match self.value(true)? {
                Node::Text(text) => match range(&text) {
                    Some((first, last)) if first <= last && last - first < MAX_RANGE => {
                        items.extend((first..=last).map(|n| Node::Text(n.to_string())));
                    }
                    Some(_) => {
                        return error(format!(
                            "`{text}` is no range of at most {MAX_RANGE} numbers"
                        ));
                    }
                    None => items.push(Node::Text(text)),
                },
                node => items.push(node),
            }
            match self.rest.strip_prefix(',') {
                Some(rest) => self.rest = rest,
                None if self.rest.starts_with(']') => {}
                None => return error("a list is not closed: `]` is missing"),
            }
        }
    }
}

fn range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

fn number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let shift = match text.chars().last()?.to_ascii_uppercase() {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => return text.parse().ok(),
    };
    let n: u64 = text[..text.len() - 1].parse().ok()?;
    n.checked_mul(1 << shift)
}

impl<'de> IntoDeserializer<'de, OptionError> for Node {
    type Deserializer = Node;
    fn into_deserializer(self) -> Node {
        self
    }
}

impl Node {
    fn text(self, expected: &str) -> Result<String, OptionError> {
        match self {
            Node::Text(text) => Ok(text),
            _ => error(format!("expected {expected}, found a list")),
        }
    }

    fn number(self) -> Result<u64, OptionError> {
        let text = self.text("a number")?;
        match number(&text) {
            Some(n) => Ok(n),
            None => error(format!(
                "`{text}` is not a number (K, M, G and T may follow it)"
            )),
        }
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionError> {
            visitor.visit_u64(self.number()?)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Node {
    type Error = OptionError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionError> {
        match self {
            Node::Text(text) => visitor.visit_string(text),
            Node::List(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter())),
            Node::Map(pairs) => visitor.visit_map(MapDeserializer::new(pairs.into_iter())),
            Node::Pair(left, right) => {
                visitor.visit_seq(SeqDeserializer::new([Node::Text(left), *right].into_iter()))
            }
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionError> {
        let text = self.text("on or off")?;
        match text.as_str() {
            "on" | "true" => visitor.visit_bool(true),
            "off" | "false" => visitor.visit_bool(false),
            _ => error(format!("`{text}` is neither on nor off")),
        }
    }

    numbers! { deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, OptionError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, OptionError> {
        match (self, fields) {
            (Node::Map(pairs), _) => visitor.visit_map(MapDeserializer::new(pairs.into_iter())),
            (Node::Pair(left, right), [first, second, ..]) => {
                let pairs = [(*first, Node::Text(left)), (*second, *right)];
                visitor.visit_map(MapDeserializer::new(pairs.into_iter()))
            }
            (other, _) => other.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, OptionError> {
        visitor.visit_enum(Variant(self.text("a word")?))
    }

    serde::forward_to_deserialize_any! {
        f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Variant(String);

impl<'de> EnumAccess<'de> for Variant {
    type Error = OptionError;
    type Variant = UnitOnly;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, UnitOnly), OptionError> {
        let name: StringDeserializer<OptionError> = self.0.into_deserializer();
        seed.deserialize(name).map(|v| (v, UnitOnly))
    }
}

struct UnitOnly;

impl<'de> VariantAccess<'de> for UnitOnly {
    type Error = OptionError;

    fn unit_variant(self) -> Result<(), OptionError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, OptionError> {
        error("this choice takes no value")
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, OptionError> {
        error("this choice takes no value")
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, OptionError> {
        error("this choice takes no value")
    }
}

#[cfg(test)]
#[path = "options_test.rs"]
mod tests;
