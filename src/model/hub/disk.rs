//! The disk under a folder. The system is asked for the folder itself: lists of disks lack network shares and file systems
//! in memory.

use std::path::{Path, PathBuf};

/// What holds a folder. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// What we may still write.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// The disk that holds `folder`, or would if it existed: that of the nearest parent which does.
pub fn disk_space(folder: &Path) -> Option<DiskSpace> {
    of(folder.ancestors().find_map(|parent| parent.canonicalize().ok())?)
}

/// The file system of a mount ends where a parent is on another device.
#[cfg(unix)]
fn of(existing: PathBuf) -> Option<DiskSpace> {
    use std::os::unix::fs::MetadataExt;

    let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
    let said = rustix::fs::statvfs(&existing).ok()?;
    let own = device(&existing);
    let same = existing.ancestors().take_while(|parent| device(parent) == own);
    Some(DiskSpace {
        mount: same.last().unwrap_or(&existing).to_owned(),
        free: said.f_bavail.saturating_mul(said.f_frsize),
        total: said.f_blocks.saturating_mul(said.f_frsize),
    })
}

#[cfg(not(unix))]
fn of(existing: PathBuf) -> Option<DiskSpace> {
    let disks = sysinfo::Disks::new_with_refreshed_list();
    let holding = disks.iter().filter(|disk| existing.starts_with(disk.mount_point()));
    let nearest = holding.max_by_key(|disk| disk.mount_point().components().count())?;
    Some(DiskSpace {
        mount: nearest.mount_point().to_owned(),
        free: nearest.available_space(),
        total: nearest.total_space(),
    })
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn the_disk_of_a_folder_that_does_not_exist_yet_is_that_of_its_parent() {
        let folder = TempDir::new().unwrap();
        let mount = |folder: &Path| disk_space(folder).unwrap().mount;
        assert_eq!(mount(&folder.path().join("not/there/yet")), mount(folder.path()));
        assert_eq!(mount(Path::new("/not/there/yet")), Path::new("/"));
    }

    /// File systems in memory are on no list of disks.
    #[test]
    #[cfg(target_os = "linux")]
    fn every_mount_has_what_df_says_of_it() {
        for folder in ["/", "/tmp", "/dev/shm", "/run"].map(Path::new) {
            let said = Command::new("df").args(["-B1", "--output=size"]).arg(folder).output();
            let said = String::from_utf8(said.unwrap().stdout).unwrap();
            let Some(total) = said.lines().nth(1) else { continue };
            let space = disk_space(folder).unwrap();
            assert_eq!(
                space.total,
                total.trim().parse::<u64>().unwrap(),
                "{}",
                folder.display()
            );
            assert!(space.free <= space.total && folder.starts_with(&space.mount));
        }
    }
}
