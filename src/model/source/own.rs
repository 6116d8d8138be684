//! What a checkpoint whose matrices are in blocks of 8 or 4 bits takes if they stay so. It reads headers, no weights.

use std::collections::HashMap;

use super::{ModelSource, Place};
use crate::model::{
    WeightFormat,
    gguf::Gguf,
    layout::{BlockLayout, TensorSpec},
    load::own_format_of,
};

impl ModelSource {
    /// The format that most weights of the blocks would have with [`crate::model::ModelFiles::with_own_formats`]; `None`
    /// if the checkpoint has them as single numbers.
    pub fn own_format(&self) -> Option<WeightFormat> {
        self.own_format
    }

    /// Bytes of the largest block with [`crate::model::ModelFiles::with_own_formats`], other matrices in `others`.
    pub fn own_block_bytes(&self, others: WeightFormat) -> u64 {
        let bytes = self.layouts().map(|layout| {
            let own = |spec: &TensorSpec| own_format_of(self.gguf(), spec).unwrap_or(others);
            layout.bytes(own)
        });
        bytes.max().unwrap_or(0)
    }

    pub(super) fn find_own_format(&self) -> Option<WeightFormat> {
        let mut weights: HashMap<WeightFormat, usize> = HashMap::new();
        for layout in self.layouts() {
            for spec in layout.matrices() {
                if let Some(format) = own_format_of(self.gguf(), spec) {
                    *weights.entry(format).or_default() += spec.len();
                }
            }
        }
        // Of as many weights in two formats the larger, so that nothing depends on the order of a map.
        let most = weights
            .into_iter()
            .max_by_key(|(format, n)| (*n, format.bytes(16, 256)));
        most.map(|(format, _)| format)
    }

    fn layouts(&self) -> impl Iterator<Item = BlockLayout> {
        let exists = |tensor: &str| self.gguf().is_some_and(|file| file.has(tensor));
        (0..self.config.n_blocks).map(move |block| BlockLayout::new(&self.config, block, &exists))
    }

    fn gguf(&self) -> Option<&Gguf> {
        match &self.place {
            Place::Gguf { file, .. } => Some(file),
            Place::BuiltIn | Place::Folder(_) | Place::Hub(_) => None,
        }
    }
}
