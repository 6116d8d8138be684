//! A matrix of weights on a card, in any format: taken from one of the CPU, so that both multiply by the same numbers.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    pack::{Layout, PANEL, place_of},
    thread_per_item,
};
use crate::model::{
    WeightDType, WeightFormat,
    cpu::Engine,
    cuda::{CudaError, device::Device, launch::Argument, memory::Buffer},
    linear::Matrix,
};

/// Rows that are widened at a time at most: a grid has no more lines.
pub(super) const MAX_ROWS: usize = 1 << 15;

/// Columns that a thread widens; as in `widen.cu`.
const COLUMNS: usize = 8;

/// Weights `[rows, cols]` on a card.
#[derive(Debug)]
pub(crate) struct CardMatrix {
    pub(super) layout: Layout,
    memory: Buffer<u8>,
}

impl CardMatrix {
    /// The weights of `matrix`, the same numbers in the same format.
    ///
    /// # Errors
    /// When the card has no memory for them.
    pub(crate) fn of(matrix: &Matrix, engine: &Engine, device: &Arc<Device>) -> Result<Self, CudaError> {
        let layout = Layout::new(matrix.format(), matrix.rows(), matrix.cols());
        let parts = layout.parts();
        let mut bytes = vec![0; parts[3]];
        {
            let n_panels = layout.padded_rows() / PANEL;
            let (codes, rest) = bytes.split_at_mut(parts[1]);
            let (scales, factors) = rest.split_at_mut(parts[2] - parts[1]);
            let mut all = [codes, scales, factors]
                .into_iter()
                .zip(layout.row_bytes)
                .map(|(part, row)| {
                    let panels = part[..row * layout.padded_rows()].chunks_mut((row * PANEL).max(1));
                    let mut panels: Vec<Mutex<&mut [u8]>> = panels.map(Mutex::new).collect();
                    panels.resize_with(n_panels, || Mutex::new(&mut []));
                    panels
                });
            let all: [Vec<Mutex<&mut [u8]>>; 3] = std::array::from_fn(|_| all.next().unwrap_or_default());
            engine.pool.run(n_panels, &|i| {
                let mut parts = [0, 1, 2].map(|part| all[part][i].lock().unwrap_or_else(PoisonError::into_inner));
                layout.pack(matrix.panel(i), parts.each_mut().map(|part| &mut ***part));
            });
        }
        Ok(Self {
            layout,
            memory: Buffer::from_slice(device, &bytes)?,
        })
    }

    pub(crate) fn rows(&self) -> usize {
        self.layout.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.layout.cols
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        self.memory.device()
    }

    /// Where it begins.
    pub(super) fn address(&self) -> u64 {
        self.memory.all().address()
    }

    /// Where the codes, the scales, and the factors of scales are.
    pub(super) fn parts(&self) -> [Argument; 3] {
        let [codes, scales, factors, end] = self.layout.parts();
        let part = |from: usize, to: usize| match from == to {
            true => Argument::NULL,
            false => Argument::from(self.memory.view(from..to)),
        };
        [part(codes, scales), part(scales, factors), part(factors, end)]
    }

    /// The weights row after row, exactly what few tokens are multiplied by.
    ///
    /// # Errors
    /// When the card is lost, or has no memory to widen them.
    pub(crate) fn to_f32(&self) -> Result<Vec<f32>, CudaError> {
        let Layout {
            format,
            rows,
            cols,
            stride,
            ..
        } = self.layout;
        let mut numbers = vec![0.0; rows * stride];
        match format {
            WeightFormat::F32 => self.memory.download(0, bytemuck::cast_slice_mut(&mut numbers))?,
            WeightFormat::Bf16 | WeightFormat::F16 => {
                let mut bits = vec![0_u16; rows * stride];
                self.memory.download(0, bytemuck::cast_slice_mut(&mut bits))?;
                for (numbers, bits) in numbers.chunks_exact_mut(stride).zip(bits.chunks_exact(stride)) {
                    for (column, number) in numbers.iter_mut().enumerate() {
                        let bits = bits[place_of(column, stride)];
                        *number = match format {
                            WeightFormat::F16 => half::f16::from_bits(bits).to_f32(),
                            _ => half::bf16::from_bits(bits).to_f32(),
                        };
                    }
                }
            }
            _ => {
                for (i, numbers) in numbers.chunks_mut(MAX_ROWS * stride).enumerate() {
                    let wide = Buffer::<f32>::temporary(self.device(), numbers.len())?;
                    self.widen(WeightDType::F32, (i * MAX_ROWS, numbers.len() / stride), (&wide).into())?;
                    wide.download(0, numbers)?;
                }
            }
        }
        Ok(numbers
            .chunks_exact(stride)
            .flat_map(|row| &row[..cols])
            .copied()
            .collect())
    }

    /// Starts to write `rows` quantised rows from `first` on as single numbers, all columns of each, to `out`, which begins at a
    /// multiple of 16 bytes. What f16 has no number for becomes its largest.
    ///
    /// # Errors
    /// When the card refuses.
    ///
    /// # Panics
    /// If the format is one of single numbers.
    pub(super) fn widen(&self, to: WeightDType, (first, rows): (usize, usize), out: Argument) -> Result<(), CudaError> {
        macro_rules! kernel {
            ($program:literal) => {
                match to {
                    WeightDType::F32 => concat!($program, "/widen_to_f32"),
                    WeightDType::Bf16 => concat!($program, "/widen_to_bf16"),
                    WeightDType::F16 => concat!($program, "/widen_to_f16"),
                }
            };
        }
        let kernel = match self.layout.format {
            WeightFormat::Q8_0 => kernel!("linear_q8_0"),
            WeightFormat::Q4_0 => kernel!("linear_q4_0"),
            WeightFormat::Q4K => kernel!("linear_q4_k"),
            WeightFormat::Nf4 => kernel!("linear_nf4"),
            WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => panic!("single numbers are not widened"),
        };
        let [codes, scales, factors] = self.parts();
        let eights = self.layout.stride / COLUMNS;
        self.device().launch(
            kernel,
            thread_per_item(eights, rows),
            &[
                codes,
                scales,
                factors,
                (first as u32).into(),
                (eights as u32).into(),
                out,
            ],
        )
    }
}
