//! Who may do what on a broker: granted and taken away by its administrator, through librdkafka's C functions.

use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

use rdkafka_sys::bindings as sys;

/// One right: what may be done with what; `prefixed` names all resources that begin with the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    pub operation: &'static str,
    pub resource: &'static str,
    pub name: String,
    pub prefixed: bool,
}

/// An administrator.
pub struct Acls(*mut sys::rd_kafka_t);

// SAFETY: librdkafka's handles may be used by any thread.
unsafe impl Send for Acls {}
unsafe impl Sync for Acls {}

fn c(text: &str) -> CString {
    CString::new(text).expect("no zero in it")
}

fn operation(word: &str) -> sys::rd_kafka_AclOperation_t {
    use sys::rd_kafka_AclOperation_t as Is;
    match word {
        "Read" => Is::RD_KAFKA_ACL_OPERATION_READ,
        "Write" => Is::RD_KAFKA_ACL_OPERATION_WRITE,
        "Create" => Is::RD_KAFKA_ACL_OPERATION_CREATE,
        "Delete" => Is::RD_KAFKA_ACL_OPERATION_DELETE,
        "Describe" => Is::RD_KAFKA_ACL_OPERATION_DESCRIBE,
        "DescribeConfigs" => Is::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS,
        other => panic!("no operation {other}"),
    }
}

fn resource(word: &str) -> sys::rd_kafka_ResourceType_t {
    use sys::rd_kafka_ResourceType_t as Is;
    match word {
        "topic" => Is::RD_KAFKA_RESOURCE_TOPIC,
        "group" => Is::RD_KAFKA_RESOURCE_GROUP,
        "transactional-id" => Is::RD_KAFKA_RESOURCE_TRANSACTIONAL_ID,
        other => panic!("no resource {other}"),
    }
}

fn pattern(prefixed: bool) -> sys::rd_kafka_ResourcePatternType_t {
    use sys::rd_kafka_ResourcePatternType_t as Is;
    if prefixed { Is::RD_KAFKA_RESOURCE_PATTERN_PREFIXED } else { Is::RD_KAFKA_RESOURCE_PATTERN_LITERAL }
}

impl Acls {
    /// Through the listener for everybody.
    pub fn open(servers: &str) -> Acls {
        let mut why = [0 as c_char; 256];
        // SAFETY: the conf is the handle's once it is made; the buffer has the length told.
        unsafe {
            let conf = sys::rd_kafka_conf_new();
            for (name, value) in [("bootstrap.servers", servers), ("log_level", "0")] {
                let (name, value) = (c(name), c(value));
                sys::rd_kafka_conf_set(conf, name.as_ptr(), value.as_ptr(), why.as_mut_ptr(), why.len());
            }
            let kind = sys::rd_kafka_type_t::RD_KAFKA_PRODUCER;
            let handle = sys::rd_kafka_new(kind, conf, why.as_mut_ptr(), why.len());
            assert!(!handle.is_null(), "{:?}", CStr::from_ptr(why.as_ptr()));
            Acls(handle)
        }
    }

    /// Grants rights.
    pub fn grant(&self, user: &str, rights: &[Right]) {
        self.change(user, rights, true);
    }

    /// Takes rights away.
    pub fn revoke(&self, user: &str, rights: &[Right]) {
        self.change(user, rights, false);
    }

    fn change(&self, user: &str, rights: &[Right], grant: bool) {
        let allow = sys::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW;
        let (user, host) = (c(&format!("User:{user}")), c("*"));
        let make = if grant { sys::rd_kafka_AclBinding_new } else { sys::rd_kafka_AclBindingFilter_new };
        // SAFETY: names live during the calls, which copy them; bindings, queue and event are ours, freed once.
        unsafe {
            let mut bindings: Vec<_> = rights
                .iter()
                .map(|right| {
                    let name = c(&right.name);
                    let (kind, pattern) = (resource(right.resource), pattern(right.prefixed));
                    let operation = operation(right.operation);
                    let (user, host) = (user.as_ptr(), host.as_ptr());
                    make(kind, name.as_ptr(), pattern, user, host, operation, allow, std::ptr::null_mut(), 0)
                })
                .collect();
            let queue = sys::rd_kafka_queue_new(self.0);
            let change = if grant { sys::rd_kafka_CreateAcls } else { sys::rd_kafka_DeleteAcls };
            change(self.0, bindings.as_mut_ptr(), bindings.len(), std::ptr::null(), queue);
            let event = sys::rd_kafka_queue_poll(queue, Duration::from_secs(30).as_millis() as i32);
            assert!(!event.is_null(), "no answer about rights");
            let code = sys::rd_kafka_event_error(event);
            assert_eq!(code, sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR, "{rights:?}");
            sys::rd_kafka_event_destroy(event);
            sys::rd_kafka_queue_destroy(queue);
            sys::rd_kafka_AclBinding_destroy_array(bindings.as_mut_ptr(), bindings.len());
        }
    }
}
