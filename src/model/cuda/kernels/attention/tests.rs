//! Attention on a card against a plain f64 loop over what is in the pages, and against itself in other steps.

use half::{bf16, f16};

use super::*;
use crate::model::{
    attention::Alibi,
    config::parts::AlibiKind,
    cuda::{
        kernels::{
            cache::page_bytes,
            testing::{card, downloaded},
        },
        testing::is_on_card,
    },
    kv::KvShape,
    testing::{assert_close, assert_same_bits, random, rng},
};

/// Keys and values of one sequence, and the queries of all of its tokens.
struct Tokens {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    pages: Vec<usize>,
}

/// Sequences with pages on a card.
struct Scene {
    device: Arc<Device>,
    heads: CardHeads,
    scoring: Scoring,
    memory: Buffer<u8>,
    sequences: Vec<Tokens>,
}

fn plain() -> Scoring {
    Scoring {
        scale: 0.3,
        softcap: None,
        window: None,
        alibi: None,
        sinks: None,
    }
}

fn heads(dtype: KvDType, [n_heads, n_kv_heads, head_dim]: [usize; 3]) -> CardHeads {
    CardHeads {
        n_heads,
        kv: KvShape {
            dtype,
            n_kv_heads,
            head_dim,
        },
    }
}

impl Scene {
    /// Sequences of so many tokens each, nothing of which is cached yet.
    fn new(heads: CardHeads, scoring: Scoring, lengths: &[usize]) -> Self {
        let (device, mut rng) = (card(), rng(5));
        let mut next = 0;
        let sequences: Vec<Tokens> = lengths
            .iter()
            .map(|length| {
                let kv = length * heads.kv.n_kv_heads * heads.kv.head_dim;
                let pages = length.div_ceil(PAGE_TOKENS);
                next += pages;
                Tokens {
                    queries: random(&mut rng, length * heads.n_heads * heads.kv.head_dim),
                    keys: random(&mut rng, kv),
                    values: random(&mut rng, kv),
                    // Not in order.
                    pages: (next - pages..next).rev().collect(),
                }
            })
            .collect();
        // What was never written is no number.
        let memory = Buffer::from_slice(&device, &vec![0xff; next * page_bytes(heads.kv)]).unwrap();
        Self {
            device,
            heads,
            scoring,
            memory,
            sequences,
        }
    }

    /// A step of some sequences: which, and the positions of its new tokens. What their queries find.
    fn step(&self, parts: &[(usize, std::ops::Range<usize>)], angles: Option<&[f32]>) -> (Vec<f32>, Vec<f32>) {
        let dim = self.heads.kv.head_dim;
        let of = |numbers: fn(&Tokens) -> &[f32], width: usize| {
            let part = |(i, range): &(usize, std::ops::Range<usize>)| {
                numbers(&self.sequences[*i])[range.start * width..range.end * width].to_vec()
            };
            let all: Vec<f32> = parts.iter().flat_map(part).collect();
            Buffer::from_slice(&self.device, &all).unwrap()
        };
        let mut queries = of(|tokens| &tokens.queries, self.heads.n_heads * dim);
        let keys = of(|tokens| &tokens.keys, self.heads.kv.n_kv_heads * dim);
        let values = of(|tokens| &tokens.values, self.heads.kv.n_kv_heads * dim);
        let sequences: Vec<Sequence> = parts
            .iter()
            .map(|(_, range)| Sequence {
                position: range.start,
                tokens: range.len(),
            })
            .collect();
        let bytes = page_bytes(self.heads.kv);
        let pages: Vec<u64> = parts
            .iter()
            .zip(&sequences)
            .flat_map(|((i, _), sequence)| &self.sequences[*i].pages[..sequence.pages()])
            .map(|page| self.memory.all().address() + (page * bytes) as u64)
            .collect();
        let pages = Buffer::from_slice(&self.device, &pages).unwrap();
        let step = Sequences::new(&self.device, self.heads, &sequences).unwrap();
        let scoring = CardScoring::of(&self.scoring, &self.device).unwrap();
        let angles = angles.map(|angles| Buffer::from_slice(&self.device, angles).unwrap());
        let turn = angles.as_ref().map(Buffer::all);
        let at = (&step, pages.all());
        let kv = [keys.all(), values.all()];
        self.heads.cache(at, turn, &mut queries.all_mut(), kv).unwrap();
        let mut out = Buffer::temporary(&self.device, queries.len()).unwrap();
        self.heads
            .attend(&scoring, at, queries.all(), &mut out.all_mut())
            .unwrap();
        (downloaded(&out), downloaded(&queries))
    }

