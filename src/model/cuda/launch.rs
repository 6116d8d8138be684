//! Starting kernels: from their names to the compiled functions, and their arguments.

use std::{
    ffi::{CString, c_void},
    ptr,
};

use tracing::warn;

use super::{
    device::{Device, lock},
    driver::Handle,
    error::CudaError,
    kernels,
    memory::{Buffer, View, ViewMut},
};

/// Most arguments of a kernel.
const MAX_ARGUMENTS: usize = 32;

/// Shared memory that every kernel may have; for more the card must be asked, in bytes.
const USUAL_SHARED_BYTES: u32 = 48 << 10;

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`
const MAX_SHARED_BYTES: i32 = 8;

/// How many threads a kernel has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    /// Of each block.
    pub(crate) threads: u32,
    /// Of each block, whose size the kernel does not say itself.
    pub(crate) shared_bytes: u32,
}

/// An argument of a kernel: 4 or 8 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Argument(u64);

impl Argument {
    /// A pointer to nothing.
    pub(crate) const NULL: Self = Self(0);
}

impl From<u32> for Argument {
    fn from(number: u32) -> Self {
        Self(number.into())
    }
}

impl From<i32> for Argument {
    fn from(number: i32) -> Self {
        Self(number.cast_unsigned().into())
    }
}

impl From<f32> for Argument {
    fn from(number: f32) -> Self {
        Self(number.to_bits().into())
    }
}

impl From<u64> for Argument {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl<T: bytemuck::Pod> From<&Buffer<T>> for Argument {
    fn from(buffer: &Buffer<T>) -> Self {
        Self(buffer.all().address())
    }
}

impl<T> From<View<'_, T>> for Argument {
    fn from(view: View<'_, T>) -> Self {
        Self(view.address())
    }
}

impl<T> From<&ViewMut<'_, T>> for Argument {
    fn from(view: &ViewMut<'_, T>) -> Self {
        Self(view.address())
    }
}

impl Device {
    /// Starts `kernel`, `TEXT/FUNCTION`, behind everything that was asked for before. Only the wrappers in `kernels` call
    /// this: they know what each argument has to be.
    ///
    /// # Errors
    /// When the text does not compile or the card refuses. What goes wrong while it runs is said by the next
    /// [`Device::synchronize`].
    ///
    /// # Panics
    /// With more than 32 arguments.
    pub(crate) fn launch(&self, kernel: &'static str, grid: Grid, arguments: &[Argument]) -> Result<(), CudaError> {
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        assert!(arguments.len() <= MAX_ARGUMENTS, "{kernel} has too many arguments");
        self.enter()?;
        let function = self.function(kernel)?;
        if grid.shared_bytes > USUAL_SHARED_BYTES {
            // SAFETY: the function lives as long as the device.
            let status = unsafe {
                (self.driver.function_attribute)(function, MAX_SHARED_BYTES, grid.shared_bytes.cast_signed())
            };
            self.check(status, "asking for shared memory")?;
        }
        let mut pointers = [ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
        for (pointer, argument) in pointers.iter_mut().zip(arguments) {
            // Numbers of 4 bytes are at the start: cards and their hosts are little-endian.
            *pointer = (&raw const argument.0).cast_mut().cast();
        }
        // SAFETY: there are as many arguments as the kernel has, which copies them before this returns; the rest is up to
        // the wrapper.
        let status = unsafe {
            (self.driver.launch)(
                function,
                x,
                y,
                z,
                grid.threads,
                1,
                1,
                grid.shared_bytes,
                self.stream,
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.check(status, "starting a kernel")
    }

    /// Makes the card fail for good, as far as this process can tell: a kernel writes where there is no memory.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        let grid = Grid {
            blocks: [1, 1, 1],
            threads: 1,
            shared_bytes: 0,
        };
        let nowhere = Argument::from(16_u64);
        self.launch("elementwise/add", grid, &[nowhere, nowhere, 1_u64.into()])
            .unwrap();
        assert!(self.synchronize().unwrap_err().is_fatal());
    }

    fn function(&self, kernel: &'static str) -> Result<Handle, CudaError> {
        let mut loaded = lock(&self.loaded);
        if let Some(function) = loaded.functions.get(kernel) {
            return Ok(*function);
        }
        let missing = || CudaError::Library {
            library: "the program",
            problem: format!("it has no kernel {kernel}"),
        };
        let (program, name) = kernel.split_once('/').ok_or_else(missing)?;
        let module = match loaded.modules.get(program) {
            Some(module) => *module,
            None => {
                let module = self.load(program)?.ok_or_else(missing)?;
                loaded.modules.insert(program, module);
                module
            }
        };
        let mut function = ptr::null_mut();
        let name = CString::new(name).map_err(|_| missing())?;
        // SAFETY: writes the handle; module and name live.
        let status = unsafe { (self.driver.module_function)(&mut function, module, name.as_ptr()) };
        self.check(status, "finding a kernel")?;
        loaded.functions.insert(kernel, function);
        Ok(function)
    }

    fn load(&self, program: &'static str) -> Result<Option<Handle>, CudaError> {
        let Some(text) = kernels::text(program) else {
            return Ok(None);
        };
        if let Some(code) = self.compiler.kept(program, &text) {
            match self.load_code(code) {
                Ok(module) => return Ok(Some(module)),
                Err(error) => warn!(program, %error, "kept kernels do not load: they are compiled anew"),
            }
        }
        let code = self.compiler.compile(program, &text)?;
        self.load_code(code).map(Some)
    }

    fn load_code(&self, mut code: Vec<u8>) -> Result<Handle, CudaError> {
        code.push(0);
        let mut module = ptr::null_mut();
        // SAFETY: the code is an image of the compiler's, or text that ends with a 0.
        let status = unsafe { (self.driver.module_load)(&mut module, code.as_ptr().cast()) };
        self.check(status, "loading kernels")?;
        Ok(module)
    }
}
