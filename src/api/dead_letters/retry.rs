//! `POST /api/v1/dead-letters/…/retry`: dead letters sent again, one or many. Any instance takes it; the owner of the
//! partition carries it out.
//!
//! A dead letter stands in the partition of its key, so its owner is known before it is read.

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::letter::event_of;
use super::page::Place;
use super::{ask, ask_below, cause_of, place_of, read_place, refused_by_log, unknown};
use crate::api::keys::not_owner;
use crate::api::openapi::Failure;
use crate::api::query::{Query, refuse};
use crate::cause::Cause;
use crate::config::{Guarantee, StampSource};
use crate::event::StampedEvent;
use crate::frontier::Verdict;
use crate::instance::Instance;
use crate::instance::engine::Wish;
use crate::instance::retrying::{Obstacle, Unsent};
use crate::log::Record;
use crate::retry::Letter;
use crate::server::Front;
use crate::server::error::ApiError;
use crate::server::limits::is_forwarded;
use crate::stamp::Stamp;

/// A dead letter that was sent again.
#[derive(Debug, Serialize, ToSchema)]
pub struct Retried {
    /// Its partition of the dead-letter topic.
    partition: i32,
    /// Its offset there.
    offset: i64,
    /// The place in the serial order at which it is handled: its original one, or that of the new event; null for a new
    /// event with `source.stamp = "arrival"`, whose place is given when it is read.
    #[schema(required)]
    stamp: Option<String>,
}

/// What became of the dead letters of one part of a partition.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct RetriedPage {
    /// Sent again.
    accepted: usize,
    /// Not sent: they were before.
    already_retried: usize,
    /// Not sent: source records that were refused, such as undecodable ones.
    not_an_event: usize,
    /// Not sent: the horizon has passed them; `as=new` sends them as new events.
    before_horizon: usize,
    /// Pass it as `after` to go on; null = there are no more.
    #[schema(required)]
    next: Option<String>,
}

/// How dead letters are to be sent.
#[derive(Clone, Copy)]
struct How {
    forced: bool,
    as_new: bool,
}

impl How {
    fn read(query: &Query) -> Result<How, ApiError> {
        let as_new = match query.text("as")?.as_deref() {
            None => false,
            Some("new") => true,
            Some(other) => return Err(refuse(format!("as={other}")).hint("as=new sends it as a new event")),
        };
        Ok(How { forced: query.flag("force")?, as_new })
    }

    fn told(self) -> String {
        format!("force={}{}", self.forced, if self.as_new { "&as=new" } else { "" })
    }

    /// What no dead letter of this application can be sent for.
    fn check(self, instance: &Instance) -> Result<(), ApiError> {
        let config = instance.config();
        if config.processing.guarantee == Guarantee::AtLeastOnce {
            let message = "a retry and the note that it was are one transaction, and this application has none";
            return Err(ApiError::new(StatusCode::CONFLICT, "needs_exactly_once", message).hint(
                "processing.guarantee = \"exactly_once\" retries dead letters; or send the event again as a new one",
            ));
        }
        if self.as_new && config.source.stamp == StampSource::Header {
            let message = "a new event needs a sequence of its own, and there is no source of sequences";
            return Err(ApiError::new(StatusCode::CONFLICT, "no_sequence", message)
                .hint("send it with POST /api/v1/events and a global_offset, from where the others have theirs"));
        }
        Ok(())
    }
}

/// Why a single dead letter is not sent.
enum Refusal {
    NotAnEvent,
    Obstacle(Obstacle),
}

impl Refusal {
    fn told(self, source: StampSource) -> ApiError {
        let (code, message, hint) = match self {
            Refusal::NotAnEvent => (
                "not_an_event",
                "this dead letter is a source record that was refused: it has no place in the order",
                "correct what its cause says and send it again; `tidegate dead-letters show` has its bytes",
            ),
            Refusal::Obstacle(Obstacle::AlreadyRetried) => (
                "already_retried",
                "this dead letter has been retried before",
                "?force=true (--force) retries it once more",
            ),
            Refusal::Obstacle(Obstacle::BeforeHorizon) => (
                "before_horizon",
                "the horizon has passed this event: what outdid it may be forgotten",
                match source {
                    StampSource::Header => "send it again as a new event, under a global_offset of its own",
                    _ => "?as=new (--as-new) sends it as a new event",
                },
            ),
        };
        ApiError::new(StatusCode::CONFLICT, code, message).hint(hint)
    }
}

