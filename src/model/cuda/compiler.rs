//! NVIDIA's run-time compiler (NVRTC): CUDA C into the code of one kind of card. What it made is kept in a folder, each
//! file behind the hash of it.

use std::{
    ffi::{CString, c_char, c_int, c_void},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    ptr,
};

use tracing::debug;

use super::{
    error::CudaError,
    library::{Version, entry_points, names, open, toolkits},
};

entry_points! {
    /// The functions of `libnvrtc.so` that are used.
    struct Nvrtc {
        version: "nvrtcVersion"(*mut c_int, *mut c_int),
        n_architectures: "nvrtcGetNumSupportedArchs"(*mut c_int),
        architectures: "nvrtcGetSupportedArchs"(*mut c_int),
        create: "nvrtcCreateProgram"(
            *mut *mut c_void, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
        ),
        destroy: "nvrtcDestroyProgram"(*mut *mut c_void),
        compile: "nvrtcCompileProgram"(*mut c_void, c_int, *const *const c_char),
        log_size: "nvrtcGetProgramLogSize"(*mut c_void, *mut usize),
        log: "nvrtcGetProgramLog"(*mut c_void, *mut c_char),
        ptx_size: "nvrtcGetPTXSize"(*mut c_void, *mut usize),
        ptx: "nvrtcGetPTX"(*mut c_void, *mut c_char),
        cubin_size: "nvrtcGetCUBINSize"(*mut c_void, *mut usize),
        cubin: "nvrtcGetCUBIN"(*mut c_void, *mut c_char),
    }
}

/// Of the hash in front of kept code.
const SUM_BYTES: usize = blake3::OUT_LEN;

/// A compiler, for one kind of card.
#[derive(Debug)]
pub(crate) struct Compiler {
    nvrtc: Nvrtc,
    version: Version,
    target: Target,
    kept: Option<PathBuf>,
}

/// What is made: the card's own code, or where the compiler does not know the card, code for the driver to translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Card(c_int),
    Driver(c_int),
}

impl Target {
    fn architecture(self) -> String {
        match self {
            Self::Card(number) => format!("sm_{number}"),
            Self::Driver(number) => format!("compute_{number}"),
        }
    }

    /// Whether a driver which serves `driver` takes what a compiler of `version` makes: code for cards of any minor version,
    /// what it translates itself only of those it knows.
    fn is_taken(self, driver: Version, version: Version) -> bool {
        match self {
            Self::Card(_) => version.0 <= driver.0,
            Self::Driver(_) => version <= driver,
        }
    }
}

impl Compiler {
    /// A compiler for cards of `capability` (86 for 8.6) and a driver which serves `driver`. What it makes is kept in `kept`.
    ///
    /// # Errors
    /// [`CudaError::NoCompiler`], or what is wrong with the first one if none will do.
    pub(super) fn find(
        driver: Version,
        capability: c_int,
        folders: &[PathBuf],
        kept: Option<PathBuf>,
    ) -> Result<Self, CudaError> {
        let names = names("libnvrtc", driver, capability);
        let found = open(&names, folders, |library| {
            let nvrtc = Nvrtc::of(library).map_err(|error| unusable(error.to_string()))?;
            let (version, target) = nvrtc.serve(driver, capability)?;
            Ok((nvrtc, version, target))
        });
        let (nvrtc, version, target) = found.map_err(|error| {
            error.unwrap_or_else(|| CudaError::NoCompiler {
                names: names.join(", "),
                package: package(driver, capability).into(),
            })
        })?;
        Ok(Self {
            nvrtc,
            version,
            target,
            kept,
        })
    }

    /// What was made of `text` before, if the file it is kept in is still what was written.
    pub(super) fn kept(&self, program: &str, text: &str) -> Option<Vec<u8>> {
        let kept = fs::read(self.file(program, text)?).ok()?;
        let (sum, code) = kept.split_first_chunk::<SUM_BYTES>()?;
        (blake3::hash(code) == *sum).then(|| code.to_vec())
    }

