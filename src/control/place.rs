//! Where control sockets are, and which of them have a process behind them. What is said on them is not known here.
//!
//! A folder that only its owner can enter has one socket for each process, which only its owner can open. A process that was
//! killed leaves its socket; nobody answers there, and whoever notices removes it.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::net::{UnixListener, UnixStream};

use super::{
    client::Connection,
    error::ControlError,
    protocol::{Answer, Request, Who},
};

/// How the names of sockets end.
const ENDING: &str = "sock";

/// How long a process has to say who it is. It does so from memory.
const WHO_PATIENCE: Duration = Duration::from_secs(2);

/// The user that may do everything anyway.
const ROOT: u32 = 0;

/// A process that can be talked to.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its socket.
    pub path: PathBuf,
    /// Who it is; `None` if it does not answer in time.
    pub who: Option<Who>,
}

/// Makes the folder for sockets, for its owner only, and removes those that dead processes left there.
///
/// # Errors
/// It cannot be made, or belongs to somebody else.
pub async fn prepare_folder(folder: &Path) -> Result<(), ControlError> {
    let cannot = |source| ControlError::Folder {
        path: folder.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(cannot)?;
    // Of a folder of somebody else, this fails.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(cannot)?;
    for socket in sockets(folder) {
        drop(reach(&socket).await);
    }
    Ok(())
}

/// The place of the socket of the node `name`.
pub fn socket_in(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).with_extension(ENDING)
}

/// Every process that has its socket in one of `folders`. Sockets of dead ones are removed.
pub async fn find(folders: &[PathBuf]) -> Vec<Found> {
    let mut found = Vec::new();
    for path in folders.iter().flat_map(|folder| sockets(folder)) {
        if let Ok(stream) = reach(&path).await {
            let who = tokio::time::timeout(WHO_PATIENCE, who(stream)).await;
            let who = who.ok().flatten();
            found.push(Found { path, who });
        }
    }
    found
}

async fn who(stream: UnixStream) -> Option<Who> {
    match Connection::on(stream).ask(&Request::Who).await {
        Ok(Answer::Node(who)) => Some(who),
        _ => None,
    }
}

/// In the order of their names. A folder that is not there has none.
fn sockets(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_socket = |path: &PathBuf| {
        path.extension().is_some_and(|ending| ending == ENDING)
            && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_socket).collect();
    paths.sort();
    paths
}

/// Connects, and removes a socket that nobody listens on any more.
///
/// # Errors
/// Nobody is there, or one may not enter.
async fn reach(path: &Path) -> io::Result<UnixStream> {
    let reached = UnixStream::connect(path).await;
    if let Err(error) = &reached
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        // Somebody else may have been quicker.
        drop(fs::remove_file(path));
    }
    reached
}

/// Connects to the socket at `path`.
///
/// # Errors
/// Nobody listens there.
pub(super) async fn connect(path: &Path) -> Result<UnixStream, ControlError> {
    let connected = UnixStream::connect(path).await;
    connected.map_err(|source| ControlError::NobodyThere {
        path: path.to_owned(),
        source,
    })
}

/// A socket that is listened on. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct Listening {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, and its owner.
    file: (u64, u64),
    owner: u32,
}

impl Listening {
    /// Takes the place of a dead process, but not that of a living one.
    ///
    /// # Errors
    /// The place is taken, or no socket can be made there.
    pub(super) async fn at(path: &Path) -> Result<Self, ControlError> {
        let taken = path.to_owned();
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => return Err(ControlError::NoSocket { path: taken }),
            Ok(_) if reach(path).await.is_ok() => return Err(ControlError::Taken { path: taken }),
            Ok(_) | Err(_) => {}
        }
        Self::bind(path).map_err(|source| ControlError::Listen { path: taken, source })
    }

    /// The socket gets its name when it is listened on and has its mode: before, whoever looks would take it for a dead one,
    /// and others could open it.
    fn bind(path: &Path) -> io::Result<Self> {
        let unfinished = path.with_extension(std::process::id().to_string());
        let _ = fs::remove_file(&unfinished);
        let listener = UnixListener::bind(&unfinished)?;
        let finish = || {
            fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600))?;
            fs::rename(&unfinished, path)?;
            fs::metadata(path)
        };
        let metadata = finish().inspect_err(|_| drop(fs::remove_file(&unfinished)))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
            owner: metadata.uid(),
        })
    }

    /// The next one who wants to talk; anybody but the owner of the socket is sent away.
    ///
    /// # Errors
    /// The system takes no connection.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let user = stream.peer_cred()?.uid();
            if user == self.owner || user == ROOT {
                return Ok(stream);
            }
            tracing::warn!(user, "another user tried to control this node");
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let file = fs::symlink_metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino()));
        // Whoever put another one there keeps it.
        if file.is_ok_and(|file| file == self.file) {
            drop(fs::remove_file(&self.path));
        }
    }
}
