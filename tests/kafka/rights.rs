//! The least that an application has to be allowed, by experiment: with exactly that it works; without any one of it,
//! it says which one, goes on once it is granted, and has lost nothing.

use std::time::{Duration, Instant};

use tidegate::log::kafka::{KafkaLog, KafkaOptions};
use tidegate::log::*;

use crate::acls::Right;
use crate::cluster::app::{App, Instance};
use crate::cluster::check;
use crate::cluster::load::Load;
use crate::kit;
use crate::secured::{SCRAM, User, in_a_file, secured};

pub fn right(operation: &'static str, resource: &'static str, name: &str, prefixed: bool) -> Right {
    Right { operation, resource, name: name.to_owned(), prefixed }
}

/// What an instance needs on topics that are there: the table of docs/security.md.
pub fn least(app: &App) -> Vec<Right> {
    let own = format!("{}-", app.id);
    vec![
        right("Read", "topic", &app.source, false),
        right("DescribeConfigs", "topic", &app.source, false),
        right("Read", "topic", &own, true),
        right("Write", "topic", &own, true),
        right("DescribeConfigs", "topic", &own, true),
        right("Read", "group", &app.id, false),
        right("Write", "transactional-id", &own, true),
    ]
}

/// The same where it also deletes what was consumed.
pub fn purging(app: &App) -> Vec<Right> {
    let mut all = least(app);
    all.push(right("Delete", "topic", &app.topics.repartition, false));
    all.push(right("Delete", "topic", &app.topics.progress, false));
    all
}

/// The same where it also makes its topics.
pub fn needed(app: &App) -> Vec<Right> {
    let mut all = purging(app);
    all.push(right("Create", "topic", &format!("{}-", app.id), true));
    all
}

/// An application of a user who may do nothing yet.
pub fn nobody(name: &str) -> (App, User) {
    let user = secured().user();
    let mut app = secured().app(name, SCRAM);
    in_a_file(&mut app, "tidegate.toml", &secured().properties(SCRAM, Some(&user)));
    (app, user)
}

/// What `tidegate topics create` does under a name that may.
pub fn create(app: &App) {
    let mut by_an_admin = App::on(app.servers.clone(), app.source.clone(), kit::connect(&app.servers), "x");
    by_an_admin.id.clone_from(&app.id);
    let created = by_an_admin.tool(&["topics", "create"]);
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
}

/// How the message names the right; of what is granted by prefix, the begin of a name.
fn name(right: &Right) -> String {
    match right.resource {
        "transactional-id" => format!("{} on transactional id {}", right.operation, right.name),
        resource => format!("{} on {resource} {}", right.operation, right.name),
    }
}

#[test]
fn with_exactly_the_least_an_instance_on_prepared_topics_works() {
    let (app, user) = nobody("least");
    create(&app);
    secured().acls.grant(&user.name, &least(&app));
    let instance = app.start("one");
    app.until("it owns all", || instance.owns() == 6);
    let load = Load::begin(&app, 7);
    app.until("enough is sent", || load.sent() >= 200);
    load.end();
    check::all(&app);
    assert_eq!(instance.terminate(), Some(0), "{}", app.logs());
}