    /// In f64, over keys and values as they are cached.
    fn exact(&self, i: usize, positions: std::ops::Range<usize>) -> Vec<f32> {
        let KvShape {
            n_kv_heads,
            head_dim: dim,
            dtype,
        } = self.heads.kv;
        let tokens = &self.sequences[i];
        let (keys, values) = (cached(&tokens.keys, dim, dtype), cached(&tokens.values, dim, dtype));
        let mut out = Vec::new();
        for position in positions {
            for head in 0..self.heads.n_heads {
                let kv_head = head * n_kv_heads / self.heads.n_heads;
                let query = &tokens.queries[(position * self.heads.n_heads + head) * dim..][..dim];
                let at =
                    |numbers: &[f32], key: usize, d: usize| f64::from(numbers[(key * n_kv_heads + kv_head) * dim + d]);
                let first = (position + 1).saturating_sub(self.scoring.window.unwrap_or(usize::MAX));
                let score = |key: usize| {
                    let dot: f64 = (0..dim).map(|d| at(&keys, key, d) * f64::from(query[d])).sum();
                    let mut score = dot * f64::from(self.scoring.scale);
                    if let Some(cap) = self.scoring.softcap {
                        score = f64::from(cap) * (score / f64::from(cap)).tanh();
                    }
                    let bias = self.scoring.alibi.as_ref().map(|alibi| alibi.bias(head, key));
                    score + f64::from(bias.unwrap_or(0.0))
                };
                let shares: Vec<f64> = (first..=position).map(|key| score(key).exp()).collect();
                let sink = self
                    .scoring
                    .sinks
                    .as_ref()
                    .map_or(0.0, |sinks| f64::from(sinks[head]).exp());
                let total = shares.iter().sum::<f64>() + sink;
                for d in 0..dim {
                    let sum: f64 = shares
                        .iter()
                        .enumerate()
                        .map(|(k, share)| share * at(&values, first + k, d))
                        .sum();
                    out.push((sum / total) as f32);
                }
            }
        }
        out
    }
}

/// As numbers are after they were cached.
fn cached(numbers: &[f32], dim: usize, dtype: KvDType) -> Vec<f32> {
    let each = |round: fn(f32) -> f32| numbers.iter().map(|x| round(*x)).collect();
    match dtype {
        KvDType::F32 => numbers.to_vec(),
        KvDType::Bf16 => each(|x| bf16::from_f32(x).to_f32()),
        KvDType::F16 => each(|x| f16::from_f32(x).to_f32()),
        KvDType::Int8 => {
            let heads = numbers.chunks_exact(dim).flat_map(|head| {
                let scale = head.iter().fold(0.0_f32, |max, x| max.max(x.abs())) / 127.0;
                head.iter().map(move |x| (x / scale).round_ties_even() * scale)
            });
            heads.collect()
        }
    }
}

