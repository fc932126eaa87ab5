//! `GET /api/v1/instances`: who takes part in the application, and where they answer.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use futures_util::future::join_all;
use serde::Serialize;
use utoipa::ToSchema;

use crate::log::LogError;
use crate::server::Front;
use crate::server::error::ApiError;

/// The application's instances.
#[derive(Debug, Serialize, ToSchema)]
pub struct Instances {
    /// By address. One that owns nothing is known only to itself.
    instances: Vec<Member>,
    /// Partitions of keys that nobody owns at the moment.
    unowned: Vec<i32>,
}

/// An instance.
#[derive(Debug, Serialize, ToSchema)]
pub struct Member {
    /// `host:port` under which it answers.
    address: String,
    /// Its name; null while it does not answer.
    #[schema(required)]
    instance: Option<String>,
    /// Its state, as its own status tells it; `unreachable` while it does not answer.
    state: String,
    /// Partitions of keys that it owns, as it has committed last.
    partitions: Vec<i32>,
    /// Source partitions that it reads, as `topic-partition`.
    sources: Vec<String>,
    /// Whether this is the instance that answers.
    #[serde(rename = "self")]
    this: bool,
}

/// The application's instances, from the marks of their commits, and what each of them says of itself.
#[utoipa::path(get, path = "/api/v1/instances", tag = "instances", responses((status = 200, body = Instances)))]
pub async fn instances(State(front): State<Front>) -> Result<Json<Instances>, ApiError> {
    let instance = front.instance()?;
    let keys = instance.key_partitions();
    let unknown = |error: LogError| {
        let message = format!("the log does not tell who owns the partitions: {error}");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message).hint("ask again shortly")
    };
    let sources = instance.source_partitions().await.map_err(unknown)?;
    let owners = instance.owners([keys.clone(), sources.clone()].concat()).await.map_err(unknown)?;
    let mut members: BTreeMap<String, Member> = BTreeMap::new();
    members.insert(front.peers().own().to_owned(), Member::at(front.peers().own(), true));
    let mut unowned = Vec::new();
    for (of, owner) in keys.iter().chain(&sources).zip(owners) {
        let is_key = of.topic == keys[0].topic;
        let Some(owner) = owner else {
            unowned.extend(is_key.then_some(of.partition));
            continue;
        };
        let member = members.entry(owner).or_insert_with_key(|address| Member::at(address, false));
        if is_key { member.partitions.push(of.partition) } else { member.sources.push(of.to_string()) }
    }
    let own = instance.status();
    let ask = async |mut member: Member| {
        if member.this {
            (member.instance, member.state) = (Some(own.instance.clone()), own.state.to_owned());
            return member;
        }
        if let Ok((StatusCode::OK, status)) = front.peers().get(&member.address, "/api/v1/status").await {
            let text = |name: &str| status[name].as_str().map(str::to_owned);
            (member.instance, member.state) = (text("instance"), text("state").unwrap_or(member.state));
        }
        member
    };
    let instances = join_all(members.into_values().map(ask)).await;
    Ok(Json(Instances { instances, unowned }))
}

impl Member {
    fn at(address: &str, this: bool) -> Member {
        let (partitions, sources) = (Vec::new(), Vec::new());
        Member { address: address.to_owned(), instance: None, state: "unreachable".into(), partitions, sources, this }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn an_instance_that_does_not_answer_is_told_all_the_same() {
        let member: Value = serde_json::to_value(Member::at("b:1", false)).unwrap();
        assert_eq!(
            (&member["state"], &member["instance"], &member["self"]),
            (&"unreachable".into(), &Value::Null, &false.into())
        );
    }
}
