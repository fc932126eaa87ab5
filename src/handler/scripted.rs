//! The handler `scripted`: the event brings its own script, so that any cascade can be driven from outside.
//!
//! The payload is JSON, every field optional:
//! `{"work_ms": 5, "value": "text", "spawn": [{"key":"234","action":"REMOVE","payload":{…the child's own script…}}],
//!   "fail": {"times": 2, "how": "retry"|"reject"|"timeout"|"panic"}}`

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Context, Failure, Handler, Outcome};
use crate::event::{Action, Event};
use crate::json::{JsonEvent, bytes_of, object};

/// Does what each event's payload says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scripted {
    without_waits: bool,
}

impl Scripted {
    /// The same outcomes, at once: what the serial reference calls. A try that would wait for its
    /// deadline, or panic, fails like any other.
    pub fn without_waits(self) -> Scripted {
        Scripted { without_waits: true }
    }
}

impl Handler for Scripted {
    async fn handle(&self, event: Event, context: Context) -> Result<Outcome, Failure> {
        let plan =
            Plan::read(event.payload).map_err(|message| Failure::Reject { code: "not_a_script".into(), message })?;
        if !self.without_waits && !plan.work.is_zero() {
            tokio::time::sleep(plan.work).await;
        }
        let fails = context.retry == 0 && context.attempt <= plan.fail_times;
        match plan.fail_how {
            _ if !fails => Ok(plan.outcome),
            How::Reject => Err(Failure::Reject { code: "scripted".into(), message: "the script rejects this".into() }),
            How::Timeout if !self.without_waits => std::future::pending().await,
            How::Panic if !self.without_waits => panic!("the script panics in try {}", context.attempt),
            How::Retry | How::Timeout | How::Panic => Err(Failure::Retry {
                reason: format!("the script fails try {} of {}", context.attempt, plan.fail_times),
                after: None,
            }),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Script<'a> {
    work_ms: Option<u64>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    spawn: Option<Vec<&'a RawValue>>,
    fail: Option<Fail>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fail {
    #[serde(default = "once")]
    times: u32,
    #[serde(default)]
    how: How,
}

fn once() -> u32 {
    1
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum How {
    #[default]
    Retry,
    Reject,
    Timeout,
    Panic,
}

/// A script that was read.
#[derive(Default)]
struct Plan {
    work: Duration,
    outcome: Outcome,
    fail_times: u32,
    fail_how: How,
}

impl Plan {
    fn read(payload: Option<Bytes>) -> Result<Plan, String> {
        let Some(payload) = payload else { return Ok(Plan::default()) };
        let script: Script<'_> = object(&payload)?;
        let mut children = Vec::new();
        for (index, child) in script.spawn.into_iter().flatten().enumerate() {
            children.push(spawned(child, &payload).map_err(|message| format!("spawn {}: {message}", index + 1))?);
        }
        let value = script.value.map(|value| bytes_of(value, &payload)).transpose()?;
        let fail = script.fail.unwrap_or(Fail { times: 0, how: How::Retry });
        Ok(Plan {
            work: Duration::from_millis(script.work_ms.unwrap_or(0)),
            outcome: Outcome { value, children },
            fail_times: fail.times,
            fail_how: fail.how,
        })
    }
}

/// A child as the script says it; its key is not judged here.
fn spawned(child: &RawValue, payload: &Bytes) -> Result<Event, String> {
    let child: JsonEvent<'_> = object(child.get().as_bytes())?;
    let key = child.key(payload)?.ok_or("no key")?;
    let word = child.action().ok_or("no action")?;
    let action = Action::parse(word.as_bytes()).ok_or_else(|| format!("unknown action {word:?}"))?;
    Ok(Event { key, action, payload: child.payload(payload)? })
}

#[cfg(test)]
mod tests {
    use super::super::builtin::tests::{at_once, attempt, event};
    use super::*;

    fn run(payload: Option<&str>, context: Context) -> Option<Result<Outcome, Failure>> {
        at_once(&Scripted::default(), event("k", Action::Add, payload), context)
    }

    fn first(payload: &str) -> Result<Outcome, Failure> {
        run(Some(payload), attempt(1)).expect("does not wait")
    }

    #[test]
    fn no_payload_is_the_empty_script() {
        assert_eq!(run(None, attempt(1)), Some(Ok(Outcome::default())));
        assert_eq!(first("{}"), Ok(Outcome::default()));
        assert_eq!(first(r#"{"value":null,"spawn":null,"fail":null,"work_ms":0}"#), Ok(Outcome::default()));
    }

    #[test]
    fn children_come_in_order_with_their_payloads_as_they_stand() {
        let outcome = first(
            r#"{"value":"te\u0078t","spawn":[
                {"key":"234","action":"REMOVE","payload":{ "work_ms" : 1 }},
                {"key":"","action":"add","payload":"text"},
                {"key_base64":"MQ==","action":"ADD"}]}"#,
        )
        .unwrap();
        assert_eq!(outcome.value.as_deref(), Some(&b"text"[..]));
        assert_eq!(
            outcome.children,
            [
                event("234", Action::Remove, Some(r#"{ "work_ms" : 1 }"#)),
                event("", Action::Add, Some("text")),
                event("1", Action::Add, None),
            ]
        );
    }

    #[test]
    fn what_is_no_script_is_rejected() {
        for payload in [
            "",
            "text",
            "[]",
            "5",
            r#"{"wrok_ms":5}"#,
            r#"{"work_ms":-1}"#,
            r#"[5,"v",[],null]"#,
            r#"{"spawn":[["1",null,"ADD"]]}"#,
            r#"{"spawn":[{"key":"1"}]}"#,
            r#"{"spawn":[{"action":"ADD"}]}"#,
            r#"{"spawn":[{"key":"1","action":"PUT"}]}"#,
            r#"{"fail":{"how":"slowly"}}"#,
        ] {
            let result = first(payload);
            assert!(matches!(&result, Err(Failure::Reject { code, .. }) if code == "not_a_script"), "{payload}");
        }
    }

    #[test]
    fn fail_counts_tries_of_the_first_processing() {
        let script = r#"{"value":"v","fail":{"times":2,"how":"retry"}}"#;
        let run = |attempt: u32, retry: u32| run(Some(script), Context { retry, ..self::attempt(attempt) }).unwrap();
        assert!(matches!(run(1, 0), Err(Failure::Retry { after: None, .. })));
        assert!(matches!(run(2, 0), Err(Failure::Retry { .. })));
        assert!(run(3, 0).is_ok());
        assert!(run(1, 1).is_ok(), "a retried dead letter succeeds");
        assert!(matches!(first(r#"{"fail":{"how":"reject"}}"#), Err(Failure::Reject { .. })));
    }

    #[test]
    fn timeout_never_ends_and_panic_panics() {
        assert!(run(Some(r#"{"fail":{"times":1,"how":"timeout"}}"#), attempt(1)).is_none());
        let panics = std::panic::catch_unwind(|| first(r#"{"fail":{"times":1,"how":"panic"}}"#));
        assert!(panics.is_err());
    }

    #[test]
    fn the_reference_neither_waits_nor_panics() {
        let quick = Scripted::default().without_waits();
        let run = |script: &str| at_once(&quick, event("k", Action::Add, Some(script)), attempt(1)).unwrap();
        assert!(run(r#"{"work_ms":60000}"#).is_ok());
        for how in ["timeout", "panic", "retry"] {
            let script = format!(r#"{{"fail":{{"how":"{how}"}}}}"#);
            assert!(matches!(run(&script), Err(Failure::Retry { .. })), "{how}");
        }
    }

    #[test]
    fn work_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        assert!(run(Some(r#"{"work_ms":50}"#), attempt(1)).is_none());
    }
}
