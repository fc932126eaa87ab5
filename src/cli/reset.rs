//! `tidegate reset`: back to the beginning, as Kafka's own reset tool does it, and previewed as there.
//!
//! Z1: nothing is changed without `--execute`, and nothing while the group has members.
//! Z2: source and output topics are never touched.
//! Z3: a reset that ended halfway is carried on by running it again. What it leaves behind is whole, too:
//!     first the positions go, which the progress replaces; then the progress, so that the source is
//!     read again from its beginning onto the state that it led to; then that state; last the
//!     repartition topic, because the changelog's done-sets speak of its offsets. (Where `source.stamp` is
//!     `arrival` the order received is lost with the rest: there, run it again before any start.)

mod folders;

use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use self::folders::Folders;
use super::error::CliError;
use super::open;
use super::options::ConfigOptions;
use super::output::{self, Output};
use super::topics::records;
use crate::config::Config;
use crate::instance::topology::internal_topics;
use crate::log::{Log, LogError, Operation, TopicPartition};
use crate::topics::Topics;

/// What `reset` takes.
#[derive(Args, Debug)]
pub struct ResetOptions {
    #[command(flatten)]
    config: ConfigOptions,
    /// Carry it out; without it nothing is changed.
    #[arg(long)]
    execute: bool,
}

/// What there is to delete and to keep.
struct Plan {
    group: String,
    committed: Vec<(TopicPartition, i64)>,
    /// With the offsets between their ends, in the order of deletion (Z3).
    internal: Vec<(String, i64)>,
    folders: Folders,
    /// With the first offset of each partition.
    sources: Vec<(TopicPartition, i64)>,
    output: Option<String>,
    /// Why it cannot be carried out now.
    obstacle: Option<CliError>,
}

/// Shows what a reset does, or does it.
pub fn reset(options: &ResetOptions, output: Output) -> Result<(), CliError> {
    let config = options.config.load()?;
    let (log, in_use) = open::log_that_exists(&config)?;
    let mut plan = Plan::new(&*log, &config)?;
    plan.obstacle = in_use.map(|in_use| in_use.hint("stop the instance, then reset again")).or(plan.obstacle);
    if options.execute {
        if let Some(obstacle) = plan.obstacle {
            return Err(obstacle);
        }
        plan.carry_out(&*log)?;
    }
    match output {
        Output::Json => output::json(&plan.as_json(options.execute)),
        Output::Table => plan.print(options.execute),
    }
}

impl Plan {
    fn new(log: &dyn Log, config: &Config) -> Result<Plan, CliError> {
        let group = config.application.id.clone();
        let topics = Topics::new(&group, &config.source.topics);
        let refused = |error: LogError| open::unanswered(config, &error);
        let mut names: Vec<String> = internal_topics(config, &topics).into_iter().map(|topic| topic.name).collect();
        names.sort_by_key(|name| match () {
            () if **name == *topics.progress => 0,
            () if **name == *topics.changelog => 2,
            () if **name == *topics.repartition => 3,
            () => 1,
        });
        let mut internal = Vec::new();
        let mut asked = Vec::new();
        let described = log.describe(&names.iter().map(String::as_str).collect::<Vec<_>>()).map_err(refused)?;
        for found in described.into_iter().flatten() {
            internal.push((found.name.clone(), records(log, &found).map_err(refused)?));
            if *found.name == *topics.repartition {
                asked.extend((0..found.partitions).map(|number| TopicPartition::new(&topics.repartition, number)));
            }
        }
        let mut sources = Vec::new();
        let described =
            log.describe(&topics.sources.iter().map(|name| &**name).collect::<Vec<_>>()).map_err(refused)?;
        for found in described.into_iter().flatten() {
            let name: Arc<str> = found.name.as_str().into();
            for of in (0..found.partitions).map(|number| TopicPartition::new(&name, number)) {
                let low = log.watermarks(&of).map_err(refused)?.low;
                asked.push(of.clone());
                sources.push((of, low));
            }
        }
        let committed = log.committed(&group, &asked, false).map_err(refused)?;
        let committed = asked.into_iter().zip(committed);
        let committed = committed.filter_map(|(of, committed)| Some((of, committed?.position))).collect();
        let members = log.members_of(&group).map_err(refused)?;
        let obstacle = (!members.is_empty()).then(|| has_members(&group, &members.join(", ")));
        let deleted: Vec<(&str, &[Operation])> =
            internal.iter().map(|(name, _)| (name.as_str(), &[Operation::Delete][..])).collect();
        let obstacle = match log.check_rights((&group, &[Operation::Delete]), &deleted) {
            Err(LogError::Unauthorized(missing)) => Some(not_allowed(&missing)),
            allowed => allowed.map(|()| obstacle).map_err(refused)?,
        };
        let folders = Folders::find(&config.state.dir, &config.application.instance_id)?;
        let output = (!config.output.topic.is_empty()).then(|| config.output.topic.clone());
        Ok(Plan { group, committed, internal, folders, sources, output, obstacle })
    }

