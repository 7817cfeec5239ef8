//! Writes JSON, to the byte as serde_json writes it.
//!
//! serde_json's own writer looks at every byte of a text by itself. Compiled for size that takes up to
//! forty instructions a byte, and a task is hardly more than texts: it was half of what a submit cost.
//! This one looks at eight bytes at once, and copies short pieces so as well: musl's `memcpy` takes its
//! time to begin.

use serde::ser::{self, Error as _, Impossible};
use serde::{Serialize, Serializer};
use serde_json::Error;

/// Up to so many bytes are copied by words.
const SHORT: usize = 32;

/// Appends a value. Fails for what cannot be written as JSON; our own types all can.
pub fn write<T: Serialize + ?Sized>(value: &T, to: &mut Vec<u8>) -> Result<(), Error> {
    value.serialize(&mut Writer { to })
}

/// A value as JSON, by itself.
pub fn written<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Error> {
    // Most records are small: one piece, where growing would take six.
    let mut bytes = Vec::with_capacity(512);
    write(value, &mut bytes)?;
    Ok(bytes)
}

/// How many bytes from the beginning stand in a JSON text as they are: those before the first quote,
/// backslash or control character.
pub fn plain(text: &[u8]) -> usize {
    let (words, rest) = text.as_chunks::<8>();
    let mut before = 0;
    for word in words {
        let marks = marks(*word);
        if marks != 0 {
            return before + (marks.trailing_zeros() / 8) as usize;
        }
        before += 8;
    }
    let blanks = u64::from_le_bytes([b' '; 8]);
    let last = { rest.iter().rev() }.fold(blanks, |word, byte| word << 8 | u64::from(*byte));
    let marks = marks(last.to_le_bytes());
    before + rest.len().min((marks.trailing_zeros() / 8) as usize)
}

/// Marks those of eight bytes that cannot stand as they are, by their highest bit. From each is
/// subtracted what borrows if it is below a bound; a borrow reaches the bytes above, so only the
/// lowest mark is right for certain.
#[inline(always)]
fn marks(word: [u8; 8]) -> u64 {
    const EACH: u64 = u64::MAX / 0xFF;
    let word = u64::from_le_bytes(word);
    let is = |byte: u8| (word ^ (EACH * u64::from(byte))).wrapping_sub(EACH);
    let is_control = word.wrapping_sub(EACH * 0x20);
    (is_control | is(b'"') | is(b'\\')) & !word & (EACH << 7)
}

/// Appends bytes, of which there are few in most cases.
fn put(bytes: &[u8], to: &mut Vec<u8>) {
    if bytes.len() > SHORT {
        return to.extend_from_slice(bytes);
    }
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        to.extend_from_slice(word);
    }
    for byte in rest {
        to.push(*byte);
    }
}

/// Appends a text with its quotes.
fn write_text(text: &str, to: &mut Vec<u8>) {
    let mut rest = text.as_bytes();
    to.reserve(rest.len() + 2);
    to.push(b'"');
    loop {
        let (as_it_is, more) = rest.split_at(plain(rest));
        put(as_it_is, to);
        let Some((byte, more)) = more.split_first() else {
            break;
        };
        write_escaped(*byte, to);
        rest = more;
    }
    to.push(b'"');
}

#[cold]
fn write_escaped(byte: u8, to: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0C => b'f',
        b'\r' => b'r',
        b'"' | b'\\' => byte,
        _ => {
            to.extend_from_slice(b"\\u00");
            return to.extend([byte >> 4, byte & 0xF].map(|n| HEX[n as usize]));
        }
    };
    to.extend([b'\\', short]);
}

fn write_number(mut number: u64, is_negative: bool, to: &mut Vec<u8>) {
    // The longest has 20 digits; then there is the sign.
    let mut digits = [0; 21];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    if is_negative {
        at -= 1;
        digits[at] = b'-';
    }
    put(&digits[at..], to);
}

/// Appends one value after the other.
struct Writer<'a> {
    to: &'a mut Vec<u8>,
}

/// Appends the parts of an array or object.
struct Parts<'w, 'a> {
    writer: &'w mut Writer<'a>,
    is_first: bool,
    end: &'static [u8],
}

impl<'w, 'a> Parts<'w, 'a> {
    fn begin(writer: &'w mut Writer<'a>, begin: u8, end: &'static [u8]) -> Result<Self, Error> {
        writer.to.push(begin);
        let is_first = true;
        Ok(Parts {
            writer,
            is_first,
            end,
        })
    }

    fn next(&mut self) {
        if !std::mem::take(&mut self.is_first) {
            self.writer.to.push(b',');
        }
    }

    /// Begins a part with a name that is an identifier of ours: there is nothing to escape in it.
    fn next_named(&mut self, name: &str) {
        self.next();
        let to = &mut *self.writer.to;
        to.reserve(name.len() + 3);
        to.push(b'"');
        put(name.as_bytes(), to);
        to.push(b'"');
        to.push(b':');
    }

    fn finish(self) -> Result<(), Error> {
        self.writer.to.extend_from_slice(self.end);
        Ok(())
    }
}

