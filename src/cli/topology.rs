//! `tidegate topology`: the way of an event through the application's topics, as text or as a drawing.
//!
//! The graph is that of the configuration; where the instance at `--server` runs the same application, the edges
//! carry what flows there.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::options::ConfigOptions;
use super::output::{self, Output};
use crate::config::Config;
use crate::instance::topology::internal_topics;
use crate::topics::Topics;

/// What `topology` takes.
#[derive(Args, Debug)]
pub struct TopologyOptions {
    #[command(flatten)]
    config: ConfigOptions,
    /// How it is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// `--format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines.
    Text,
    /// Graphviz.
    Dot,
    /// Mermaid.
    Mermaid,
}

const SEQUENCER: &str = "sequencer";
const TASK: &str = "task";

/// A topic, with its number of partitions where the application gives it, or a processor.
struct Node {
    id: String,
    kind: &'static str,
    partitions: Option<i32>,
}

struct Edge {
    from: String,
    to: String,
    what: &'static str,
    /// Records a second, where they are known.
    rate: Option<f64>,
}

struct Graph {
    application: String,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

/// Prints the application's graph; an instance is asked for rates, and none has to answer. That there are none is
/// said on standard error, which scripts that read the graph do not see.
pub fn topology(client: &Client, options: &TopologyOptions, output: Output) -> Result<(), CliError> {
    let mut graph = Graph::of(&options.config.load()?);
    if let Err(why) = client.get("/api/v1/topology").and_then(|told| graph.take_rates(&told)) {
        why.print_as("without rates");
    }
    match (output, options.format) {
        (Output::Json, _) => output::json(&graph.as_json()),
        (_, Format::Text) => output::line(graph.as_text().trim_end()),
        (_, Format::Dot) => output::line(graph.as_dot().trim_end()),
        (_, Format::Mermaid) => output::line(graph.as_mermaid().trim_end()),
    }
}

impl Graph {
    fn of(config: &Config) -> Graph {
        let topics = Topics::new(&config.application.id, &config.source.topics);
        let node = |id: &str, kind, partitions| Node { id: id.to_owned(), kind, partitions };
        let mut nodes: Vec<Node> = topics.sources.iter().map(|name| node(name, "source", None)).collect();
        nodes.push(node(SEQUENCER, "sequencer", None));
        for topic in internal_topics(config, &topics) {
            let suffix = topic.name.strip_prefix(&config.application.id).unwrap_or_default();
            let kind = match suffix {
                "-events-repartition" => "repartition",
                "-state-changelog" => "changelog",
                "-dead-letter" => "dead_letter",
                "-progress" => "progress",
                "-order" => "order",
                _ => "internal",
            };
            nodes.push(node(&topic.name, kind, Some(topic.partitions)));
            if kind == "repartition" {
                nodes.push(node(TASK, "task", Some(config.processing.partitions)));
            }
        }
        let edge = |from: &str, to: &str, what| Edge { from: from.to_owned(), to: to.to_owned(), what, rate: None };
        let mut edges: Vec<Edge> = topics.sources.iter().map(|name| edge(name, SEQUENCER, "primary events")).collect();
        edges.extend([
            edge(SEQUENCER, &topics.repartition, "stamped, by key"),
            edge(&topics.repartition, TASK, "events"),
            edge(TASK, &topics.repartition, "children"),
            edge(TASK, &topics.changelog, "state"),
            edge(SEQUENCER, &topics.dead_letter, "undecodable records"),
            edge(TASK, &topics.dead_letter, "failed events"),
            edge(SEQUENCER, &topics.progress, "counts"),
            edge(TASK, &topics.progress, "counts"),
        ]);
        let order = nodes.iter().find(|node| node.kind == "order").map(|node| node.id.clone());
        edges.extend(order.map(|order| edge(SEQUENCER, &order, "order received")));
        if !config.output.topic.is_empty() {
            nodes.push(node(&config.output.topic, "output", None));
            edges.push(edge(TASK, &config.output.topic, "changes of state"));
        }
        Graph { application: config.application.id.clone(), nodes, edges }
    }

    /// Takes what an instance tells of the same application, and nothing else.
    fn take_rates(&mut self, told: &Value) -> Result<(), CliError> {
        if told["application"] != self.application.as_str() {
            let other = told["application"].as_str().unwrap_or("unknown");
            let message = format!("the instance runs the application {other}, and this is {}", self.application);
            return Err(CliError::failed(message)
                .hint("name another instance with --server, or the instance's configuration with --config"));
        }
        for edge in &mut self.edges {
            let mut same = told["edges"].as_array().into_iter().flatten();
            let same = same.find(|told| told["from"] == edge.from.as_str() && told["to"] == edge.to.as_str());
            edge.rate = same.and_then(|told| told["per_second"].as_f64());
        }
        Ok(())
    }

