//! One card: its context, its stream, the kernels that were compiled for it, and the memory that is used again.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::c_int,
    path::PathBuf,
    ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    blas::{Blas, Gemm},
    compiler::Compiler,
    driver::{Address, Driver, Handle},
    error::CudaError,
};

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`
const CAPABILITY: [c_int; 2] = [75, 76];

/// `CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`
const SHARED_BYTES: c_int = 97;

/// `CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES`
const USES_HOST_PAGES: c_int = 100;

/// The oldest cards that the kernels are compiled for in tests. Their blocks of threads can have 64 KiB of shared memory at
/// least, which attention over many tokens needs; those before have 48.
const OLDEST: c_int = 70;

/// `CU_STREAM_NON_BLOCKING`
const OWN_ORDER: u32 = 1;

/// Where the libraries of NVIDIA are besides where the system has them, and where compiled kernels are kept.
#[derive(Clone, Debug, Default)]
pub struct Toolkit {
    /// Folders of libraries, or of Python installations (`lib`).
    pub folders: Vec<PathBuf>,
    /// A folder for compiled kernels; without one they are compiled at every start.
    pub kernels: Option<PathBuf>,
}

/// One card. Everything it is asked for happens in that order, whichever thread asks.
#[derive(Debug)]
pub(crate) struct Device {
    pub(super) driver: &'static Driver,
    pub(super) ordinal: usize,
    device: c_int,
    context: Handle,
    pub(super) stream: Handle,
    name: String,
    shared_bytes: usize,
    /// Whether it reads memory of the host by the host's own page tables, wherever that is.
    pub(super) uses_host_pages: bool,
    capability: c_int,
    pub(super) compiler: Compiler,
    blas: Option<Mutex<Blas>>,
    pub(super) loaded: Mutex<Loaded>,
    /// Memory that was used for a moment and waits for its next use, by its size.
    pub(super) spare: Mutex<BTreeMap<usize, Vec<Address>>>,
}

// SAFETY: context and stream may be used by any thread that has the context as its current one, which every use here sees
// to; the tables are locked.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// Kernels on the card.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// By the name of the text.
    pub(super) modules: HashMap<&'static str, Handle>,
    /// By `TEXT/KERNEL`.
    pub(super) functions: HashMap<&'static str, Handle>,
}

impl Device {
    /// How many cards there are, at least one.
    ///
    /// # Errors
    /// When there is no driver, or no card that it knows.
    pub(crate) fn count() -> Result<usize, CudaError> {
        match Driver::get()?.n_cards()? {
            0 => Err(CudaError::NoCards {
                reason: "it knows none".into(),
            }),
            n_cards => Ok(n_cards),
        }
    }

    /// Card `ordinal`, counted as the driver does.
    ///
    /// # Errors
    /// No such card, one that is too old, or no compiler for it.
    pub(crate) fn open(ordinal: usize, toolkit: &Toolkit) -> Result<Arc<Self>, CudaError> {
        let driver = Driver::get()?;
        let n_cards = driver.n_cards()?;
        if ordinal >= n_cards {
            return Err(CudaError::NoSuchCard { ordinal, n_cards });
        }
        let mut device = 0;
        // SAFETY: writes the number.
        let status = unsafe { (driver.device_get)(&mut device, ordinal as c_int) };
        driver.check(status, ordinal, "finding the card")?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: writes the number.
            let status = unsafe { (driver.device_attribute)(&mut value, which, device) };
            driver.check(status, ordinal, "asking what the card is").map(|()| value)
        };
        let capability = 10 * attribute(CAPABILITY[0])? + attribute(CAPABILITY[1])?;
        if capability < OLDEST {
            return Err(CudaError::TooOld {
                card: ordinal,
                capability,
            });
        }
        let serves = driver.serves()?;
        let compiler = Compiler::find(serves, capability, &toolkit.folders, toolkit.kernels.clone())?;
        let mut opened = Self {
            driver,
            ordinal,
            device,
            context: ptr::null_mut(),
            stream: ptr::null_mut(),
            name: driver.name_of_card(device, ordinal)?,
            shared_bytes: usize::try_from(attribute(SHARED_BYTES)?).unwrap_or(0),
            uses_host_pages: attribute(USES_HOST_PAGES)? != 0,
            capability,
            compiler,
            blas: None,
            loaded: Mutex::default(),
            spare: Mutex::default(),
        };
        // SAFETY: writes the handle.
        let status = unsafe { (driver.context_retain)(&mut opened.context, device) };
        driver.check(status, ordinal, "opening the card")?;
        opened.enter()?;
        // SAFETY: writes the handle, in the current context.
        let status = unsafe { (driver.stream_create)(&mut opened.stream, OWN_ORDER) };
        driver.check(status, ordinal, "opening the card")?;
        opened.blas = Blas::find(serves, capability, &toolkit.folders, opened.stream).map(Mutex::new);
        Ok(Arc::new(opened))
    }

    /// As the driver calls it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of shared memory that a block of threads may have.
    pub(crate) fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// Its number.
    pub(crate) fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Its compute capability: 86 for 8.6.
    pub(crate) fn capability(&self) -> c_int {
        self.capability
    }

    /// Bytes of memory that are free, and all.
    ///
    /// # Errors
    /// When the card does not answer.
    pub(crate) fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        let status = unsafe { (self.driver.memory_info)(&mut free, &mut total) };
        self.check(status, "asking for free memory")?;
        Ok((free, total))
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// When any of it failed.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the stream lives.
        let status = unsafe { (self.driver.stream_synchronize)(self.stream) };
        self.check(status, "computing")
    }

    /// Whether there is cuBLAS.
    pub(crate) fn has_blas(&self) -> bool {
        self.blas.is_some()
    }

    /// Starts a product, if there is cuBLAS; whether there is.
    ///
    /// # Errors
    /// When cuBLAS refuses.
    pub(crate) fn multiply(&self, gemm: Gemm) -> Result<bool, CudaError> {
        let Some(blas) = &self.blas else { return Ok(false) };
        self.enter()?;
        lock(blas).multiply(gemm).map(|()| true)
    }

    /// Makes the card the calling thread's.
    pub(super) fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives.
        let status = unsafe { (self.driver.context_set)(self.context) };
        self.check(status, "turning to the card")
    }

    pub(super) fn check(&self, status: c_int, doing: &'static str) -> Result<(), CudaError> {
        self.driver.check(status, self.ordinal, doing)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.context.is_null() {
            return;
        }
        // What cannot be given back to a card that is lost is lost with it.
        drop(self.synchronize());
        self.free_spare();
        self.blas = None;
        let modules: Vec<Handle> = lock(&self.loaded).modules.drain().map(|(_, module)| module).collect();
        for module in modules {
            // SAFETY: it was loaded, and nothing runs any more.
            unsafe { (self.driver.module_unload)(module) };
        }
        if !self.stream.is_null() {
            // SAFETY: it was created, and nothing runs any more.
            unsafe { (self.driver.stream_destroy)(self.stream) };
        }
        // SAFETY: it was retained once.
        unsafe { (self.driver.context_release)(self.device) };
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
