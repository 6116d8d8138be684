//! The cache as other tools lay it out, and downloads from a hub on loopback.

use std::{collections::HashMap, fs, path::Path};

use tempfile::TempDir;

use super::{
    testing::{COMMIT, Content, FakeHub, REPO, Stored},
    *,
};

mod ranges;
mod room;

/// An address of loopback where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1";

/// Writes a file the way `huggingface_hub` caches it.
fn put_in_cache(cache: &Path, commit: &str, file: &str, content: &[u8]) {
    let folder = cache.join("models--owner--name");
    for sub in ["refs", "blobs"] {
        fs::create_dir_all(folder.join(sub)).unwrap();
    }
    fs::create_dir_all(folder.join("snapshots").join(commit)).unwrap();
    fs::write(folder.join("refs/main"), commit).unwrap();
    fs::write(folder.join("snapshots").join(commit).join(file), content).unwrap();
}

fn offline(cache: &Path) -> HubOptions {
    HubOptions {
        cache: cache.to_owned(),
        offline: true,
        endpoint: NOBODY.to_owned(),
        ..testing::options()
    }
}

fn variables(pairs: &[(&str, &str)]) -> HubOptions {
    let set: HashMap<String, String> = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    HubOptions::from_variables(|name| set.get(name).cloned())
}

