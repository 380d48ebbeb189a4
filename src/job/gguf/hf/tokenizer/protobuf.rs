//! `tokenizer.model`: the SentencePiece model, a protocol buffer.
//!
//! Fields as in `sentencepiece_model.proto`: `ModelProto` has the pieces (1: text 1, score 2, type
//! 3), the trainer's specification (2: model type 3, ids of unknown, beginning, end and padding 40 to
//! 43) and the normalizer's (3: dummy prefix 3).

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte: the numbers of GGUF as well.
    pub(super) kind: i32,
}

/// What is needed of a model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SentencePieceModel {
    pub(super) pieces: Vec<Piece>,
    pub(super) is_bpe: bool,
    pub(super) add_dummy_prefix: bool,
    /// Unknown, beginning, end, padding; -1 in the file means none.
    pub(super) special: [Option<u32>; 4],
}

/// A field's value.
enum Field<'a> {
    Number(u64),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
}

/// Walks over the fields of a message.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// Number and value of the next field; `None` for what is no message.
    fn next(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Fixed32(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

/// Reads a model; `None` if the bytes are none.
pub(super) fn parse(bytes: &[u8]) -> Option<SentencePieceModel> {
    let mut model = SentencePieceModel {
        pieces: Vec::new(),
        // Unigram is the default of the format.
        is_bpe: false,
        add_dummy_prefix: true,
        special: [Some(0), Some(1), Some(2), None],
    };
    let mut message = Message(bytes);
    while !message.is_at_end() {
        match message.next()? {
            (1, Field::Bytes(bytes)) => model.pieces.push(piece(bytes)?),
            (2, Field::Bytes(bytes)) => trainer(bytes, &mut model)?,
            (3, Field::Bytes(bytes)) => {
                let mut normalizer = Message(bytes);
                while !normalizer.is_at_end() {
                    if let (3, Field::Number(flag)) = normalizer.next()? {
                        model.add_dummy_prefix = flag != 0;
                    }
                }
            }
            _ => {}
        }
    }
    (!model.pieces.is_empty()).then_some(model)
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
    let mut message = Message(bytes);
    while !message.is_at_end() {
        match message.next()? {
            (1, Field::Bytes(text)) => piece.text = String::from_utf8(text.to_vec()).ok()?,
            (2, Field::Fixed32(score)) => piece.score = f32::from_le_bytes(score),
            (3, Field::Number(kind)) => {
                piece.kind = i32::try_from(kind).ok().filter(|kind| (1..=6).contains(kind))?;
            }
            _ => {}
        }
    }
    Some(piece)
}

fn trainer(bytes: &[u8], model: &mut SentencePieceModel) -> Option<()> {
    let mut message = Message(bytes);
    while !message.is_at_end() {
        match message.next()? {
            // Unigram 1, BPE 2, word 3, char 4.
            (3, Field::Number(kind)) => model.is_bpe = kind == 2,
            (number @ 40..=43, Field::Number(id)) => {
                model.special[(number - 40) as usize] = u32::try_from(id).ok();
            }
            _ => {}
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(mut value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let byte = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                out.push(byte);
                return out;
            }
            out.push(byte | 0x80);
        }
    }

    fn bytes(number: u64, content: &[u8]) -> Vec<u8> {
        [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
    }

    fn number(field: u64, value: u64) -> Vec<u8> {
        [varint(field << 3), varint(value)].concat()
    }

    fn piece_bytes(text: &str, score: f32, kind: Option<u64>) -> Vec<u8> {
        let mut content = bytes(1, text.as_bytes());
        content.extend([varint(2 << 3 | 5), score.to_le_bytes().to_vec()].concat());
        content.extend(kind.map(|kind| number(3, kind)).unwrap_or_default());
        bytes(1, &content)
    }

    #[test]
    fn a_model_is_read() {
        let minus_one = u64::MAX;
        let trainer = [
            number(3, 2),
            bytes(7, b"unrelated"),
            number(40, 3),
            number(41, 1),
            number(42, 2),
            number(43, minus_one),
        ]
        .concat();
        let file = [
            piece_bytes("<unk>", 0.0, Some(2)),
            piece_bytes("▁the", -3.5, None),
            bytes(2, &trainer),
            bytes(3, &[number(3, 0), number(4, 1)].concat()),
        ]
        .concat();
        let model = parse(&file).unwrap();
        assert_eq!(
            model.pieces,
            [
                Piece { text: "<unk>".into(), score: 0.0, kind: 2 },
                Piece { text: "▁the".into(), score: -3.5, kind: 1 },
            ]
        );
        assert!(model.is_bpe && !model.add_dummy_prefix);
        assert_eq!(model.special, [Some(3), Some(1), Some(2), None]);
    }

    #[test]
    fn other_bytes_are_none() {
        assert_eq!(parse(b""), None);
        // A tiktoken file: base64, blank, rank.
        assert_eq!(parse(b"IQ== 0\nIg== 1\n"), None);
        let file = piece_bytes("a", 1.0, None);
        for end in 1..file.len() {
            assert_eq!(parse(&file[..end]), None, "{end}");
        }
        assert_eq!(parse(&piece_bytes("a", 1.0, Some(9))), None);
    }
}
