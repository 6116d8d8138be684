//! The only place that reads environment variables: our own, which are options by the names of their flags, and other
//! people's conventions.
#![expect(clippy::disallowed_methods, reason = "the one place where the environment is read")]

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::model::{HubOptions, Toolkit};

/// Where models are found and how the hub is reached, as every Hugging Face tool reads it; flags come before variables.
pub(super) fn hub_options(token: Option<String>, revision: Option<String>) -> HubOptions {
    let from_environment = HubOptions::from_variables(|name| env::var(name).ok());
    HubOptions {
        token: token.or(from_environment.token),
        revision,
        ..from_environment
    }
}

/// What this program runs in, as container runtimes say it: by a file, or as systemd does it by a variable.
pub(super) fn container() -> Option<&'static str> {
    let has = |variable: &str| env::var_os(variable).is_some();
    match () {
        () if has("KUBERNETES_SERVICE_HOST") => Some("Kubernetes"),
        () if Path::new("/.dockerenv").exists() => Some("Docker"),
        () if Path::new("/run/.containerenv").exists() => Some("Podman"),
        () if has("APPTAINER_CONTAINER") || has("SINGULARITY_CONTAINER") => Some("Apptainer"),
        () if has("container") => Some("another kind"),
        () => None,
    }
}

/// Those of `programs` that are found where commands are.
pub(super) fn on_path(programs: &[&'static str]) -> Vec<&'static str> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    let found = |program: &&&'static str| folders.iter().any(|folder| folder.join(program).is_file());
    programs.iter().filter(found).copied().collect()
}

/// Where the service of a container runtime listens, if it does.
pub(super) fn container_socket(runtime: &str) -> Option<PathBuf> {
    let of_user = |name: &str| set("XDG_RUNTIME_DIR").map(|folder| folder.join(name));
    let places = match runtime {
        "docker" => vec![of_user("docker.sock"), Some("/var/run/docker.sock".into())],
        "podman" => vec![of_user("podman/podman.sock"), Some("/run/podman/podman.sock".into())],
        "nerdctl" => vec![Some("/run/containerd/containerd.sock".into())],
        _ => Vec::new(),
    };
    places.into_iter().flatten().find(|place| place.exists())
}

/// Where NVIDIA's libraries may be besides where the system has them: in the toolkit that is chosen, and in the Python
/// environment that is.
pub(super) fn toolkit() -> Toolkit {
    let in_toolkit = ["CUDA_HOME", "CUDA_PATH"].map(|name| set(name).map(|home| home.join("lib64")));
    let in_python = ["VIRTUAL_ENV", "CONDA_PREFIX"].map(|name| set(name).map(|home| home.join("lib")));
    let of_user = set("HOME").map(|home| home.join(".local/lib"));
    Toolkit {
        folders: in_toolkit
            .into_iter()
            .chain(in_python)
            .chain([of_user])
            .flatten()
            .collect(),
        kernels: Some(cache_folder().join("kernels")),
    }
}

/// What is to be logged, as programs in Rust are told it.
pub(super) fn rust_log() -> Option<String> {
    let directives = env::var_os("RUST_LOG")?;
    Some(directives.to_string_lossy().into_owned())
}

fn set(name: &str) -> Option<PathBuf> {
    env::var(name).ok().filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Our own variables and others that may begin as they do; what is no text is as good as nothing.
pub(super) fn own_variables() -> Vec<(String, String)> {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .filter(|(name, _)| name.starts_with("SEPAL_"))
        .collect()
}

/// Where a file of the configuration may be: in the working folder, in the user's, or in the system's.
pub(super) fn configuration_files() -> Vec<PathBuf> {
    let of_user = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    [
        Some(PathBuf::from("sepal.toml")),
        of_user.map(|folder| folder.join("sepal/sepal.toml")),
        Some(PathBuf::from("/etc/sepal/sepal.toml")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Where the control sockets of this user's processes are: in the folder for such things, which is gone after a logout or
/// does not exist for services, or else in the cache. New ones are made in the first. That of the system's service is in the
/// cache of `packaging/sepal.service`, which only root can enter.
pub(super) fn control_folders() -> Vec<PathBuf> {
    let runtime = set("XDG_RUNTIME_DIR").filter(|folder| folder.is_dir());
    let runtime = runtime.map(|folder| folder.join("sepal"));
    let mut folders: Vec<PathBuf> = runtime.into_iter().chain([cache_folder().join("run")]).collect();
    let of_service = PathBuf::from("/var/cache/sepal/run");
    if !folders.contains(&of_service) {
        folders.push(of_service);
    }
    folders
}

/// The folder for what this program remembers between runs.
pub(super) fn cache_folder() -> PathBuf {
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(env::temp_dir).join("sepal")
}
