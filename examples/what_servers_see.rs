//! How much of the text a server can tell from the activations that it is sent: the built-in model is run over some texts,
//! and after each block three things are tried that need nothing but the published weights.
//!
//! ```text
//! $ cargo run --release --example what_servers_see
//! after block  table of tokens  trying every token  next token
//! ```
//!
//! - *table of tokens*: every token of the vocabulary is run through the blocks once, as the first of a text, and the one that
//!   points most nearly to where the activation does is taken. It costs a look into a table.
//! - *trying every token*: the server runs the blocks for every token of the vocabulary after the tokens that it has found so
//!   far, and takes the one that comes nearest. It costs as many passes as there are tokens.
//! - *next token*: the head of the model is put behind this block. How often that names the token that the whole model
//!   would choose is what the server of the last blocks knows of the answer.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use sepal::{
    client::TextCodec,
    model::{Blocks, Cache, Ends, Engine, Hidden, ModelSource, WeightDType},
};

const TEXTS: [&str; 4] = [
    "The password of the safe is seven three nine.",
    "My name is Ann and I live at 12 Mill Road, Leeds.",
    "What is the capital of France? The capital of France is Paris.",
    "Dear Sam, I did not get the job. Please do not tell Mum.",
];

/// As the activations are sent.
const DTYPE: WeightDType = WeightDType::Bf16;

struct Model {
    blocks: Blocks,
    ends: Ends,
    /// `[vocab, hidden]`
    embeddings: Hidden,
}

/// Right guesses after one block.
#[derive(Clone, Copy, Default)]
struct Right {
    looked_up: usize,
    tried: usize,
    next: usize,
}

fn main() -> anyhow::Result<()> {
    let source = ModelSource::built_in()?;
    let codec = TextCodec::from_json(&source.tokenizer_json()?)?;
    let engine = Engine::new(None)?;
    let (n_blocks, vocab) = (source.config().n_blocks, source.config().vocab_size);
    let ends = Ends::load(&source.files_for_ends()?, DTYPE, &engine)?;
    let all: Vec<u32> = (0..u32::try_from(vocab)?).collect();
    let model = Model {
        blocks: Blocks::load(&source.files_for_span(0..n_blocks)?, 0..n_blocks, DTYPE, &engine)?,
        embeddings: ends.embed(&all)?,
        ends,
    };
    let mut right = vec![Right::default(); n_blocks as usize];
    let texts: Vec<Vec<u32>> = TEXTS
        .map(|text| codec.encode(text))
        .into_iter()
        .collect::<Result<_, _>>()?;
    // The first token is the same for all texts.
    let n_tokens: usize = texts.iter().map(|tokens| tokens.len() - 1).sum();
    let tables = model.tables(texts[0][0])?;
    for tokens in texts {
        let seen = model.activations(&tokens)?;
        let chosen = model.choices(seen.last().map_or(&[], |x| &x.data))?;
        for (right, (depth, x)) in right.iter_mut().zip((1..).zip(&seen)) {
            let next = model.choices(&x.data)?;
            right.next += count_equal(&next[1..], &chosen[1..]);
            right.looked_up += count_equal(&look_up(x, &tables[depth as usize - 1])[1..], &tokens[1..]);
            right.tried += count_equal(&model.try_every_token(x, depth, tokens[0])?[1..], &tokens[1..]);
        }
    }
    println!("{} texts, {n_tokens} tokens, each one of {vocab}", TEXTS.len());
    println!("after block  table of tokens  trying every token  next token");
    let percent = |right: usize| 100.0 * right as f64 / n_tokens as f64;
    for (depth, right) in (1..).zip(right) {
        println!(
            "{depth:11} {:14.1} % {:17.1} % {:9.1} %",
            percent(right.looked_up),
            percent(right.tried),
            percent(right.next)
        );
    }
    Ok(())
}

