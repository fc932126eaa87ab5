#!/usr/bin/env bash
# Runs a command beside a fresh single-node Kafka and stops the broker afterwards.
#
#   benches/with-kafka.sh COMMAND ARGUMENT…
#
# Every argument that reads @BOOTSTRAP@ becomes the broker's address. Settings by environment:
#   KAFKA_LIB    folder with Kafka's jars (default: what tests/kafka/install.sh installs)
#   KAFKA_PORT   the broker's port; the next one is its controller's (default: two free ones)
#   KAFKA_DIR    folder for the broker's data (default: a temporary one, removed at the end)
#   KAFKA_HEAP   the broker's heap (default 1g)
set -euo pipefail

[ $# -gt 0 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
lib=${KAFKA_LIB:-${TIDEGATE_KAFKA_HOME:-$HOME/.cache/tidegate/kafka-4.3.1}/lib}
ls "$lib"/kafka_2.13-*.jar >/dev/null 2>&1 ||
    { echo "with-kafka: no Kafka in $lib; run tests/kafka/install.sh" >&2; exit 1; }

taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
port=${KAFKA_PORT:-}
if [ -z "$port" ]; then
    port=$((20000 + RANDOM % 20000))
    while taken "$port" || taken $((port + 1)); do port=$((port + 2)); done
fi
dir=${KAFKA_DIR:-$(mktemp -d "${TMPDIR:-/tmp}/tidegate-bench.XXXXXX")}
mkdir -p "$dir"
cat >"$dir/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$dir/data
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
PROPERTIES

broker=
finish() {
    if [ -n "$broker" ]; then
        kill "$broker" 2>/dev/null || true
        wait "$broker" 2>/dev/null || true
    fi
    if [ -z "${KAFKA_DIR:-}" ]; then rm -rf "$dir"; fi
}
trap finish EXIT
trap 'exit 130' INT TERM

java -cp "$lib/*" kafka.tools.StorageTool format -t 5L6g3nShT-eMCtK--X86sw -c "$dir/server.properties" >"$dir/format.out" 2>&1 ||
    { cat "$dir/format.out" >&2; exit 1; }
java -Xmx"${KAFKA_HEAP:-1g}" -cp "$lib/*" kafka.Kafka "$dir/server.properties" >"$dir/broker.out" 2>&1 &
broker=$!
for _ in $(seq 600); do
    taken "$port" && break
    kill -0 "$broker" 2>/dev/null || { echo "with-kafka: the broker did not start" >&2; tail -20 "$dir/broker.out" >&2; exit 1; }
    sleep 0.1
done
taken "$port" || { echo "with-kafka: the broker does not listen" >&2; exit 1; }
"${@//@BOOTSTRAP@/127.0.0.1:$port}"
