//! What happens to single numbers on a card between the projections, and rows that go to experts and come back.

use super::THREADS;
use crate::model::{
    config::parts::Activation,
    cuda::{
        CudaError,
        device::Device,
        launch::{Argument, Grid},
        memory::{View, ViewMut},
    },
};

/// Blocks of threads at most; each thread goes on with the next number that nobody has.
const MAX_BLOCKS: usize = 1 << 14;

fn grid(n: usize) -> Grid {
    Grid {
        blocks: [n.div_ceil(THREADS as usize).min(MAX_BLOCKS) as u32, 1, 1],
        threads: THREADS,
        shared_bytes: 0,
    }
}

/// The activation's number in `elementwise.cu`, and its limit.
fn numbered(activation: Activation) -> [Argument; 2] {
    let (kind, limit) = match activation {
        Activation::Silu => (0, 0.0),
        Activation::Gelu => (1, 0.0),
        Activation::GeluTanh => (2, 0.0),
        Activation::Relu => (3, 0.0),
        Activation::ClampedSwiglu { limit } => (4, limit),
    };
    [Argument::from(kind), Argument::from(limit)]
}

/// `x += y`
///
/// # Errors
/// When the card refuses.
///
/// # Panics
/// If they have different sizes.
pub(crate) fn add(device: &Device, x: &mut ViewMut<'_, f32>, y: View<'_, f32>) -> Result<(), CudaError> {
    assert_eq!(x.len(), y.len(), "sums of different sizes");
    let n = Argument::from(y.len() as u64);
    device.launch("elementwise/add", grid(y.len()), &[(&*x).into(), y.into(), n])
}

/// `x := activation(x)`
///
/// # Errors
/// When the card refuses.
pub(crate) fn activate(device: &Device, activation: Activation, x: &mut ViewMut<'_, f32>) -> Result<(), CudaError> {
    let [kind, limit] = numbered(activation);
    let n = Argument::from(x.len() as u64);
    device.launch("elementwise/activate", grid(x.len()), &[(&*x).into(), n, kind, limit])
}

/// `gate := activation(gate) · up`
///
/// # Errors
/// When the card refuses.
///
/// # Panics
/// If they have different sizes.
pub(crate) fn activate_gated(
    device: &Device,
    activation: Activation,
    gate: &mut ViewMut<'_, f32>,
    up: View<'_, f32>,
) -> Result<(), CudaError> {
    assert_eq!(gate.len(), up.len(), "gate and up of different sizes");
    let [kind, limit] = numbered(activation);
    let arguments = [(&*gate).into(), up.into(), (up.len() as u64).into(), kind, limit];
    device.launch("elementwise/activate_gated", grid(up.len()), &arguments)
}

/// One block of threads for each row.
fn grid_of_rows(rows: usize) -> Grid {
    Grid {
        blocks: [rows as u32, 1, 1],
        threads: THREADS,
        shared_bytes: 0,
    }
}

/// Row r of `out` becomes row `rows[r]` of `x`; rows have `width` numbers. What `rows` says is not checked.
///
/// # Errors
/// When the card refuses.
///
/// # Panics
/// If `out` has not as many rows.
pub(crate) fn gather_rows(
    device: &Device,
    (x, width): (View<'_, f32>, usize),
    rows: View<'_, u32>,
    out: &mut ViewMut<'_, f32>,
) -> Result<(), CudaError> {
    assert_eq!(out.len(), rows.len() * width, "room for other rows");
    let arguments = [x.into(), rows.into(), (width as u32).into(), (&*out).into()];
    device.launch("elementwise/gather_rows", grid_of_rows(rows.len()), &arguments)
}

/// Adds `weights[r]` times row r of `x` to row `rows[r]` of `out`, none of which is there twice: that is not checked.
///
/// # Errors
/// When the card refuses.
///
/// # Panics
/// If `x` or `weights` are of other rows.
pub(crate) fn scatter_add_rows(
    device: &Device,
    (x, width): (View<'_, f32>, usize),
    (rows, weights): (View<'_, u32>, View<'_, f32>),
    out: &mut ViewMut<'_, f32>,
) -> Result<(), CudaError> {
    assert_eq!(x.len(), rows.len() * width, "other rows");
    assert_eq!(weights.len(), rows.len(), "weights of other rows");
    let arguments = [
        x.into(),
        rows.into(),
        weights.into(),
        (width as u32).into(),
        (&*out).into(),
    ];
    device.launch("elementwise/scatter_add_rows", grid_of_rows(rows.len()), &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        cuda::{
            kernels::testing::{card, downloaded},
            memory::Buffer,
        },
        testing::{assert_close, random, rng},
    };

    #[test]
    #[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
    fn activations_and_sums_equal_those_of_the_cpu() {
        let (device, mut rng) = (card(), rng(2));
        let activations = [
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Relu,
            Activation::ClampedSwiglu { limit: 0.7 },
        ];
        for n in [1, 255, 1000] {
            let x: Vec<f32> = random(&mut rng, n).into_iter().map(|x| 4.0 * x).collect();
            let y = random(&mut rng, n);
            let up = Buffer::from_slice(&device, &y).unwrap();
            let mut sum = Buffer::from_slice(&device, &x).unwrap();
            add(&device, &mut sum.all_mut(), up.all()).unwrap();
            let sums: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            assert_eq!(downloaded(&sum), sums);
            for activation in activations {
                let mut plain = Buffer::from_slice(&device, &x).unwrap();
                activate(&device, activation, &mut plain.all_mut()).unwrap();
                let mut expected = x.clone();
                activation.apply(&mut expected);
                assert_close(&downloaded(&plain), &expected, 3e-6);
                let mut gated = Buffer::from_slice(&device, &x).unwrap();
                activate_gated(&device, activation, &mut gated.all_mut(), up.all()).unwrap();
                let mut expected = x.clone();
                activation.apply_gated(&mut expected, &y);
                assert_close(&downloaded(&gated), &expected, 3e-6);
            }
        }
    }

    #[test]
    #[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
    fn rows_go_to_experts_and_what_comes_back_is_added_to_them_by_weight() {
        let (device, mut rng) = (card(), rng(3));
        let (width, rows) = (70, [4_u32, 0, 3]);
        let x = random(&mut rng, 5 * width);
        let on_card = Buffer::from_slice(&device, &x).unwrap();
        let chosen = Buffer::from_slice(&device, &rows).unwrap();
        let mut gathered = Buffer::zeros(&device, rows.len() * width).unwrap();
        gather_rows(&device, (on_card.all(), width), chosen.all(), &mut gathered.all_mut()).unwrap();
        let expected: Vec<f32> = rows
            .iter()
            .flat_map(|row| &x[*row as usize * width..][..width])
            .copied()
            .collect();
        assert_eq!(downloaded(&gathered), expected);

        let weights = [0.5_f32, 2.0, -1.0];
        let factors = Buffer::from_slice(&device, &weights).unwrap();
        let mut out = Buffer::from_slice(&device, &x).unwrap();
        let taken = (chosen.all(), factors.all());
        scatter_add_rows(&device, (gathered.all(), width), taken, &mut out.all_mut()).unwrap();
        let mut expected = x.clone();
        for (row, weight) in rows.iter().zip(weights) {
            let places = *row as usize * width..(*row as usize + 1) * width;
            expected[places].iter_mut().for_each(|x| *x += weight * *x);
        }
        assert_close(&downloaded(&out), &expected, 1e-6);
    }
}