impl Model {
    /// What comes out of each block, as a server is sent it.
    fn activations(&self, tokens: &[u32]) -> anyhow::Result<Vec<Hidden>> {
        let mut x = self.ends.embed(tokens)?;
        let mut seen = Vec::new();
        for block in self.blocks.span() {
            self.blocks.forward(block, &mut x)?;
            seen.push(sent(&x)?);
        }
        Ok(seen)
    }

    /// The most probable token after each activation of `x`, `[tokens, hidden]`, if no block came behind it.
    fn choices(&self, x: &[f32]) -> anyhow::Result<Vec<u32>> {
        let logits = self.ends.logits(x)?;
        let best = |logits: &[f32]| {
            (0..)
                .zip(logits)
                .max_by(|a, b| a.1.total_cmp(b.1))
                .map(|(token, _)| token)
        };
        Ok(logits.chunks(self.embeddings.tokens).filter_map(best).collect())
    }

    /// After each block, what every token gives behind `first`: `[vocab, hidden]`.
    fn tables(&self, first: u32) -> anyhow::Result<Vec<Hidden>> {
        let (vocab, width) = (self.embeddings.tokens, self.embeddings.width);
        let first = self.ends.embed(&[first])?.data;
        let pairs = self.embeddings.data.chunks(width).flat_map(|token| [&*first, token]);
        let mut x = Hidden::new(pairs.collect::<Vec<_>>().concat(), vocab, 2, width)?;
        let mut tables = Vec::new();
        for block in self.blocks.span() {
            self.blocks.forward(block, &mut x)?;
            let second = x.data.chunks(2 * width).map(|pair| &pair[width..]);
            tables.push(Hidden::new(second.collect::<Vec<_>>().concat(), 1, vocab, width)?);
        }
        Ok(tables)
    }

    /// Finds the tokens behind `x`, which came out of block `depth`, one after the other. `first` is the token that all
    /// texts begin with.
    fn try_every_token(&self, x: &Hidden, depth: u32, first: u32) -> anyhow::Result<Vec<u32>> {
        let vocab = self.embeddings.tokens;
        // A sequence for each token that it could be.
        let mut cache: Cache = self.blocks.new_cache(depth as usize, vocab, x.tokens);
        let mut found = vec![first];
        let mut tried = Hidden::new(self.ends.embed(&vec![first; vocab])?.data, vocab, 1, x.width)?;
        for position in 0..x.tokens {
            for (entry, block) in (0..depth).enumerate() {
                self.blocks.step(block, &mut cache, entry, &mut tried, position)?;
            }
            if position > 0 {
                let there = &x.data[position * x.width..(position + 1) * x.width];
                let best = best_of(&sent(&tried)?, |here| -distance(here, there));
                found.push(best);
                // All sequences go on from the one that came nearest.
                cache.reorder(&vec![best as usize; vocab])?;
            }
            tried = Hidden::new(self.embeddings.data.clone(), vocab, 1, x.width)?;
        }
        Ok(found)
    }
}

/// As it arrives at a server.
fn sent(x: &Hidden) -> anyhow::Result<Hidden> {
    Ok(Hidden::from_wire(&x.to_wire(DTYPE.into())?)?)
}

/// The row of `table` that points most nearly to where each token of `x` does.
fn look_up(x: &Hidden, table: &Hidden) -> Vec<u32> {
    let length = |a: &[f32]| dot(a, a).sqrt();
    let cosine = |a: &[f32], b: &[f32]| dot(a, b) / (length(a) * length(b)).max(f32::MIN_POSITIVE);
    let rows = x.data.chunks(x.width);
    rows.map(|row| best_of(table, |entry| cosine(row, entry))).collect()
}

fn best_of(rows: &Hidden, score: impl Fn(&[f32]) -> f32) -> u32 {
    let scores = rows.data.chunks(rows.width).map(score);
    let best = (0..).zip(scores).max_by(|a, b| a.1.total_cmp(&b.1));
    best.map_or(0, |(row, _)| row)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

fn count_equal(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a == b).count()
}
