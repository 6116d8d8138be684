//! The memory of all caches of a span: pages allocated once, taken by sessions as they grow, given back by `Drop`. What
//! nobody uses may hold known prefixes meanwhile. How many pages a session may have is not decided here; those that keep
//! to what is there never get one from the heap.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    vec::Drain,
};

use super::{
    KvShape,
    page::{Home, PAGE_TOKENS, Page},
    prefix::Index,
    room::{Heap, Room},
};
use crate::model::{
    CudaError, LoadError,
    cuda::{Buffer, Device, Piece, page_bytes},
};

/// Pages of one shape, in one or several places: on the heap, or on cards, a place for each. Those that do not fit come from
/// the heap and go back to it: blocks may be run without an arena at all.
#[derive(Debug)]
pub(crate) struct Arena {
    shape: KvShape,
    /// The cards whose pages these are; place 0 is the heap if there are none.
    cards: Vec<Arc<Device>>,
    n_pages: usize,
    state: Mutex<State>,
    room: Room,
    /// [`PageRef`]s there are.
    references: AtomicUsize,
    /// Pages of the heap there are.
    overflow: AtomicUsize,
    /// In place of a page that a [`PageRef`] gave away.
    nothing: Arc<Page>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Pages that nobody has, by place; each is the only reference.
    pub(super) free: Vec<Vec<Arc<Page>>>,
    /// For known outputs, where there are pages on cards and none of the host's.
    pub(super) heap: Option<Heap>,
    pub(super) index: Index,
}

/// How the memory of all caches of a span is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Pages the arena was made with.
    pub total: usize,
    /// Pages nobody has.
    pub free: usize,
    /// Pages that only known prefixes have: as good as free.
    pub kept: usize,
    /// Pages from the heap.
    pub overflow: usize,
    /// Pages' worth of tokens whose inputs and outputs are known.
    pub known: usize,
    /// References to pages beyond the first of each: what would be copies without sharing.
    pub shared: usize,
}

impl CacheCounts {
    /// Tokens of one block that the pages have room for that hold something nobody may take.
    pub fn used_tokens(&self) -> usize {
        let pages = (self.total + self.overflow).saturating_sub(self.free + self.kept);
        pages * PAGE_TOKENS
    }
}

/// Of several arenas together.
impl std::iter::Sum for CacheCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, counts| Self {
            total: sum.total + counts.total,
            free: sum.free + counts.free,
            kept: sum.kept + counts.kept,
            overflow: sum.overflow + counts.overflow,
            known: sum.known + counts.known,
            shared: sum.shared + counts.shared,
        })
    }
}