/// Sends one dead letter again with its original stamp: since it has left no trace, the result is that of the serial order
/// in which it had succeeded. With `as=new` it is sent as a new event.
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/{partition}/{offset}/retry",
    tag = "dead letters",
    params(
        ("partition" = i32, Path, description = "Its partition of the dead-letter topic"),
        ("offset" = i64, Path, description = "Its offset there"),
        ("force" = Option<bool>, Query, description = "Also where it has been retried before"),
        ("as" = Option<String>, Query, description = "`new`: as a new event, later than all others"),
    ),
    responses(
        (status = 202, body = Retried, description = "It is committed that the event is handled once more"),
        (status = 404, body = Failure, description = "`unknown_dead_letter`"),
        (status = 409, body = Failure, description = "`already_retried`; `not_an_event`: a source record that was refused; `before_horizon`; `no_sequence`: `as=new` where `source.stamp` is `header`; `needs_exactly_once`"),
        (status = 503, body = Failure, description = "`not_ready`: whether it was sent is not known if that was tried; `retried` in the list tells"),
    )
)]
pub async fn one(
    State(front): State<Front>,
    Path((partition, offset)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let how = How::read(&Query::parse(query.as_deref(), &["force", "as"])?)?;
    let letter = read_place(&partition, &offset)?;
    let instance = front.instance()?;
    how.check(&instance)?;
    if !(0..instance.config().processing.partitions).contains(&letter.partition) {
        return Err(unknown(letter));
    }
    let path = format!("/api/v1/dead-letters/{partition}/{offset}/retry?{}", how.told());
    let here = async {
        let Letter { partition, offset } = letter;
        let record = ask(&front, move |shelf| shelf.one(partition, offset)).await?.ok_or_else(|| unknown(letter))?;
        let told = |refusal: Refusal| refusal.told(instance.config().source.stamp);
        let event = judge(&instance, letter, &record, how).map_err(told)?;
        let stamp = event.stamp.clone();
        let Some((stamps, verdicts)) = send(&instance, partition, vec![(letter, event)], how).await? else {
            return Ok(None);
        };
        match verdicts.first() {
            Some(Verdict::Second) => return Err(told(Refusal::Obstacle(Obstacle::AlreadyRetried))),
            Some(Verdict::Overtaken) => return Err(told(Refusal::Obstacle(Obstacle::BeforeHorizon))),
            _ => {}
        }
        let stamp = if how.as_new { stamps.into_iter().next() } else { Some(stamp) };
        Ok(Some(json!(Retried { partition, offset, stamp: stamp.map(|stamp| stamp.to_string()) })))
    };
    at_owner(&front, &instance, &headers, letter.partition, &path, StatusCode::ACCEPTED, here).await
}

/// Sends dead letters again that stand behind `after`, those of one cause or all, each at most once unless forced. One
/// call looks at a part of one partition; `next` leads on.
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/retry",
    tag = "dead letters",
    params(
        ("after" = Option<String>, Query, description = "Only those behind it: `next` of the call before"),
        ("limit" = Option<u32>, Query, description = "Look at so many at most, 1 to 1000; 100 when not given"),
        ("cause" = Option<String>, Query, description = "Only those of this cause"),
        ("force" = Option<bool>, Query, description = "Also those that have been retried before"),
        ("as" = Option<String>, Query, description = "`new`: as new events, later than all others"),
    ),
    responses(
        (status = 202, body = RetriedPage),
        (status = 409, body = Failure, description = "`needs_exactly_once`; `no_sequence`: `as=new` where `source.stamp` is `header`"),
        (status = 503, body = Failure, description = "`not_ready`: ask again with the same `after`; what was sent is not sent twice"),
    )
)]
pub async fn many(
    State(front): State<Front>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let query = Query::parse(query.as_deref(), &["after", "limit", "cause", "force", "as"])?;
    let (how, limit, after, cause) = (How::read(&query)?, query.limit()?, place_of(&query)?, cause_of(&query)?);
    let instance = front.instance()?;
    how.check(&instance)?;
    let Some(from) = ask(&front, move |shelf| shelf.next_with_any(after)).await? else {
        return Ok((StatusCode::ACCEPTED, Json(json!(RetriedPage::default()))));
    };
    let behind = utf8_percent_encode(&from.to_string(), NON_ALPHANUMERIC).to_string();
    let of_cause = cause.map_or_else(String::new, |cause| format!("&cause={cause}"));
    let path = format!("/api/v1/dead-letters/retry?after={behind}&limit={limit}{of_cause}&{}", how.told());
    let here = async { Ok(page(&front, &instance, from, limit, cause, how).await?.map(|page| json!(page))) };
    at_owner(&front, &instance, &headers, from.partition, &path, StatusCode::ACCEPTED, here).await
}

