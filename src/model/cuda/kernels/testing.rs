//! What the tests of the kernels have in common.

use std::sync::Arc;

use bytemuck::Pod;

use crate::model::cuda::{Toolkit, device::Device, memory::Buffer};

/// The first card.
pub(super) fn card() -> Arc<Device> {
    Device::open(0, &Toolkit::default()).unwrap()
}

/// All that is in a buffer.
pub(super) fn downloaded<T: Pod>(buffer: &Buffer<T>) -> Vec<T> {
    let mut out = vec![T::zeroed(); buffer.len()];
    buffer.download(0, &mut out).unwrap();
    out
}

/// A test for each kind of card, from Volta to Blackwell: compiling takes a while.
mod tests {
    use super::super::{PROGRAMS, text};
    use crate::model::cuda::compiler::Compiler;

    fn compile(capability: i32) {
        let compiler = Compiler::find((12, 9), capability, &[], None).unwrap();
        for (program, ..) in PROGRAMS {
            let code = compiler.compile(program, &text(program).unwrap()).unwrap();
            assert!(!code.is_empty(), "{program} for sm_{capability}");
        }
    }

    macro_rules! tests {
        ($($name:ident: $capability:literal,)*) => {
            $(
                #[test]
                #[ignore = "needs NVIDIA's run-time compiler: scripts/test.sh cuda"]
                fn $name() {
                    compile($capability);
                }
            )*
        };
    }

    tests! {
        every_program_compiles_for_sm_70: 70,
        every_program_compiles_for_sm_80: 80,
        every_program_compiles_for_sm_86: 86,
        every_program_compiles_for_sm_89: 89,
        every_program_compiles_for_sm_90: 90,
        every_program_compiles_for_sm_100: 100,
        every_program_compiles_for_sm_120: 120,
    }
}
