//! Gauges of single partitions: they vanish the moment the partition goes, so that the sum over all
//! instances counts every partition once.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// By partition, topic (`None` where the metric has no such label) and the metric's name.
type Gauges = BTreeMap<(i32, Option<Arc<str>>, &'static str), f64>;

static GAUGES: Mutex<Gauges> = Mutex::new(BTreeMap::new());

fn gauges() -> MutexGuard<'static, Gauges> {
    GAUGES.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn set(name: &'static str, topic: Option<&str>, partition: i32, value: f64) {
    gauges().insert((partition, topic.map(Arc::from), name), value);
}

/// Removes the partition's gauges that name `topic`, or with `None` those that name no topic.
pub(super) fn forget(topic: Option<&str>, partition: i32) {
    gauges().retain(|(of, named, _), _| *of != partition || named.as_deref() != topic);
}

/// Appends them to the page in Prometheus' text format, each metric with its help in one block.
pub(super) fn render(names: &[(&'static str, &str)], page: &mut String) {
    let gauges = gauges();
    for (name, help) in names {
        let mut of_name = gauges.iter().filter(|((_, _, of), _)| of == name).peekable();
        if of_name.peek().is_none() {
            continue;
        }
        page.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
        for ((partition, topic, _), value) in of_name {
            let topic = topic.as_ref().map(|topic| format!("topic=\"{topic}\",")).unwrap_or_default();
            writeln!(page, "{name}{{{topic}partition=\"{partition}\"}} {value}").expect("writing to a string");
        }
        page.push('\n');
    }
}
