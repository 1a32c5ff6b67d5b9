//! The metadata of a GGUF file by key and type.
//!
//! Invariant: every error names the file and the key. It does not know what keys mean.

use std::path::Path;

use super::header::{Header, Value};
use crate::Error;

/// The metadata of a file. Its errors name the file and the key.
pub(super) struct Keys<'a> {
    path: &'a Path,
    header: &'a Header,
}

impl<'a> Keys<'a> {
    pub(super) fn new(path: &'a Path, header: &'a Header) -> Self {
        Self { path, header }
    }

    /// Path of the file.
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// An error that says what is wrong with a key.
    pub(super) fn wrong(&self, key: &str, what: &str) -> Error {
        Error::load(self.path, format!("key {key}: {what}"))
    }

    /// Value of a key, if the file has it.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.header.keys.get(key)
    }

    fn value(&self, key: &str) -> Result<&'a Value, Error> {
        self.get(key).ok_or_else(|| self.wrong(key, "is missing"))
    }

    /// Value of a key as a whole number from 0 on.
    pub(super) fn size(&self, key: &str) -> Result<usize, Error> {
        match self.value(key)? {
            Value::Integer(size) => usize::try_from(*size)
                .map_err(|_| self.wrong(key, &format!("{size} is out of range"))),
            Value::Integers(all) if all.len() > 1 => {
                Err(self.wrong(key, "layers of different sizes are not supported"))
            }
            _ => Err(self.wrong(key, "is not a whole number")),
        }
    }

    /// Like [`size`](Self::size), or `default` if the key is missing.
    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        self.get(key).map_or(Ok(default), |_| self.size(key))
    }

    pub(super) fn number(&self, key: &str) -> Result<f64, Error> {
        match self.value(key)? {
            Value::Float(number) => Ok(*number),
            Value::Integer(number) => Ok(*number as f64),
            _ => Err(self.wrong(key, "is not a number")),
        }
    }

    pub(super) fn number_or(&self, key: &str, default: f64) -> Result<f64, Error> {
        self.get(key).map_or(Ok(default), |_| self.number(key))
    }

    /// Value of a key as a text.
    pub(super) fn text(&self, key: &str) -> Result<&'a str, Error> {
        match self.value(key)? {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong(key, "is not a text")),
        }
    }

    pub(super) fn text_or(&self, key: &str, default: &'a str) -> Result<&'a str, Error> {
        self.get(key).map_or(Ok(default), |_| self.text(key))
    }

    /// Value of a key as a list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<&'a [String], Error> {
        match self.value(key)? {
            Value::Texts(texts) => Ok(texts),
            _ => Err(self.wrong(key, "is not a list of texts")),
        }
    }
}
