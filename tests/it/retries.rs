//! Dead letters that are sent again: over HTTP and from the command line, with their original stamps.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::running::{Running, eventually, run};

const REJECT: &str = r#"{"times":9,"how":"reject"}"#;

/// An event that is rejected when it is processed first, and then has the value and a child.
fn rejected(key: &str, value: &str) -> String {
    format!(
        r#"{{"key":"{key}","action":"ADD","payload":{{"value":"{value}","fail":{REJECT},
            "spawn":[{{"key":"{key}-child","action":"ADD","payload":{{"value":"of {value}"}}}}]}}}}"#
    )
    .replace('\n', " ")
}

fn event(key: &str, value: &str) -> String {
    json!({ "key": key, "action": "ADD", "payload": { "value": value } }).to_string()
}

/// Sends these, and waits until there are as many dead letters.
fn letters(instance: &Running, lines: &[String], count: usize) -> Vec<Value> {
    instance.post("application/x-ndjson", lines.join("\n"));
    eventually("all dead letters are there", || Some(list(instance)).filter(|letters| letters.len() == count))
}

fn list(instance: &Running) -> Vec<Value> {
    let (status, page) = instance.get("/api/v1/dead-letters?limit=1000");
    assert_eq!(status, 200, "{page}");
    page["dead_letters"].as_array().unwrap().clone()
}

fn of<'a>(letters: &'a [Value], key: &str) -> &'a Value {
    letters.iter().find(|letter| letter["key"] == key).unwrap_or_else(|| panic!("no dead letter of {key}"))
}

fn path(letter: &Value, more: &str) -> String {
    format!("/api/v1/dead-letters/{}/{}/retry{more}", letter["partition"], letter["offset"])
}

fn retry(instance: &Running, letter: &Value, more: &str) -> (u16, Value) {
    instance.post_to(&path(letter, more), "application/json", "")
}

fn refused(instance: &Running, letter: &Value, more: &str, code: &str) {
    let (status, answer) = retry(instance, letter, more);
    assert_eq!((status, &answer["error"]["code"]), (409, &code.into()), "{answer}");
}

/// Every key is as in the reference, while the instance runs.
fn verify(folder: &Path, more: &[&str]) {
    let verify = ["verify", "--set", "handler.kind=scripted", "--set", "processing.partitions=4"];
    run(folder, &[&verify, more].concat()).ok();
}

#[test]
fn a_retried_dead_letter_is_as_if_it_had_succeeded() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let sent = [rejected("a", "first"), rejected("b", "first"), event("b", "second"), event("a-child", "later")];
    let found = letters(&instance, &sent, 2);
    assert_eq!((of(&found, "a")["retried"].clone(), of(&found, "a")["stamp"].clone()), (json!(false), json!("0")));
    assert_eq!(instance.get("/api/v1/keys/a").0, 404);

    let (status, answer) = retry(&instance, of(&found, "a"), "");
    assert_eq!((status, &answer["stamp"]), (202, &json!("0")), "{answer}");
    let held = instance.holds("a", "ADD");
    assert_eq!((&held["value"], &held["stamp"]), (&json!("first"), &json!("0")));
    // It was superseded meanwhile: the key stays, its child comes, and what came later outdoes that.
    assert_eq!(retry(&instance, of(&found, "b"), "").0, 202);
    assert_eq!(instance.holds("b-child", "ADD")["stamp"], "1/0");
    assert_eq!(instance.get("/api/v1/keys/b").1["value"], "second");
    assert_eq!(instance.get("/api/v1/keys/a-child").1["value"], "later");

    for key in ["a", "b"] {
        refused(&instance, of(&found, key), "", "already_retried");
        assert_eq!(of(&list(&instance), key)["retried"], true);
    }
    let root = eventually("the retry is settled", || {
        let (_, root) = instance.get("/api/v1/roots/0");
        (root["retries"] == json!([{ "retry": 1, "settled": true, "pending": {}, "dead_letters": 0 }])).then_some(root)
    });
    assert_eq!(root["settled"], true);
    assert_eq!(instance.get("/api/v1/frontier").1["frontier"], 3, "it has not gone back");
    let one = format!("/api/v1/dead-letters/{}/{}", found[0]["partition"], found[0]["offset"]);
    assert_eq!(instance.get(&one).1["retried"], true);

    // Once more by force: the key holds its stamp.
    assert_eq!(retry(&instance, of(&found, "a"), "?force=true").0, 202);
    eventually("two retries of one root", || {
        let (_, root) = instance.get("/api/v1/roots/0");
        let settled = json!([1, 2].map(|n| json!({ "retry": n, "settled": true, "pending": {}, "dead_letters": 0 })));
        (root["retries"] == settled).then_some(())
    });
    verify(folder.path(), &[]);

    for (more, code) in [("?as=old", 400), ("?color=red", 400), ("?force=maybe", 400)] {
        assert_eq!(retry(&instance, of(&found, "a"), more).0, code, "{more}");
    }
    for nowhere in ["0/999", "99/0", "-1/0", "0/-1"] {
        let (status, answer) =
            instance.post_to(&format!("/api/v1/dead-letters/{nowhere}/retry"), "application/json", "");
        assert_eq!((status, &answer["error"]["code"]), (404, &json!("unknown_dead_letter")), "{nowhere}: {answer}");
    }
}

