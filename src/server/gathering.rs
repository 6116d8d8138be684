//! Streamed passes on their way in: a request is put together from its parts, within memory that is kept for what nobody has
//! decoded yet. What is computed of it then is `pass.rs`'s business.
//!
//! A request reserves before its parts are read: with its first message what all its tensors but the last come to, which
//! are as large as the first (activations, and the gradient by them); with the last one, the deep prompts, what those come
//! to, if there are any. That is another memory: whoever has some of it waits for no more, so that nobody waits for ever.
//! Only then it waits for its turn and for the memory of its pass; who has that never waits here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sepal_protocol::{
    message::decode,
    proto,
    tensor::{DType, Joiner},
};

use super::{
    error::RequestError,
    guests::Origin,
    memory::{Lease, Memory},
};
use crate::p2p::{PeerId, StreamReceiver};

/// Tensors of a request that are kept; more are refused.
const MAX_TENSORS: usize = 16;

/// Bytes of a request that are no numbers: uids and metadata of the messages that tensors begin with, code books.
const REST: usize = 512 << 10;

/// The memory of all streamed requests to a span that are not decoded yet. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Undecoded {
    /// Of their activations, and gradients by those.
    activations: Memory,
    prompts: Memory,
    /// Most bytes of one request.
    max_request: usize,
    /// What each peer may have at a time of that of activations; own ones may have all of it.
    shares: Arc<Mutex<HashMap<PeerId, Memory>>>,
}

/// A request that is there, and what pays for its bytes.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) tensors: Vec<proto::Tensor>,
    /// Held for its `Drop`, which comes after that of the tensors; unary requests are small and have none.
    _room: Option<Room>,
}

/// What one request has reserved.
#[derive(Debug)]
struct Room {
    undecoded: Undecoded,
    origin: Origin,
    /// Bytes that may come in all, and those of them that did not yet.
    max: usize,
    left: usize,
    _activations: Lease,
    prompts: Option<Lease>,
    /// Given back last: the next one of the same peer then finds what this one had.
    _share: Option<Lease>,
}

/// A request that is put together.
struct Parts {
    joiner: Joiner,
    tensors: Vec<proto::Tensor>,
    room: Room,
}

impl Undecoded {
    /// `bytes` for all requests together, half of them for deep prompts, and at most `max_request` for one.
    pub(crate) fn new(bytes: u64, max_request: usize) -> Self {
        Self {
            activations: Memory::new(bytes / 2),
            prompts: Memory::new(bytes / 2),
            max_request,
            shares: Arc::default(),
        }
    }

    /// Bytes that nobody has reserved.
    pub(crate) fn untaken(&self) -> u64 {
        self.activations.free_bytes() + self.prompts.free_bytes()
    }

    /// Whether nothing is reserved.
    #[cfg(test)]
    pub(crate) fn is_free(&self) -> bool {
        self.activations.is_free() && self.prompts.is_free()
    }

    /// All of it.
    #[cfg(test)]
    pub(crate) async fn take_all(&self) -> Vec<Lease> {
        let mut leases = Vec::new();
        for memory in [&self.activations, &self.prompts] {
            leases.push(memory.lease(memory.max(), Duration::MAX).await.unwrap());
        }
        leases
    }

    /// How many wait, for their own peer's requests or for others.
    #[cfg(test)]
    pub(crate) fn n_waiting(&self) -> usize {
        let shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let memories = shares.values().chain([&self.activations, &self.prompts]);
        memories.map(Memory::n_waiting).sum()
    }

    /// What all requests of a peer may have: half of what there is, so that there is some for the next one.
    fn share(&self, peer: PeerId) -> Memory {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.retain(|_, share| share.is_shared());
        let share = || Memory::new(self.activations.max().taken / 2);
        shares.entry(peer).or_insert_with(share).clone()
    }

