//! Objects that are read strictly: only from a JSON object. A type derived with serde can also be read from an
//! array, and `"detail": ["ls"]` must not run `ls`.

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, IgnoredAny, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::marker::PhantomData;

/// A `T` that is read only from a JSON object.
#[derive(Debug)]
pub struct StrictObject<T>(pub T);

/// Like [`StrictObject`], but skips the fields that only answers have. `T` does not declare them, so an
/// error about an unknown field does not list them as expected.
#[derive(Debug)]
pub struct Posted<T>(pub T);

/// A type that can be posted, and that has more fields where it is answered.
pub trait ReadOnlyFields {
    /// The fields that only an answer has.
    const READ_ONLY: &[&str];
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for StrictObject<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = ObjectVisitor(&[], PhantomData);
        deserializer.deserialize_map(visitor).map(StrictObject)
    }
}

impl<'de, T: Deserialize<'de> + ReadOnlyFields> Deserialize<'de> for Posted<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = ObjectVisitor(T::READ_ONLY, PhantomData);
        deserializer.deserialize_map(visitor).map(Posted)
    }
}

/// Reads an object and skips these fields.
struct ObjectVisitor<T>(&'static [&'static str], PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(Skipping(self.0, map)))
    }
}

/// A map that skips these fields.
struct Skipping<A>(&'static [&'static str], A);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Skipping<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        mut seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        loop {
            match self.1.next_key_seed(UnlessSkipped(self.0, seed))? {
                None => return Ok(None),
                Some(Ok(key)) => return Ok(Some(key)),
                Some(Err(unused)) => seed = unused,
            }
            self.1.next_value::<IgnoredAny>()?;
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.1.next_value_seed(seed)
    }
}

/// Reads a field name. For one of these names it gives the seed back, to be used for the next field.
struct UnlessSkipped<K>(&'static [&'static str], K);

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for UnlessSkipped<K> {
    type Value = Result<K::Value, K>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<'de, K: DeserializeSeed<'de>> Visitor<'de> for UnlessSkipped<K> {
    type Value = Result<K::Value, K>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        if self.0.contains(&name) {
            return Ok(Err(self.1));
        }
        self.1.deserialize(name.into_deserializer()).map(Ok)
    }
}