#[test]
fn what_fails_again_is_a_dead_letter_of_its_own() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let spawning = json!({ "key": "a", "action": "ADD", "payload": { "fail": { "times": 9, "how": "reject" },
        "spawn": [{ "key": "a-child", "action": "ADD", "payload": { "color": "red" } }] } });
    let found = letters(
        &instance,
        &[spawning.to_string(), json!({ "key": "b", "action": "ADD", "payload": "no script" }).to_string()],
        2,
    );
    assert_eq!(retry(&instance, of(&found, "b"), "").0, 202);
    assert_eq!(retry(&instance, of(&found, "a"), "").0, 202);
    let found = eventually("both fail again", || Some(list(&instance)).filter(|found| found.len() == 4));
    let again = found.iter().rfind(|letter| letter["key"] == "b").unwrap();
    assert_eq!((&again["stamp"], &again["retried"], &again["cause"]), (&json!("1"), &json!(false), &json!("rejected")));
    let child = of(&found, "a-child");
    assert_eq!((&child["stamp"], &child["retried"]), (&json!("0/0"), &json!(false)));
    assert_eq!(retry(&instance, again, "").0, 202, "what failed again can be retried itself");
    eventually("it fails once more", || (list(&instance).len() == 5).then_some(()));
    let numbers = eventually("all is settled", || {
        let (_, root) = instance.get("/api/v1/roots/1");
        let retries = root["retries"].as_array().unwrap().clone();
        retries.iter().all(|retry| retry["settled"] == true).then_some(retries)
    });
    assert_eq!(numbers.iter().map(|retry| retry["retry"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    verify(folder.path(), &[]);
}

#[test]
fn the_command_line_previews_a_selection_and_retries_it() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "handler.retry.attempts=1"]);
    let mut sent: Vec<String> = (0..40).map(|n| rejected(&format!("r-{n}"), "x")).collect();
    sent.extend((0..7).map(|n| rejected(&format!("t-{n}"), "y").replace("reject\"", "retry\"")));
    letters(&instance, &sent, 47);
    let told = |arguments: &[&str]| -> Value {
        let all = [&["--output", "json", "dead-letters", "retry"], arguments].concat();
        serde_json::from_str(&instance.command(&all).ok()).unwrap()
    };
    assert_eq!(
        told(&["--all"]),
        json!({ "executed": false, "to_retry": 47, "already_retried": 0, "not_an_event": 0, "before_horizon": 0,
                "causes": { "rejected": 40, "exhausted": 7 } })
    );
    assert!(list(&instance).iter().all(|letter| letter["retried"] == false), "a preview changes nothing");
    let said = instance.command(&["dead-letters", "retry", "--cause", "exhausted"]).ok();
    assert!(said.contains("nothing was changed") && said.contains('7') && !said.contains("40"), "{said}");
    let executed = |accepted: u32, already: u32| json!({ "executed": true, "accepted": accepted, "already_retried": already, "not_an_event": 0, "before_horizon": 0 });
    assert_eq!(told(&["--cause", "exhausted", "--execute"]), executed(7, 0));
    assert_eq!(told(&["--all", "--execute"]), executed(40, 7));
    assert_eq!(told(&["--all", "--execute"]), executed(0, 47));
    assert_eq!(told(&["--all"])["already_retried"], 47);
    assert!(instance.get_text("/metrics").1.contains("tidegate_dead_letters_retried_total 47"));
    for n in 0..40 {
        assert_eq!(instance.holds(&format!("r-{n}-child"), "ADD")["value"], "of x");
    }
    verify(folder.path(), &["--set", "handler.retry.attempts=1"]);

    let found = list(&instance);
    let place = format!("{}:{}", found[0]["partition"], found[0]["offset"]);
    let said = instance.command(&["dead-letters", "retry", &place]).failed(1);
    assert!(said.contains("already_retried") && said.contains("hint"), "{said}");
    let said = instance.command(&["dead-letters", "retry", &place, "--force"]).ok();
    assert!(said.contains("STAMP"), "{said}");
    for wrong in [&["0", "1"][..], &["--all", "--cause", "rejected"], &[], &["0:1", "--execute"], &["--execute"]] {
        instance.command(&[&["dead-letters", "retry"], wrong].concat()).failed(2);
    }
}

