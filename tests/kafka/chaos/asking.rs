//! Somebody who asks every instance for keys all the time, whatever becomes of it.
//!
//! An answer is committed state, and none is older than another one for the same key that had been given before it was
//! asked for, by whichever instance (protocol P8, P12).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tidegate::stamp::Stamp;
use ureq::Agent;

use crate::cluster::app::App;
use crate::cluster::load;

/// The pause of each asker between two questions.
const PAUSE: Duration = Duration::from_millis(20);

/// What was answered.
#[derive(Default)]
pub struct Answers {
    /// The greatest stamp that was told of each key.
    told: HashMap<Bytes, Stamp>,
    /// All that was told.
    pub entries: HashMap<(Bytes, Stamp), Value>,
    /// How often, by status; 0 = no answer.
    pub statuses: BTreeMap<u16, usize>,
    /// What must not be.
    pub violations: Vec<String>,
}

/// Askers, one for each instance; they end when it is dropped.
pub struct Asking {
    answers: Arc<Mutex<Answers>>,
    /// Where the instances answer now.
    urls: Arc<Mutex<Vec<Option<String>>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Asking {
    /// Nobody is asked yet.
    pub fn begin(app: &App, instances: usize, seed: u64) -> Asking {
        let (answers, stop) = (Arc::new(Mutex::new(Answers::default())), Arc::new(AtomicBool::new(false)));
        let urls = Arc::new(Mutex::new(vec![None; instances]));
        let asker = |slot: usize| {
            let (answers, stop, urls) = (Arc::clone(&answers), Arc::clone(&stop), Arc::clone(&urls));
            // A question may wait at an instance that stands still until that is woken.
            let agent = app.agent(Duration::from_secs(20));
            let mut random = fastrand::Rng::with_seed(seed + slot as u64);
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let url: Option<String> = urls.lock().expect("no panic with it")[slot].clone();
                    if let Some(url) = url {
                        ask(&agent, &url, &load::key(&mut random), &answers);
                    }
                    std::thread::sleep(PAUSE);
                }
            })
        };
        let threads = (0..instances).map(asker).collect();
        Asking { answers, urls, stop, threads }
    }

    /// An instance answers there now.
    pub fn at(&self, slot: usize, url: Option<String>) {
        self.urls.lock().expect("no panic with it")[slot] = url;
    }

    /// Ends the asking.
    pub fn end(mut self) -> Answers {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|thread| thread.join().expect("no asker panics"));
        std::mem::take(&mut self.answers.lock().expect("no panic with it"))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn ask(agent: &Agent, url: &str, key: &str, answers: &Mutex<Answers>) {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let floor = answers.lock().expect("no panic with it").told.get(&key).cloned();
    let asked = Instant::now();
    let path = format!("{url}/api/v1/keys/{}", String::from_utf8_lossy(&key));
    let answer = agent.get(path).call().ok().and_then(|mut answer| {
        let text = answer.body_mut().read_to_string().ok()?;
        Some((answer.status().as_u16(), serde_json::from_str::<Value>(&text).ok()?))
    });
    let (status, held) = answer.unwrap_or_default();
    let took = asked.elapsed();
    let mut answers = answers.lock().expect("no panic with it");
    *answers.statuses.entry(status).or_default() += 1;
    match status {
        200 => {
            let stamp: Stamp = held["stamp"].as_str().and_then(|stamp| stamp.parse().ok()).expect("a stamp");
            if floor.as_ref().is_some_and(|floor| stamp < *floor) {
                answers.violations.push(format!("asked {took:?}, {floor:?} had been told before: {held}"));
            }
            let told = answers.told.entry(key.clone()).or_insert_with(|| stamp.clone());
            *told = stamp.clone().max(told.clone());
            answers.entries.insert((key, stamp), held);
        }
        404 if floor.is_some() => {
            answers.violations.push(format!("{key:?} is forgotten, {floor:?} had been told: {held}"))
        }
        0 | 404 | 503 => {}
        _ => answers.violations.push(format!("{key:?}: {status} {held}")),
    }
}
