//! What can befall a store's folder.

use std::fs;
use std::path::{Path, PathBuf};

use fastrand::Rng;

/// Kinds of files in a store's folder, by how their names begin or end.
const KINDS: [&str; 8] = [".sst", "MANIFEST", "CURRENT", "IDENTITY", "OPTIONS", "LOG", "LOCK", ".log"];

/// Does something bad to the store in `folder`, at random; what it did. `others` are whole stores that may be mixed
/// with it: of other partitions, and older copies.
pub fn mutate(folder: &Path, others: &[PathBuf], rng: &mut Rng) -> String {
    let other = &others[rng.usize(..others.len())];
    match rng.u32(..100) {
        0..36 => change(&some_file(folder, rng), "flips bits in", rng, flip),
        36..46 => change(&some_file(folder, rng), "cuts off", rng, cut),
        46..54 => change(&some_file(folder, rng), "fills a part with zeros of", rng, |bytes, rng| zeros(bytes, rng)),
        54..62 => {
            let file = some_file(folder, rng);
            fs::remove_file(&file).unwrap();
            format!("removes {}", file.display())
        }
        62..70 => swap(folder, other, rng),
        70..76 => {
            let manifests = files(other).into_iter().filter(|file| name(file).starts_with("MANIFEST"));
            let known: Vec<String> = manifests.map(|file| name(&file)).chain(["MANIFEST-000001".into()]).collect();
            let text = match rng.u32(..4) {
                0 => String::new(),
                1 => "no name at all".into(),
                2 => format!("{}\n", known[rng.usize(..known.len())]),
                _ => known[0].clone(),
            };
            fs::write(folder.join("CURRENT"), &text).unwrap();
            format!("makes CURRENT {text:?}")
        }
        76..84 => {
            fs::remove_dir_all(folder).unwrap();
            copy(other, folder);
            format!("takes {} for it", other.display())
        }
        84..88 => {
            fs::remove_dir_all(folder).unwrap();
            fs::create_dir(folder).unwrap();
            "empties it".into()
        }
        88..90 => {
            fs::remove_dir_all(folder).unwrap();
            "removes it".into()
        }
        90..93 => {
            fs::remove_dir_all(folder).unwrap();
            let db = rocksdb::DB::open_default(folder).unwrap();
            db.put(b"ekey", b"foreign").unwrap();
            db.flush().unwrap();
            "takes a foreign database for it".into()
        }
        93..96 => {
            fs::remove_dir_all(folder).unwrap();
            fs::write(folder, "a file").unwrap();
            "puts a file in its place".into()
        }
        _ => {
            let file = folder.join(format!("{:06}.sst", rng.u32(1..60)));
            fs::write(&file, garbage(rng, 2000)).unwrap();
            format!("writes garbage into {}", file.display())
        }
    }
}

/// Damages one of the files that hold data, under an open store: in place, as a disk does.
pub fn mutate_open(folder: &Path, rng: &mut Rng) -> String {
    let tables: Vec<PathBuf> = files(folder).into_iter().filter(|file| name(file).ends_with(".sst")).collect();
    if tables.is_empty() {
        return "finds nothing on the disk".into();
    }
    let file = &tables[rng.usize(..tables.len())];
    match rng.u32(..10) {
        0 => {
            fs::remove_file(file).unwrap();
            format!("removes {}", file.display())
        }
        1 => change(file, "cuts off", rng, cut),
        2 => {
            fs::remove_dir_all(folder).unwrap();
            format!("removes {}", folder.display())
        }
        3..6 => {
            tables.iter().for_each(|file| drop(change(file, "", rng, |bytes, rng| zeros(bytes, rng))));
            "fills a part of every table with zeros".into()
        }
        _ => change(file, "flips bits in", rng, flip),
    }
}

fn change(file: &Path, what: &str, rng: &mut Rng, change: impl FnOnce(&mut Vec<u8>, &mut Rng) -> String) -> String {
    use std::os::unix::fs::FileExt;
    let mut bytes = fs::read(file).unwrap();
    let whole = bytes.len();
    let how = change(&mut bytes, rng);
    let open = fs::File::options().write(true).open(file).unwrap();
    open.write_all_at(&bytes, 0).unwrap();
    open.set_len(bytes.len() as u64).unwrap();
    format!("{what} {} of {whole} bytes: {how}", file.display())
}

fn flip(bytes: &mut Vec<u8>, rng: &mut Rng) -> String {
    if bytes.is_empty() {
        bytes.push(1);
    }
    let places: Vec<(usize, u8)> = (0..rng.usize(1..=3)).map(|_| (rng.usize(..bytes.len()), rng.u8(..8))).collect();
    places.iter().for_each(|(place, bit)| bytes[*place] ^= 1 << bit);
    format!("{places:?}")
}

fn cut(bytes: &mut Vec<u8>, rng: &mut Rng) -> String {
    bytes.truncate(rng.usize(..bytes.len().max(1)));
    format!("{} are left", bytes.len())
}

fn zeros(bytes: &mut [u8], rng: &mut Rng) -> String {
    let from = rng.usize(..bytes.len().max(1));
    let to = (from + rng.usize(1..4096)).min(bytes.len());
    bytes[from..to].fill(0);
    format!("{from}..{to}")
}

/// A file of the same kind from elsewhere takes the place of one.
fn swap(folder: &Path, other: &Path, rng: &mut Rng) -> String {
    let file = some_file(folder, rng);
    let kind = KINDS.iter().find(|kind| is_of(&file, kind)).copied().unwrap_or(".sst");
    let candidates: Vec<PathBuf> = files(other).into_iter().filter(|file| is_of(file, kind)).collect();
    if candidates.is_empty() {
        fs::write(&file, garbage(rng, 500)).unwrap();
        return format!("puts garbage in the place of {}", file.display());
    }
    let foreign = &candidates[rng.usize(..candidates.len())];
    fs::copy(foreign, &file).unwrap();
    format!("puts {} in the place of {}", foreign.display(), file.display())
}

/// Of a random kind first, so that the few small files get their share.
fn some_file(folder: &Path, rng: &mut Rng) -> PathBuf {
    let all = files(folder);
    loop {
        // Half of the time one that holds data.
        let kind = if rng.bool() { KINDS[0] } else { KINDS[rng.usize(..KINDS.len())] };
        let of_kind: Vec<&PathBuf> = all.iter().filter(|file| is_of(file, kind)).collect();
        if !of_kind.is_empty() {
            return of_kind[rng.usize(..of_kind.len())].clone();
        }
    }
}

fn is_of(file: &Path, kind: &str) -> bool {
    let name = name(file);
    name.starts_with(kind) || (kind.starts_with('.') && name.ends_with(kind))
}

fn name(file: &Path) -> String {
    file.file_name().unwrap().to_string_lossy().into_owned()
}

fn garbage(rng: &mut Rng, length: usize) -> Vec<u8> {
    (0..length).map(|_| rng.u8(..)).collect()
}

/// The files of a folder, in the order of their names.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Copies a folder with all below it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in files(from) {
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}
