//! Parts of safetensors and GGUF files: which bytes of a file some tensors are, and the small safetensors file of our own
//! that keeps just these. It downloads nothing itself.
//!
//! A piece names in its metadata where its tensors come from, and any safetensors reader can open it. Tensors of a GGUF
//! file are bytes in it, under their names there.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
};

use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Value, json};

use super::{
    fetch::Part,
    http::{Fault, Remote},
};
use crate::model::gguf;

/// What the format allows (`safetensors`, MAX_HEADER_SIZE). Those of GGUF files have vocabularies, of some 20 MB at most.
const MAX_HEADER: u64 = 100_000_000;
/// Numbers of a piece begin at a multiple of this, so that they can be used where they lie.
const ALIGNMENT: usize = 64;

/// Which tensors of a file belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tensors {
    /// All whose name begins with one of these.
    Starting(Vec<String>),
    /// These, as far as the file has them.
    Named(Vec<String>),
}

impl Tensors {
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::Starting(prefixes) => prefixes.iter().any(|prefix| name.starts_with(prefix.as_str())),
            Self::Named(names) => names.iter().any(|wanted| wanted == name),
        }
    }
}

/// The header of a remote file.
#[derive(Debug)]
pub(super) struct Header {
    /// Where the numbers begin.
    data_start: u64,
    metadata: Metadata,
    /// How the file begins, as far as that is part of it under a name.
    known: Vec<u8>,
}

/// The bytes that a file's header takes, by the file's first eight.
///
/// # Errors
/// [`Fault::Changed`]: no safetensors file of `size` bytes begins so.
pub(super) fn header_end(first: &[u8], size: u64) -> Result<u64, Fault> {
    let len = first.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    len.filter(|len| *len <= MAX_HEADER)
        .map(|len| len + 8)
        .filter(|end| *end <= size)
        .ok_or_else(|| wrong("sends no safetensors file".to_owned()))
}

/// Whether the file is there and as long as its own header says.
pub(super) fn is_whole(piece: &Path) -> bool {
    open(piece).is_some()
}

/// A piece behind its own header, if it is whole.
fn open(piece: &Path) -> Option<(Header, File)> {
    let mut file = File::open(piece).ok()?;
    let size = file.metadata().ok()?.len();
    let mut bytes = vec![0; 8];
    file.read_exact(&mut bytes).ok()?;
    bytes.resize(header_end(&bytes, size).ok()? as usize, 0);
    file.read_exact(&mut bytes[8..]).ok()?;
    Some((Header::parse(&bytes, size).ok()?, file))
}

/// The header of a GGUF file of `size` bytes of which `piece` has it.
pub(super) fn gguf_header(piece: &Path, size: u64) -> Option<Header> {
    let (own, mut file) = open(piece)?;
    let (start, end) = own.metadata.info(gguf::HEADER)?.data_offsets;
    let mut first = vec![0; end - start];
    file.seek(SeekFrom::Current(start as i64)).ok()?;
    file.read_exact(&mut first).ok()?;
    Header::of_gguf(first, size).ok()?
}

impl Header {
    /// Reads the header of a file of `size` bytes; `bytes` are the file's first, up to [`header_end`].
    ///
    /// # Errors
    /// [`Fault::Changed`]: it is none, or that of a file of another size.
    pub(super) fn parse(bytes: &[u8], size: u64) -> Result<Self, Fault> {
        let json = bytes.get(8..).unwrap_or_default();
        let metadata: Metadata =
            serde_json::from_slice(json).map_err(|error| wrong(format!("sends a broken header ({error})")))?;
        let data_start = bytes.len() as u64;
        let numbers = metadata.data_len() as u64;
        if data_start + numbers != size {
            return Err(wrong(format!(
                "sends the header of one of {}",
                data_start.saturating_add(numbers)
            )));
        }
        Ok(Self {
            data_start,
            metadata,
            known: Vec::new(),
        })
    }

