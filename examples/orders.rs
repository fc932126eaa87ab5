//! A complete program: orders reserve their items, and a cancelled order gives them back.
//!
//!     cargo run --release --example orders
//!     tidegate send order-1:ADD order-1:REMOVE     (in another terminal)
//!     tidegate list
//!
//! With Kafka, the configuration being that of `tidegate run`: a file, variables such as `TIDEGATE_LOG__KIND=kafka`,
//! and settings, of which the last wins:
//!
//!     cargo run --release --example orders -- tidegate.toml processing.threads=4
//!
//! An order takes a while to process. Whatever order 1's events overlap with, its items end in the
//! state that one thread with one queue would have left.

use std::time::Duration;

use tidegate::Tidegate;
use tidegate::config::Config;
use tidegate::config::load::{LoadOptions, load};
use tidegate::event::Event;
use tidegate::handler::{Context, Failure, Handler, Outcome};

struct Orders;

impl Handler for Orders {
    async fn handle(&self, event: Event, context: Context) -> Result<Outcome, Failure> {
        let key = String::from_utf8(event.key.to_vec())?;
        let Some(order) = key.strip_prefix("order-") else {
            // An item: it holds what its order said last.
            return Ok(Outcome { value: event.payload, children: Vec::new() });
        };
        // The slow part, such as a call of another system. `invocation_id` lets that system recognise a
        // repetition; a superseded event has no effect outside any more.
        if !context.superseded {
            println!("{} {} ({})", event.action.as_str(), key, context.invocation_id());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        // ADD reserves the items, REMOVE releases them: the children do as their parent does.
        let item = |n: u32| Event {
            key: format!("item-{order}-{n}").into(),
            action: event.action,
            payload: Some(key.clone().into()),
        };
        Ok(Outcome { value: Some("placed".into()), children: (1..=3).map(item).collect() })
    }
}

/// Defaults < file < environment < `key=value` of the command line. The error tells all that is wrong, and where it stands.
fn configuration() -> anyhow::Result<Config> {
    let mut options = LoadOptions::from_environment();
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some((key, value)) => options.settings.push((key.into(), value.into(), "the command line".into())),
            None => options.file = Some(argument.into()),
        }
    }
    Ok(load(options)?.config)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().init();
    Tidegate::builder().config(configuration()?).handler(Orders).run().await?;
    Ok(())
}
