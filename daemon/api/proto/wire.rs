//! Reads the framing of protobuf: tags, varints, fixed numbers and lengths.
//!
//! Invariant: nothing is read beyond the slice given, whatever it says of itself.

use super::{ProtoError, damaged};

/// One value as it stands on the wire.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wire<'a> {
    /// A varint, or the bits of a fixed number.
    Number(u64),
    /// A length and so many bytes.
    Bytes(&'a [u8]),
}

/// Walks the fields of one message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    message: &'static str,
}

impl<'a> Wire<'a> {
    pub(super) fn number(self, message: &'static str) -> Result<u64, ProtoError> {
        match self {
            Wire::Number(number) => Ok(number),
            Wire::Bytes(_) => Err(damaged(message, "bytes stand where a number belongs")),
        }
    }

    pub(super) fn bytes(self, message: &'static str) -> Result<&'a [u8], ProtoError> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            Wire::Number(_) => Err(damaged(message, "a number stands where bytes belong")),
        }
    }

    pub(super) fn text(self, message: &'static str) -> Result<String, ProtoError> {
        let bytes = self.bytes(message)?;
        let text = std::str::from_utf8(bytes).map_err(|_| damaged(message, "a string is not UTF-8"))?;
        Ok(text.to_owned())
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], message: &'static str) -> Reader<'a> {
        Reader { rest: bytes, message }
    }

    /// The next field's number and value; None at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, ProtoError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number =
            u32::try_from(tag >> 3).map_err(|_| damaged(self.message, "a field number is too large"))?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(self.fixed64()?),
            2 => Wire::Bytes(self.length()?),
            5 => Wire::Number(u64::from(u32::from_le_bytes(self.array()?))),
            _ => return Err(damaged(self.message, "a field has an unknown wire type")),
        };
        Ok(Some((number, wire)))
    }

    /// The next number of a packed list; None at the end.
    pub(super) fn packed(&mut self, fixed64: bool) -> Result<Option<Wire<'a>>, ProtoError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        Ok(Some(Wire::Number(if fixed64 { self.fixed64()? } else { self.varint()? })))
    }

    fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) =
                self.rest.split_first().ok_or_else(|| damaged(self.message, "it ends within a number"))?;
            self.rest = rest;
            // The tenth byte holds one bit only; what is beyond 64 bits falls off as in Go.
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(damaged(self.message, "a number is longer than ten bytes"))
    }

    fn fixed64(&mut self) -> Result<u64, ProtoError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtoError> {
        let (head, rest) =
            self.rest.split_first_chunk().ok_or_else(|| damaged(self.message, "it ends within a number"))?;
        self.rest = rest;
        Ok(*head)
    }

    fn length(&mut self) -> Result<&'a [u8], ProtoError> {
        let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        let (head, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| damaged(self.message, "a length reaches beyond its end"))?;
        self.rest = rest;
        Ok(head)
    }
}
