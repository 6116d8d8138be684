//! Pages: how many there are, who shares them, when they go, and what of them is known to others.

use rand::Rng;

use super::{
    page::{Home, Page},
    room::Heap,
    *,
};
use crate::model::{Hidden, cpu::Pool, testing::rng};

const SHAPE: KvShape = KvShape {
    dtype: KvDType::Bf16,
    n_kv_heads: 2,
    head_dim: 20,
};

const WIDTH: usize = SHAPE.n_kv_heads * SHAPE.head_dim;

/// Numbers of the hidden state of the model that these caches are for.
const HIDDEN: usize = 6;

fn arena(n_pages: usize) -> Arc<Arena> {
    Arena::new(SHAPE, n_pages).unwrap()
}

/// Caches tokens that are recognised by a number each, a small whole one.
fn write(cache: &mut Cache, row: usize, position: usize, tokens: &[f32]) {
    let pool = Pool::new(1).unwrap();
    for entry in &mut cache.chain {
        let numbers: Vec<f32> = tokens.iter().flat_map(|token| vec![*token; WIDTH]).collect();
        entry[row].write(&pool, position, (&numbers, &numbers, &|_, _| ()));
    }
}

/// What [`write`] wrote, of keys and values of every head.
fn read(row: &Row) -> Vec<f32> {
    let token = |position: usize| {
        let (page, slot) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
        let page = row.head(SHAPE, 1, page);
        let (keys, values) = (page.keys.to_f32_vec(), page.values.to_f32_vec());
        let key = keys[slot];
        assert!((0..SHAPE.head_dim).all(|dim| keys[dim * 16 + slot] == key));
        assert!((0..16).all(|dim| values[slot * 16 + dim] == key));
        assert!((0..4).all(|dim| values[256 + slot * 16 + dim] == key));
        key
    };
    (0..row.tokens()).map(token).collect()
}

#[test]
fn a_token_costs_a_key_and_a_value_of_every_head() {
    assert_eq!(SHAPE.bytes_per_token(), 2 * 2 * 20 * 2);
    let small = KvShape {
        dtype: KvDType::Int8,
        ..SHAPE
    };
    assert_eq!(small.bytes_per_token(), 2 * 2 * (20 + 4));
}

#[test]
fn sessions_take_pages_as_they_grow_and_give_back_what_they_rewind() {
    let arena = arena(10);
    let mut cache = Cache::new(&arena, 2, 1, 60);
    assert_eq!(arena.counts().free, 10);
    write(&mut cache, 0, 0, &[1.0; 3]);
    assert_eq!(arena.counts().free, 8);
    write(&mut cache, 0, 3, &[1.0; 57]);
    assert_eq!(arena.counts().free, 2);
    write(&mut cache, 0, 10, &[1.0]);
    assert_eq!(arena.counts().free, 8);
    drop(cache);
    assert_eq!((arena.counts().free, arena.counts().overflow), (10, 0));
}

#[test]
fn pages_beyond_the_arena_come_from_the_heap_and_go_back_to_it() {
    let arena = arena(1);
    let mut cache = Cache::new(&arena, 1, 1, 40);
    write(&mut cache, 0, 0, &[1.0; 40]);
    assert_eq!((arena.counts().free, arena.counts().overflow), (0, 2));
    drop(cache);
    assert_eq!((arena.counts().free, arena.counts().overflow), (1, 0));
}

#[test]
fn what_is_no_number_does_not_stay_in_a_page() {
    let arena = arena(1);
    let mut cache = Cache::new(&arena, 1, 1, 16);
    write(&mut cache, 0, 0, &[f32::NAN]);
    assert!(!cache.chain[0][0].head(SHAPE, 0, 0).finite);
    drop(cache);
    let mut cache = Cache::new(&arena, 1, 1, 16);
    write(&mut cache, 0, 0, &[1.0]);
    let page = cache.chain[0][0].head(SHAPE, 0, 0);
    assert!(page.finite && page.values.to_f32_vec().iter().all(|number| number.is_finite()));
}

