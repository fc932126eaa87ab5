//! The configuration from a file, from the environment and from flags: an error or a configuration, and what
//! `config show` prints of it is a configuration, too.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::config::load::{LoadOptions, load, show};

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("tidegate-fuzz-{}.toml", std::process::id()))
});

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut options = LoadOptions::default();
    let mut characters = text.chars();
    let kind = characters.next();
    // One setting in a line; a name or value may have line ends, too.
    let lines = || characters.as_str().lines().map(|line| line.replace("\\n", "\n"));
    let pairs =
        || lines().filter_map(|line| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
    match kind {
        Some('e') => {
            options.environment = pairs().map(|(name, value)| (format!("TIDEGATE_{name}"), value)).collect();
        }
        Some('s') => {
            options.settings = pairs().map(|(key, value)| (key, value, "--set".into())).collect();
        }
        Some(_) => {
            std::fs::write(&*FILE, characters.as_str()).expect("memory has room");
            options.file = Some(FILE.clone());
        }
        None => {}
    }
    let Ok(loaded) = load(options) else { return };
    std::fs::write(&*FILE, show(&loaded)).expect("memory has room");
    let shown = load(LoadOptions { file: Some(FILE.clone()), ..LoadOptions::default() });
    // Secrets are masked, so that values may differ; the text is a configuration nevertheless.
    assert!(shown.is_ok(), "{shown:?}");
});
