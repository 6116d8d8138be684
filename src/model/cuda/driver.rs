//! The driver of the cards, and what its answers mean.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    path::Path,
    ptr,
    sync::OnceLock,
};

use super::{
    error::CudaError,
    library::{Version, entry_points, open},
};

/// Of a card's memory.
pub(super) type Address = u64;
/// What the driver hands out and wants back.
pub(super) type Handle = *mut c_void;

/// `CUDA_ERROR_OUT_OF_MEMORY`
const OUT_OF_MEMORY: c_int = 2;

/// Longest name of a card.
const NAME_BYTES: usize = 256;

entry_points! {
    /// The functions of `libcuda.so.1` that are used (CUDA driver API, version 12). Addresses are u64, sizes of memory are
    /// usize, everything else is 32 bits or a pointer.
    struct Driver {
        init: "cuInit"(c_uint),
        version: "cuDriverGetVersion"(*mut c_int),
        error_name: "cuGetErrorName"(c_int, *mut *const c_char),
        device_count: "cuDeviceGetCount"(*mut c_int),
        device_get: "cuDeviceGet"(*mut c_int, c_int),
        device_name: "cuDeviceGetName"(*mut c_char, c_int, c_int),
        device_attribute: "cuDeviceGetAttribute"(*mut c_int, c_int, c_int),
        context_retain: "cuDevicePrimaryCtxRetain"(*mut Handle, c_int),
        context_release: "cuDevicePrimaryCtxRelease_v2"(c_int),
        context_set: "cuCtxSetCurrent"(Handle),
        stream_create: "cuStreamCreate"(*mut Handle, c_uint),
        stream_destroy: "cuStreamDestroy_v2"(Handle),
        stream_synchronize: "cuStreamSynchronize"(Handle),
        memory_info: "cuMemGetInfo_v2"(*mut usize, *mut usize),
        allocate: "cuMemAlloc_v2"(*mut Address, usize),
        free: "cuMemFree_v2"(Address),
        to_device: "cuMemcpyHtoDAsync_v2"(Address, *const c_void, usize, Handle),
        to_host: "cuMemcpyDtoHAsync_v2"(*mut c_void, Address, usize, Handle),
        on_device: "cuMemcpyDtoDAsync_v2"(Address, Address, usize, Handle),
        fill: "cuMemsetD8Async"(Address, u8, usize, Handle),
        module_load: "cuModuleLoadData"(*mut Handle, *const c_void),
        module_unload: "cuModuleUnload"(Handle),
        module_function: "cuModuleGetFunction"(*mut Handle, Handle, *const c_char),
        function_attribute: "cuFuncSetAttribute"(Handle, c_int, c_int),
        launch: "cuLaunchKernel"(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        ),
    }
}

/// Where the kernel's part of the driver is to be seen.
const CONTROL: &str = "/dev/nvidiactl";

fn why_none() -> CudaError {
    match cfg!(target_feature = "crt-static") && Path::new(CONTROL).exists() {
        true => CudaError::Static,
        false => CudaError::NoDriver,
    }
}

impl Driver {
    /// The driver of this machine, ready.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`] or [`CudaError::Static`], or why it finds no card.
    pub(super) fn get() -> Result<&'static Self, CudaError> {
        static DRIVER: OnceLock<Result<Driver, CudaError>> = OnceLock::new();
        let driver = DRIVER.get_or_init(|| {
            let names = ["libcuda.so.1", "libcuda.so"].map(str::to_owned);
            let usable = |library| {
                Self::of(library).map_err(|error| CudaError::Library {
                    library: "the NVIDIA driver",
                    problem: error.to_string(),
                })
            };
            let driver = open(&names, &[], usable).map_err(|error| error.unwrap_or_else(why_none))?;
            // SAFETY: the flags must be 0.
            let status = unsafe { (driver.init)(0) };
            match status {
                0 => Ok(driver),
                code => Err(CudaError::NoCards {
                    reason: driver.name_of(code),
                }),
            }
        });
        driver.as_ref().map_err(Clone::clone)
    }

    /// How many cards there are.
    ///
    /// # Errors
    /// When the driver does not say.
    pub(super) fn n_cards(&self) -> Result<usize, CudaError> {
        let mut count = 0;
        // SAFETY: writes the number.
        let status = unsafe { (self.device_count)(&mut count) };
        self.check(status, 0, "counting cards")?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The newest version of CUDA that the driver serves, such as 12.9.
    ///
    /// # Errors
    /// When the driver does not say.
    pub(super) fn serves(&self) -> Result<Version, CudaError> {
        let mut version = 0;
        // SAFETY: writes the number.
        let status = unsafe { (self.version)(&mut version) };
        self.check(status, 0, "asking for the driver's version")?;
        Ok((version / 1000, version % 1000 / 10))
    }

    /// The name of a card.
    ///
    /// # Errors
    /// When the driver does not say.
    pub(super) fn name_of_card(&self, device: c_int, card: usize) -> Result<String, CudaError> {
        let mut name = [0; NAME_BYTES];
        // SAFETY: writes at most as many bytes, the last of which is 0.
        let status = unsafe { (self.device_name)(name.as_mut_ptr(), NAME_BYTES as c_int, device) };
        self.check(status, card, "asking for the card's name")?;
        // SAFETY: it was 0 at first, and the driver ends the name with a 0.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        Ok(name.to_string_lossy().into_owned())
    }

    /// # Errors
    /// What the driver answered, unless it is that all is well.
    pub(super) fn check(&self, status: c_int, card: usize, doing: &'static str) -> Result<(), CudaError> {
        match status {
            0 => Ok(()),
            code => Err(CudaError::Driver {
                card,
                doing,
                name: self.name_of(code),
                code,
            }),
        }
    }

    /// As [`Driver::check`] of what needs `bytes` of memory.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], and whatever else the driver answers.
    pub(super) fn check_memory(&self, status: c_int, card: usize, bytes: usize) -> Result<(), CudaError> {
        match status {
            OUT_OF_MEMORY => Err(CudaError::OutOfMemory { card, bytes }),
            status => self.check(status, card, "taking memory"),
        }
    }

    fn name_of(&self, code: c_int) -> String {
        let mut name = ptr::null();
        // SAFETY: writes a pointer to text that lives as long as the library, or nothing.
        let status = unsafe { (self.error_name)(code, &mut name) };
        if status != 0 || name.is_null() {
            return format!("error {code}");
        }
        // SAFETY: see above.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }
}
