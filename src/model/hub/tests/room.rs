//! What is deleted to make room, and what is not.

use std::{
    fs::{File, FileTimes},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use super::{super::testing::options, *};

const MIB: usize = 1 << 20;

/// A downloaded file of `mib` MiB that was last used so many days ago.
fn cached(cache: &Path, file: &str, mib: usize, days: u64) -> PathBuf {
    let folder = cache.join("models--other--model");
    for sub in ["blobs", "snapshots/abc"] {
        fs::create_dir_all(folder.join(sub)).unwrap();
    }
    let blob = folder.join("blobs").join(format!("{file}-content"));
    fs::write(&blob, vec![1; mib * MIB]).unwrap();
    let link = folder.join("snapshots/abc").join(file);
    std::os::unix::fs::symlink(format!("../../blobs/{file}-content"), &link).unwrap();
    let then = SystemTime::now() - Duration::from_secs(days * 86400);
    let times = FileTimes::new().set_accessed(then).set_modified(then);
    File::options()
        .write(true)
        .open(&blob)
        .unwrap()
        .set_times(times)
        .unwrap();
    link
}

fn with_limit(hub: &FakeHub, cache: &Path, mib: usize) -> HubOptions {
    HubOptions {
        max_disk_space: Some((mib * MIB) as u64),
        tuning: Tuning {
            stretch: MIB as u64,
            ..options().tuning
        },
        ..hub.options(cache)
    }
}

#[test]
fn the_files_that_were_not_used_for_the_longest_time_go_first_and_only_as_many_as_needed() {
    let cache = TempDir::new().unwrap();
    let [recent, oldest, old] =
        [("a", 1), ("b", 30), ("c", 10)].map(|(file, days)| cached(cache.path(), file, 2, days));
    let hub = FakeHub::with_large_files(&[("weights", &vec![5; 3 * MIB])]);
    let mut repo = HubRepo::open(REPO, &with_limit(&hub, cache.path(), 8)).unwrap();
    assert!(repo.get("weights").is_ok());
    assert!(fs::symlink_metadata(&oldest).is_err(), "the link is gone as well");
    assert!(!cache.path().join("models--other--model/blobs/b-content").exists());
    assert!(recent.exists() && old.exists());
}

#[test]
fn files_that_are_used_stay_and_too_little_room_names_the_flag() {
    let cache = TempDir::new().unwrap();
    let first = vec![1; 3 * MIB];
    let hub = FakeHub::with_large_files(&[("first", &first), ("second", &vec![2; 3 * MIB])]);
    let options = with_limit(&hub, cache.path(), 4);
    let want = |file: &str| Want {
        file: file.to_owned(),
        group: None,
    };
    let mut repo = HubRepo::open(REPO, &options).unwrap();
    let in_use = repo.weights(&[want("first")]).unwrap();
    assert!(
        in_use.reading.is_some(),
        "nothing is deleted yet, and nobody waits for that"
    );
    let error = repo.get("second").unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, HubError::NoRoom { .. }), "{text}");
    assert!(
        text.contains("--max-disk-space allows 4.0 MiB") && text.contains("needs 3.0 MiB more"),
        "{text}"
    );
    assert_eq!(fs::read(&in_use.files[0]).unwrap(), first);
    drop(in_use);
    assert!(repo.get("second").is_ok());
    assert!(!repo.is_cached("first"));
}

/// Asks for the other file while the first is on its way.
#[derive(Debug)]
struct Meanwhile {
    other: HubOptions,
    outcome: Arc<Mutex<Option<Result<PathBuf, HubError>>>>,
}

impl Progress for Meanwhile {
    fn begin(&self, download: &Download) -> Box<dyn Transfer> {
        let outcome = HubRepo::open(REPO, &self.other).unwrap().get("second");
        *self.outcome.lock().unwrap() = Some(outcome);
        self.other.progress.begin(download)
    }
}

#[test]
fn two_downloads_at_once_do_not_count_on_the_same_room() {
    let cache = TempDir::new().unwrap();
    let hub = FakeHub::with_large_files(&[("first", &vec![1; 5 * MIB]), ("second", &vec![2; 5 * MIB])]);
    let other = with_limit(&hub, cache.path(), 8);
    // Of one who will not come back: no room is kept for it.
    let left = cache.path().join("models--owner--name/sepal/whole");
    fs::create_dir_all(&left).unwrap();
    File::create(left.join("left.incomplete"))
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let outcome = Arc::default();
    let options = HubOptions {
        progress: Arc::new(Meanwhile {
            other: other.clone(),
            outcome: Arc::clone(&outcome),
        }),
        ..other.clone()
    };
    assert!(HubRepo::open(REPO, &options).unwrap().get("first").is_ok());
    let refused = outcome.lock().unwrap().take().unwrap().unwrap_err();
    assert!(matches!(refused, HubError::NoRoom { .. }), "{refused}");
    assert!(refused.to_string().contains("5.0 MiB are taken"), "{refused}");
    assert!(HubRepo::open(REPO, &other).unwrap().get("second").is_ok());
}

#[test]
fn what_cannot_be_locked_stays_and_the_next_goes() {
    let cache = TempDir::new().unwrap();
    let [oldest, old] = [("a", 30), ("b", 10)].map(|(file, days)| cached(cache.path(), file, 2, days));
    // Nobody can open it, not even root.
    fs::create_dir_all(cache.path().join(".locks/models--other--model/a-content.lock")).unwrap();
    let hub = FakeHub::with_large_files(&[("weights", &vec![5; 3 * MIB])]);
    let mut repo = HubRepo::open(REPO, &with_limit(&hub, cache.path(), 6)).unwrap();
    assert!(repo.get("weights").is_ok());
    assert!(oldest.exists() && fs::symlink_metadata(&old).is_err());
}

#[test]
fn nothing_is_deleted_if_that_would_not_be_enough() {
    let cache = TempDir::new().unwrap();
    let old = cached(cache.path(), "old", 2, 100);
    let hub = FakeHub::with_large_files(&[("weights", &vec![5; 3 * MIB])]);
    let mut repo = HubRepo::open(REPO, &with_limit(&hub, cache.path(), 2)).unwrap();
    assert!(matches!(repo.get("weights"), Err(HubError::NoRoom { .. })));
    assert!(old.exists());
}

#[test]
fn a_disk_that_is_too_small_is_named_with_what_it_has() {
    let error = HubError::NoRoom {
        repo: REPO.to_owned(),
        cache: "/cache".into(),
        need: 1000 << 20,
        free: Some(400 << 20),
        limit: Some(5000 << 20),
        used: 10 << 20,
    };
    let text = error.to_string();
    assert!(
        text.contains("has 400.0 MiB") && text.contains("HF_HUB_CACHE") && !text.contains("--max"),
        "{text}"
    );
}
