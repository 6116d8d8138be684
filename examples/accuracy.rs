//! What each weight format costs in accuracy: logits and blocks of a small model against those of float32.
//!
//! ```text
//! $ cargo run --release --example accuracy            # the built-in model
//! $ cargo run --release --example accuracy -- MODEL "Some text." "Another text."
//! format    bits/weight  KL (nats)  top-1 agreement  max error of a block
//! …
//! q8_0             8.50   0.000013          100.0 %                0.0697
//! …
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]
#![expect(clippy::disallowed_methods, reason = "an example reads its environment itself")]

use sepal::{
    client::TextCodec,
    model::{
        Blocks, Ends, Engine, HubOptions, ModelSource, Precision, WeightDType, WeightFormat,
        accuracy::{LogitDistance, logit_distance, logits, max_error},
    },
};

const TEXTS: [&str; 4] = [
    "What is 2+2?\n2 + 2 = 4.",
    "How much is seven plus five?\n7 + 5 = 12.",
    "What is the capital of France?\nThe capital of France is Paris.",
    "Who are you?\nI am a small model.",
];

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "demo".to_owned());
    let given: Vec<String> = arguments.collect();
    let texts: Vec<&str> = match given.is_empty() {
        true => TEXTS.to_vec(),
        false => given.iter().map(String::as_str).collect(),
    };
    let source = ModelSource::resolve(&name, &HubOptions::from_variables(|name| std::env::var(name).ok()))?;
    let codec = TextCodec::from_json(&source.tokenizer_json()?)?;
    let texts: Result<Vec<Vec<u32>>, _> = texts.iter().map(|text| codec.encode(text)).collect();
    let measure = Measure::new(source, texts?)?;
    println!("format    bits/weight  KL (nats)  top-1 agreement  max error of a block");
    for format in WeightFormat::ALL {
        let (distance, error) = measure.of(format)?;
        println!(
            "{:9} {:11.2} {:10.6} {:14.1} % {error:21.4}",
            format.as_str(),
            format.bits_per_weight(),
            distance.divergence,
            distance.top_agreement * 100.0
        );
    }
    Ok(())
}

struct Measure {
    source: ModelSource,
    engine: Engine,
    ends: Ends,
    texts: Vec<Vec<u32>>,
    exact: Blocks,
    /// After every token of all texts.
    reference: Vec<f32>,
}

impl Measure {
    fn new(source: ModelSource, texts: Vec<Vec<u32>>) -> anyhow::Result<Self> {
        let engine = Engine::new(None)?;
        let ends = Ends::load(&source.files_for_ends()?, WeightDType::F32, &engine)?;
        let exact = load(&source, WeightFormat::F32, &engine)?;
        let reference = all_logits(&exact, &ends, &texts)?;
        Ok(Self {
            source,
            engine,
            ends,
            texts,
            exact,
            reference,
        })
    }

    fn of(&self, format: WeightFormat) -> anyhow::Result<(LogitDistance, f64)> {
        let blocks = load(&self.source, format, &self.engine)?;
        let found = all_logits(&blocks, &self.ends, &self.texts)?;
        let distance = logit_distance(&self.reference, &found, self.source.config().vocab_size);
        let mut error = 0.0_f64;
        for text in &self.texts {
            let mut x = self.ends.embed(text)?;
            for block in blocks.span() {
                let mut quantised = x.clone();
                self.exact.forward(block, &mut x)?;
                blocks.forward(block, &mut quantised)?;
                error = error.max(max_error(&x.data, &quantised.data));
            }
        }
        Ok((distance, error))
    }
}

fn load(source: &ModelSource, weights: WeightFormat, engine: &Engine) -> anyhow::Result<Blocks> {
    let span = 0..source.config().n_blocks;
    let dtype = WeightDType::F32;
    Ok(Blocks::load(
        &source.files_for_span(span.clone())?,
        span,
        Precision { weights, dtype },
        engine,
    )?)
}

fn all_logits(blocks: &Blocks, ends: &Ends, texts: &[Vec<u32>]) -> anyhow::Result<Vec<f32>> {
    let mut all = Vec::new();
    for text in texts {
        all.extend(logits(blocks, ends, text)?);
    }
    Ok(all)
}