#[test]
fn any_mix_of_writes_rewinds_reorders_and_ends_leaves_every_row_its_own_tokens_and_no_page_behind() {
    let arena = arena(30);
    let mut rng = rng(3);
    let mut sessions: Vec<(Cache, Vec<Vec<f32>>)> = Vec::new();
    for _ in 0..300 {
        if sessions.len() < 3 {
            sessions.push((Cache::new(&arena, 2, 3, 70), vec![Vec::new(); 3]));
        }
        let idx = rng.random_range(0..sessions.len());
        let (cache, expected) = &mut sessions[idx];
        match rng.random_range(0..20) {
            0 => drop(sessions.swap_remove(idx)),
            1..5 => {
                let rows: Vec<usize> = (0..3).map(|_| rng.random_range(0..3)).collect();
                cache.reorder(&rows).unwrap();
                *expected = rows.iter().map(|row| expected[*row].clone()).collect();
            }
            _ => {
                let row = rng.random_range(0..3);
                let position = rng.random_range(expected[row].len() / 2..=expected[row].len());
                let n = rng.random_range(1..30).min(70 - position);
                let tokens: Vec<f32> = (0..n).map(|_| f32::from(rng.random_range(0..200_u8))).collect();
                if n > 0 {
                    write(cache, row, position, &tokens);
                    expected[row].truncate(position);
                    expected[row].extend(tokens);
                }
            }
        }
        for (cache, expected) in &sessions {
            for (row, expected) in cache.chain.iter().flat_map(|rows| rows.iter().zip(expected)) {
                assert_eq!(&read(row), expected);
            }
        }
    }
    sessions.clear();
    let counts = arena.counts();
    assert_eq!((counts.free, counts.overflow, counts.shared), (30, 0, 0));
}

/// A session of one row that shares prefixes; its "model" makes of each token the sum of all up to it.
struct Session {
    cache: Cache,
    sum: Vec<f32>,
    computed: usize,
}

impl Session {
    fn new(arena: &Arc<Arena>, identity: &[u8]) -> Self {
        let mut cache = Cache::new(arena, 2, 1, 200);
        cache.share_prefixes(identity, (HIDDEN, WeightDType::F32));
        Self {
            cache,
            sum: Vec::new(),
            computed: 0,
        }
    }

    /// Outputs of `tokens` at `position`.
    fn step(&mut self, position: usize, tokens: &[f32], mark: Option<u64>) -> Vec<f32> {
        self.sum.truncate(position);
        let data = tokens.iter().flat_map(|token| [*token; HIDDEN]).collect();
        let mut x = Hidden::new(data, 1, tokens.len(), HIDDEN).unwrap();
        let known = self.cache.begin(&mut x, position, mark);
        let rest: Vec<f32> = tokens[known..].to_vec();
        assert_eq!(x.tokens, rest.len());
        self.computed += rest.len();
        if !rest.is_empty() {
            write(&mut self.cache, 0, position + known, &rest);
        }
        for token in tokens {
            self.sum.push(self.sum.last().unwrap_or(&0.0) + token);
        }
        let computed = &self.sum[position + known..];
        x.data = computed.iter().flat_map(|sum| [*sum; HIDDEN]).collect();
        self.cache.end_step(&mut x);
        assert_eq!(x.tokens, tokens.len());
        x.data.chunks_exact(HIDDEN).map(|token| token[0]).collect()
    }

    fn expected(&self, position: usize) -> &[f32] {
        &self.sum[position..]
    }
}

fn prompt(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7 % 31) as f32).collect()
}

#[test]
fn a_session_that_begins_as_another_computes_only_what_is_new() {
    let arena = arena(60);
    let mut first = Session::new(&arena, b"chain");
    for (position, token) in prompt(70).iter().enumerate() {
        first.step(position, &[*token], Some(0));
    }
    let mut second = Session::new(&arena, b"chain");
    let longer = [prompt(70), vec![5.0; 20]].concat();
    assert_eq!(second.step(0, &longer, Some(0)), second.expected(0));
    assert_eq!(second.computed, 90 - 64);
    assert_eq!(read(&second.cache.chain[1][0]), longer);
    // Four pages of two blocks have three users, and a fifth, that the second session filled, has two.
    assert_eq!(arena.counts().shared, 2 * (4 * 2 + 1));

    // What the second computed is known as well; to the end of a page, or not at all.
    let mut third = Session::new(&arena, b"chain");
    assert_eq!(third.step(0, &longer[..80], Some(0)), third.expected(0));
    assert_eq!(third.computed, 0);
    third.step(80, &[9.0], Some(0));
    assert_eq!(read(&third.cache.chain[0][0]), [&longer[..80], &[9.0]].concat());

    drop((first, second, third));
    let counts = arena.counts();
    assert_eq!((counts.free + counts.kept, counts.overflow, counts.shared), (60, 0, 0));
}

