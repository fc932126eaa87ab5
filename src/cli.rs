//! The command line: it runs an instance, or talks to one that runs.

mod bench;
mod client;
mod demo;
mod error;
mod keys;
mod open;
mod options;
mod output;
mod run;
mod send;
mod tasks;
mod topics;
mod verdict;
mod verify;

use std::process::ExitCode;

use axum::Router;
use clap::{Parser, Subcommand};

use crate::config::LogKind;
use crate::server::{Front, bind};
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
    /// Look at the application's topics, or create them.
    #[command(subcommand)]
    Topics(topics::TopicsVerb),
    /// Compare every key with the serial reference; exit code 3 when they differ.
    Verify(verdict::VerifyOptions),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigVerb),
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Say whether the configuration is valid.
    Check(ConfigOptions),
    /// Print the effective values, each with its origin.
    Show(ConfigOptions),
}

/// Runs the command line of this process; `doors` are the routes at which an instance answers.
pub fn main(doors: Router<Front>) -> ExitCode {
    match dispatch(Cli::parse(), doors) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print();
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(cli: Cli, doors: Router<Front>) -> Result<(), CliError> {
    let client = || Client::new(&cli.server);
    if !matches!(cli.verb, Verb::Send(_) | Verb::Get(_) | Verb::List(_) | Verb::Tasks) {
        cli.server.refuse()?;
    }
    match cli.verb {
        Verb::Demo(options) => demo::demo(&options, doors),
        Verb::Bench(options) => bench::bench(&options, doors),
        Verb::Run(options) => run::run(&options, doors),
        Verb::Send(options) => send::send(&client()?, &options, cli.encoding, cli.output),
        Verb::Get(options) => keys::get(&client()?, &options, cli.encoding, cli.output),
        Verb::List(options) => keys::list(&client()?, &options, cli.encoding, cli.output),
        Verb::Tasks => tasks::tasks(&client()?, cli.output),
        Verb::Topics(verb) => topics::topics(&verb, cli.output),
        Verb::Verify(options) => verdict::verify(&options, cli.encoding, cli.output),
        Verb::Config(ConfigVerb::Check(options)) => {
            let config = options.load()?;
            bind::check(&config.server)?;
            // Opening needs no broker, and tells which of Kafka's properties are not taken, and why.
            if config.log.kind == LogKind::Kafka {
                open::log(&config)?;
            }
            output::line("the configuration is valid")
        }
        Verb::Config(ConfigVerb::Show(options)) => output::line(options.show()?.trim_end()),
    }
}
