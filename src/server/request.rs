//! Bytes become requests that cannot be wrong: chains of blocks we serve, tensors of the right shape. Nothing is computed.

use std::{ops::Range, sync::Arc};

use sepal_protocol::{
    metadata::{StepMetadata, tensor_order},
    msgpack::{PythonText, Value},
    proto,
    record::BlockUid,
    tensor::{DType, WireTensor},
};

use super::{error::RequestError, piece::Piece};
use crate::model::{AdapterId, Blocks, Hidden};

/// Longest chain in one request, in blocks. Chains may repeat blocks, so the span does not bound them; no model has
/// nearly as many.
const MAX_CHAIN: usize = 1024;
/// Longest piece of a request that an error text repeats, in characters.
const MAX_QUOTED: usize = 200;

/// Deep prompts: for every block of the chain something to add to its input (`client/ptune.py`).
#[derive(Debug)]
pub(crate) struct Prompts {
    /// `[blocks, batch or 1, prefix, hidden]`.
    data: Vec<f32>,
    batch: usize,
    prefix: usize,
    width: usize,
}

/// The tensors of `rpc_inference`.
#[derive(Debug)]
pub(crate) struct StepTensors {
    pub(crate) x: Hidden,
    pub(crate) prompts: Option<Prompts>,
    /// Cache row that each batch row continues; `None` when the client sent none.
    pub(crate) rows: Option<Vec<usize>>,
}

/// The blocks a chain uid such as `P.3 P.4` names, in order.
///
/// Like Petals, order and duplicates are the client's business; only that each block is served is checked.
///
/// # Errors
/// Names the first uid that is not in `span` under `prefix`.
pub(crate) fn parse_chain(uid: &str, prefix: &str, span: &Range<u32>) -> Result<Arc<[u32]>, RequestError> {
    let mut chain = Vec::new();
    for piece in uid.split(' ') {
        let served = piece
            .parse::<BlockUid>()
            .ok()
            .filter(|uid| uid.prefix() == prefix && span.contains(&uid.block()));
        match served {
            Some(uid) if chain.len() < MAX_CHAIN => chain.push(uid.block()),
            _ => {
                return Err(RequestError::UnknownBlock {
                    uid: piece.chars().take(MAX_QUOTED).collect(),
                });
            }
        }
    }
    Ok(chain.into())
}

/// `points` must be a number or absent.
///
/// # Errors
/// Names the RPC, as Petals does.
pub(crate) fn check_points(metadata: &StepMetadata, method: &'static str) -> Result<(), RequestError> {
    if metadata.has_valid_points() {
        Ok(())
    } else {
        Err(RequestError::BadPoints {
            method,
            got: PythonText(metadata.points.as_ref()).to_string(),
        })
    }
}

/// The adapter that a request wants.
///
/// # Errors
/// Names the adapter, if there is none of that name.
pub(crate) fn find_adapter(metadata: &StepMetadata, blocks: &Blocks) -> Result<Option<AdapterId>, RequestError> {
    let Some(name) = metadata.active_adapter.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    match blocks.adapter(name) {
        Some(adapter) => Ok(Some(adapter)),
        None => Err(RequestError::UnknownAdapter { name: name.to_owned() }),
    }
}

/// The tensors of a request in the order that its `structure` (`args_structure` of the metadata) gives them.
///
/// # Errors
/// When there are fewer than `expected`, or the structure names tensors that are not there.
pub(crate) fn ordered<'a>(
    tensors: &'a [proto::Tensor],
    structure: Option<&Value>,
    expected: usize,
) -> Result<Vec<&'a proto::Tensor>, RequestError> {
    let order = tensor_order(structure, tensors.len())?;
    if order.len() < expected {
        return Err(RequestError::TooFewTensors {
            expected,
            got: order.len(),
        });
    }
    Ok(order.into_iter().map(|index| &tensors[index]).collect())
}

/// Decodes and checks the three tensors of an inference step over `n_blocks` blocks of width `width`.
///
/// # Errors
/// Too few tensors, a wrong dtype or shape, undecodable bytes.
pub(crate) fn step_tensors(
    tensors: &[&proto::Tensor],
    n_blocks: usize,
    width: usize,
) -> Result<StepTensors, RequestError> {
    let hypo = WireTensor::decode(tensors[2])?;
    if hypo.dtype != DType::I64 {
        return Err(RequestError::BadHypoDtype {
            dtype: hypo.dtype.as_str().to_string(),
        });
    }
    let x = hidden(tensors[0], "hidden_states", width)?;
    let prompts = prompts(tensors[1], n_blocks, &x)?;
    let rows = rows(&hypo, x.batch)?;
    Ok(StepTensors { x, prompts, rows })
}

