//! One who sends a cascade, waits until it is settled, and then looks, through another instance.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde_json::Value;
use tidegate::reference::{Held, Reference};
use ureq::Agent;

use super::Urls;
use super::cascade::Cascade;
use crate::cluster::app::App;
use crate::kit;

/// Nobody waits for longer than that, whatever dies meanwhile.
const TIMEOUT: &str = "30s";

/// For so long an instance may say that it is not ready, or be dead.
const PATIENCE: Duration = Duration::from_secs(30);

/// One of so many cascades is sent by the command line.
const BY_COMMAND: u8 = 8;

/// A cascade that was waited for.
pub struct Settled {
    pub sequence: u64,
    /// When the answer was there, in milliseconds since 1970.
    pub at_ms: f64,
    pub by_post: bool,
    pub dead_letters: u64,
}

pub struct Caller<'a> {
    app: &'a App,
    urls: &'a Urls,
    agent: Agent,
    random: fastrand::Rng,
}

/// Milliseconds since 1970, on the clock of whoever writes records here.
pub fn now_ms() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64() * 1000.0
}

impl<'a> Caller<'a> {
    pub fn new(app: &'a App, urls: &'a Urls, seed: u64) -> Caller<'a> {
        let agent = app.agent(Duration::from_secs(60));
        Caller { app, urls, agent, random: fastrand::Rng::with_seed(seed) }
    }

    /// One cascade; `None` when the instance died meanwhile: nobody knows then whether it was accepted.
    pub fn send_and_wait(&mut self) -> Option<Settled> {
        let cascade = Cascade::draw(&mut self.random, kit::unique("c"));
        let url = self.urls.one(&mut self.random, None)?;
        let by_post = self.random.u8(..BY_COMMAND) > 0;
        let answer = if by_post { self.post(&url, &cascade)? } else { self.command(&url, &cascade)? };
        let at_ms = now_ms();
        let sequence = answer["first_sequence"].as_u64().unwrap_or_else(|| panic!("no sequence: {answer}"));
        let reference = cascade.reference(sequence);
        let dead_letters = reference.failed + reference.too_deep;
        assert_eq!(answer["dead_letters"].as_u64(), Some(dead_letters), "{answer}");
        let another = self.urls.one(&mut self.random, Some(&url))?;
        self.compare(&url, &another, &cascade, &reference);
        Some(Settled { sequence, at_ms, by_post, dead_letters })
    }

    fn post(&self, url: &str, cascade: &Cascade) -> Option<Value> {
        let request = self.agent.post(format!("{url}/api/v1/events?wait=settled&timeout={TIMEOUT}"));
        let mut answer = request.content_type("application/json").send(&cascade.event).ok()?;
        let text = answer.body_mut().read_to_string().ok()?;
        let answered = serde_json::from_str(&text).ok()?;
        match answer.status().as_u16() {
            200 => Some(answered),
            // The instance, or its broker's connection, was not there yet: nothing was accepted.
            503 => None,
            status => panic!("{status} {text}\n{}", self.app.logs()),
        }
    }

    fn command(&self, url: &str, cascade: &Cascade) -> Option<Value> {
        let verb = ["--server", url, "--output", "json", "send", "--file", "-", "--wait", "--timeout", TIMEOUT];
        let mut command = self.app.bare(&verb);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("the binary starts");
        child.stdin.take().expect("piped").write_all(cascade.event.as_bytes()).expect("it reads");
        let ended = child.wait_with_output().expect("our own child");
        let said = String::from_utf8_lossy(&ended.stderr);
        let answer: Option<Value> = serde_json::from_slice(&ended.stdout).ok();
        match (ended.status.code(), answer) {
            (Some(code @ (0 | 4)), Some(answer)) => {
                assert_eq!(code == 4, answer["dead_letters"] != 0, "{answer} {said}");
                Some(answer)
            }
            (Some(1), _) if !said.contains("not_settled") => None,
            (code, _) => panic!("send --wait ends with {code:?}: {said}\n{}", self.app.logs()),
        }
    }

    /// What is settled is there, whoever is asked, from the first answer on.
    fn compare(&mut self, answered: &str, another: &str, cascade: &Cascade, reference: &Reference) {
        for key in cascade.keys() {
            let (status, held) = self.ask(another, &key);
            let expected = reference.state.get(&Bytes::from(key.clone()));
            let is_as_expected = match expected {
                None => status == 404,
                Some(expected) => status == 200 && is(&held, expected),
            };
            assert!(
                is_as_expected,
                "{answered} says that {} is settled; then {another} says of {key} {status} {held}, expected {expected:?}\n{}",
                cascade.event,
                self.app.logs()
            );
        }
    }

    /// The first answer, from `url` or, when it dies, from whoever lives.
    fn ask(&mut self, url: &str, key: &str) -> (u16, Value) {
        let (deadline, mut url) = (Instant::now() + PATIENCE, url.to_owned());
        loop {
            let answer = self.agent.get(format!("{url}/api/v1/keys/{key}")).call().ok().and_then(|mut answer| {
                let text = answer.body_mut().read_to_string().ok()?;
                Some((answer.status().as_u16(), serde_json::from_str(&text).ok()?))
            });
            match answer {
                Some((status, answer)) if status != 503 => return (status, answer),
                _ => url = self.urls.one(&mut self.random, None).unwrap_or(url),
            }
            assert!(Instant::now() < deadline, "nobody answers for {key}\n{}", self.app.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn is(held: &Value, (stamp, action, value): &Held) -> bool {
    let value = value.as_ref().map(|value| std::str::from_utf8(value).expect("values here are text"));
    held["stamp"] == stamp.to_string() && held["action"] == action.as_str() && held["value"].as_str() == value
}