const DTYPES: [KvDType; 4] = [KvDType::F32, KvDType::Bf16, KvDType::F16, KvDType::Int8];

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn few_and_many_tokens_find_what_a_plain_loop_finds_in_every_type() {
    for dtype in DTYPES {
        for shape in [[1, 1, 16], [4, 2, 40], [6, 1, 128], [2, 2, 144]] {
            let scene = Scene::new(heads(dtype, shape), plain(), &[23, 5, 70]);
            scene.step(&[(0, 0..22), (2, 0..30)], None);
            // A token, a first few, and many.
            let (found, _) = scene.step(&[(0, 22..23), (1, 0..5), (2, 30..70)], None);
            let expected = [(0, 22..23), (1, 0..5), (2, 30..70)];
            let expected: Vec<f32> = expected
                .into_iter()
                .flat_map(|(i, range)| scene.exact(i, range))
                .collect();
            assert_close(&found, &expected, 2e-5);
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn many_tokens_with_large_heads_need_no_more_shared_memory_than_every_card_has() {
    if !is_on_card(
        &[("EMULATED_SHARED", "65536")],
        many_tokens_with_large_heads_need_no_more_shared_memory_than_every_card_has,
    ) {
        return;
    }
    for dtype in DTYPES {
        for shape in [[3, 1, 128], [4, 2, 256]] {
            let scene = Scene::new(heads(dtype, shape), plain(), &[20, 47]);
            let (found, _) = scene.step(&[(0, 0..20), (1, 0..47)], None);
            let expected = [scene.exact(0, 0..20), scene.exact(1, 0..47)].concat();
            assert_close(&found, &expected, 2e-5);
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn long_sequences_are_split_and_joined() {
    for (dtype, n_heads) in [(KvDType::Bf16, 1), (KvDType::Int8, 3)] {
        for window in [None, Some(290)] {
            let scoring = Scoring { window, ..plain() };
            let scene = Scene::new(heads(dtype, [n_heads, 1, 32]), scoring, &[700, 9]);
            scene.step(&[(0, 0..698)], None);
            let (found, _) = scene.step(&[(1, 0..9), (0, 698..700)], None);
            let expected = [scene.exact(1, 0..9), scene.exact(0, 698..700)].concat();
            assert_close(&found, &expected, 2e-5);
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn scores_are_changed_as_models_want_it() {
    let alibi = |kind| Some(Alibi::new(6, kind, 0.3));
    let scorings = [
        Scoring {
            softcap: Some(0.8),
            ..plain()
        },
        Scoring {
            window: Some(7),
            ..plain()
        },
        Scoring {
            alibi: alibi(AlibiKind::Exact),
            ..plain()
        },
        Scoring {
            alibi: alibi(AlibiKind::Bfloat16),
            ..plain()
        },
        Scoring {
            sinks: Some(vec![0.5, -1.0, 2.0, 0.0, 1.0, 3.0]),
            window: Some(20),
            ..plain()
        },
    ];
    for scoring in scorings {
        let scene = Scene::new(heads(KvDType::F32, [6, 2, 16]), scoring, &[60, 301]);
        scene.step(&[(1, 0..300)], None);
        let (found, _) = scene.step(&[(0, 0..60), (1, 300..301)], None);
        let expected = [scene.exact(0, 0..60), scene.exact(1, 300..301)].concat();
        assert_close(&found, &expected, 2e-5);
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn bits_do_not_depend_on_who_else_is_in_a_step_or_on_how_a_sequence_was_cut() {
    for dtype in DTYPES {
        let scene = Scene::new(heads(dtype, [8, 2, 32]), plain(), &[300, 40, 7]);
        scene.step(&[(0, 0..290)], None);
        let width = 8 * 32;
        let (few, _) = scene.step(&[(2, 0..7), (0, 290..300)], None);
        for position in 290..300 {
            let (alone, _) = scene.step(&[(0, position..position + 1)], None);
            assert_same_bits(&alone, &few[(7 + position - 290) * width..][..width]);
        }
        let (many, _) = scene.step(&[(1, 0..40)], None);
        scene.step(&[(1, 0..21)], None);
        let (rest, _) = scene.step(&[(1, 21..40), (2, 0..1)], None);
        assert_same_bits(&rest[..19 * width], &many[21 * width..]);
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn queries_and_keys_are_turned_and_what_is_behind_the_angles_stays() {
    for (dtype, half) in [(KvDType::F32, 8), (KvDType::Int8, 3), (KvDType::F16, 5)] {
        let (n, shape) = (9, [4, 2, 16]);
        let mut scene = Scene::new(heads(dtype, shape), plain(), &[n]);
        let angles: Vec<f32> = random(&mut rng(6), n * 2 * half);
        let (found, queries) = scene.step(&[(0, 0..n)], Some(&angles));
        let turn = |numbers: &mut [f32], heads: usize| {
            for (i, head) in numbers.chunks_exact_mut(16).enumerate() {
                let (cos, sin) = angles[i / heads * 2 * half..][..2 * half].split_at(half);
                for pair in 0..half {
                    let (a, b) = (head[pair], head[pair + half]);
                    head[pair] = a * cos[pair] - b * sin[pair];
                    head[pair + half] = b * cos[pair] + a * sin[pair];
                }
            }
        };
        turn(&mut scene.sequences[0].queries, shape[0]);
        turn(&mut scene.sequences[0].keys, shape[1]);
        assert_close(&queries, &scene.sequences[0].queries, 1e-6);
        let (expected, _) = scene.step(&[(0, 0..n)], None);
        assert_close(&found, &expected, if dtype == KvDType::F32 { 1e-6 } else { 1e-3 });
    }
}

#[test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
fn a_value_that_is_no_number_is_seen_by_those_behind_it_only() {
    for dtype in DTYPES {
        for n in [10, 40] {
            let mut scene = Scene::new(heads(dtype, [2, 1, 16]), plain(), &[n]);
            scene.sequences[0].values[8 * 16 + 3] = f32::INFINITY;
            let (found, _) = scene.step(&[(0, 0..n)], None);
            let is_finite = |token: usize| found[token * 32..(token + 1) * 32].iter().all(|x| x.is_finite());
            assert!((0..8).all(is_finite) && !(8..n).any(is_finite), "{dtype:?}");
        }
    }
}