#[test]
fn the_cache_is_where_other_tools_have_it() {
    let cache = |pairs: &[(&str, &str)]| variables(pairs).cache.to_string_lossy().into_owned();
    let home = ("HOME", "/home/ann");
    assert_eq!(cache(&[home]), "/home/ann/.cache/huggingface/hub");
    assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/xdg")]), "/xdg/huggingface/hub");
    assert_eq!(
        cache(&[home, ("XDG_CACHE_HOME", "/xdg"), ("HF_HOME", "/hf")]),
        "/hf/hub"
    );
    assert_eq!(cache(&[home, ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/cache")]), "/cache");
    assert_eq!(cache(&[home, ("HF_HOME", "")]), "/home/ann/.cache/huggingface/hub");
    assert_eq!(cache(&[home, ("HF_HOME", "~/hf")]), "/home/ann/hf/hub");
    let old = ("HUGGINGFACE_HUB_CACHE", "~/old");
    assert_eq!(cache(&[home, ("HF_HOME", "/hf"), old]), "/home/ann/old");
    assert_eq!(cache(&[home, ("HF_HUB_CACHE", "/cache"), old]), "/cache");
}

#[test]
fn variables_inside_paths_are_what_they_stand_for() {
    for (written, meant) in [
        ("$DISK/hub", "/disk/hub"),
        ("/a/${DISK}b/$USER-1", "/a//diskb/ann-1"),
        ("~/$USER", "/home/ann/ann"),
        ("/$NOBODY/${NOBODY}/$/${/$", "/$NOBODY/${NOBODY}/$/${/$"),
        ("$", "$"),
    ] {
        let set = [
            ("HOME", "/home/ann"),
            ("DISK", "/disk"),
            ("USER", "ann"),
            ("HF_HUB_CACHE", written),
        ];
        assert_eq!(variables(&set).cache, std::path::absolute(meant).unwrap(), "{written}");
    }
}

#[test]
fn the_token_comes_from_its_variable_or_from_the_file_of_a_login() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("token"), "from file\n").unwrap();
    let home = ("HF_HOME", folder.path().to_str().unwrap());
    assert_eq!(variables(&[home]).token.as_deref(), Some("from file"));
    assert_eq!(variables(&[home, ("HF_TOKEN", "mine")]).token.as_deref(), Some("mine"));
    let old = ("HUGGING_FACE_HUB_TOKEN", "old");
    assert_eq!(variables(&[home, old]).token.as_deref(), Some("old"));
    assert_eq!(variables(&[old, ("HF_TOKEN", "mine")]).token.as_deref(), Some("mine"));
    assert_eq!(variables(&[("HF_HOME", "/nowhere")]).token, None);
}

#[test]
fn offline_is_what_other_tools_take_for_true() {
    for (value, expected) in [
        ("1", true),
        ("true", true),
        ("Yes", true),
        ("ON", true),
        ("0", false),
        ("no", false),
    ] {
        assert_eq!(variables(&[("HF_HUB_OFFLINE", value)]).offline, expected, "{value}");
    }
    assert!(!variables(&[]).offline);
    assert!(variables(&[("TRANSFORMERS_OFFLINE", "1")]).offline);
    assert!(!variables(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).offline);
}

#[test]
fn options_in_a_log_do_not_show_the_token() {
    let options = variables(&[("HF_TOKEN", "secret")]);
    assert!(!format!("{options:?}").contains("secret"));
}

#[test]
fn a_cached_file_needs_no_network() {
    let cache = TempDir::new().unwrap();
    put_in_cache(cache.path(), COMMIT, "config.json", b"{}");
    let mut repo = HubRepo::open(REPO, &offline(cache.path())).unwrap();
    assert_eq!(fs::read(repo.get("config.json").unwrap()).unwrap(), b"{}");
    let unreachable = HubOptions {
        offline: false,
        ..offline(cache.path())
    };
    let mut repo = HubRepo::open(REPO, &unreachable).unwrap();
    assert!(repo.get("config.json").is_ok());
    assert!(matches!(repo.get("other.json"), Err(HubError::Unreachable { .. })));
    assert!(matches!(repo.get_optional("other.json"), Ok(None)));
}

#[test]
fn a_hub_that_does_not_answer_is_asked_once_for_what_one_can_do_without() {
    let cache = TempDir::new().unwrap();
    put_in_cache(cache.path(), COMMIT, "config.json", b"{}");
    let hub = FakeHub::with_files(&[("first.json", b"1"), ("second.json", b"2")]);
    let options = hub.options(cache.path());
    hub.fall_silent(usize::MAX);
    for file in ["first.json", "second.json", "third.json"] {
        let mut repo = HubRepo::open(REPO, &options).unwrap();
        assert!(repo.get("config.json").is_ok());
        assert!(matches!(repo.get_optional(file), Ok(None)));
    }
    assert_eq!(hub.requests(), 1);
    let mut repo = HubRepo::open(REPO, &options).unwrap();
    assert!(matches!(
        repo.get_decisive("third.json"),
        Err(HubError::Unreachable { .. })
    ));
    hub.fall_silent(0);
    assert!(repo.get("first.json").is_ok());
    assert!(matches!(repo.get_optional("second.json"), Ok(Some(_))));
    let before = hub.requests();
    assert!(matches!(repo.get_decisive("third.json"), Ok(None)));
    assert!(matches!(repo.get_optional("third.json"), Ok(None)));
    assert_eq!(hub.requests(), before + 1);
}

#[test]
fn silence_is_told_from_other_failures() {
    let timeout = ureq::Error::Timeout;
    let silent = |fault: Fault| fault.silence().map(|silence| silence.as_secs());
    assert_eq!(
        silent(Fault::Transport(Box::new(timeout(ureq::Timeout::Connect)))),
        Some(20)
    );
    assert_eq!(
        silent(Fault::Transport(Box::new(timeout(ureq::Timeout::RecvResponse)))),
        Some(60)
    );
    assert_eq!(silent(Fault::Cut(timeout(ureq::Timeout::PerRead).into_io())), Some(60));
    assert_eq!(silent(Fault::Cut(io::ErrorKind::UnexpectedEof.into())), None);
    assert_eq!(silent(Fault::Transport(Box::new(ureq::Error::HostNotFound))), None);
    assert_eq!(silent(Fault::NoRanges), None);
}

#[test]
fn a_commit_can_be_named_as_revision() {
    let cache = TempDir::new().unwrap();
    put_in_cache(cache.path(), COMMIT, "config.json", b"{}");
    for (revision, found) in [(COMMIT, true), ("main", true), ("v1.0", false)] {
        let options = HubOptions {
            revision: Some(revision.to_owned()),
            ..offline(cache.path())
        };
        let mut repo = HubRepo::open(REPO, &options).unwrap();
        assert_eq!(repo.get("config.json").is_ok(), found, "{revision}");
    }
}

#[test]
fn a_folder_filled_by_hand_does_without_what_is_optional_and_the_way_to_the_rest_is_named() {
    let cache = TempDir::new().unwrap();
    let snapshot = cache.path().join("models--owner--name/snapshots/main");
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("config.json"), b"mine").unwrap();
    let names = ["config.json", "generation_config.json", "weights"];
    let hub = FakeHub::with_files(&names.map(|name| (name, b"{}".as_slice())));
    let mut repo = HubRepo::open(REPO, &hub.options(cache.path())).unwrap();
    assert_eq!(fs::read(repo.get("config.json").unwrap()).unwrap(), b"mine");
    assert!(matches!(repo.get_optional("generation_config.json"), Ok(None)));
    let text = repo.get("weights").unwrap_err().to_string();
    let said = ["weights", "snapshots/main", COMMIT, "put it there", "away"];
    assert!(said.iter().all(|said| text.contains(said)), "{text}");
    fs::rename(&snapshot, cache.path().join("away")).unwrap();
    assert!(
        HubRepo::open(REPO, &hub.options(cache.path()))
            .unwrap()
            .get("weights")
            .is_ok()
    );
}

