//! `GET /api/v1/topology`: the way of an event through the application, with what flows there.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::instance::Instance;
use crate::instance::view::{Flow, Totals};
use crate::server::Front;
use crate::server::error::ApiError;

/// A graph of topics and of what reads and writes them.
#[derive(Debug, Serialize, ToSchema)]
pub struct Topology {
    /// `application.id`
    application: String,
    /// Whose counters these are: an instance counts what it has done itself, since its start.
    instance: String,
    /// Topics and processors.
    nodes: Vec<Node>,
    /// What flows between them.
    edges: Vec<Edge>,
}

/// A topic or a processor.
#[derive(Debug, Serialize, ToSchema)]
pub struct Node {
    /// The topic's name; `sequencer` and `task` for the processors.
    id: String,
    /// `source`, `sequencer`, `repartition`, `task`, `changelog`, `output`, `dead_letter` or `progress`.
    kind: &'static str,
    /// Of a topic with a number of partitions of its own.
    #[schema(required)]
    partitions: Option<i32>,
}

/// Records from one node to another.
#[derive(Debug, Serialize, ToSchema)]
pub struct Edge {
    /// The id of a node.
    from: String,
    /// The id of a node.
    to: String,
    /// Records committed since the instance's start; null where they are not counted.
    #[schema(required)]
    records: Option<u64>,
    /// Records a second, of about the last 5 s; null where they are not counted, and just after the start.
    #[schema(required)]
    per_second: Option<f64>,
}

/// The application's graph, with what has flowed through this instance.
#[utoipa::path(get, path = "/api/v1/topology", tag = "instances", responses((status = 200, body = Topology)))]
pub async fn topology(State(front): State<Front>) -> Result<Json<Topology>, ApiError> {
    let instance = front.instance()?;
    Ok(Json(graph(&instance)))
}

const SEQUENCER: &str = "sequencer";
const TASK: &str = "task";

fn graph(instance: &Instance) -> Topology {
    let (config, topics, flow) = (instance.config(), instance.topics(), instance.flow());
    let partitions = Some(config.processing.partitions);
    let mut nodes: Vec<Node> = topics.sources.iter().map(|name| node(name, "source", None)).collect();
    nodes.extend([
        node(SEQUENCER, "sequencer", None),
        node(&topics.repartition, "repartition", partitions),
        node(TASK, "task", partitions),
        node(&topics.changelog, "changelog", partitions),
        node(&topics.dead_letter, "dead_letter", partitions),
        node(&topics.progress, "progress", Some(1)),
    ]);
    let counted = |from: &str, to: &str, count: fn(&Totals) -> u64| edge(from, to, Some((&flow, count)));
    // Only together the source topics are counted.
    let of_source = |source: &str| match topics.sources.len() {
        1 => counted(source, SEQUENCER, |totals| totals.sequenced),
        _ => edge(source, SEQUENCER, None),
    };
    let mut edges: Vec<Edge> = topics.sources.iter().map(|source| of_source(source)).collect();
    edges.extend([
        counted(SEQUENCER, &topics.repartition, |totals| totals.sequenced.saturating_sub(totals.refused_records)),
        counted(SEQUENCER, &topics.dead_letter, |totals| totals.refused_records),
        counted(&topics.repartition, TASK, |totals| totals.processed),
        counted(TASK, &topics.repartition, |totals| totals.children),
        counted(TASK, &topics.changelog, |totals| totals.entries),
        counted(TASK, &topics.dead_letter, |totals| totals.refused_events),
        edge(SEQUENCER, &topics.progress, None),
        edge(TASK, &topics.progress, None),
    ]);
    if !config.output.topic.is_empty() {
        nodes.push(node(&config.output.topic, "output", None));
        edges.push(edge(TASK, &config.output.topic, None));
    }
    let (application, instance) = (config.application.id.clone(), config.application.instance_id.clone());
    Topology { application, instance, nodes, edges }
}

fn node(id: &str, kind: &'static str, partitions: Option<i32>) -> Node {
    Node { id: id.to_owned(), kind, partitions }
}

/// What is counted, and where.
type Counted<'a> = (&'a Flow, fn(&Totals) -> u64);

fn edge(from: &str, to: &str, counted: Option<Counted<'_>>) -> Edge {
    let records = counted.map(|(flow, count)| count(&flow.totals));
    let per_second = counted.and_then(|(flow, count)| {
        let (before, passed) = flow.before?;
        let rate = count(&flow.totals).saturating_sub(count(&before)) as f64 / passed.as_secs_f64();
        Some((rate * 10.0).round() / 10.0)
    });
    Edge { from: from.to_owned(), to: to.to_owned(), records, per_second }
}