    /// Reads the header of a GGUF file of `size` bytes that begins with `first`; `None` if more of it has to be seen.
    ///
    /// # Errors
    /// [`Fault::Changed`]: it is none.
    pub(super) fn of_gguf(first: Vec<u8>, size: u64) -> Result<Option<Self>, Fault> {
        let Some(spans) = gguf::spans(&first, size).map_err(|error| wrong(format!("sends another file ({error})")))?
        else {
            if first.len() as u64 > MAX_HEADER {
                return Err(wrong("sends a header of more than 100 MB".to_owned()));
            }
            return Ok(None);
        };
        let infos = spans.into_iter().map(|(name, range)| {
            let info =
                json!({"dtype": "U8", "shape": [range.end - range.start], "data_offsets": [range.start, range.end]});
            (name, info)
        });
        let metadata = serde_json::from_value(Value::Object(infos.collect()));
        Ok(Some(Self {
            data_start: 0,
            metadata: metadata.map_err(|error| wrong(format!("sends a broken header ({error})")))?,
            known: first,
        }))
    }

    /// The chosen tensors in the order of the file.
    fn chosen(&self, tensors: &Tensors) -> Vec<(String, &TensorInfo)> {
        let all = self.metadata.offset_keys().into_iter();
        all.filter(|name| tensors.has(name))
            .filter_map(|name| Some((self.metadata.info(&name)?, name)))
            .map(|(info, name)| (name, info))
            .collect()
    }

    /// Bytes of the chosen tensors.
    pub(super) fn bytes_of(&self, tensors: &Tensors) -> u64 {
        let chosen = self.chosen(tensors);
        chosen
            .iter()
            .map(|(_, info)| (info.data_offsets.1 - info.data_offsets.0) as u64)
            .sum()
    }

    /// The first bytes of a piece with the chosen tensors, and which ranges follow them. `origin` is the repository and
    /// the file.
    pub(super) fn piece(&self, tensors: &Tensors, origin: (&str, &str), remote: &Remote) -> (Vec<u8>, Vec<Part>) {
        let chosen = self.chosen(tensors);
        let mut infos = Vec::new();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut len = 0;
        for (name, info) in chosen {
            let (start, end) = info.data_offsets;
            infos.push((
                name,
                TensorInfo {
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    data_offsets: (len, len + end - start),
                },
            ));
            len += end - start;
            let range = self.data_start + start as u64..self.data_start + end as u64;
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        let metadata = [
            ("format", "pt"),
            ("sepal.repository", origin.0),
            ("sepal.file", origin.1),
            ("sepal.commit", &remote.commit),
            ("sepal.etag", &remote.etag),
        ];
        let mut head = head(&metadata, &infos);
        if let Some(first) = ranges.first_mut().filter(|first| first.start == 0) {
            let here = first.end.min(self.known.len() as u64);
            head.extend(&self.known[..here as usize]);
            first.start = here;
        }
        ranges.retain(|range| !range.is_empty());
        let mut at = head.len() as u64;
        let parts = ranges.into_iter().map(|source| {
            let part = Part { at, source };
            at += part.source.end - part.source.start;
            part
        });
        let parts = parts.collect();
        (head, parts)
    }
}

/// Length and header of a safetensors file, padded as the format allows.
fn head(metadata: &[(&str, &str)], infos: &[(String, TensorInfo)]) -> Vec<u8> {
    let mut json = serde_json::Map::new();
    let metadata: HashMap<&str, &str> = metadata.iter().copied().collect();
    json.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    for (name, info) in infos {
        json.insert(name.clone(), serde_json::json!(info));
    }
    let mut text = serde_json::Value::Object(json).to_string().into_bytes();
    text.resize((text.len() + 8).next_multiple_of(ALIGNMENT) - 8, b' ');
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.append(&mut text);
    head
}

fn wrong(sent: String) -> Fault {
    Fault::Changed {
        said: "said what size the file of weights has".to_owned(),
        sent,
    }
}