/// Grants one right after the other: each is named as long as it is missing, and with the last it gets ready by itself.
#[test]
fn a_right_that_is_missing_at_the_start_is_named_until_it_is_granted() {
    let (mut app, user) = nobody("start");
    app.arguments.extend(["--set".into(), "processing.repartition_purge=1s".into()]);
    let (own, instance) = (format!("{}-", app.id), app.start("one"));
    // In the order in which they are noticed: of a topic that is not there yet only its creation is told.
    for missing in [
        right("Read", "topic", &app.source, false),
        right("DescribeConfigs", "topic", &app.source, false),
        right("Read", "topic", &own, true),
        right("Create", "topic", &own, true),
        right("Write", "topic", &own, true),
        right("DescribeConfigs", "topic", &own, true),
        right("Delete", "topic", &app.topics.repartition, false),
        right("Delete", "topic", &app.topics.progress, false),
        right("Read", "group", &app.id, false),
        right("Write", "transactional-id", &own, true),
    ] {
        let name = name(&missing);
        app.until(&format!("/readyz names {name}"), || instance.trouble().contains(&name));
        let (trouble, command) =
            (instance.trouble(), format!("--operation {} --{}", missing.operation, missing.resource));
        assert!(trouble.contains(&command), "{command:?} is not in {trouble}");
        assert!(instance.said().contains(&name), "its log says so, too:\n{}", app.logs());
        secured().acls.grant(&user.name, std::slice::from_ref(&missing));
    }
    app.until("it is ready", || instance.ready());
    app.until("it owns all", || instance.owns() == 6);
    let load = Load::begin(&app, 9);
    let low = |of| app.log.watermarks(&of).map_or(0, |ends| ends.low);
    let purged = || app.partitions(&app.topics.repartition).into_iter().any(|of| low(of) > 0);
    app.until("what was consumed is deleted", purged);
    load.end();
    assert!(instance.ready(), "{}", instance.trouble());
    let lines = instance.said().lines().filter(|line| line.contains("uthoriz")).count();
    assert!(lines <= 40, "{lines} lines:\n{}", app.logs());
    assert_eq!(instance.terminate(), Some(0), "{}", app.logs());
}

/// Takes a right away under load: not ready, with its name; ready again by itself when it is back.
fn taken_away(app: &App, user: &User, instance: &Instance<'_>, load: &Load, right: &Right) {
    let acls = &secured().acls;
    let name = name(right);
    let about_rights = || instance.said().lines().filter(|line| line.contains("uthoriz")).count();
    let (sent, before) = (load.sent(), about_rights());
    acls.revoke(&user.name, std::slice::from_ref(right));
    app.until(&format!("/readyz names {name}"), || instance.trouble().contains(&name));
    assert!(instance.trouble().contains("kafka-acls.sh --add"), "{}", instance.trouble());
    assert!(instance.said().contains(&name), "its log says so, too:\n{}", app.logs());
    // It neither ends nor runs hot meanwhile.
    let begun = Instant::now();
    app.until("more is sent", || load.sent() > sent + 40 && begun.elapsed() > Duration::from_secs(2));
    assert!(!instance.trouble().is_empty(), "without {name} it is not ready:\n{}", app.logs());
    acls.grant(&user.name, std::slice::from_ref(right));
    app.until(&format!("it is ready with {name}"), || instance.ready());
    let lines = about_rights() - before;
    eprintln!("without {name}: {:.1} s, {lines} lines", begun.elapsed().as_secs_f64());
    assert!(lines <= 16, "{lines} lines about {name}:\n{}", app.logs());
}

#[test]
fn a_right_that_is_taken_away_is_named_and_nothing_is_lost() {
    let (app, user) = nobody("taken");
    create(&app);
    let acls = &secured().acls;
    acls.grant(&user.name, &least(&app));
    let instance = app.start("one");
    app.until("it owns all", || instance.owns() == 6);
    let load = Load::begin(&app, 8);
    app.until("events flow", || load.sent() >= 200);
    for right in least(&app).iter().filter(|right| right.operation != "DescribeConfigs") {
        taken_away(&app, &user, &instance, &load, right);
    }
    load.end();
    check::all(&app);
    assert_eq!(instance.terminate(), Some(0), "{}", app.logs());
}