/// What stands behind `from` in its partition; `None` = that is another instance's.
async fn page(
    front: &Front,
    instance: &Instance,
    from: Place,
    limit: usize,
    cause: Option<Cause>,
    how: How,
) -> Result<Option<RetriedPage>, ApiError> {
    let partition = from.partition;
    let read = ask_below(front, partition + 1, move |shelf| shelf.page(from, limit, cause)).await?;
    let mut page = RetriedPage::default();
    let mut events = Vec::new();
    for (_, record) in &read.letters {
        let letter = Letter { partition, offset: record.offset };
        match judge(instance, letter, record, how) {
            Ok(event) => events.push((letter, event)),
            Err(Refusal::NotAnEvent) => page.not_an_event += 1,
            Err(Refusal::Obstacle(Obstacle::AlreadyRetried)) => page.already_retried += 1,
            Err(Refusal::Obstacle(Obstacle::BeforeHorizon)) => page.before_horizon += 1,
        }
    }
    let Some((_, verdicts)) = send(instance, partition, events, how).await? else { return Ok(None) };
    let came_to = |wanted: Verdict| verdicts.iter().filter(|verdict| **verdict == wanted).count();
    page.accepted = came_to(Verdict::Counts) + came_to(Verdict::Taken);
    page.already_retried += came_to(Verdict::Second);
    page.before_horizon += came_to(Verdict::Overtaken);
    let is_last = partition + 1 == instance.config().processing.partitions;
    let next = read.next.or((!is_last).then_some(Place { partition: partition + 1, after: -1 }));
    page.next = next.map(|next| next.to_string());
    Ok(Some(page))
}

/// The event of a dead letter that may be sent.
fn judge(instance: &Instance, letter: Letter, record: &Record, how: How) -> Result<StampedEvent, Refusal> {
    let event = event_of(record).ok_or(Refusal::NotAnEvent)?;
    match instance.obstacle(letter, event.stamp.sequence) {
        Some(Obstacle::AlreadyRetried) if how.forced => Ok(event),
        Some(Obstacle::BeforeHorizon) if how.as_new => Ok(event),
        Some(obstacle) => Err(Refusal::Obstacle(obstacle)),
        None => Ok(event),
    }
}

/// Sends dead letters of one partition; what became of each, and the stamps of new events where they are known. `None` =
/// the partition is another instance's, and nothing was sent.
async fn send(
    instance: &Instance,
    partition: i32,
    events: Vec<(Letter, StampedEvent)>,
    how: How,
) -> Result<Option<(Vec<Stamp>, Vec<Verdict>)>, ApiError> {
    let mut stamps = Vec::new();
    let wishes = if how.as_new {
        if !instance.owns(partition) {
            return Ok(None);
        }
        // First the new event, then the mark: after a crash in between it is sent twice rather than never.
        let (letters, new): (Vec<_>, Vec<_>) = events.into_iter().map(|(letter, event)| (letter, event.event)).unzip();
        if !new.is_empty() {
            let source = &instance.config().source;
            let offsets = instance.append(new, Vec::new()).await.map_err(refused_by_log)?;
            if source.stamp == StampSource::Offset {
                stamps.extend(offsets.iter().map(|&offset| Stamp::root(source.epoch, offset as u64)));
            }
        }
        let mark = |letter| Wish { letter, event: None, forced: how.forced, known: 0 };
        letters.into_iter().map(mark).collect()
    } else {
        events.into_iter().map(|(letter, event)| instance.wish(letter, event, how.forced)).collect()
    };
    match instance.retry(partition, wishes).await {
        Ok(verdicts) => Ok(Some((stamps, verdicts))),
        Err(Unsent::NotHere) if !how.as_new => Ok(None),
        Err(unsent) => {
            let reason = match unsent {
                Unsent::NotHere => "it has moved to another instance".to_owned(),
                Unsent::NotReady(reason) => reason,
            };
            let (what, hint) = match how.as_new {
                true => {
                    ("could not note what is sent as new events", "they are sent: to ask again would send them twice")
                }
                false => ("takes no retry now", "ask again shortly; what was sent meanwhile is not sent twice"),
            };
            let message = format!("partition {partition} {what}: {reason}");
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message)
                .hint(hint)
                .with("partition", partition))
        }
    }
}

/// Carries it out here where the partition is this instance's, else has its owner do it. `here` gives nothing where the
/// partition has moved.
async fn at_owner(
    front: &Front,
    instance: &Instance,
    headers: &HeaderMap,
    partition: i32,
    path: &str,
    done: StatusCode,
    here: impl Future<Output = Result<Option<Value>, ApiError>>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    if (is_forwarded(headers) || instance.owns(partition))
        && let Some(answer) = here.await?
    {
        return Ok((done, Json(answer)));
    }
    if is_forwarded(headers) {
        return Err(not_owner(partition));
    }
    let (status, answer) = front.peers().ask_owner(instance, partition, Method::POST, path).await?;
    Ok((status, Json(answer)))
}