#[test]
fn other_chains_other_inputs_prompts_and_marks_are_not_taken_for_the_same() {
    let arena = arena(200);
    let mut first = Session::new(&arena, b"chain");
    first.step(0, &prompt(40), Some(0));
    let computed = |identity: &[u8], tokens: &[f32], mark| {
        let mut session = Session::new(&arena, identity);
        assert_eq!(session.step(0, tokens, mark), session.expected(0));
        session.computed
    };
    assert_eq!(computed(b"chain", &prompt(40), Some(0)), 8);
    assert_eq!(computed(b"other", &prompt(40), Some(0)), 40);
    assert_eq!(computed(b"chain", &prompt(40), Some(41)), 40);
    let mut changed = prompt(40);
    changed[20] += 1.0;
    assert_eq!(computed(b"chain", &changed, Some(0)), 24);
    // With deep prompts nothing is taken and nothing is made known.
    let with_prompts: Vec<f32> = prompt(40).iter().map(|token| token + 3.0).collect();
    assert_eq!(computed(b"chain", &with_prompts, None), 40);
    assert_eq!(computed(b"chain", &with_prompts, Some(0)), 40);
}

#[test]
fn rewinding_into_a_shared_page_copies_it_and_what_follows_is_known_by_what_it_is() {
    let arena = arena(100);
    let mut first = Session::new(&arena, b"");
    first.step(0, &prompt(48), Some(0));
    let mut second = Session::new(&arena, b"");
    second.step(0, &prompt(48), Some(0));
    assert_eq!(second.step(20, &[50.0; 30], Some(0)), second.expected(20));
    assert_eq!(read(&first.cache.chain[0][0]), prompt(48));
    let rewritten = [&prompt(48)[..20], &[50.0; 30]].concat();
    assert_eq!(read(&second.cache.chain[0][0]), rewritten);
    let mut third = Session::new(&arena, b"");
    assert_eq!(third.step(0, &rewritten, Some(0)), third.expected(0));
    // The outputs of the page's first tokens were not kept, so it could not be made known, nor be got past.
    assert_eq!(third.computed, 50 - 16);
}

#[test]
fn sessions_get_every_page_that_only_known_prefixes_have() {
    let arena = arena(24);
    for start in 0..4 {
        let mut session = Session::new(&arena, b"");
        session.step(0, &prompt(48 + start)[start..], Some(0));
    }
    assert!(arena.counts().kept > 0);
    let mut cache = Cache::new(&arena, 2, 1, 192);
    write(&mut cache, 0, 0, &prompt(192));
    let counts = arena.counts();
    assert_eq!((counts.free, counts.kept, counts.known, counts.overflow), (0, 0, 0, 0));
    drop(cache);
    assert_eq!(arena.counts().free, 24);
}

#[test]
fn sessions_that_keep_to_the_arena_never_take_a_page_from_the_heap() {
    // Four sessions of three rows, of one page more than two full ones, in two blocks.
    let arena = arena(4 * 2 * 3 * 3);
    let mut rng = rng(5);
    let new = || {
        let mut cache = Cache::new(&arena, 2, 3, 33);
        cache.share_prefixes(b"", (HIDDEN, WeightDType::F32));
        cache
    };
    let mut sessions = [new(), new(), new(), new()].map(|cache| (cache, 0));
    for _ in 0..400 {
        let (cache, done) = &mut sessions[rng.random_range(0..4)];
        match rng.random_range(0..12) {
            0 => (*cache, *done) = (new(), 0),
            1..5 => {
                let rows: Vec<usize> = (0..3).map(|_| rng.random_range(0..3)).collect();
                cache.reorder(&rows).unwrap();
            }
            _ => {
                let position = if rng.random_bool(0.3) { 0 } else { *done };
                let tokens = rng.random_range(1..=33).min(33 - position);
                if tokens > 0 {
                    step_all(cache, position, &prompt(33)[position..position + tokens]);
                    *done = position + tokens;
                }
            }
        }
        assert_eq!(arena.counts().overflow, 0);
    }
    drop(sessions);
    let counts = arena.counts();
    assert_eq!(counts.free + counts.kept, counts.total);
}