/// Without transactions: what is acknowledged is not appended again while the rest is not allowed.
#[test]
fn c9_no_child_multiplies_while_one_topic_may_not_be_written() {
    let (mut app, user) = nobody("denied");
    app.arguments.extend(["--set".into(), "processing.guarantee=at_least_once".into()]);
    create(&app);
    let write = |topic: &str| right("Write", "topic", topic, false);
    let topics = &app.topics;
    let denied = write(&topics.dead_letter);
    let mut rights = least(&app);
    rights.retain(|right| right.operation != "Write");
    let all = [&topics.repartition, &topics.changelog, &topics.progress, &topics.dead_letter];
    rights.extend(all.map(|topic| write(topic)));
    secured().acls.grant(&user.name, &rights);
    let instance = app.start("one");
    app.until("it owns all", || instance.owns() == 6);
    secured().acls.revoke(&user.name, std::slice::from_ref(&denied));
    // In one commit: a record that goes to the dead letters, and children.
    let event = |key: &str, payload: &str| {
        kit::record(key, &format!(r#"{{"key":"{key}","action":"ADD","payload":{payload}}}"#))
    };
    let child = r#"{"key":"child","action":"ADD","payload":{"value":"c"}}"#;
    let mut records: Vec<_> =
        (0..20).map(|n| event(&format!("k{n}"), &format!(r#"{{"value":"v","spawn":[{child}]}}"#))).collect();
    records.insert(10, event("bad", "\"no script\""));
    let to = TopicPartition::new(&app.source, 0);
    app.log.append(Append { to, records }).expect("appended");
    let name = name(&denied);
    app.until(&format!("/readyz names {name}"), || instance.trouble().contains(&name));
    // Several tries go by.
    let begun = Instant::now();
    app.until("time passes", || begun.elapsed() > Duration::from_secs(5));
    secured().acls.grant(&user.name, std::slice::from_ref(&denied));
    app.until("it is ready", || instance.ready());
    let tasks = app.partitions(&topics.repartition);
    let appended = || tasks.iter().map(|of| app.log.watermarks(of).map_or(0, |ends| ends.high)).sum::<i64>();
    app.until("all is done", || {
        let committed = app.log.committed(&app.id, &tasks, false).unwrap_or_default();
        let done: i64 = committed.iter().flatten().map(|committed| committed.position).sum();
        done >= 41 && done == appended()
    });
    assert_eq!(appended(), 41, "each event and each child stands once:\n{}", app.logs());
    assert_eq!(instance.terminate(), Some(0), "{}", app.logs());
}

/// A call that is not allowed is told as such, with the right that it lacks.
#[track_caller]
fn denied<T>(call: Result<T, LogError>, name: &str) {
    match call {
        Err(LogError::Unauthorized(why)) => assert!(why.contains(name), "{name:?} is not in {why}"),
        Err(other) => panic!("{name}: {other:?}"),
        Ok(_) => panic!("{name}: it was allowed"),
    }
}

#[test]
fn every_call_of_the_port_that_is_not_allowed_says_so() {
    let (secured, user) = (secured(), secured().user());
    let admin = kit::connect(&secured.broker.servers());
    let there = TopicPartition::new(&kit::topic(&admin, "there", 1, &[]), 0);
    let properties = secured.properties(SCRAM, Some(&user)).into_iter();
    let properties = properties.map(|(name, value)| (name, value.into())).collect();
    let options = KafkaOptions { properties, ..KafkaOptions::new(&secured.broker.servers_of(SCRAM)) };
    let log = KafkaLog::connect(options).expect("good options");
    let topic = &there.topic;
    denied(log.watermarks(&there), &format!("Describe on topic {topic}"));
    denied(log.describe(&[topic]), &format!("Describe on topic {topic}"));
    denied(log.committed("any", std::slice::from_ref(&there), false), "Describe on group any");
    denied(log.committed("any", std::slice::from_ref(&there), true), "Describe on group any");
    denied(log.producer("any-1"), "Write on transactional id any-1");
    denied(
        log.check_rights(("any", &[Operation::Read, Operation::Delete]), &[(topic, &[Operation::Read])]),
        &format!("Read on topic {topic}, Read on group any, Delete on group any"),
    );
    let append = Append { to: there.clone(), records: kit::numbered(0..1) };
    denied(log.append(append.clone()), &format!("Write on topic {topic}"));
    let new = NewTopic { name: kit::unique("new"), partitions: 1, replication_factor: None, settings: Vec::new() };
    denied(log.create(std::slice::from_ref(&new)), &format!("Create on topic {}", new.name));
    // With the right to look at it, what is done is named.
    secured.acls.grant(&user.name, &[right("Describe", "topic", topic, false)]);
    kit::patiently("it is granted", || log.watermarks(&there));
    let mut reader = log.reader(&there, 0, Isolation::ReadCommitted, false).expect("a reader");
    let mut read = Ok(Vec::new());
    kit::eventually("an answer", || {
        read = reader.next(Duration::from_millis(200));
        read.is_err()
    });
    denied(read, &format!("Read on topic {topic}"));
    denied(log.append(append), &format!("Write on topic {topic}"));
    denied(log.describe(&[topic]), &format!("DescribeConfigs on topic {topic}"));
    denied(log.purge(&[(there.clone(), 0)]), &format!("Delete on topic {topic}"));
    denied(log.delete_topics(&[topic]), &format!("Delete on topic {topic}"));
    denied(log.delete_group("any"), "Delete on group any");
    secured.acls.grant(&user.name, &[right("Write", "transactional-id", "any-", true)]);
    let mut producer = kit::patiently("it is granted", || log.producer("any-1"));
    match producer.commit(&kit::transaction(&there, kit::numbered(0..1))) {
        Err(CommitError::Unauthorized(why)) => assert!(why.contains("authorization failed"), "{why}"),
        other => panic!("{other:?}"),
    }
    secured.acls.grant(&user.name, &[right("Write", "topic", topic, false)]);
    kit::eventually("the same is committed", || {
        match producer.commit(&kit::transaction(&there, kit::numbered(0..1))) {
            Ok(_) => true,
            Err(CommitError::Unauthorized(_)) => false,
            other => panic!("{other:?}"),
        }
    });
    let mut reader = admin.reader(&there, 0, Isolation::ReadCommitted, false).expect("a reader");
    assert_eq!(kit::read_to(&mut *reader, kit::settled_end(&admin, &there)).len(), 1, "once");
}

#[test]
fn a_tool_that_is_not_allowed_all_of_it_changes_nothing() {
    let (app, user) = nobody("tools");
    create(&app);
    let delete = |topic: &str| right("Delete", "topic", topic, false);
    let own = format!("{}-", app.id);
    let looks = [
        right("Describe", "topic", &app.source, false),
        right("DescribeConfigs", "topic", &app.source, false),
        right("Describe", "topic", &own, true),
        right("DescribeConfigs", "topic", &own, true),
        right("Describe", "group", &app.id, false),
    ];
    secured().acls.grant(&user.name, &looks);
    let until = |verb: &[&str], words: &[String]| {
        kit::eventually(&format!("{verb:?} says {words:?}"), || {
            let ended = app.tool(verb);
            let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
            words.iter().all(|word| said.contains(word))
        });
    };
    until(&["topics", "purge"], &[format!("Delete on topic {}", app.topics.repartition)]);
    // Of four topics and the group only one topic is missing, and it would not be the first.
    let allowed = [&app.topics.progress, &app.topics.dead_letter, &app.topics.repartition].map(|topic| delete(topic));
    secured().acls.grant(&user.name, &allowed);
    secured().acls.grant(&user.name, &[right("Delete", "group", &app.id, false)]);
    let missing = format!("the right to Delete on topic {} is missing", app.topics.changelog);
    until(&["reset"], &[missing.clone(), "would be refused".into()]);
    until(&["reset", "--execute"], &[missing, "nothing was changed".into()]);
    let there = || {
        let names = [&app.topics.progress, &app.topics.dead_letter, &app.topics.repartition, &app.topics.changelog];
        let found = kit::connect(&app.servers).describe(&names.map(|name| &**name)).expect("described");
        found.iter().flatten().count()
    };
    assert_eq!(there(), 4, "nothing was deleted");
    secured().acls.grant(&user.name, &[delete(&app.topics.changelog)]);
    until(&["reset", "--execute"], &["done: the application starts from the beginning".into()]);
    assert_eq!(there(), 0);
}
