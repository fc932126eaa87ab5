//! What librdkafka's errors mean for the port's callers.

pub use rdkafka::types::RDKafkaErrorCode as Code;

use crate::log::LogError;

/// An error with librdkafka's own verdict on what helps.
#[derive(Debug)]
pub struct Failure {
    /// The error's code.
    pub code: Code,
    /// What librdkafka says about it.
    pub text: String,
    /// The handle is of no more use.
    pub fatal: bool,
    /// The same call may be made again.
    pub retriable: bool,
    /// The transaction has to be aborted.
    pub abortable: bool,
}

/// Errors of the network or of a broker that is busy, starting or moving: the same call may succeed later.
pub fn passing(code: Code) -> bool {
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::MessageTimedOut
            | Code::TimedOutQueue
            | Code::RequestTimedOut
            | Code::WaitingForCoordinator
            | Code::WaitCache
            | Code::InProgress
            | Code::PreviousInProgress
            | Code::Retry
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::BrokerNotAvailable
            | Code::ReplicaNotAvailable
            | Code::NetworkException
            | Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::NotCoordinator
            | Code::NotController
            | Code::NotEnoughReplicas
            | Code::NotEnoughReplicasAfterAppend
            | Code::ConcurrentTransactions
            | Code::KafkaStorageError
            | Code::OffsetNotAvailable
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
            | Code::ThrottlingQuotaExceeded
            | Code::QueueFull
            | Code::ReassignmentInProgress
    )
}

/// Whether the code says that a right is missing.
pub fn is_denial(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::ClusterAuthorizationFailed
    )
}

/// The port's error for a code; `text` says what was tried and why it failed.
pub fn log_error(code: Code, text: String) -> LogError {
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => LogError::UnknownTopic(text),
        Code::RebalanceInProgress
        | Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::FencedInstanceId
        | Code::AssignmentLost
        | Code::StaleMemberEpoch
        | Code::FencedMemberEpoch => LogError::Migrated(text),
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidRecord
        | Code::InvalidMessage
        | Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidConfig
        | Code::PolicyViolation
        | Code::OffsetMetadataTooLarge => LogError::Refused(text),
        _ if is_denial(code) => LogError::Unauthorized(text),
        _ if passing(code) => LogError::Retriable(text),
        _ => LogError::Fatal(text),
    }
}

/// The port's error for a failure of `what`.
pub fn of_failure(what: &str, failure: &Failure) -> LogError {
    let text = format!("{what}: {}", failure.text);
    match failure.retriable {
        true => LogError::Retriable(text),
        false => log_error(failure.code, text),
    }
}