    /// Waits in line for a request of `n_alike` tensors like `first`; own ones go before those of others. Where nobody says
    /// what comes first, it may be anything.
    async fn enter(&self, origin: Origin, first: Option<&proto::Tensor>, n_alike: usize) -> Result<Room, RequestError> {
        let max = first.map_or(usize::MAX, |first| n_bytes(first).saturating_mul(n_alike));
        let max = max.saturating_add(REST).min(self.max_request);
        let _share = match origin.own {
            true => None,
            false => Some(reserve(&self.share(origin.peer), max, false).await?),
        };
        Ok(Room {
            undecoded: self.clone(),
            origin,
            max,
            left: max,
            _activations: reserve(&self.activations, max, origin.own).await?,
            prompts: None,
            _share,
        })
    }
}

/// Waits in line for `bytes`. Who needs more than there is waits for all of it, and is alone then: nothing that could be
/// computed is too large to come in, and what is over is no more than as much again.
///
/// # Errors
/// Never: so much is free some time.
///
/// # Cancel safety
/// Dropping the future gives up the place in the line.
async fn reserve(memory: &Memory, bytes: usize, own: bool) -> Result<Lease, RequestError> {
    let bytes = memory.max().taken.min(bytes as u64);
    memory.lease_in_turn(bytes, (Duration::MAX, own)).await
}

/// What the numbers of a tensor take at most on their way: in their own type, or in as many bytes as a float32. All
/// compressions take less, and bfloat16 may come so.
fn n_bytes(tensor: &proto::Tensor) -> usize {
    let dims = tensor.size.iter().map(|dim| *dim as usize);
    let number = DType::from_name(&tensor.dtype).map_or(0, DType::size);
    dims.fold(number.max(size_of::<f32>()), usize::saturating_mul)
}

impl Room {
    /// Makes room for a tensor that begins, if it is not reserved yet: once for a request.
    async fn begin(&mut self, tensor: &proto::Tensor) -> Result<(), RequestError> {
        let bytes = n_bytes(tensor);
        if bytes <= self.left || self.prompts.is_some() {
            return Ok(());
        }
        let more = bytes.min(self.undecoded.max_request - self.max);
        self.prompts = Some(reserve(&self.undecoded.prompts, more, self.origin.own).await?);
        self.max += more;
        self.left += more;
        Ok(())
    }

    /// So many bytes came.
    fn take(&mut self, bytes: usize) -> Result<(), RequestError> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or(RequestError::Oversized { max: self.max })?;
        Ok(())
    }
}

impl Parts {
    async fn add(&mut self, message: Vec<proto::Tensor>, n_bytes: usize) -> Result<(), RequestError> {
        let mut bytes: usize = message.iter().map(|part| part.buffer.len()).sum();
        for tensor in message.iter().filter(|part| !part.dtype.is_empty()) {
            self.room.begin(tensor).await?;
            // Its data may stay where it is until the request is whole, and keep all of the message with it.
            bytes = n_bytes;
        }
        self.room.take(bytes)?;
        for part in message {
            self.tensors.extend(self.joiner.push(part)?);
        }
        Ok(())
    }
}

impl Gathered {
    /// What came in one message.
    pub(crate) fn whole(tensors: Vec<proto::Tensor>) -> Self {
        Self { tensors, _room: None }
    }
}

