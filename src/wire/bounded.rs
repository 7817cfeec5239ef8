//! Lists and maps that are read up to a number of entries. A list of empty texts would otherwise take many times the
//! memory of the body that it came in, before anybody can check it.

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// The most entries, in number. It is far above what a task may have, so that the check of a task can say how many there
/// are.
const MAX_ENTRIES: usize = 16_384;

/// A list.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    from.deserialize_seq(ListVisitor(MAX_ENTRIES, PhantomData))
}

/// A value that may be left out, but is not null.
pub fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// A list that is there.
pub fn some_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<Vec<T>>, D::Error> {
    let list = Option::<List<T>>::deserialize(from)?;
    Ok(list.map(|list| list.0))
}

/// A map of texts.
pub fn map<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    Map::deserialize(from).map(|map| map.0)
}

/// A map that is there.
pub fn some_map<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    let map = Option::<Map>::deserialize(from)?;
    Ok(map.map(|map| map.0))
}

/// A list of so many entries at most.
pub fn list_of<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
    max: usize,
) -> Result<Vec<T>, D::Error> {
    from.deserialize_seq(ListVisitor(max, PhantomData))
}

struct List<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        list(from).map(List)
    }
}

struct ListVisitor<T>(usize, PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element()? {
            if list.len() >= self.0 {
                return Err(too_many("list", self.0));
            }
            list.push(entry);
        }
        Ok(list)
    }
}

struct Map(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(MapVisitor).map(Map)
    }
}

struct MapVisitor;

impl<'de> Visitor<'de> for MapVisitor {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((name, value)) = entries.next_entry()? {
            if map.len() >= MAX_ENTRIES {
                return Err(too_many("map", MAX_ENTRIES));
            }
            if map.contains_key(&name) {
                return Err(A::Error::custom(format_args!("{name:?} is given twice")));
            }
            map.insert(name, value);
        }
        Ok(map)
    }
}

fn too_many<E: Error>(what: &str, max: usize) -> E {
    E::custom(format_args!("a {what} has more than {max} entries"))
}
