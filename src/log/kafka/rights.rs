//! What the cluster does not let us do: which right is missing, and the command that grants it.

use super::native::{AclOperation, Allowed};
use crate::log::{LogError, Operation};

/// What a right is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource<'a> {
    /// A topic.
    Topic(&'a str),
    /// A consumer group.
    Group(&'a str),
    /// A producer's transactional id.
    TransactionalId(&'a str),
}

/// One operation on one resource; the operation in the words of `kafka-acls.sh`.
pub type Right<'a> = (&'static str, Resource<'a>);

/// The operation in the words of `kafka-acls.sh`.
pub fn word(operation: Operation) -> &'static str {
    match operation {
        Operation::DescribeConfigs => "DescribeConfigs",
        Operation::Read => "Read",
        Operation::Write => "Write",
        Operation::Delete => "Delete",
    }
}

/// Whether a topic's or group's rights, as the broker tells them, lack the operation. What it does not tell is allowed.
pub fn lacks(allowed: &Allowed, operation: Operation) -> bool {
    let wanted = match operation {
        Operation::DescribeConfigs => AclOperation::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS,
        Operation::Read => AclOperation::RD_KAFKA_ACL_OPERATION_READ,
        Operation::Write => AclOperation::RD_KAFKA_ACL_OPERATION_WRITE,
        Operation::Delete => AclOperation::RD_KAFKA_ACL_OPERATION_DELETE,
    };
    match allowed {
        Allowed::Told(operations) => !operations.contains(&wanted),
        Allowed::Nothing => true,
        Allowed::Unknown => false,
    }
}

/// Says which rights are missing, and how to grant them. Names that begin with `prefix` are the application's own,
/// and are granted together. `why` is what the broker or librdkafka said.
pub fn missing(rights: &[Right<'_>], prefix: &str, why: &str) -> LogError {
    let named = |(operation, resource): &Right<'_>| match resource {
        Resource::Topic(name) => format!("{operation} on topic {name}"),
        Resource::Group(name) => format!("{operation} on group {name}"),
        Resource::TransactionalId(name) => format!("{operation} on transactional id {name}"),
    };
    let mut commands: Vec<String> = rights.iter().map(|right| grant(right, prefix)).collect();
    commands.sort_unstable();
    commands.dedup();
    let names: Vec<String> = rights.iter().map(named).collect();
    let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
    LogError::Unauthorized(format!(
        "not authorized: the right to {} is missing{why}; grant it to this application's principal: {}",
        names.join(", "),
        commands.join("; ")
    ))
}

fn grant((operation, resource): &Right<'_>, prefix: &str) -> String {
    let (kind, name) = match resource {
        Resource::Topic(name) => ("topic", *name),
        Resource::Group(name) => ("group", *name),
        Resource::TransactionalId(name) => ("transactional-id", *name),
    };
    let own = !prefix.is_empty() && name.starts_with(prefix);
    let (name, pattern) = if own { (prefix, " --resource-pattern-type prefixed") } else { (name, "") };
    format!("kafka-acls.sh --add --allow-principal User:<name> --operation {operation} --{kind} {name}{pattern}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_named_with_the_command_that_grants_it() {
        let rights = [("Write", Resource::Topic("shop-progress")), ("Write", Resource::Topic("shop-dead-letter"))];
        let told = missing(&rights, "shop-", "Broker: no").to_string();
        for part in ["Write on topic shop-progress, Write on topic shop-dead-letter is missing", "Broker: no"] {
            assert!(told.contains(part), "{told}");
        }
        let grant = "--operation Write --topic shop- --resource-pattern-type prefixed";
        assert_eq!(told.matches(grant).count(), 1, "one command grants both: {told}");
        let told = missing(&[("Read", Resource::Topic("orders"))], "shop-", "").to_string();
        assert!(told.ends_with("--operation Read --topic orders"), "{told}");
    }
}