#[test]
fn a_cached_commit_that_the_hub_lost_is_named_with_what_to_delete() {
    let cache = TempDir::new().unwrap();
    const LOST: &str = "89abcdef0123456789abcdef0123456789abcdef";
    put_in_cache(cache.path(), LOST, "config.json", b"{}");
    let hub = FakeHub::with_files(&[("weights", b"1")]);
    hub.refuse_with("RevisionNotFound");
    let get = || HubRepo::open(REPO, &hub.options(cache.path())).unwrap().get("weights");
    let text = get().unwrap_err().to_string();
    let reference = cache.path().join("models--owner--name/refs/main");
    let said = [LOST, REPO, reference.to_str().unwrap()];
    assert!(said.iter().all(|said| text.contains(said)), "{text}");
    fs::remove_file(reference).unwrap();
    assert!(get().is_ok());
}

#[test]
fn a_branch_that_names_no_snapshot_is_asked_for_anew() {
    let cache = TempDir::new().unwrap();
    put_in_cache(cache.path(), COMMIT, "config.json", b"{}");
    // Half written, of another time, or malicious.
    for named in ["", "0123", ".", "..", "../snapshots", "../../..", "a/b"] {
        fs::write(cache.path().join("models--owner--name/refs/main"), named).unwrap();
        let repo = HubRepo::open(REPO, &offline(cache.path())).unwrap();
        assert_eq!(repo.commit, None, "{named:?}");
    }
}

#[test]
fn offline_the_missing_file_and_the_variable_are_named() {
    let cache = TempDir::new().unwrap();
    let error = HubRepo::open(REPO, &offline(cache.path())).unwrap().get("config.json");
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("config.json") && text.contains(REPO) && text.contains("HF_HUB_OFFLINE"),
        "{text}"
    );
}

#[test]
fn a_missing_file_is_downloaded_once_and_other_tools_find_it() {
    let cache = TempDir::new().unwrap();
    let content = vec![7; 300_000];
    let hub = FakeHub::with_files(&[("config.json", b"{}"), ("weights", &content)]);
    for _ in 0..2 {
        let mut repo = HubRepo::open(REPO, &hub.options(cache.path())).unwrap();
        assert_eq!(fs::read(repo.get("weights").unwrap()).unwrap(), content);
        assert_eq!(fs::read(repo.get("config.json").unwrap()).unwrap(), b"{}");
    }
    assert_eq!(hub.asked(), ["weights", "config.json"]);
    let folder = cache.path().join("models--owner--name");
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    assert!(folder.join("snapshots").join(COMMIT).join("weights").is_file());
}

#[test]
fn a_file_that_the_hub_does_not_have_is_not_found() {
    let cache = TempDir::new().unwrap();
    let hub = FakeHub::with_files(&[("config.json", b"{}")]);
    let mut repo = HubRepo::open(REPO, &hub.options(cache.path())).unwrap();
    assert!(matches!(repo.get("other"), Err(HubError::NotFound { .. })));
    assert!(matches!(repo.get_optional("other"), Ok(None)));
    let mut repo = HubRepo::open("owner/another", &hub.options(cache.path())).unwrap();
    assert!(matches!(repo.get("config.json"), Err(HubError::NotFound { .. })));
}