/// Decodes `[batch, tokens, hidden]` activations of any float type.
///
/// # Errors
/// Names the tensor and what was expected of it.
pub(crate) fn hidden(tensor: &proto::Tensor, name: &'static str, width: usize) -> Result<Hidden, RequestError> {
    let tensor = decode_floats(tensor, name)?;
    match tensor.shape[..] {
        [0, _, _] => Err(RequestError::EmptyBatch),
        [_, _, last] if last == width => Ok(Hidden::from_wire(&tensor)?),
        _ => Err(RequestError::BadShape {
            name,
            got: tensor.shape,
            expected: format!("[batch, tokens, {width}]"),
        }),
    }
}

/// Decodes the gradient by the output of a chain that `x` goes into.
///
/// # Errors
/// As [`hidden`], and when it has another shape than `x`.
pub(crate) fn gradient(tensor: &proto::Tensor, x: &Hidden) -> Result<Hidden, RequestError> {
    let gradient = hidden(tensor, "grad_outputs", x.width)?;
    if (gradient.batch, gradient.tokens) == (x.batch, x.tokens) {
        Ok(gradient)
    } else {
        Err(RequestError::BadShape {
            name: "grad_outputs",
            got: vec![gradient.batch, gradient.tokens, gradient.width],
            expected: format!("[{}, {}, {}]", x.batch, x.tokens, x.width),
        })
    }
}

fn decode_floats(tensor: &proto::Tensor, name: &'static str) -> Result<WireTensor, RequestError> {
    let tensor = WireTensor::decode(tensor)?;
    if tensor.dtype.is_float() {
        return Ok(tensor);
    }
    Err(RequestError::NotFloat {
        name,
        dtype: tensor.dtype.as_str(),
    })
}

/// Decodes deep prompts for inputs like `x`; `None` when the tensor is empty.
///
/// # Errors
/// Unless they are `[n_blocks, batch or 1, prefix ≤ tokens, hidden]`.
pub(crate) fn prompts(tensor: &proto::Tensor, n_blocks: usize, x: &Hidden) -> Result<Option<Prompts>, RequestError> {
    let tensor = decode_floats(tensor, "prompts")?;
    if tensor.shape.contains(&0) {
        return Ok(None);
    }
    match tensor.shape[..] {
        [blocks, batch, prefix, width]
            if blocks == n_blocks && (batch == 1 || batch == x.batch) && prefix <= x.tokens && width == x.width =>
        {
            Ok(Some(Prompts {
                data: tensor.to_f32_vec(),
                batch,
                prefix,
                width,
            }))
        }
        _ => Err(RequestError::BadShape {
            name: "prompts",
            got: tensor.shape,
            expected: format!("[{n_blocks}, {} or 1, up to {} tokens, {}]", x.batch, x.tokens, x.width),
        }),
    }
}

fn rows(hypo: &WireTensor, batch: usize) -> Result<Option<Vec<usize>>, RequestError> {
    if hypo.shape.contains(&0) {
        return Ok(None);
    }
    let row = |id: i64| usize::try_from(id).ok().filter(|row| *row < batch);
    let ids: Option<Vec<usize>> = hypo.to_i64_vec().and_then(|ids| ids.into_iter().map(row).collect());
    match ids {
        Some(ids) if ids.len() == batch => Ok(Some(ids)),
        _ => Err(RequestError::BadHypoIds { batch }),
    }
}

impl Prompts {
    /// Positions that prompts are added to, in tokens.
    pub(crate) fn prefix(&self) -> usize {
        self.prefix
    }

    /// The gradient by one block's prompts, `[batch, prefix, hidden]`: that by the first positions of its input.
    pub(crate) fn gradient(&self, by_input: &Hidden) -> Vec<f32> {
        let row_len = by_input.tokens * by_input.width;
        let rows = by_input.data.chunks_exact(row_len);
        rows.flat_map(|row| &row[..self.prefix * self.width]).copied().collect()
    }

    /// Adds the prompts of the chain's block number `index` to the first positions of every row of `x`.
    pub(crate) fn add_to(&self, index: usize, x: &mut Hidden) {
        let all = (0..x.batch, 0..x.tokens);
        self.add_to_part(index, x, all);
    }

    /// The same for those of the rows and positions that are in `piece`.
    pub(crate) fn add_to_piece(&self, index: usize, x: &mut Hidden, piece: &Piece) {
        self.add_to_part(index, x, (piece.rows(), piece.tokens()));
    }

    fn add_to_part(&self, index: usize, x: &mut Hidden, (rows, tokens): (Range<usize>, Range<usize>)) {
        let row_len = self.prefix * self.width;
        let numbers = tokens.start.min(self.prefix) * self.width..tokens.end.min(self.prefix) * self.width;
        for row in rows {
            let source_row = index * self.batch + if self.batch == 1 { 0 } else { row };
            let source = &self.data[source_row * row_len..][numbers.clone()];
            let target = &mut x.data[row * x.tokens * x.width..][numbers.clone()];
            for (value, prompt) in target.iter_mut().zip(source) {
                *value += prompt;
            }
        }
    }
}