/// The same tokens in all rows of a session that shares prefixes.
fn step_all(cache: &mut Cache, position: usize, tokens: &[f32]) {
    let batch = cache.batch;
    let row: Vec<f32> = tokens.iter().flat_map(|token| [*token; HIDDEN]).collect();
    let mut x = Hidden::new(row.repeat(batch), batch, tokens.len(), HIDDEN).unwrap();
    let known = cache.begin(&mut x, position, Some(0));
    for row in 0..batch {
        if known < tokens.len() {
            write(cache, row, position + known, &tokens[known..]);
        }
    }
    cache.end_step(&mut x);
}

#[test]
fn a_page_that_only_a_known_prefix_shares_is_written_to_in_a_full_arena() {
    let arena = arena(2);
    let mut session = Session::new(&arena, b"");
    session.step(0, &prompt(16), None);
    drop(session);
    let mut cache = Cache::new(&arena, 2, 1, 16);
    cache.share_prefixes(b"", (HIDDEN, WeightDType::F32));
    write(&mut cache, 0, 0, &prompt(16));
    let rows: Vec<_> = cache.chain.iter().map(|rows| &rows[0].pages()[0]).collect();
    arena.offer([7; 32], rows.into_iter(), (&[], WeightDType::F32));
    assert_eq!((arena.counts().free, arena.counts().known), (0, 1));
    write(&mut cache, 0, 0, &[9.0]);
    assert_eq!((arena.counts().overflow, arena.counts().known), (0, 0));
    assert_eq!(read(&cache.chain[0][0]), [9.0]);
}

#[test]
fn a_step_that_begins_within_a_known_page_takes_over_the_rest_of_it() {
    let arena = arena(60);
    let all = prompt(70);
    let mut first = Session::new(&arena, b"");
    first.step(0, &all, Some(0));
    let mut second = Session::new(&arena, b"");
    for ends in [0, 7, 20, 21, 39, 70].windows(2) {
        let found = second.step(ends[0], &all[ends[0]..ends[1]], Some(0));
        assert_eq!(found, second.expected(ends[0]));
    }
    // Tokens 7 to 16, 21 to 32 and 39 to 64.
    assert_eq!(second.computed, 70 - (9 + 11 + 25));
    assert_eq!(read(&second.cache.chain[1][0]), all);

    // Token by token the last of every page.
    let mut third = Session::new(&arena, b"");
    for (position, token) in all.iter().enumerate() {
        assert_eq!(third.step(position, &[*token], Some(0)), third.expected(position));
    }
    assert_eq!(third.computed, 70 - 4);
    assert_eq!(read(&third.cache.chain[0][0]), all);
    // Of four pages of two blocks nobody has one of his own.
    assert_eq!(arena.counts().shared, 2 * (4 * 3));

    // Of what is taken back and comes again nothing is computed, of what comes instead all.
    assert_eq!(third.step(20, &all[20..64], Some(0)), third.expected(20));
    assert_eq!(third.computed, 70 - 4);
    assert_eq!(third.step(20, &[40.0; 20], Some(0)), third.expected(20));
    assert_eq!(third.computed, 70 - 4 + 20);
    assert_eq!(read(&third.cache.chain[1][0]), [&all[..20], &[40.0; 20]].concat());
}

const BEAMS: usize = 3;
const LENGTH: usize = 70;

/// A session of several rows that shares prefixes, and what is to be in its rows.
struct Beams {
    cache: Cache,
    rows: Vec<Vec<f32>>,
}

impl Beams {
    fn new(arena: &Arc<Arena>) -> Self {
        let mut cache = Cache::new(arena, 2, BEAMS, LENGTH);
        cache.share_prefixes(b"", (HIDDEN, WeightDType::F32));
        Self {
            cache,
            rows: vec![Vec::new(); BEAMS],
        }
    }