    /// The code of `text`, which ends with a 0 if it is text. It is kept.
    ///
    /// # Errors
    /// [`CudaError::Compile`] with the compiler's words.
    pub(super) fn compile(&self, program: &'static str, text: &str) -> Result<Vec<u8>, CudaError> {
        let code = self.compile_anew(program, text)?;
        if let Some(file) = self.file(program, text)
            && let Err(error) = keep(&file, &code)
        {
            debug!(file = %file.display(), %error, "compiled kernels are not kept");
        }
        Ok(code)
    }

    fn file(&self, program: &str, text: &str) -> Option<PathBuf> {
        let folder = self.kept.as_deref()?;
        Some(folder.join(self.file_name(program, text)))
    }

    fn file_name(&self, program: &str, text: &str) -> String {
        let hash = blake3::hash(text.as_bytes()).to_hex();
        let (major, minor) = self.version;
        let target = self.target.architecture();
        format!("{program}-{}-{target}-nvrtc{major}.{minor}.bin", &hash[..32])
    }

    fn compile_anew(&self, program: &'static str, text: &str) -> Result<Vec<u8>, CudaError> {
        let nvrtc = &self.nvrtc;
        let source = c_string(text)?;
        let name = c_string(&format!("{program}.cu"))?;
        let mut handle = ptr::null_mut();
        // SAFETY: both are texts that end with a 0 and live until after the call; there are no headers.
        check("starting the compiler", unsafe {
            (nvrtc.create)(&mut handle, source.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        })?;
        let options = [
            format!("--gpu-architecture={}", self.target.architecture()),
            "--std=c++17".into(),
            // The kernels say themselves where a product and a sum are rounded once: otherwise the same line could round
            // differently for another number of tokens.
            "--fmad=false".into(),
        ];
        let options: Vec<CString> = options
            .iter()
            .map(|option| c_string(option))
            .collect::<Result<_, _>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program was created, and the options live until after the call.
        let status = unsafe { (nvrtc.compile)(handle, options.len() as c_int, options.as_ptr()) };
        let code = match status {
            0 => match self.target {
                Target::Card(_) => output(handle, nvrtc.cubin_size, nvrtc.cubin),
                Target::Driver(_) => output(handle, nvrtc.ptx_size, nvrtc.ptx),
            },
            _ => Err(CudaError::Compile {
                program,
                architecture: self.target.architecture(),
                log: output(handle, nvrtc.log_size, nvrtc.log)
                    .map(|log| String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned())
                    .unwrap_or_default(),
            }),
        };
        // SAFETY: it was created, and is not used any more.
        unsafe { (nvrtc.destroy)(&mut handle) };
        code
    }
}

impl Nvrtc {
    /// Its version, and what it makes for cards of `capability` and a driver which serves `driver`.
    fn serve(&self, driver: Version, capability: c_int) -> Result<(Version, Target), CudaError> {
        let mut version = (0, 0);
        // SAFETY: writes two numbers.
        check("asking NVRTC for its version", unsafe {
            (self.version)(&mut version.0, &mut version.1)
        })?;
        let what = format!("version {}.{}", version.0, version.1);
        let package = package(driver, capability);
        let target = target(&self.known()?, capability).ok_or_else(|| {
            unusable(format!(
                "{what} knows no cards as old as sm_{capability}, as {package} does"
            ))
        })?;
        match target.is_taken(driver, version) {
            true => Ok((version, target)),
            false => Err(unusable(format!(
                "{what} is newer than the driver, which serves {}.{}",
                driver.0, driver.1
            ))),
        }
    }

    /// The kinds of cards it knows.
    fn known(&self) -> Result<Vec<c_int>, CudaError> {
        let mut count = 0;
        // SAFETY: writes the number.
        check("asking NVRTC what it knows", unsafe {
            (self.n_architectures)(&mut count)
        })?;
        let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: writes as many numbers as it said there are.
        check("asking NVRTC what it knows", unsafe {
            (self.architectures)(known.as_mut_ptr())
        })?;
        Ok(known)
    }
}

fn unusable(problem: String) -> CudaError {
    CudaError::Library {
        library: "NVRTC",
        problem,
    }
}

/// The Python package with the newest compiler for such a driver and such cards.
fn package(driver: Version, capability: c_int) -> &'static str {
    match toolkits(driver, capability).next() {
        Some(13) => "nvidia-cuda-nvrtc",
        _ => "nvidia-cuda-nvrtc-cu12",
    }
}