impl<'w, 'a> Serializer for &'w mut Writer<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Parts<'w, 'a>;
    type SerializeTuple = Parts<'w, 'a>;
    type SerializeTupleStruct = Parts<'w, 'a>;
    type SerializeTupleVariant = Impossible<(), Error>;
    type SerializeMap = Parts<'w, 'a>;
    type SerializeStruct = Parts<'w, 'a>;
    type SerializeStructVariant = Parts<'w, 'a>;

    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        let word: &[u8] = if value { b"true" } else { b"false" };
        self.to.extend_from_slice(word);
        Ok(())
    }

    fn serialize_i8(self, number: i8) -> Result<(), Error> {
        self.serialize_i64(number.into())
    }

    fn serialize_i16(self, number: i16) -> Result<(), Error> {
        self.serialize_i64(number.into())
    }

    fn serialize_i32(self, number: i32) -> Result<(), Error> {
        self.serialize_i64(number.into())
    }

    fn serialize_i64(self, number: i64) -> Result<(), Error> {
        write_number(number.unsigned_abs(), number < 0, self.to);
        Ok(())
    }

    fn serialize_u8(self, number: u8) -> Result<(), Error> {
        self.serialize_u64(number.into())
    }

    fn serialize_u16(self, number: u16) -> Result<(), Error> {
        self.serialize_u64(number.into())
    }

    fn serialize_u32(self, number: u32) -> Result<(), Error> {
        self.serialize_u64(number.into())
    }

    fn serialize_u64(self, number: u64) -> Result<(), Error> {
        write_number(number, false, self.to);
        Ok(())
    }

    fn serialize_f32(self, number: f32) -> Result<(), Error> {
        serde_json::to_writer(&mut *self.to, &number)
    }

    fn serialize_f64(self, number: f64) -> Result<(), Error> {
        // Seldom, and not to be invented again.
        serde_json::to_writer(&mut *self.to, &number)
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, text: &str) -> Result<(), Error> {
        write_text(text, self.to);
        Ok(())
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), Error> {
        self.collect_seq(bytes)
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        self.to.extend_from_slice(b"null");
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), Error> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.to.push(b'{');
        write_text(variant, self.to);
        self.to.push(b':');
        value.serialize(&mut *self)?;
        self.to.push(b'}');
        Ok(())
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Parts<'w, 'a>, Error> {
        Parts::begin(self, b'[', b"]")
    }

    fn serialize_tuple(self, _: usize) -> Result<Parts<'w, 'a>, Error> {
        Parts::begin(self, b'[', b"]")
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Parts<'w, 'a>, Error> {
        Parts::begin(self, b'[', b"]")
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Error> {
        Err(Error::custom("no type of ours has such a variant"))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Parts<'w, 'a>, Error> {
        Parts::begin(self, b'{', b"}")
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Parts<'w, 'a>, Error> {
        Parts::begin(self, b'{', b"}")
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Parts<'w, 'a>, Error> {
        self.to.push(b'{');
        write_text(variant, self.to);
        self.to.push(b':');
        Parts::begin(self, b'{', b"}}")
    }
}

impl ser::SerializeSeq for Parts<'_, '_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.next();
        value.serialize(&mut *self.writer)
    }

    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}

impl ser::SerializeTuple for Parts<'_, '_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        ser::SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}

impl ser::SerializeTupleStruct for Parts<'_, '_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        ser::SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}

impl ser::SerializeMap for Parts<'_, '_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.next();
        // Only texts are keys in our types.
        key.serialize(&mut *self.writer)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.writer.to.push(b':');
        value.serialize(&mut *self.writer)
    }

    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}

impl ser::SerializeStruct for Parts<'_, '_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.next_named(name);
        value.serialize(&mut *self.writer)
    }

    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}

impl ser::SerializeStructVariant for Parts<'_, '_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        ser::SerializeStruct::serialize_field(self, name, value)
    }

    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn agrees<T: Serialize>(value: &T) {
        let mut ours = Vec::new();
        write(value, &mut ours).unwrap();
        assert_eq!(written(value).unwrap(), ours);
        assert_eq!(
            String::from_utf8(ours).unwrap(),
            serde_json::to_string(value).unwrap()
        );
    }

    #[test]
    fn every_text_is_written_as_serde_json_writes_it() {
        for c in (0..=0x2FFu32).filter_map(char::from_u32) {
            // At each place of a word, behind each length.
            for n in 0..18 {
                agrees(&format!(
                    "{}{c}{c}x{c}",
                    "ä".repeat(n / 2) + &"y".repeat(n % 2)
                ));
            }
        }
        agrees(&"\u{7F}\u{80}\u{FFFF}😀\u{2028}".repeat(9));
    }

    #[test]
    fn every_kind_of_value_is_written_as_serde_json_writes_it() {
        #[derive(Serialize)]
        enum Kind {
            Unit,
            Newtype(u8),
            Struct { a: (), b: Option<char> },
        }
        #[derive(Serialize)]
        struct Pair(i8, f32);
        agrees(&(u64::MAX, i64::MIN, 0, -1i8, 10u16, true, 'ß'));
        agrees(&[1.5, 0.001, 1e20, 1e-7, -3.0, f64::NAN, 31_622_400.25]);
        let all = [
            Kind::Unit,
            Kind::Newtype(7),
            Kind::Struct { a: (), b: None },
        ];
        agrees(&all);
        agrees(&(Pair(-7, 0.1), BTreeMap::from([("k\n", [0; 0])]), Some(())));
        let nested: Value = json!({"a": [{}, [], {"b": null, "c": [1, "x", -2.5]}], "": {"": ""}});
        agrees(&nested);
    }
}