    /// Replaces what is in the rows from `position` on by as many `tokens` of each. How many of each were known.
    fn step(&mut self, position: usize, tokens: &[Vec<f32>]) -> usize {
        let n = tokens[0].len();
        let data = tokens.concat().iter().flat_map(|token| [*token; HIDDEN]).collect();
        let mut x = Hidden::new(data, BEAMS, n, HIDDEN).unwrap();
        let known = self.cache.begin(&mut x, position, Some(0));
        assert_eq!(x.tokens, n - known);
        let (mut computed, mut expected) = (Vec::new(), Vec::new());
        for (i, (row, new)) in self.rows.iter_mut().zip(tokens).enumerate() {
            write(&mut self.cache, i, position + known, &new[known..]);
            row.truncate(position);
            row.extend(new);
            let sums = row.iter().scan(0.0, |sum, token| {
                *sum += token;
                Some([*sum; HIDDEN])
            });
            let sums: Vec<[f32; HIDDEN]> = sums.skip(position).collect();
            expected.extend_from_slice(sums.as_flattened());
            computed.extend_from_slice(sums[known..].as_flattened());
        }
        x.data = computed;
        self.cache.end_step(&mut x);
        assert_eq!(x.data, expected);
        known
    }

    fn reorder(&mut self, rows: &[usize]) {
        self.cache.reorder(rows).unwrap();
        self.rows = rows.iter().map(|row| self.rows[*row].clone()).collect();
    }
}

/// The next tokens of all rows: mostly as the prompt goes on, or one row has others.
fn next_tokens(rng: &mut impl Rng, range: std::ops::Range<usize>) -> Vec<Vec<f32>> {
    let mut tokens = vec![prompt(LENGTH)[range].to_vec(); BEAMS];
    if rng.random_range(0..4) == 0 {
        let n = tokens[0].len();
        tokens[rng.random_range(0..BEAMS)][rng.random_range(0..n)] += 1.0;
    }
    tokens
}

#[test]
fn any_mix_of_sessions_of_beams_that_share_gives_each_what_is_its_own() {
    let arena = arena(200);
    let mut rng = rng(5);
    let mut sessions: Vec<Beams> = Vec::new();
    let (mut known_at_starts, mut known_within) = (0, 0);
    for round in 0..200 {
        if sessions.len() < 4 {
            sessions.push(Beams::new(&arena));
        }
        let idx = rng.random_range(0..sessions.len());
        let session = &mut sessions[idx];
        match rng.random_range(0..20) {
            0 => drop(sessions.swap_remove(idx)),
            1..5 => session.reorder(&[0; BEAMS].map(|_| rng.random_range(0..BEAMS))),
            kind => {
                let end = session.rows[0].len();
                let position = match kind {
                    5..8 => rng.random_range(end / 2..=end),
                    _ => end,
                };
                let n = rng.random_range(1..30).min(LENGTH - position);
                if n > 0 {
                    let known = session.step(position, &next_tokens(&mut rng, position..position + n));
                    match position % PAGE_TOKENS {
                        0 => known_at_starts += known,
                        _ => known_within += known,
                    }
                }
            }
        }
        // What one spoils of another is not mended.
        for session in sessions.iter().filter(|_| round % 4 == 0) {
            for (row, expected) in session
                .cache
                .chain
                .iter()
                .flat_map(|rows| rows.iter().zip(&session.rows))
            {
                assert_eq!(&read(row), expected);
            }
        }
    }
    assert!(
        known_at_starts > 0 && known_within > 0,
        "{known_at_starts} {known_within}"
    );
    sessions.clear();
    let counts = arena.counts();
    assert_eq!((counts.free + counts.kept, counts.overflow, counts.shared), (200, 0, 0));
}