/// Puts the tensors of a streamed request together, of which the first message came: `n_bytes` of them.
///
/// `n_alike` tensors are as large as its first one; `None` if that is not known.
///
/// # Errors
/// When the parts make no tensors or are of several requests, or more of them come than were told.
pub(crate) async fn gather(
    (undecoded, origin): (&Undecoded, Origin),
    (first, n_bytes): (proto::ExpertRequest, usize),
    n_alike: Option<usize>,
    requests: &mut StreamReceiver,
) -> Result<Option<Gathered>, RequestError> {
    let alike = first.tensors.first().filter(|_| n_alike.is_some());
    let room = undecoded.enter(origin, alike, n_alike.unwrap_or_default()).await?;
    let mut parts = Parts {
        joiner: Joiner::new(undecoded.max_request, MAX_TENSORS),
        tensors: Vec::new(),
        room,
    };
    let uid = first.uid;
    parts.add(first.tensors, n_bytes).await?;
    loop {
        match requests.recv().await {
            Ok(Some(bytes)) => {
                let n_bytes = bytes.len();
                let message: proto::ExpertRequest = decode("ExpertRequest", bytes)?;
                parts.add(message.tensors, n_bytes).await?;
                if message.uid != uid {
                    return Err(RequestError::MixedUids);
                }
            }
            Ok(None) => break,
            // The caller left; there is nobody to answer.
            Err(_) => return Ok(None),
        }
    }
    let Parts {
        joiner,
        mut tensors,
        room,
    } = parts;
    tensors.extend(joiner.finish()?);
    Ok(Some(Gathered {
        tensors,
        _room: Some(room),
    }))
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    const MIB: usize = 1 << 20;

    fn origin(own: bool) -> Origin {
        let peer = PeerId::random();
        Origin { peer, own }
    }

    /// Of so many bytes.
    fn tensor(bytes: usize) -> proto::Tensor {
        proto::Tensor {
            size: vec![1, 1, u32::try_from(bytes / 4).unwrap()],
            dtype: "float32".to_owned(),
            ..proto::Tensor::default()
        }
    }

    #[tokio::test]
    async fn one_peer_leaves_room_for_the_next_and_own_ones_need_not() {
        let undecoded = Undecoded::new(16 * MIB as u64, 8 * MIB);
        let (crowd, other, own) = (origin(false), origin(false), origin(true));
        let tensor = tensor(3 * MIB);
        let first = undecoded.enter(crowd, Some(&tensor), 1).await.unwrap();
        let mut second = Box::pin(undecoded.enter(crowd, Some(&tensor), 1));
        assert!(poll!(&mut second).is_pending());
        let others = undecoded.enter(other, Some(&tensor), 1).await.unwrap();
        let mut owners = Box::pin(undecoded.enter(own, Some(&tensor), 2));
        assert!(poll!(&mut owners).is_pending());
        drop((first, others));
        let owners = owners.await.unwrap();
        assert!(poll!(&mut second).is_pending(), "own ones may have all of it");
        drop(owners);
        drop(second.await.unwrap());
        assert_eq!(undecoded.n_waiting(), 0);
        assert!(undecoded.is_free());
    }

    #[tokio::test]
    async fn prompts_are_waited_for_where_nobody_waits_for_activations() {
        let undecoded = Undecoded::new(8 * MIB as u64, 8 * MIB);
        let (x, prompts, none) = (tensor(MIB), tensor(3 * MIB), tensor(0));
        let mut rooms = Vec::new();
        for _ in 0..2 {
            rooms.push(undecoded.enter(origin(false), Some(&x), 1).await.unwrap());
        }
        let [first, second] = &mut rooms[..] else {
            unreachable!()
        };
        for room in [&mut *first, &mut *second] {
            room.begin(&x).await.unwrap();
            room.take(MIB).unwrap();
            room.begin(&none).await.unwrap();
        }
        assert!(undecoded.prompts.is_free(), "what is empty needs nothing");
        first.begin(&prompts).await.unwrap();
        first.take(3 * MIB).unwrap();
        {
            let mut waiting = Box::pin(second.begin(&prompts));
            assert!(poll!(&mut waiting).is_pending());
        }
        rooms.remove(0);
        rooms[0].begin(&prompts).await.unwrap();
        rooms[0].take(3 * MIB).unwrap();
        let error = rooms[0].take(REST + 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "request has more than the 4718592 bytes that the sizes of its tensors come to"
        );
        rooms.clear();
        assert!(undecoded.is_free());
    }

    #[tokio::test]
    async fn what_says_nothing_of_its_size_or_too_much_has_the_most_that_a_request_may_have() {
        let undecoded = Undecoded::new(4 * MIB as u64, 3 * MIB);
        let endless = proto::Tensor {
            size: vec![u32::MAX; 64],
            ..proto::Tensor::default()
        };
        for first in [None, Some(&endless)] {
            let mut room = undecoded.enter(origin(true), first, 2).await.unwrap();
            assert_eq!((room.max, undecoded.activations.free_bytes()), (3 * MIB, 0));
            room.begin(&endless).await.unwrap();
            assert_eq!(room.max, 3 * MIB);
        }
        assert!(undecoded.is_free());
    }
}
