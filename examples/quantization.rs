//! A block in each format that weights can be kept in, beside the same block in float32: the bytes of its weights, and how far
//! its output is off, in percent of the root mean square of what float32 gives. `accuracy` shows what that does to the text.
//!
//! ```text
//! $ cargo run --release --example quantization
//! block 0 of demo, 26 tokens
//! format     bytes  bits/weight  mean error  largest error
//! float32   689152        32.00       0.00 %         0.0 %
//! bfloat16  …
//! float16   345088        16.00       0.00 %         0.0 %
//! q8_0      183808         8.50       0.9… %         5.… %
//! q4_k      190464         4.62       5.… %         23.… %
//! nf4        96768         4.25       8.… %         45.… %
//! q4_0       97792         4.50       7.… %         31.… %
//! ```
//!
//! `quantization MODEL` does the same with the first block of another model: a folder, a GGUF file, or a repository in the cache
//! of Hugging Face, of which the files of that block are downloaded.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]
#![expect(clippy::disallowed_methods, reason = "an example reads its environment itself")]

use sepal::client::TextCodec;
use sepal::model::{Blocks, Ends, Engine, Hidden, HubOptions, ModelSource, Precision, WeightDType, WeightFormat};

const TEXT: &str = "What is the capital of France?\nThe capital of France is Paris.";

/// What the first block makes of `x` if its matrices are kept in this format. All else, activations too, is float32.
fn first_block(source: &ModelSource, weights: WeightFormat, engine: &Engine, x: &Hidden) -> anyhow::Result<Vec<f32>> {
    let dtype = WeightDType::F32;
    let blocks = Blocks::load(
        &source.files_for_span(0..1)?,
        0..1,
        Precision { weights, dtype },
        engine,
    )?;
    let mut x = x.clone();
    blocks.forward(0, &mut x)?;
    Ok(x.data)
}

fn root_mean_square(numbers: impl Iterator<Item = f32>, count: usize) -> f32 {
    (numbers.map(|x| x * x).sum::<f32>() / count as f32).sqrt()
}

fn main() -> anyhow::Result<()> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "demo".to_owned());
    let source = ModelSource::resolve(&model, &HubOptions::from_variables(|name| std::env::var(name).ok()))?;
    let engine = Engine::new(None)?;
    let ends = Ends::load(&source.files_for_ends()?, WeightDType::F32, &engine)?;
    let tokens = TextCodec::from_json(&source.tokenizer_json()?)?.encode(TEXT)?;
    let x = ends.embed(&tokens)?;
    println!("block 0 of {model}, {} tokens", x.tokens);
    println!("format     bytes  bits/weight  mean error  largest error");
    let exact = first_block(&source, WeightFormat::F32, &engine, &x)?;
    let size = root_mean_square(exact.iter().copied(), exact.len());
    for format in WeightFormat::ALL {
        let found = first_block(&source, format, &engine, &x)?;
        let errors = || exact.iter().zip(&found).map(|(a, b)| (a - b).abs());
        println!(
            "{:<8} {:>7} {:>12.2} {:>10.2} % {:>11.1} %",
            format.as_str(),
            source.config().block_bytes(format),
            format.bits_per_weight(),
            100.0 * root_mean_square(errors(), exact.len()) / size,
            100.0 * errors().fold(0.0, f32::max) / size,
        );
    }
    Ok(())
}