    /// Z3: in this order.
    fn carry_out(&self, log: &dyn Log) -> Result<(), CliError> {
        // 1. The positions; refused by the log itself where a member has come meanwhile (Z1).
        log.delete_group(&self.group).map_err(|error| match error {
            LogError::Refused(_) => has_members(&self.group, "one that has just come, or cannot be named"),
            error => self.stopped(&format!("cannot delete the group's positions: {error}"), None),
        })?;
        // 2. The topics, one after the other.
        for (done, (name, _)) in self.internal.iter().enumerate() {
            let failed = |error: LogError| self.stopped(&format!("cannot delete {name}: {error}"), Some(done));
            log.delete_topics(&[name]).map_err(failed)?;
        }
        // 3. Copies of what is gone.
        self.folders.delete().map_err(|error| self.stopped(&error.to_string(), Some(self.internal.len())))
    }

    /// It ended before its end: what is done, the positions and so many topics or nothing, and what is left.
    fn stopped(&self, why: &str, done: Option<usize>) -> CliError {
        let topics = |topics: &[(String, i64)]| topics.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let positions = format!("positions of the group {}", self.group);
        let (deleted, left) = self.internal.split_at(done.unwrap_or(0));
        let (mut deleted, mut left) = (topics(deleted), topics(left));
        if done.is_some() { &mut deleted } else { &mut left }.insert(0, positions);
        left.extend(self.folders.free.iter().filter(|path| path.exists()).map(|path| path.display().to_string()));
        let deleted = if deleted.is_empty() { "nothing".to_owned() } else { deleted.join(", ") };
        CliError::failed(format!("{why}; deleted so far: {deleted}; left: {}", left.join(", ")))
            .hint("run the same command again when the cause is gone: it goes on with what is left")
    }

    fn as_json(&self, executed: bool) -> Value {
        let offsets = self
            .committed
            .iter()
            .map(|(of, position)| json!({ "topic": &*of.topic, "partition": of.partition, "position": position }));
        let topics = self.internal.iter().map(|(name, offsets)| json!({ "topic": name, "offsets": offsets }));
        let kept = self
            .sources
            .iter()
            .map(|(of, low)| json!({ "topic": &*of.topic, "partition": of.partition, "begins_at": low }));
        json!({
            "application": self.group,
            "executed": executed,
            "delete": {
                "offsets": offsets.collect::<Vec<_>>(),
                "topics": topics.collect::<Vec<_>>(),
                "state": self.folders.free.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
            },
            "keep": {
                "sources": kept.collect::<Vec<_>>(),
                "output": self.output,
                "state": self.folders.in_use.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
            },
            "obstacle": self.obstacle.as_ref().map(ToString::to_string),
        })
    }

    fn print(&self, executed: bool) -> Result<(), CliError> {
        let verb = if executed { "deleted" } else { "delete" };
        let positions = self.committed.len();
        let mut rows = vec![[verb.into(), format!("positions of the group {}", self.group), positions.to_string()]];
        for (name, offsets) in &self.internal {
            rows.push([verb.into(), format!("topic {name}"), format!("{offsets} offsets")]);
        }
        for path in &self.folders.free {
            rows.push([verb.into(), format!("state folder {}", path.display()), String::new()]);
        }
        for path in &self.folders.in_use {
            rows.push(["keep".into(), format!("state folder {}", path.display()), "in use by another process".into()]);
        }
        for (of, low) in &self.sources {
            let cut =
                if *low > 0 { format!("begins at offset {low}: what stood before is gone") } else { String::new() };
            rows.push(["keep".into(), format!("source {of}"), cut]);
        }
        rows.extend(self.output.iter().map(|name| ["keep".into(), format!("output topic {name}"), String::new()]));
        output::table(&["what", "of", "amount"], rows.into_iter().map(Vec::from).collect())?;
        match (&self.obstacle, executed) {
            (_, true) => output::line("done: the application starts from the beginning"),
            (Some(obstacle), _) => {
                output::line(&format!("\nnothing was changed; --execute would be refused: {obstacle}"))
            }
            (None, _) => output::line(
                "\nnothing was changed; --execute carries it out. `tidegate dead-letters export` keeps dead letters",
            ),
        }
    }
}

fn not_allowed(missing: &str) -> CliError {
    CliError::failed(missing).hint("nothing was changed; docs/security.md lists what reset needs")
}

fn has_members(group: &str, who: &str) -> CliError {
    CliError::failed(format!("the group {group} has members: {who}")).hint(
        "stop all instances; one that was killed is forgotten after its session timeout, some 10 s; then reset again",
    )
}
