//! Finding a shared library of NVIDIA's that serves driver and card, and the functions in it. None that is used is ever
//! unloaded.

use std::{
    ffi::c_int,
    fs,
    path::{Path, PathBuf},
};

use libloading::Library;

use super::error::CudaError;

/// Of CUDA, major and minor.
pub(super) type Version = (c_int, c_int);

/// The versions of the toolkit whose libraries are looked for, the newest first, each with the oldest cards that it serves
/// (75 for 7.5) of those that are used here.
const TOOLKITS: [(c_int, c_int); 2] = [(13, 75), (12, 70)];

/// Where toolkits and distributions install libraries that the loader does not search by itself.
const FOLDERS: [&str; 4] = [
    "/usr/local/cuda/lib64",
    "/opt/cuda/lib64",
    "/usr/lib/cuda/lib64",
    "/usr/lib/wsl/lib",
];

/// Where Python packages may be.
const PYTHON_FOLDERS: [&str; 3] = ["/usr/local/lib", "/usr/lib", "/opt/conda/lib"];

/// A table of the functions of one library that are used here, each of which returns a status: 0 if all is well.
macro_rules! entry_points {
    ($(#[$doc:meta])* struct $name:ident { $($field:ident: $symbol:literal($($argument:ty),*),)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> std::ffi::c_int,)*
        }

        impl $name {
            /// # Errors
            /// The first function that the library has not.
            pub(super) fn of(library: libloading::Library) -> Result<Self, libloading::Error> {
                // SAFETY: the types are those of the library's headers, and the library is never unloaded.
                let table = unsafe { Self { $($field: *library.get($symbol)?,)* } };
                std::mem::forget(library);
                Ok(table)
            }
        }
    };
}
pub(super) use entry_points;

/// The major versions of the toolkit, the newest first, that a driver which serves `driver` and cards of `capability` work
/// with.
pub(super) fn toolkits(driver: Version, capability: c_int) -> impl Iterator<Item = c_int> {
    let works = move |(major, oldest): &(c_int, c_int)| *major <= driver.0 && *oldest <= capability;
    TOOLKITS.into_iter().filter(works).map(|(major, _)| major)
}

/// The file names of a library (`libnvrtc`) of those toolkits, and one that says no version.
pub(super) fn names(library: &str, driver: Version, capability: c_int) -> Vec<String> {
    let versions = toolkits(driver, capability).map(|major| format!("{library}.so.{major}"));
    versions.chain([format!("{library}.so")]).collect()
}

/// What `usable` makes of the first library of one of these file names that it takes: where the loader looks
/// (`LD_LIBRARY_PATH` and the system's folders), then in `folders`, in those of toolkits, and in those of NVIDIA's Python
/// packages.
///
/// # Errors
/// Why the first one is not taken; `None` if there is none.
pub(super) fn open<T>(
    names: &[String],
    folders: &[PathBuf],
    mut usable: impl FnMut(Library) -> Result<T, CudaError>,
) -> Result<T, Option<CudaError>> {
    let mut refused = None;
    for library in paths(names, folders).iter().filter_map(|path| load(path)) {
        match usable(library) {
            Ok(usable) => return Ok(usable),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused)
}

/// Where libraries of these names may be, in the order in which they are tried. What a name without a version leads to is
/// anybody's guess, so it is tried when there is no other anywhere.
fn paths(names: &[String], folders: &[PathBuf]) -> Vec<PathBuf> {
    let own = folders.iter().map(PathBuf::as_path);
    let pythons = own.clone().chain(PYTHON_FOLDERS.map(Path::new));
    let packages = pythons.flat_map(python_packages).collect::<Vec<_>>();
    let all = own
        .chain(FOLDERS.map(Path::new))
        .chain(packages.iter().map(PathBuf::as_path));
    let all: Vec<&Path> = all.collect();
    let (plain, versioned): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| name.ends_with(".so"));
    let mut paths = Vec::new();
    for names in [versioned, plain] {
        paths.extend(names.iter().map(PathBuf::from));
        let in_folders = all.iter().flat_map(|folder| names.iter().map(|name| folder.join(name)));
        paths.extend(in_folders.filter(|path| path.is_file()));
    }
    paths
}

fn load(path: &Path) -> Option<Library> {
    // cuBLAS needs a second library of its folder, which the loader finds only if it is there already.
    if let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) {
        let beside = folder.join(name.replace("libcublas.", "libcublasLt."));
        if beside.is_file() && beside != path {
            // SAFETY: as below.
            let library = unsafe { Library::new(&beside) };
            drop(library.map(std::mem::forget));
        }
    }
    // SAFETY: what NVIDIA's libraries do when they are loaded is no more than to prepare themselves.
    unsafe { Library::new(path) }.ok()
}

/// The folders of libraries of NVIDIA's packages under `lib`, that of a Python installation.
fn python_packages(lib: &Path) -> Vec<PathBuf> {
    let inside = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let is_python = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("python3"))
    };
    let pythons = inside(lib).into_iter().filter(is_python);
    let sites = pythons.flat_map(|python| ["site-packages", "dist-packages"].map(|site| python.join(site)));
    let packages = sites.flat_map(|site| inside(&site.join("nvidia")));
    packages.map(|package| package.join("lib")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_in_python_packages_are_found_and_what_is_no_library_is_passed_over() {
        let lib = tempfile::tempdir().unwrap();
        let package = lib.path().join("python3.11/site-packages/nvidia/cuda_nvrtc/lib");
        fs::create_dir_all(&package).unwrap();
        assert_eq!(python_packages(lib.path()), std::slice::from_ref(&package));
        fs::write(package.join("libnvrtc-of-nobody.so.12"), "no library").unwrap();
        let name = "libnvrtc-of-nobody.so.12".to_owned();
        let opened = open(&[name], &[lib.path().to_owned()], |_| Ok(()));
        assert_eq!(opened, Err(None));
    }

    #[test]
    fn what_names_no_version_is_tried_when_every_place_was_looked_at_for_one_that_does() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [first, second] = folders.each_ref().map(|folder| folder.path().to_owned());
        let names = names("libnvrtc-of-nobody", (13, 0), 80);
        let all = [
            "libnvrtc-of-nobody.so.13",
            "libnvrtc-of-nobody.so.12",
            "libnvrtc-of-nobody.so",
        ];
        assert_eq!(names, all);
        let [newest, older, plain] = all;
        for file in [first.join(plain), first.join(older), second.join(newest)] {
            fs::write(file, "no library").unwrap();
        }
        assert_eq!(
            paths(&names, &[first.clone(), second.clone()]),
            [
                newest.into(),
                older.into(),
                first.join(older),
                second.join(newest),
                plain.into(),
                first.join(plain)
            ]
        );
    }

    #[test]
    fn toolkits_are_those_that_serve_driver_and_card() {
        let found = |driver, capability| toolkits(driver, capability).collect::<Vec<_>>();
        assert_eq!(found((13, 0), 75), [13, 12]);
        assert_eq!(found((13, 0), 70), [12]);
        assert_eq!(found((12, 8), 120), [12]);
        assert!(found((11, 8), 86).is_empty());
    }
}
