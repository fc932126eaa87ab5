//! The command line: it runs an instance, or talks to one that runs.

mod bench;
mod client;
mod dead_letters;
mod demo;
mod error;
mod frontier;
mod keys;
mod open;
mod options;
mod output;
mod reset;
mod restoring;
mod run;
mod screen;
mod send;
mod tasks;
mod topics;
mod topology;
mod verdict;
mod verify;
mod watch;

use axum::Router;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::LogKind;
use crate::handler::builtin;
use crate::server::{Front, bind, process};
use client::{Client, ServerOptions};
use error::CliError;
use keys::Encoding;
use options::ConfigOptions;
use output::Output;

/// A stateful stream processor for Kafka whose final state is always the serial one.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    server: ServerOptions,
    /// How keys are written, here and in what is printed.
    #[arg(long, global = true, value_enum, default_value_t = Encoding::Text)]
    encoding: Encoding,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what this is about: one late event, then a live load, then a check of every key.
    Demo(demo::DemoOptions),
    /// Measure a built-in load, with an exact check of the final state.
    Bench(bench::BenchOptions),
    /// Run an instance.
    Run(run::RunOptions),
    /// Send primary events.
    Send(send::SendOptions),
    /// Show what a key holds.
    Get(keys::GetOptions),
    /// List keys.
    List(keys::ListOptions),
    /// List the tasks of an instance.
    Tasks,
    /// Show how far everything is final.
    Frontier(frontier::FrontierOptions),
    /// Watch an instance's numbers change.
    Watch(watch::WatchOptions),
    /// Draw the way of an event through the application's topics.
    Topology(topology::TopologyOptions),
    /// Look at the application's topics, create or purge them.
    #[command(subcommand)]
    Topics(topics::TopicsVerb),
    /// Start over: delete what the application has made of its source; a preview without --execute.
    Reset(reset::ResetOptions),
    /// Look at what could not be handled, and send it again.
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersVerb),
    /// Compare every key with the serial reference; exit code 3 when they differ.
    Verify(verdict::VerifyOptions),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print the script with which a shell completes this command line.
    Completions {
        /// For which shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Say whether the configuration is valid.
    Check(ConfigOptions),
    /// Print the effective values, each with its origin.
    Show(ConfigOptions),
}

/// Runs the command line of this process, and ends it; `doors` are the routes at which an instance answers.
pub fn main(doors: Router<Front>) -> ! {
    let code = match dispatch(Cli::parse(), doors) {
        Ok(()) => 0,
        Err(error) => {
            error.print();
            error.exit_code()
        }
    };
    process::exit(code)
}

/// All that can be known to be wrong without a log.
fn check(options: &ConfigOptions, output: Output) -> Result<(), CliError> {
    let config = options.load()?;
    bind::check(&config.server)?;
    builtin::from_config(&config.handler, true).map_err(CliError::misused)?;
    // Opening needs no broker, and tells which of Kafka's properties are not taken, and why.
    if config.log.kind == LogKind::Kafka {
        open::log(&config)?;
    }
    match output {
        Output::Json => output::json(&serde_json::json!({ "valid": true })),
        Output::Table => output::line("the configuration is valid"),
    }
}

fn dispatch(cli: Cli, doors: Router<Front>) -> Result<(), CliError> {
    let client = || Client::new(&cli.server);
    let talks = matches!(cli.verb, Verb::Send(_) | Verb::Get(_) | Verb::List(_) | Verb::Tasks);
    let talks =
        talks || matches!(cli.verb, Verb::Watch(_) | Verb::Frontier(_) | Verb::Topology(_) | Verb::DeadLetters(_));
    if !talks {
        cli.server.refuse()?;
    }
    match cli.verb {
        Verb::Demo(options) => demo::demo(&options, doors),
        Verb::Bench(options) => bench::bench(&options, doors, cli.output),
        Verb::Run(options) => run::run(&options, doors),
        Verb::Send(options) => send::send(&client()?, &options, cli.encoding, cli.output),
        Verb::Get(options) => keys::get(&client()?, &options, cli.encoding, cli.output),
        Verb::List(options) => keys::list(&client()?, &options, cli.encoding, cli.output),
        Verb::Tasks => tasks::tasks(&client()?, cli.output),
        Verb::Frontier(options) => frontier::frontier(&client()?, &options, cli.output),
        Verb::Watch(options) => watch::watch(client()?, &options, cli.output),
        Verb::Topology(options) => topology::topology(&client()?, &options, cli.output),
        Verb::DeadLetters(verb) => dead_letters::dead_letters(&client()?, &verb, cli.encoding, cli.output),
        Verb::Reset(options) => reset::reset(&options, cli.output),
        Verb::Topics(verb) => topics::topics(&verb, cli.output),
        Verb::Verify(options) => verdict::verify(&options, cli.encoding, cli.output),
        Verb::Config(ConfigVerb::Check(options)) => check(&options, cli.output),
        Verb::Config(ConfigVerb::Show(options)) if cli.output == Output::Json => output::json(&options.show_json()?),
        Verb::Config(ConfigVerb::Show(options)) => output::line(options.show()?.trim_end()),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tidegate", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end())
        }
    }
}