#[test]
fn beams_that_part_share_all_but_the_page_they_part_in() {
    let arena = arena(60);
    let mut beams = Beams::new(&arena);
    beams.step(0, &[prompt(40), prompt(40), prompt(40)]);
    beams.reorder(&[0, 0, 0]);
    // Three pages of two blocks with three users; full ones are known as well.
    assert_eq!(arena.counts().shared, 2 * (2 * 3 + 2));
    for position in 40..44 {
        beams.step(position, &[vec![1.0], vec![2.0], vec![3.0]]);
        beams.reorder(&[2, 0, 0]);
    }
    for entry in &beams.cache.chain {
        for page_idx in 0..2 {
            let page = |row: usize| &entry[row].pages()[page_idx];
            assert!(page(0).is_of(page(1)) && page(0).is_of(page(2)));
        }
        let page = |row: usize| &entry[row].pages()[2];
        assert!(page(1).is_of(page(2)) && !page(0).is_of(page(1)));
    }
}

#[test]
fn known_outputs_beside_cards_take_no_more_of_the_heap_than_they_may() {
    let arena = arena(40);
    let page_bytes = Page::on_heap(SHAPE, Home::Index).bytes();
    // For five of the twenty pages that could be known.
    let most = 5 * page_bytes;
    arena.lock().heap = Some(Heap { most, taken: 0 });
    let taken = || arena.lock().heap.as_ref().map_or(0, |heap| heap.taken);
    let computed = |tokens: &[f32]| {
        let mut session = Session::new(&arena, b"");
        assert_eq!(session.step(0, tokens, Some(0)), session.expected(0));
        assert_eq!(taken(), arena.counts().known * page_bytes);
        assert!(taken() <= most, "{} bytes", taken());
        session.computed
    };
    let all = prompt(120);
    for start in 0..8 {
        assert_eq!(computed(&all[start..start + 80]), 80);
    }
    assert_eq!(computed(&all[7..87]), 0);
    // A prompt of more pages than can be known.
    assert_eq!(computed(&all), 120);
    assert_eq!(taken(), most);
    let mut cache = Cache::new(&arena, 2, 1, 320);
    write(&mut cache, 0, 0, &prompt(320));
    assert_eq!((taken(), arena.counts().known, arena.counts().overflow), (0, 0, 0));
}

/// Numbers of a token of a model whose keys and values are few beside them.
const WIDE: usize = 5000;

/// A session of these rows of a page through one block, which shares if it may, after its first token.
fn wide_session(arena: &Arc<Arena>, batch: usize) -> Cache {
    let mut cache = Cache::new(arena, 1, batch, PAGE_TOKENS);
    cache.share_prefixes(b"", (WIDE, WeightDType::F32));
    let mut x = Hidden::new(vec![1.0; batch * WIDE], batch, 1, WIDE).unwrap();
    assert_eq!(cache.begin(&mut x, 0, Some(0)), 0);
    (0..batch).for_each(|row| write(&mut cache, row, 0, &[1.0]));
    cache.end_step(&mut x);
    cache
}

#[test]
fn what_sessions_take_to_share_is_bounded_however_little_they_reserve() {
    let arena = arena(512);
    let bytes = |sessions: &[Cache]| {
        let tracks = sessions.iter().filter_map(|session| session.track.as_deref());
        tracks.map(Track::bytes).sum::<usize>()
    };
    for rows in [8, 512] {
        let sessions: Vec<Cache> = (0..512 / rows).map(|_| wide_session(&arena, rows)).collect();
        assert_eq!(arena.counts().free, 0);
        let taken = bytes(&sessions);
        assert!(taken <= room::LEAST, "{taken} bytes of {rows} rows");
        assert_eq!(taken > 0, rows == 8);
        // One of few rows has room where one of many has not.
        assert!(wide_session(&arena, 1).track.is_some());
        drop(sessions);
        assert!(arena.room().take(room::LEAST).is_some(), "some of it is not back");
    }
}

#[test]
fn a_session_that_there_is_no_memory_to_follow_computes_all_there_is() {
    let arena = arena(60);
    Session::new(&arena, b"").step(0, &prompt(40), Some(0));
    let all = arena.room().take(room::LEAST).unwrap();
    let computed = || {
        let mut session = Session::new(&arena, b"");
        assert_eq!(session.step(0, &prompt(40), Some(0)), session.expected(0));
        session.computed
    };
    assert_eq!(computed(), 40);
    drop(all);
    assert_eq!(computed(), 8);
}
