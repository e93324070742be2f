//! The request's metadata as CEL's values, which borrow it.

use std::collections::HashMap;

use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString};
use cel::common::value::Val;
use serde_json::{Map, Value};

/// What the texts of the metadata, keys among them, may have together for a rule to look at it.
pub const METADATA_BYTES_MAX: usize = 4096;
/// The values of the metadata, those within others among them, for a rule to look at it: the range of every loop.
pub const METADATA_VALUES_MAX: u64 = 128;
const METADATA_DEPTH_MAX: usize = 16;

/// What may still come.
struct Room {
    values: u64,
    bytes: usize,
}

impl Room {
    fn value(&mut self) -> Option<()> {
        self.values = self.values.checked_sub(1)?;
        Some(())
    }

    fn text<'a>(&mut self, text: &'a str) -> Option<CelString<'a>> {
        self.bytes = self.bytes.checked_sub(text.len())?;
        Some(text.into())
    }
}

/// `None` where it is too large.
pub(super) fn value(metadata: Option<&Map<String, Value>>) -> Option<CelMap<'_>> {
    let mut room = Room { values: METADATA_VALUES_MAX, bytes: METADATA_BYTES_MAX };
    match metadata {
        Some(metadata) => map(metadata, &mut room, 0),
        None => Some(CelMap::default()),
    }
}

fn map<'a>(object: &'a Map<String, Value>, room: &mut Room, depth: usize) -> Option<CelMap<'a>> {
    let entry = |(key, value): (&'a String, &'a Value)| Some((CelMapKey::String(room.text(key)?), one(value, room, depth + 1)?));
    object.iter().map(entry).collect::<Option<HashMap<_, _>>>().map(CelMap::from)
}

fn one<'a>(value: &'a Value, room: &mut Room, depth: usize) -> Option<Box<dyn Val + 'a>> {
    room.value()?;
    if METADATA_DEPTH_MAX < depth {
        return None;
    }
    Some(match value {
        Value::Null => Box::new(CelNull),
        Value::Bool(truth) => Box::new(CelBool::from(*truth)),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Box::new(CelInt::from(number)),
            None => Box::new(CelDouble::from(number.as_f64()?)),
        },
        Value::String(text) => Box::new(room.text(text)?),
        Value::Array(items) => {
            let items = items.iter().map(|item| one(item, room, depth + 1)).collect::<Option<Vec<_>>>()?;
            Box::new(CelList::from(items))
        }
        Value::Object(object) => Box::new(map(object, room, depth)?),
    })
}
