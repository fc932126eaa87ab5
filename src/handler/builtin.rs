//! The handlers that come with Tidegate: which one the configuration asks for, and `echo`.

use std::sync::Arc;

use super::rules::Rules;
use super::scripted::Scripted;
use super::{Context, DynHandler, Failure, Handler, Outcome};
use crate::config::{self, HandlerKind};
use crate::event::Event;

/// No work, no children; the value is the payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Handler for Echo {
    async fn handle(&self, event: Event, _context: Context) -> Result<Outcome, Failure> {
        Ok(Outcome { value: event.payload, children: Vec::new() })
    }
}

/// The handler that `[handler]` asks for. `without_waits` is how the serial reference wants it: the
/// same outcomes, at once.
///
/// # Errors
/// A message that names the rules file and what is wrong in it.
pub fn from_config(handler: &config::Handler, without_waits: bool) -> Result<Arc<dyn DynHandler>, String> {
    Ok(match handler.kind {
        HandlerKind::Echo => Arc::new(Echo),
        HandlerKind::Rules => {
            let rules = Rules::read(&handler.rules).map_err(|error| error.to_string())?;
            Arc::new(if without_waits { rules.without_waits() } else { rules })
        }
        HandlerKind::Scripted => {
            let scripted = Scripted::default();
            Arc::new(if without_waits { scripted.without_waits() } else { scripted })
        }
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::pin::pin;
    use std::task::{Poll, Waker};

    use bytes::Bytes;

    use super::*;
    use crate::event::Action;
    use crate::stamp::Stamp;

    /// The context of try number `attempt`.
    pub fn attempt(attempt: u32) -> Context {
        Context {
            application: Arc::from("tests"),
            stamp: Stamp::root(0, 1),
            retry: 0,
            attempt,
            superseded: false,
            origin: Bytes::new(),
        }
    }

    /// An event with what the handlers look at.
    pub fn event(key: &str, action: Action, payload: Option<&str>) -> Event {
        Event {
            key: Bytes::copy_from_slice(key.as_bytes()),
            action,
            payload: payload.map(|payload| Bytes::copy_from_slice(payload.as_bytes())),
        }
    }

    /// What `handler` answers at the first poll; `None` when it waits.
    pub fn at_once(handler: &impl Handler, event: Event, context: Context) -> Option<Result<Outcome, Failure>> {
        let mut call = pin!(handler.handle(event, context));
        match call.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    #[test]
    fn echo_gives_the_payload_back() {
        let outcome = at_once(&Echo, event("k", Action::Add, Some("p")), attempt(1)).unwrap().unwrap();
        assert_eq!(outcome, Outcome { value: Some("p".into()), children: vec![] });
        let outcome = at_once(&Echo, event("k", Action::Add, None), attempt(1)).unwrap().unwrap();
        assert_eq!(outcome.value, None);
    }

    #[test]
    fn the_configuration_chooses() {
        let mut handler = config::Handler::default();
        assert!(from_config(&handler, false).is_ok());
        handler.kind = HandlerKind::Scripted;
        assert!(from_config(&handler, true).is_ok());
        handler.kind = HandlerKind::Rules;
        handler.rules = "/no/such/rules.toml".into();
        let error = from_config(&handler, false).err().unwrap();
        assert!(error.contains("/no/such/rules.toml"), "{error}");
    }
}