#[test]
fn a_gated_repository_asks_for_the_token_and_tells_a_wrong_one_apart() {
    let cache = TempDir::new().unwrap();
    let hub = FakeHub::start(Content {
        files: [(
            "config.json".to_owned(),
            Stored {
                bytes: b"{}".to_vec(),
                is_large: true,
                ..Stored::default()
            },
        )]
        .into(),
        token: Some("right".to_owned()),
        ..Content::default()
    });
    let get = |token: Option<&str>| {
        let options = HubOptions {
            token: token.map(str::to_owned),
            ..hub.options(cache.path())
        };
        HubRepo::open(REPO, &options).unwrap().get("config.json")
    };
    let error = get(None).unwrap_err();
    assert!(matches!(error, HubError::TokenNeeded { .. }) && error.to_string().contains("HF_TOKEN"));
    assert!(matches!(get(Some("wrong")), Err(HubError::TokenRefused { .. })));
    assert!(get(Some("right")).is_ok());
}

#[test]
fn the_token_is_not_shown_to_another_port_of_the_hubs_machine() {
    let (cache, weights) = (TempDir::new().unwrap(), vec![4; 30_000]);
    let [hub, store] = [(); 2].map(|()| FakeHub::with_large_files(&[("weights", &weights)]));
    hub.store_at(&store);
    // A store that is shown a token ends at once.
    for one in [&hub, &store] {
        one.demand("right");
    }
    let options = HubOptions {
        token: Some("right".to_owned()),
        ..hub.options(cache.path())
    };
    let path = HubRepo::open(REPO, &options).unwrap().get("weights").unwrap();
    assert_eq!(fs::read(path).unwrap(), weights);
    assert_eq!((hub.sent("weights"), store.sent("weights")), (0, 30_000));
}

#[test]
fn a_file_longer_than_any_disk_is_refused_before_its_download_is_planned() {
    let cache = TempDir::new().unwrap();
    let hub = FakeHub::with_large_files(&[("weights", &[4; 30_000])]);
    hub.change("weights", |stored| stored.claimed_size = Some(1 << 62));
    let error = HubRepo::open(REPO, &hub.options(cache.path())).unwrap().get("weights");
    let Err(HubError::Unreachable { source, .. }) = error else {
        panic!("{error:?}");
    };
    assert!(matches!(*source, Fault::NotAHub("usable size")), "{source}");
    assert_eq!(hub.requests(), 1);
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let folder = TempDir::new().unwrap();
    let no_folder = folder.path().join("file");
    fs::write(&no_folder, b"").unwrap();
    let hub = FakeHub::with_files(&[("config.json", b"{}")]);
    let mut repo = HubRepo::open(REPO, &hub.options(&no_folder)).unwrap();
    assert!(matches!(repo.get("config.json"), Err(HubError::Cache { .. })));
}

#[test]
fn a_full_disk_is_told_apart() {
    let request = || error::Request {
        repo: REPO,
        revision: "main",
        cached: None,
        file: "weights",
        endpoint: NOBODY,
        cache: "/cache".into(),
        with_token: false,
    };
    let full = Fault::Disk(std::io::ErrorKind::StorageFull.into());
    assert!(matches!(request().failed(full), HubError::DiskFull { .. }));
    let cut = Fault::Cut(std::io::ErrorKind::StorageFull.into());
    assert!(matches!(request().failed(cut), HubError::Unreachable { .. }));
}

#[test]
fn names_that_would_leave_the_cache_or_break_a_url_are_refused() {
    let options = offline(Path::new("/cache"));
    for name in [
        "", "a/b/c", "../x", "a/..", "/a", "a/", "a b", "a?b", "ä", "a\\b", "a%2Fb",
    ] {
        assert!(
            matches!(HubRepo::open(name, &options), Err(HubError::Name { .. })),
            "{name}"
        );
    }
    for name in ["gpt2", "meta-llama/Llama-3.1-8B", "a_b/c.d"] {
        assert!(HubRepo::open(name, &options).is_ok(), "{name}");
    }
    for revision in ["", "../main", "a//b", "main?"] {
        let options = HubOptions {
            revision: Some(revision.to_owned()),
            ..options.clone()
        };
        assert!(matches!(
            HubRepo::open("gpt2", &options),
            Err(HubError::Revision { .. })
        ));
    }
    let options = HubOptions {
        endpoint: "ftp://hub".to_owned(),
        ..options
    };
    assert!(matches!(
        HubRepo::open("gpt2", &options),
        Err(HubError::Endpoint { .. })
    ));
}