/// What had outdone it may be forgotten: it is not sent with its stamp any more, but as a new event.
#[test]
fn what_the_horizon_has_passed_is_sent_only_as_new() {
    let folder = tempdir().unwrap();
    let at_once = ["--set", "state.marker_retention=0s"];
    let instance = Running::start(folder.path(), &at_once);
    let found = letters(&instance, &[rejected("a", "old"), event("a", "newer"), rejected("b", "old")], 2);
    eventually("the horizon has passed them", || {
        let (_, standing) = instance.get("/api/v1/frontier");
        (standing["horizon"] == 2).then_some(())
    });
    refused(&instance, of(&found, "a"), "", "before_horizon");
    refused(&instance, of(&found, "a"), "?force=true", "before_horizon");
    let (_, answer) = retry(&instance, of(&found, "a"), "");
    assert!(answer["error"]["hint"].as_str().unwrap().contains("as=new"), "{answer}");
    let previewed = instance.command(&["--output", "json", "dead-letters", "retry", "--all"]).ok();
    let previewed: Value = serde_json::from_str(&previewed).unwrap();
    assert_eq!((&previewed["to_retry"], &previewed["before_horizon"]), (&json!(0), &json!(2)), "{previewed}");
    let said = instance.command(&["dead-letters", "retry", "--all", "--execute"]).ok();
    assert!(said.contains("before the horizon") && said.contains("--as-new"), "{said}");
    assert!(list(&instance).iter().all(|letter| letter["retried"] == false));
    assert_eq!(instance.get("/api/v1/keys/a").1["value"], "newer");

    let (status, answer) = retry(&instance, of(&found, "a"), "?as=new");
    assert_eq!((status, &answer["stamp"]), (202, &json!("3")), "{answer}");
    // It is another event, and is rejected as that.
    let letters = eventually("the new event is handled", || Some(list(&instance)).filter(|found| found.len() == 3));
    let is_retried = |stamp: &str| letters.iter().find(|letter| letter["stamp"] == stamp).unwrap()["retried"] == true;
    assert_eq!(["0", "2", "3"].map(is_retried), [true, false, false]);
    verify(folder.path(), &at_once);
}

#[test]
fn what_was_accepted_is_handled_after_a_crash() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let slow = rejected("a", "late").replace("\"value\"", "\"work_ms\":2000,\"value\"");
    let found = letters(&instance, &[slow, event("a", "newer")], 1);
    assert_eq!(retry(&instance, &found[0], "").0, 202);
    instance.kill();
    let instance = Running::start(folder.path(), &[]);
    assert_eq!(instance.holds("a-child", "ADD")["value"], "of late");
    assert_eq!(instance.get("/api/v1/keys/a").1["value"], "newer");
    refused(&instance, &found[0], "", "already_retried");
    assert_eq!(of(&list(&instance), "a")["retried"], true);
    verify(folder.path(), &[]);
}

#[test]
fn a_new_event_is_later_than_all_others() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let found = letters(
        &instance,
        &[event("other", "x"), json!({ "key": "a", "action": "ADD", "payload": "no script" }).to_string()],
        1,
    );
    let (status, answer) = retry(&instance, &found[0], "?as=new");
    assert_eq!((status, &answer["stamp"]), (202, &json!("2")), "{answer}");
    let found = eventually("it fails as a new event, too", || Some(list(&instance)).filter(|found| found.len() == 2));
    assert_eq!(
        (&found[0]["retried"], &found[1]["retried"], &found[1]["stamp"]),
        (&json!(true), &json!(false), &json!("2"))
    );
    refused(&instance, &found[0], "", "already_retried");
    refused(&instance, &found[0], "?as=new", "already_retried");
    assert_eq!(instance.get("/api/v1/roots/1").1["retries"], json!([]));
}

#[test]
fn what_cannot_be_retried_says_why() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "source.stamp=header"]);
    let event = r#"{"key":"a","action":"ADD","payload":"no script","global_offset":7}"#;
    let found = letters(&instance, &[event.into()], 1);
    refused(&instance, &found[0], "?as=new", "no_sequence");
    assert_eq!(retry(&instance, &found[0], "").0, 202);

    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "processing.guarantee=at_least_once"]);
    let found = letters(&instance, &[event.into()], 1);
    refused(&instance, &found[0], "", "needs_exactly_once");
    let (status, answer) = instance.post_to("/api/v1/dead-letters/retry", "application/json", "");
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("needs_exactly_once")), "{answer}");
}
