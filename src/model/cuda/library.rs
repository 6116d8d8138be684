//! Finding a shared library of NVIDIA's, and the functions in it. None is ever unloaded.

use std::{
    fs,
    path::{Path, PathBuf},
};

use libloading::Library;

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

/// The first library of one of these file names: where the loader looks (`LD_LIBRARY_PATH` and the system's folders), then
/// in `folders`, in those of toolkits, and in those of NVIDIA's Python packages.
pub(super) fn open(names: &[String], folders: &[PathBuf]) -> Option<Library> {
    let with_loader = names.iter().map(PathBuf::from);
    let own = folders.iter().map(PathBuf::as_path);
    let pythons = own.clone().chain(PYTHON_FOLDERS.map(Path::new));
    let packages = pythons.flat_map(python_packages).collect::<Vec<_>>();
    let all = own
        .chain(FOLDERS.map(Path::new))
        .chain(packages.iter().map(PathBuf::as_path));
    let in_folders = all.flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    with_loader
        .chain(in_folders.filter(|path| path.is_file()))
        .find_map(|path| load(&path))
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
        assert!(open(&[name], &[lib.path().to_owned()]).is_none());
    }
}