/// What to make for cards of `capability`; `None` if all that the compiler knows are newer.
fn target(known: &[c_int], capability: c_int) -> Option<Target> {
    if known.contains(&capability) {
        return Some(Target::Card(capability));
    }
    let older = known.iter().filter(|number| **number < capability);
    older.max().map(|number| Target::Driver(*number))
}

type Size = unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int;
type Content = unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int;

fn output(program: *mut c_void, size: Size, content: Content) -> Result<Vec<u8>, CudaError> {
    let mut bytes = 0;
    // SAFETY: the program lives; writes the number.
    check("asking for compiled kernels", unsafe { size(program, &mut bytes) })?;
    let mut out = vec![0_u8; bytes];
    // SAFETY: the program lives; writes as many bytes as it said there are.
    check("asking for compiled kernels", unsafe {
        content(program, out.as_mut_ptr().cast())
    })?;
    Ok(out)
}

/// Writes a file as a whole or not at all: others may read it at the same time, and the power may fail.
fn keep(file: &Path, code: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let part = file.with_extension(format!("{}.part", std::process::id()));
    let mut whole = File::create(&part)?;
    whole.write_all(blake3::hash(code).as_bytes())?;
    whole.write_all(code)?;
    whole.sync_all()?;
    fs::rename(&part, file)
}

fn c_string(text: &str) -> Result<CString, CudaError> {
    CString::new(text).map_err(|_| CudaError::Status {
        doing: "passing a text with a 0 in it",
        status: 0,
    })
}

fn check(doing: &'static str, status: c_int) -> Result<(), CudaError> {
    match status {
        0 => Ok(()),
        status => Err(CudaError::Status { doing, status }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cuda::{Device, Toolkit};

    #[test]
    fn cards_that_the_compiler_does_not_know_get_code_for_the_newest_that_is_older() {
        let known = [52, 70, 80, 86, 90];
        assert_eq!(target(&known, 86), Some(Target::Card(86)));
        assert_eq!(target(&known, 120), Some(Target::Driver(90)));
        assert_eq!(target(&known, 89), Some(Target::Driver(86)));
        assert_eq!(target(&known, 35), None);
    }

    #[test]
    fn drivers_take_code_for_cards_of_newer_minor_versions_and_texts_of_none() {
        let taken = |target: Target, version| target.is_taken((12, 4), version);
        let versions = [(11, 8), (12, 4), (12, 9), (13, 0)];
        assert_eq!(
            versions.map(|version| taken(Target::Card(80), version)),
            [true, true, true, false]
        );
        assert_eq!(
            versions.map(|version| taken(Target::Driver(80), version)),
            [true, true, false, false]
        );
    }

    #[test]
    fn the_package_that_is_advised_knows_the_card() {
        assert_eq!(package((13, 0), 75), "nvidia-cuda-nvrtc");
        assert_eq!(package((13, 0), 70), "nvidia-cuda-nvrtc-cu12");
        assert_eq!(package((12, 8), 90), "nvidia-cuda-nvrtc-cu12");
    }

    #[test]
    #[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
    fn a_compiler_that_knows_no_such_cards_is_passed_over() {
        let find = |capability| Compiler::find((13, 0), capability, &[], None);
        for capability in [70, 75, 80, 90, 120] {
            if let Ok(compiler) = find(capability) {
                let (Target::Card(known) | Target::Driver(known)) = compiler.target;
                assert!(known <= capability, "{:?} for sm_{capability}", compiler.version);
            }
        }
        // The newest one beside the emulated card knows no cards like it.
        let card = Device::open(0, &Toolkit::default()).unwrap();
        if card.name().starts_with("Emulated") {
            assert_eq!([80, 90].map(|capability| find(capability).unwrap().version.0), [12, 13]);
        }
    }

    #[test]
    fn compiled_kernels_are_kept_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernels/norm-0-sm_80.bin");
        keep(&file, b"code").unwrap();
        keep(&file, b"other").unwrap();
        let sum = blake3::hash(b"other");
        assert_eq!(fs::read(&file).unwrap(), [sum.as_bytes(), &b"other"[..]].concat());
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }
}