impl Arena {
    /// An arena of `n_pages` pages on the heap; or on cards, if there are any, in proportion to `shares`.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub(crate) fn of(
        shape: KvShape,
        (cards, shares): (&[Arc<Device>], &[usize]),
        n_pages: usize,
    ) -> Result<Arc<Self>, LoadError> {
        if cards.is_empty() {
            return Self::new(shape, n_pages).ok_or(LoadError::CacheMemory {
                bytes: (n_pages as u64).saturating_mul((PAGE_TOKENS * shape.bytes_per_token()) as u64),
            });
        }
        let total = shares.iter().sum::<usize>().max(1);
        let shares = shares.iter().copied().chain(std::iter::repeat(0));
        let on_each = cards.iter().zip(shares).map(|(card, share)| {
            let n_pages = n_pages.saturating_mul(share).div_ceil(total);
            (card.clone(), n_pages)
        });
        Self::on_cards(shape, &on_each.collect::<Vec<_>>()).map_err(LoadError::Card)
    }

    /// An arena of `n_pages` pages, all allocated and touched. `None` if there is not enough memory.
    pub(crate) fn new(shape: KvShape, n_pages: usize) -> Option<Arc<Self>> {
        let mut free = Vec::new();
        free.try_reserve_exact(n_pages).ok()?;
        for _ in 0..n_pages {
            free.push(Arc::new(Page::try_new(shape)?));
        }
        Some(Self::with(shape, Vec::new(), vec![free]))
    }

    /// An arena without pages: all come from the heap.
    #[cfg(test)]
    pub(crate) fn empty(shape: KvShape) -> Arc<Self> {
        Self::with(shape, Vec::new(), vec![Vec::new()])
    }

    /// An arena of so many pages on each of these cards. Others come from the driver.
    ///
    /// # Errors
    /// A card that has not enough memory.
    pub(crate) fn on_cards(shape: KvShape, cards: &[(Arc<Device>, usize)]) -> Result<Arc<Self>, CudaError> {
        let bytes = page_bytes(shape);
        let pages = cards.iter().enumerate().map(|(place, (card, n_pages))| {
            let buffer = Arc::new(Buffer::zeros(card, n_pages * bytes)?);
            let pieces = (0..*n_pages).map(|i| Piece::of(&buffer, i * bytes..(i + 1) * bytes));
            Ok(pieces
                .map(|piece| Arc::new(Page::on_card(piece, Home::Arena(place))))
                .collect())
        });
        let pages: Result<Vec<Vec<_>>, CudaError> = pages.collect();
        Ok(Self::with(
            shape,
            cards.iter().map(|(card, _)| card.clone()).collect(),
            pages?,
        ))
    }

    fn with(shape: KvShape, cards: Vec<Arc<Device>>, free: Vec<Vec<Arc<Page>>>) -> Arc<Self> {
        let n_pages = free.iter().map(Vec::len).sum();
        let bytes = n_pages * PAGE_TOKENS * shape.bytes_per_token();
        let heap = (!cards.is_empty()).then(|| Heap::beside_cards(bytes));
        Arc::new(Self {
            shape,
            n_pages,
            room: Room::beside(heap.as_ref().map_or(bytes, |heap| heap.most)),
            state: Mutex::new(State {
                free,
                heap,
                index: Index::default(),
            }),
            cards,
            references: AtomicUsize::new(0),
            overflow: AtomicUsize::new(0),
            nothing: Arc::new(Page::nothing()),
        })
    }

    pub(crate) fn shape(&self) -> KvShape {
        self.shape
    }

    /// For what sessions take beside pages.
    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// A page of one's own: a free one, one that a known prefix has to give up, or one from the heap.
    pub(crate) fn take(arena: &Arc<Self>) -> PageRef {
        let free = arena.lock().take_free(0);
        Self::free_or_from_heap(arena, free)
    }

    fn free_or_from_heap(arena: &Arc<Self>, free: Option<Arc<Page>>) -> PageRef {
        let page = free.unwrap_or_else(|| {
            arena.overflow.fetch_add(1, Ordering::Relaxed);
            Arc::new(Page::on_heap(arena.shape, Home::Overflow(0)))
        });
        Self::refer(arena, page)
    }

    /// As [`Arena::take`], on the card of `place`.
    ///
    /// # Errors
    /// When the card has no memory left.
    pub(crate) fn take_on_card(arena: &Arc<Self>, place: usize) -> Result<PageRef, CudaError> {
        let free = arena.lock().take_free(place);
        Self::free_or_from_driver(arena, place, free)
    }

    fn free_or_from_driver(arena: &Arc<Self>, place: usize, free: Option<Arc<Page>>) -> Result<PageRef, CudaError> {
        let page = match free {
            Some(page) => page,
            None => {
                let bytes = page_bytes(arena.shape);
                let buffer = Arc::new(Buffer::temporary(&arena.cards[place], bytes)?);
                arena.overflow.fetch_add(1, Ordering::Relaxed);
                Arc::new(Page::on_card(Piece::of(&buffer, 0..bytes), Home::Overflow(place)))
            }
        };
        Ok(Self::refer(arena, page))
    }

    /// A reference to a page that is nobody's, or is taken from the index.
    pub(super) fn refer(arena: &Arc<Self>, page: Arc<Page>) -> PageRef {
        arena.references.fetch_add(1, Ordering::Relaxed);
        PageRef {
            page,
            arena: arena.clone(),
        }
    }

    /// How the pages are used at this moment.
    pub(crate) fn counts(&self) -> CacheCounts {
        let state = self.lock();
        let overflow = self.overflow.load(Ordering::Relaxed);
        let (kept, shared_with_index) = state.index.pages();
        let free = state.free.iter().map(Vec::len).sum();
        let used = self.n_pages - free - kept + overflow;
        CacheCounts {
            total: self.n_pages,
            free,
            kept,
            overflow,
            known: state.index.len(),
            shared: (self.references.load(Ordering::Relaxed) + shared_with_index).saturating_sub(used),
        }
    }

    /// Ends a use of `page`, in whose place there is nothing then.
    fn end(&self, page: &mut Arc<Page>, state: &mut State) {
        let page = std::mem::replace(page, self.nothing.clone());
        if page.is_overflow() && Arc::strong_count(&page) == 1 {
            self.overflow.fetch_sub(1, Ordering::Relaxed);
        }
        state.give_back(page);
        self.references.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A page that is free, or that the prefix which was not used for the longest time gave up.
    pub(super) fn take_free(&mut self, place: usize) -> Option<Arc<Page>> {
        loop {
            if let Some(page) = self.free.get_mut(place).and_then(Vec::pop) {
                return Some(page);
            }
            for page in self.index.forget_oldest()? {
                self.give_back(page);
            }
        }
    }

    /// A page of the heap for known outputs. If they take all they may, that of the prefix which was not used for the longest
    /// time goes for it.
    pub(super) fn take_from_heap(&mut self, shape: KvShape) -> Option<Arc<Page>> {
        let page = Page::on_heap(shape, Home::Index);
        loop {
            let heap = self.heap.as_mut()?;
            let taken = heap.taken + page.bytes();
            if taken <= heap.most {
                heap.taken = taken;
                return Some(Arc::new(page));
            }
            for page in self.index.forget_oldest()? {
                self.give_back(page);
            }
        }
    }

    /// Ends one reference to a page of the arena. Who holds the lock and the last reference knows that nobody can make
    /// another one.
    pub(super) fn give_back(&mut self, mut page: Arc<Page>) {
        let Some(own) = Arc::get_mut(&mut page) else { return };
        match (own.home(), &mut self.heap) {
            (Home::Arena(place), _) => {
                own.retire();
                self.free[place].push(page);
            }
            (Home::Index, Some(heap)) => heap.taken -= own.bytes(),
            _ => {}
        }
    }
}

