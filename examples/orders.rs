//! A complete program: orders reserve their items, and a cancelled order gives them back.
//!
//!     cargo run --release --example orders
//!     tidegate send order-1:ADD order-1:REMOVE     (in another terminal)
//!     tidegate list
//!
//! An order takes a while to process. Whatever order 1's events overlap with, its items end in the
//! state that one thread with one queue would have left.

use std::time::Duration;

use tidegate::Tidegate;
use tidegate::config::Config;
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

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().init();
    Tidegate::builder().config(Config::default()).handler(Orders).run().await?;
    Ok(())
}
