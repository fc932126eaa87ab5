//! Three instances under a constant load of cascades, while they are killed, frozen beyond their session, stopped and
//! started, and the broker is restarted, in the order of a seed. Apart from the faults (`faults`) stand the load
//! (`cluster/load`) and who judges: one who reads along (`reader`), one who asks (`asking`), and at the end the serial
//! reference (`cluster/check`) against every door (`doors`). `gaps` measures how long partitions stand still.
//!
//! The long run, a minute and a half for each ten faults: `make chaos CHAOS=kills,freezes,restarts of the broker,seed`.

mod asking;
mod doors;
mod faults;
pub mod gaps;
mod leaving;
mod reader;

use std::sync::Arc;
use std::time::Instant;

use crate::broker::Broker;
use crate::cluster::app::App;
use crate::cluster::check;
use crate::cluster::load::Load;
use crate::kit;
use asking::Asking;
use faults::{Fault, Nodes};
use gaps::Gaps;
use reader::Reader;

/// The partitions of the application.
const TASKS: i32 = 16;
/// How many instances there are, when none is down.
const INSTANCES: usize = 3;

/// What the long run is told by.
const WANTED: &str = "TIDEGATE_CHAOS is kills,freezes,restarts of the broker,seed";

/// Runs the faults in an order and at moments that the seed decides; fails with all that must not be.
fn chaos(seed: u64, mut faults: Vec<Fault>) {
    let begun = Instant::now();
    let broker = Broker::start().expect("broker");
    let output: Arc<str> = kit::unique("chaos-output").into();
    let app = App::new(&broker, "chaos").of(TASKS).with(&[("output.topic", &output)]);
    let mut random = fastrand::Rng::with_seed(seed);
    random.shuffle(&mut faults);
    eprintln!("seed {seed}: {faults:?}");
    let mut nodes = Nodes::start(&app, &broker, Asking::begin(&app, INSTANCES + 1, seed), Gaps::begin(&app), random);
    let reader = Reader::begin(&app, &output);
    let load = Load::slow(&app, seed);
    nodes.are_at_work("all share the work");
    for (number, fault) in faults.iter().enumerate() {
        let at = begun.elapsed().as_secs_f64();
        let gaps = nodes.suffer(*fault);
        eprintln!("{at:6.1} s: {}. {fault:?}: {gaps}", number + 1);
    }
    load.end();
    // 1. What is in the topics, against the reference.
    let state = check::all(&app);
    // 2. Every door of every instance.
    nodes.each(|instance| doors::tell(instance, &state));
    // 3. Who was asked meanwhile, and who has read along.
    let Nodes { asking, after_kills, after_freezes, .. } = nodes;
    let answers = asking.end();
    app.until("the reader has read everything", || {
        let read = reader.so_far();
        read.state == state && read.output == state
    });
    let read = reader.so_far();
    let never: Vec<_> = answers.entries.iter().filter(|(entry, _)| !read.entries.contains(*entry)).take(5).collect();
    assert!(never.is_empty(), "answered, and never committed: {never:?}\n{}", app.logs());
    let violations: Vec<&String> = answers.violations.iter().chain(&read.violations).collect();
    assert!(
        violations.is_empty(),
        "{} violations: {:#?}\n{}",
        violations.len(),
        &violations[..9.min(violations.len())],
        app.logs()
    );
    eprintln!("questions by status: {:?}", answers.statuses);
    assert!(answers.entries.len() > 500, "few answers: {}", answers.entries.len());
    eprintln!("beyond the session timeout after kills: {}", gaps::in_words(after_kills));
    eprintln!("beyond the session timeout after freezes: {}", gaps::in_words(after_freezes));
    eprintln!("{} faults, 0 violations, {:.0} s", faults.len(), begun.elapsed().as_secs_f64());
}

#[test]
fn nothing_is_lost_doubled_or_out_of_order_whatever_dies() {
    use Fault::{Broker, Freeze, FreezeAndKill, FreezeBriefly, Join, Kill, KillAndStart, KillTwo, Leave};
    chaos(
        11,
        vec![
            Kill,
            KillAndStart,
            KillAndStart,
            KillTwo,
            Freeze,
            Freeze,
            FreezeBriefly,
            FreezeAndKill,
            Leave,
            Join,
            Broker,
        ],
    );
}

#[test]
#[ignore = "takes as long as its numbers say"]
fn long() {
    let asked = std::env::var("TIDEGATE_CHAOS").ok().filter(|text| !text.is_empty());
    let asked = asked.unwrap_or_else(|| "30,10,1,1".into());
    let numbers: Vec<u64> = asked.split(',').map(|number| number.parse().expect(WANTED)).collect();
    let [kills, freezes, restarts, seed] = numbers[..] else { panic!("{WANTED}") };
    let kill = |n: u64| if n.is_multiple_of(2) { Fault::Kill } else { Fault::KillAndStart };
    let mut faults: Vec<Fault> = (0..kills).map(kill).collect();
    faults.extend((0..freezes).map(|_| Fault::Freeze));
    faults.extend((0..restarts).map(|_| Fault::Broker));
    chaos(seed, faults);
}