/// A use of a page. Clones share it; the last one to be dropped gives it back.
#[derive(Debug)]
pub(crate) struct PageRef {
    page: Arc<Page>,
    arena: Arc<Arena>,
}

impl PageRef {
    /// Whether it is a page of this place.
    pub(super) fn is_at(&self, place: usize) -> bool {
        matches!(self.page.home(), Home::Arena(at) | Home::Overflow(at) if at == place)
    }

    pub(crate) fn page(&self) -> &Page {
        &self.page
    }

    /// Whether both are uses of one page.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.page, &other.page)
    }

    /// Ends all these uses of one arena's pages under one lock.
    pub(super) fn end_all(uses: Drain<'_, Self>) {
        let Some(arena) = uses.as_slice().first().map(|first| first.arena.clone()) else {
            return;
        };
        let mut state = arena.lock();
        for mut each in uses {
            arena.end(&mut each.page, &mut state);
        }
    }

    /// The page, to be kept by the index beside this use of it.
    pub(super) fn shared(&self) -> Arc<Page> {
        self.page.clone()
    }

    /// The page to be written to: a copy of its own if others use it too.
    pub(crate) fn own(&mut self) -> &mut Page {
        if self.is_shared() {
            let free = self.arena.lock().take_free(0);
            // Before there was no free one, all that is known of prefixes was forgotten: this may be one's own by now.
            if free.is_some() || self.is_shared() {
                let mut fresh = Arena::free_or_from_heap(&self.arena, free);
                if let Some(copy) = Arc::get_mut(&mut fresh.page) {
                    copy.copy_from(&self.page);
                }
                *self = fresh;
            }
        }
        // References are only made from references, and this is the only one.
        Arc::get_mut(&mut self.page).unwrap_or_else(|| unreachable!("a page of one's own is shared"))
    }

    /// As [`PageRef::own`], of a page on a card.
    ///
    /// # Errors
    /// When the card has no memory for a copy, or is lost.
    pub(crate) fn own_on_card(&mut self) -> Result<(), CudaError> {
        if self.is_shared()
            && let Home::Arena(place) | Home::Overflow(place) = self.page.home()
        {
            let free = self.arena.lock().take_free(place);
            if free.is_some() || self.is_shared() {
                let fresh = Arena::free_or_from_driver(&self.arena, place, free)?;
                fresh.page.copy_on_card(&self.page)?;
                *self = fresh;
            }
        }
        Ok(())
    }

    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.page) > 1
    }
}

impl Clone for PageRef {
    fn clone(&self) -> Self {
        Arena::refer(&self.arena, self.page.clone())
    }
}

impl Drop for PageRef {
    fn drop(&mut self) {
        let has_ended = Arc::ptr_eq(&self.page, &self.arena.nothing);
        if !has_ended {
            self.arena.end(&mut self.page, &mut self.arena.lock());
        }
    }
}
