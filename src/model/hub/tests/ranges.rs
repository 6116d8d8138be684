//! Only the bytes that are wanted, and all of them, whatever the hub does.

use std::{
    slice::from_ref,
    sync::{Mutex, atomic::AtomicU64, atomic::Ordering},
};

use safetensors::SafeTensors;
use serde_json::json;

use super::{
    super::{
        lock::Patience,
        testing::{Trouble, options},
    },
    *,
};
use crate::model::testing::{random_tensors, safetensors_of, small_config};

const FILE: &str = "model.safetensors";

fn weights_file() -> Vec<u8> {
    let config = small_config(json!({"num_hidden_layers": 4}));
    safetensors_of(&random_tensors(&config, 1))
}

fn block(block: u32) -> Want {
    let prefix = format!("model.layers.{block}.");
    Want {
        file: FILE.to_owned(),
        group: Some((format!("block-{block}"), Tensors::Starting(vec![prefix]))),
    }
}

/// Whether the files have the tensors of `blocks`, and no others, as `whole` has them.
#[track_caller]
fn assert_has(local: &Local, whole: &[u8], blocks: &[u32]) {
    let whole = SafeTensors::deserialize(whole).unwrap();
    let mut found = Vec::new();
    for path in &local.files {
        let bytes = fs::read(path).unwrap();
        let piece = SafeTensors::deserialize(&bytes).unwrap();
        for (name, tensor) in piece.tensors() {
            let expected = whole.tensor(&name).unwrap();
            assert_eq!((tensor.shape(), tensor.dtype()), (expected.shape(), expected.dtype()));
            assert_eq!(tensor.data(), expected.data(), "{name}");
            found.push(name);
        }
    }
    let prefixes: Vec<String> = blocks.iter().map(|block| format!("model.layers.{block}.")).collect();
    let mut expected = whole.names();
    expected.retain(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

/// As the options of the tests have it; more than the header.
const FIRST_BYTES: u64 = 10_000;

fn header_len(file: &[u8]) -> u64 {
    8 + u64::from_le_bytes(*file.first_chunk().unwrap())
}

#[test]
fn only_the_tensors_of_the_wanted_blocks_are_downloaded_and_each_once() {
    let (cache, file) = (TempDir::new().unwrap(), weights_file());
    let hub = FakeHub::with_large_files(&[(FILE, &file)]);
    let block_bytes = (file.len() as u64 - header_len(&file)) / 4;
    let mut repo = HubRepo::open(REPO, &hub.options(cache.path())).unwrap();
    assert_has(&repo.weights(&[block(1)]).unwrap(), &file, &[1]);
    assert_eq!(hub.sent(FILE), FIRST_BYTES + block_bytes);
    assert_has(&repo.weights(&[block(1), block(2)]).unwrap(), &file, &[1, 2]);
    assert_eq!(hub.sent(FILE), 2 * (FIRST_BYTES + block_bytes));
    let offline = HubOptions {
        offline: true,
        ..hub.options(cache.path())
    };
    let mut repo = HubRepo::open(REPO, &offline).unwrap();
    assert_has(&repo.weights(&[block(2), block(1)]).unwrap(), &file, &[1, 2]);
    assert_eq!(repo.missing(&[block(1), block(3)]), [FILE]);
    assert!(matches!(repo.weights(&[block(3)]), Err(HubError::Offline { .. })));
}

#[test]
fn a_piece_says_where_it_is_from_and_its_numbers_can_be_used_where_they_lie() {
    let (cache, file) = (TempDir::new().unwrap(), weights_file());
    let hub = FakeHub::with_large_files(&[(FILE, &file)]);
    let in_two_answers = HubOptions {
        tuning: Tuning {
            first_bytes: 100,
            ..options().tuning
        },
        ..hub.options(cache.path())
    };
    let mut repo = HubRepo::open(REPO, &in_two_answers).unwrap();
    let local = repo.weights(&[block(3)]).unwrap();
    let bytes = fs::read(&local.files[0]).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((header + 8) % 64, 0);
    let origin = metadata.metadata().as_ref().unwrap();
    assert_eq!(origin["sepal.repository"], REPO);
    assert_eq!(origin["sepal.file"], FILE);
    assert_eq!(origin["sepal.commit"], COMMIT);
}

#[test]
fn a_piece_of_another_length_than_its_header_says_is_downloaded_again() {
    let (cache, file) = (TempDir::new().unwrap(), weights_file());
    let hub = FakeHub::with_large_files(&[(FILE, &file)]);
    let block_bytes = (file.len() as u64 - header_len(&file)) / 4;
    let mut repo = HubRepo::open(REPO, &hub.options(cache.path())).unwrap();
    let wants = [block(1), block(2)];
    let piece = repo.weights(&wants).unwrap().files.remove(0);
    let whole = fs::read(&piece).unwrap();
    for len in [0, 7, 100, whole.len() - 1] {
        fs::write(&piece, &whole[..len]).unwrap();
        assert_eq!(repo.missing(&wants), [FILE]);
        let before = hub.sent(FILE);
        assert_has(&repo.weights(&wants).unwrap(), &file, &[1, 2]);
        assert_eq!(fs::metadata(&piece).unwrap().len(), whole.len() as u64);
        assert_eq!(hub.sent(FILE) - before, FIRST_BYTES + block_bytes, "only this piece");
    }
}

#[test]
fn a_file_that_is_mostly_wanted_is_downloaded_whole_for_all_tools() {
    let (cache, file) = (TempDir::new().unwrap(), weights_file());
    let hub = FakeHub::with_large_files(&[(FILE, &file)]);
    let mut repo = HubRepo::open(REPO, &hub.options(cache.path())).unwrap();
    let wants: Vec<Want> = (0..4).map(block).collect();
    let local = repo.weights(&wants).unwrap();
    assert_eq!(local.files.len(), 1);
    assert_eq!(fs::read(&local.files[0]).unwrap(), file);
    let snapshot = cache.path().join("models--owner--name/snapshots").join(COMMIT);
    assert!(fs::symlink_metadata(snapshot.join(FILE)).unwrap().is_symlink());
    assert!(!cache.path().join("models--owner--name/sepal/pieces").exists());
}

#[test]
fn what_came_before_a_cut_is_kept_and_servers_in_trouble_are_asked_again() {
    let (cache, file) = (TempDir::new().unwrap(), weights_file());
    let hub = FakeHub::with_large_files(&[(FILE, &file)]);
    let mut repo = HubRepo::open(REPO, &hub.options(cache.path())).unwrap();
    repo.weights(&[block(0)]).unwrap();
    let before = hub.sent(FILE);
    hub.change(FILE, |stored| {
        stored.troubles = [429, 500, 503].map(Trouble::Status).into();
        stored.troubles.push_back(Trouble::Cut(usize::MAX));
        stored.troubles.extend([5, 3000, 0, 1, 7000].map(Trouble::Cut));
        stored.troubles.push_back(Trouble::Status(502));
    });
    assert_has(&repo.weights(&[block(1)]).unwrap(), &file, &[1]);
    assert_eq!(hub.sent(FILE), 2 * before, "no byte of the block came twice");
}

#[test]
fn what_came_before_the_end_of_a_process_is_kept() {
    let (cache, file) = (TempDir::new().unwrap(), weights_file());
    let hub = FakeHub::with_large_files(&[(FILE, &file)]);
    let wants: Vec<Want> = (0..4).map(block).collect();
    // Three answers come; then the hub is gone for longer than anybody waits.
    hub.change(FILE, |stored| {
        stored.troubles = [Trouble::Cut(usize::MAX); 4].into();
        stored.troubles.extend([Trouble::Status(500); 100]);
    });
    let get = || HubRepo::open(REPO, &hub.options(cache.path())).unwrap().weights(&wants);
    assert!(matches!(get(), Err(HubError::Unreachable { .. })));
    let before = hub.sent(FILE);
    hub.change(FILE, |stored| stored.troubles.clear());
    let local = get().unwrap();
    assert_eq!(fs::read(&local.files[0]).unwrap(), file);
    assert!(before > FIRST_BYTES);
    assert_eq!(
        hub.sent(FILE),
        file.len() as u64 + 2 * FIRST_BYTES,
        "no byte came twice"
    );
}

#[test]
fn what_came_of_a_request_before_the_end_of_a_process_is_kept() {
    let (cache, content) = (TempDir::new().unwrap(), vec![9; 15_000]);
    let hub = FakeHub::with_large_files(&[("a.bin", &content)]);
    hub.change("a.bin", |stored| {
        stored.troubles = [Trouble::Cut(1_234)].into();
        stored.troubles.extend([Trouble::Status(500); 100]);
    });
    let get = || HubRepo::open(REPO, &hub.options(cache.path())).unwrap().get("a.bin");
    assert!(matches!(get(), Err(HubError::Unreachable { .. })));
    hub.change("a.bin", |stored| stored.troubles.clear());
    assert_eq!(fs::read(get().unwrap()).unwrap(), content);
    assert_eq!(hub.sent("a.bin"), 15_000, "no byte came twice");
}

/// Reads with every byte that comes what a process killed just then would leave.
#[derive(Clone, Debug)]
struct Killed {
    folder: std::path::PathBuf,
    most: std::sync::Arc<AtomicU64>,
}

impl Progress for Killed {
    fn begin(&self, _download: &Download) -> Box<dyn Transfer> {
        Box::new(self.clone())
    }
}

impl Transfer for Killed {
    fn received(&self, _file: &str, _bytes: u64) {
        let mut left = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().path());
        let journal = left.find(|path| path.extension().is_some_and(|extension| extension == "journal"));
        let noted = fs::read_to_string(journal.unwrap()).unwrap();
        let bytes = noted
            .lines()
            .filter_map(|line| line.strip_prefix("0+")?.strip_suffix('.')?.parse().ok());
        self.most.fetch_max(bytes.max().unwrap_or(0), Ordering::SeqCst);
    }
}

#[test]
fn what_has_come_of_a_long_request_is_noted_before_its_end() {
    let (cache, content) = (TempDir::new().unwrap(), vec![9; 3 << 20]);
    let hub = FakeHub::with_large_files(&[("a.bin", &content)]);
    let killed = Killed {
        folder: cache.path().join("models--owner--name/sepal/whole"),
        most: std::sync::Arc::default(),
    };
    let options = HubOptions {
        progress: std::sync::Arc::new(killed.clone()),
        tuning: Tuning {
            stretch: 4 << 20,
            ..options().tuning
        },
        ..hub.options(cache.path())
    };
    let mut repo = HubRepo::open(REPO, &options).unwrap();
    assert_eq!(fs::read(repo.get("a.bin").unwrap()).unwrap(), content);
    assert!(killed.most.load(Ordering::SeqCst) >= 2 << 20);
    assert_eq!(hub.sent("a.bin"), 3 << 20);
}

#[test]
fn a_server_that_ignores_ranges_is_asked_for_the_whole_file() {
    let (cache, file) = (TempDir::new().unwrap(), weights_file());
    let hub = FakeHub::with_large_files(&[(FILE, &file)]);
    hub.change(FILE, |stored| {
        stored.ignores_ranges = true;
        stored.troubles = [Trouble::Cut(usize::MAX), Trouble::Cut(usize::MAX), Trouble::Cut(9000)].into();
    });
    let mut repo = HubRepo::open(REPO, &hub.options(cache.path())).unwrap();
    let local = repo.weights(&[block(2)]).unwrap();
    assert_eq!(fs::read(&local.files[0]).unwrap(), file);
}

#[test]
fn a_hub_that_lies_about_sizes_or_hashes_is_told_so_and_leaves_nothing_behind() {
    let file = weights_file();
    let lies: [fn(&mut Stored); 4] = [
        |stored| stored.claimed_size = Some(stored.bytes.len() as u64 + 10),
        |stored| stored.claimed_size = Some(stored.bytes.len() as u64 - 10),
        |stored| stored.claimed_hash = Some("0".repeat(64)),
        |stored| stored.troubles = [Trouble::OtherTotal(1 << 40); 100].into(),
    ];
    for (i, lie) in lies.into_iter().enumerate() {
        let cache = TempDir::new().unwrap();
        let hub = FakeHub::with_large_files(&[(FILE, &file)]);
        hub.change(FILE, lie);
        let mut repo = HubRepo::open(REPO, &hub.options(cache.path())).unwrap();
        let whole: Vec<Want> = (0..4).map(block).collect();
        assert!(
            matches!(repo.weights(&whole), Err(HubError::Inconsistent { .. })),
            "lie {i}"
        );
        assert!(repo.get(FILE).is_err());
        let folder = cache.path().join("models--owner--name");
        let blobs = fs::read_dir(folder.join("blobs")).map(Iterator::count).unwrap_or(0);
        let parts = fs::read_dir(folder.join("sepal/whole"))
            .map(Iterator::count)
            .unwrap_or(0);
        assert_eq!((blobs, parts), (0, 0), "lie {i}");
    }
}

#[test]
fn one_wrong_answer_is_survived() {
    let file = weights_file();
    for trouble in [Trouble::OtherTotal(7), Trouble::Status(416)] {
        let cache = TempDir::new().unwrap();
        let hub = FakeHub::with_large_files(&[(FILE, &file)]);
        hub.change(FILE, |stored| stored.troubles = [Trouble::Cut(100), trouble].into());
        let mut repo = HubRepo::open(REPO, &hub.options(cache.path())).unwrap();
        assert_eq!(fs::read(repo.get(FILE).unwrap()).unwrap(), file);
    }
}

#[test]
fn a_file_that_changes_during_the_download_is_downloaded_anew() {
    let cache = TempDir::new().unwrap();
    let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    let hub = FakeHub::with_large_files(&[("weights.bin", &content)]);
    hub.change("weights.bin", |stored| {
        stored.troubles = [Trouble::Cut(usize::MAX), Trouble::Cut(50), Trouble::Change].into();
    });
    let mut repo = HubRepo::open(REPO, &hub.options(cache.path())).unwrap();
    let changed: Vec<u8> = content.iter().map(|byte| byte + 1).collect();
    assert_eq!(fs::read(repo.get("weights.bin").unwrap()).unwrap(), changed);
}

#[test]
fn nodes_that_share_a_cache_download_every_block_once() {
    let (cache, file) = (TempDir::new().unwrap(), weights_file());
    let hub = FakeHub::with_large_files(&[(FILE, &file)]);
    // Locks are held by open files, not by processes: threads are to each other as processes are.
    std::thread::scope(|scope| {
        for blocks in [[0, 1], [1, 2], [2, 1], [0, 2]] {
            let (options, file) = (hub.options(cache.path()), &file);
            scope.spawn(move || {
                let mut repo = HubRepo::open(REPO, &options).unwrap();
                let local = repo.weights(&blocks.map(block)).unwrap();
                assert_has(&local, file, &blocks);
            });
        }
    });
    let pieces = fs::read_dir(cache.path().join("models--owner--name/sepal/pieces")).unwrap();
    let folder = pieces.map(|entry| entry.unwrap().path()).next().unwrap();
    let names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let blocks_sent = 3 * (file.len() as u64 - header_len(&file)) / 4;
    assert_eq!(
        (hub.sent(FILE) - blocks_sent) % FIRST_BYTES,
        0,
        "only headers came more than once"
    );
}

#[derive(Debug, Default)]
struct Recorded {
    begun: Mutex<Vec<Download>>,
    bytes: std::sync::Arc<AtomicU64>,
}

struct Counter(std::sync::Arc<AtomicU64>);

impl Progress for Recorded {
    fn begin(&self, download: &Download) -> Box<dyn Transfer> {
        self.begun.lock().unwrap().push(download.clone());
        Box::new(Counter(self.bytes.clone()))
    }
}

impl Transfer for Counter {
    fn received(&self, file: &str, bytes: u64) {
        assert_eq!(file, "big.bin");
        self.0.fetch_add(bytes, Ordering::SeqCst);
    }
}

#[test]
fn progress_is_told_of_every_byte_of_a_large_download() {
    let cache = TempDir::new().unwrap();
    let content = vec![3; 3_000_000];
    let hub = FakeHub::with_large_files(&[("big.bin", &content), ("small.json", b"{}")]);
    let recorded = std::sync::Arc::new(Recorded::default());
    let options = HubOptions {
        progress: recorded.clone(),
        tuning: Tuning {
            stretch: 500_000,
            ..options().tuning
        },
        ..hub.options(cache.path())
    };
    let mut repo = HubRepo::open(REPO, &options).unwrap();
    repo.get("small.json").unwrap();
    repo.get("big.bin").unwrap();
    let expected = Download {
        what: REPO.to_owned(),
        total: 3_000_000,
        present: 0,
    };
    assert_eq!(*recorded.begun.lock().unwrap(), [expected]);
    assert_eq!(recorded.bytes.load(Ordering::SeqCst), 3_000_000);
}

#[test]
fn a_server_waits_for_a_hub_that_is_away_and_nobody_else_does() {
    let (cache, file) = (TempDir::new().unwrap(), weights_file());
    let hub = FakeHub::with_large_files(&[(FILE, &file)]);
    let patient = HubOptions {
        keep_trying: true,
        ..hub.options(cache.path())
    };
    hub.fall_silent(30);
    let hasty = HubRepo::open(REPO, &hub.options(cache.path())).unwrap().get(FILE);
    assert!(matches!(hasty, Err(HubError::Unreachable { .. })));
    hub.change(FILE, |stored| {
        stored.troubles = [Trouble::Cut(usize::MAX), Trouble::Cut(3000)].into();
        stored.troubles.extend([Trouble::Status(503); 60]);
    });
    let mut repo = HubRepo::open(REPO, &patient).unwrap();
    assert_has(&repo.weights(&[block(2)]).unwrap(), &file, &[2]);
}

#[test]
fn what_waiting_does_not_mend_is_told_at_once_also_by_a_server() {
    let (cache, file) = (TempDir::new().unwrap(), weights_file());
    let hub = FakeHub::with_large_files(&[(FILE, &file)]);
    let patient = HubOptions {
        keep_trying: true,
        ..hub.options(cache.path())
    };
    let mut repo = HubRepo::open(REPO, &patient).unwrap();
    assert!(matches!(repo.get("other"), Err(HubError::NotFound { .. })));
    assert_eq!(hub.requests(), 1);
    // The store refuses every link that the hub hands out.
    hub.change(FILE, |stored| stored.troubles = [Trouble::Status(403); 1000].into());
    assert!(matches!(repo.get(FILE), Err(HubError::Unreachable { .. })));
}

/// Lets nothing of the second file through until the first can be used by others.
#[derive(Clone, Debug)]
struct FirstThingsFirst(HubOptions);

impl Progress for FirstThingsFirst {
    fn begin(&self, _download: &Download) -> Box<dyn Transfer> {
        Box::new(self.clone())
    }
}

impl Transfer for FirstThingsFirst {
    fn received(&self, file: &str, _bytes: u64) {
        let first = whole("a.bin");
        while file == "b.bin" && HubRepo::open(REPO, &self.0).unwrap().weights(from_ref(&first)).is_err() {
            std::thread::yield_now();
        }
    }
}

fn whole(file: &str) -> Want {
    Want {
        file: file.to_owned(),
        group: None,
    }
}

#[test]
fn others_use_what_is_here_while_more_is_downloaded() {
    let cache = TempDir::new().unwrap();
    let (first, second) = (vec![1; 5_000], vec![2; 2 << 20]);
    let hub = FakeHub::with_large_files(&[("a.bin", &first), ("b.bin", &second)]);
    let other = HubOptions {
        offline: true,
        ..hub.options(cache.path())
    };
    let options = HubOptions {
        progress: std::sync::Arc::new(FirstThingsFirst(other)),
        ..hub.options(cache.path())
    };
    let mut repo = HubRepo::open(REPO, &options).unwrap();
    let local = repo.weights(&[whole("a.bin"), whole("b.bin")]).unwrap();
    let found: Vec<_> = local.files.iter().map(|path| fs::read(path).unwrap()).collect();
    assert_eq!(found, [first, second]);
}

/// Waits for nobody who does not get on.
fn hasty(hub: &FakeHub, cache: &Path) -> HubOptions {
    HubOptions {
        tuning: Tuning {
            patience: Patience {
                poll: std::time::Duration::ZERO,
                polls: 3,
            },
            ..options().tuning
        },
        ..hub.options(cache)
    }
}

#[test]
fn what_others_write_anew_is_waited_for_also_offline_and_the_hub_is_not_asked() {
    let cache = TempDir::new().unwrap();
    let hub = FakeHub::with_large_files(&[("a.bin", &[1; 5_000])]);
    let mut repo = HubRepo::open(REPO, &hub.options(cache.path())).unwrap();
    repo.get("a.bin").unwrap();
    let remote = repo.describe("a.bin", Tries::Several).unwrap();
    let writing = Lock::try_exclusive(&repo.folder.blob_lock(&remote.etag)).unwrap();
    let before = hub.requests();
    let weights = |offline| {
        let options = HubOptions {
            offline,
            ..hasty(&hub, cache.path())
        };
        HubRepo::open(REPO, &options).unwrap().weights(&[whole("a.bin")])
    };
    for offline in [true, false] {
        let error = weights(offline).unwrap_err();
        assert!(matches!(error, HubError::Busy { .. }), "{error}");
    }
    drop(writing);
    assert!([true, false].into_iter().all(|offline| weights(offline).is_ok()));
    assert_eq!(hub.requests(), before);
}

#[test]
fn a_download_of_somebody_who_does_not_get_on_is_named() {
    let cache = TempDir::new().unwrap();
    let hub = FakeHub::with_large_files(&[("a.bin", &[1; 5_000])]);
    let options = hasty(&hub, cache.path());
    let mut repo = HubRepo::open(REPO, &options).unwrap();
    let remote = repo.describe("a.bin", Tries::Several).unwrap();
    let stuck = Lock::try_exclusive(&repo.folder.blob_lock(&remote.etag)).unwrap();
    assert!(matches!(repo.get("a.bin"), Err(HubError::Busy { .. })));
    drop(stuck);
    assert!(repo.get("a.bin").is_ok());
}

#[test]
fn a_renamed_repository_is_found_and_refusals_say_what_to_do() {
    let cache = TempDir::new().unwrap();
    let content = |error_code, old_name| Content {
        files: [(
            "config.json".to_owned(),
            Stored {
                bytes: b"{}".to_vec(),
                ..Stored::default()
            },
        )]
        .into(),
        error_code,
        old_name,
        ..Content::default()
    };
    let hub = FakeHub::start(content(None, Some("old/name")));
    assert!(
        HubRepo::open("old/name", &hub.options(cache.path()))
            .unwrap()
            .get("config.json")
            .is_ok()
    );
    for (code, words) in [
        ("RepoNotFound", "no repository"),
        ("RevisionNotFound", "--revision"),
        ("EntryNotFound", "has no other.json"),
    ] {
        let hub = FakeHub::start(content(Some(code), None));
        let error = HubRepo::open(REPO, &hub.options(cache.path()))
            .unwrap()
            .get("other.json");
        let text = error.unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    }
    let hub = FakeHub::start(Content {
        token: Some("other".to_owned()),
        ..content(Some("GatedRepo"), None)
    });
    let options = HubOptions {
        token: Some("mine".to_owned()),
        cache: cache.path().join("empty"),
        ..hub.options(cache.path())
    };
    let error = HubRepo::open(REPO, &options).unwrap().get("config.json").unwrap_err();
    assert!(matches!(error, HubError::Gated { .. }), "{error}");
}