    fn as_json(&self) -> Value {
        let nodes = self.nodes.iter();
        let nodes = nodes.map(|node| json!({ "id": node.id, "kind": node.kind, "partitions": node.partitions }));
        let edges = self.edges.iter();
        let edges = edges
            .map(|Edge { from, to, what, rate }| json!({ "from": from, "to": to, "what": what, "per_second": rate }));
        json!({
            "application": self.application,
            "nodes": nodes.collect::<Vec<_>>(),
            "edges": edges.collect::<Vec<_>>(),
        })
    }

    fn as_text(&self) -> String {
        let mut text = format!("application {}\n", self.application);
        for node in &self.nodes {
            let partitions = node.partitions.map_or(String::new(), |number| format!("  partitions {number}"));
            text += &format!("\n{}  ({}){partitions}\n", node.id, node.kind);
            for edge in self.edges.iter().filter(|edge| edge.from == node.id) {
                text += &format!("  -> {}  {}\n", edge.to, edge.label());
            }
        }
        text
    }

    fn as_dot(&self) -> String {
        let mut text = format!("digraph {} {{\n  rankdir = LR;\n", quoted(&self.application));
        for node in &self.nodes {
            let shape = if node.is_topic() { "cylinder" } else { "box" };
            let _ = writeln!(text, "  {} [shape = {shape}, tooltip = {}];", quoted(&node.id), quoted(node.kind));
        }
        for edge in &self.edges {
            let (from, to, label) = (quoted(&edge.from), quoted(&edge.to), quoted(&edge.label()));
            let _ = writeln!(text, "  {from} -> {to} [label = {label}];");
        }
        text + "}\n"
    }

    fn as_mermaid(&self) -> String {
        let mut text = "flowchart LR\n".to_owned();
        let number = |id: &str| self.nodes.iter().position(|node| node.id == id).expect("edges join nodes");
        for (number, node) in self.nodes.iter().enumerate() {
            let (open, close) = if node.is_topic() { ("[(", ")]") } else { ("[", "]") };
            let _ = writeln!(text, "  n{number}{open}{}{close}", quoted(&node.id));
        }
        for edge in &self.edges {
            let (from, to) = (number(&edge.from), number(&edge.to));
            let _ = writeln!(text, "  n{from} -- {} --> n{to}", quoted(&edge.label()));
        }
        text
    }
}

impl Node {
    fn is_topic(&self) -> bool {
        !matches!(self.kind, "sequencer" | "task")
    }
}

impl Edge {
    fn label(&self) -> String {
        match self.rate {
            Some(rate) => format!("{} {rate:.1}/s", self.what),
            None => self.what.to_owned(),
        }
    }
}

/// Names of topics and applications have no quotes in them.
fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edge_joins_nodes_and_takes_only_rates_of_its_own_application() {
        let mut config = Config::default();
        config.source.topics = vec!["a".into(), "b".into()];
        config.output.topic = "out".into();
        let mut graph = Graph::of(&config);
        for edge in &graph.edges {
            assert!(
                [&edge.from, &edge.to].iter().all(|id| graph.nodes.iter().any(|node| node.id == **id)),
                "{}",
                edge.to
            );
        }
        assert!(graph.nodes.iter().all(|node| node.kind != "internal"));
        let edges = json!([{ "from": "sequencer", "to": "tidegate-events-repartition", "per_second": 12.34 }]);
        let why = graph.take_rates(&json!({ "application": "other", "edges": edges })).unwrap_err().to_string();
        assert!(why.contains("other") && why.contains("tidegate"), "{why}");
        assert!(!graph.as_text().contains("/s"));
        for strange in [json!([]), json!("x")] {
            graph.take_rates(&strange).unwrap_err();
        }
        graph.take_rates(&json!({ "application": "tidegate", "edges": 7 })).unwrap();
        graph.take_rates(&json!({ "application": "tidegate", "edges": edges })).unwrap();
        assert!(graph.as_text().contains("-> tidegate-events-repartition  stamped, by key 12.3/s"));
        assert!(graph.as_dot().contains(r#""task" -> "out" [label = "changes of state"];"#));
        let mermaid = graph.as_mermaid();
        assert!(mermaid.contains(r#"n0[("a")]"#) && mermaid.contains(r#"n0 -- "primary events" --> n2"#), "{mermaid}");
    }
}
