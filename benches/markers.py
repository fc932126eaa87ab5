#!/usr/bin/env python3
"""What removed keys leave behind: entries and bytes of stores and changelog, before and after their markers go.

    python3 benches/markers.py TIDEGATE [--keys 1000000] [--embedded] [--output table|json]

Starts TIDEGATE with `state.marker_retention = "0s"` on a fresh Kafka (`with-kafka.sh`), or on the embedded log; adds so
many keys, removes all of them, and waits until nothing of them is left. Looks at the stores through /metrics, and at the
changelog in the log's folder, whose topic is set to be compacted at once. Ends with exit code 1 when anything is left:
a key, more bytes of the stores than before, or, on Kafka, more than one record in a hundred of the changelog. Python's standard library is all that it needs.
"""

import argparse
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

PARTITIONS = 16
# Lines of one request.
REQUEST = 20_000
# What a store says of itself: whose it is, up to where, and its newest writes.
OWN = 80 * PARTITIONS
PATIENCE = 600
SETTLES = 30
SOON = "segment.ms=2000,min.cleanable.dirty.ratio=0.01,delete.retention.ms=100,max.compaction.lag.ms=1000"


class Instance:
    def __init__(self, binary, folder, bootstrap):
        command = [binary, "run", "--listen", "127.0.0.1:0", "--handler", "echo", "--set", "state.marker_retention=0s"]
        command += ["--set", f"processing.partitions={PARTITIONS}", "--set", "application.instance_id=one"]
        command += ["-b", bootstrap] if bootstrap else []
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "answers on " in line:
                self.url = line.split("answers on ")[1].strip()
                break
        else:
            sys.exit("markers: the instance did not start")
        # Nobody reads what it says from here on, and it must not wait for that.
        subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)

    def call(self, path, body=None):
        headers = {"content-type": "application/x-ndjson"} if body else {}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read().decode()

    def frontier(self):
        return json.loads(self.call("/api/v1/frontier"))

    def store(self):
        page = self.call("/metrics")
        metric = lambda name: float(re.search(rf"^{name} (\S+)$", page, re.M).group(1))
        return int(metric("tidegate_store_entries")), int(metric("tidegate_store_bytes"))

    def send(self, keys, action):
        for first in range(0, keys, REQUEST):
            lines = (f'{{"key":"key-{n:08}","action":"{action}"}}\n' for n in range(first, min(first + REQUEST, keys)))
            self.call("/api/v1/events", "".join(lines).encode())
        until("everything is settled", lambda: self.is_settled())

    def is_settled(self):
        standing = self.frontier()
        return standing["frontier"] is not None and standing["frontier"] == standing["received"]


def until(what, done):
    begun = time.monotonic()
    while not done():
        if time.monotonic() - begun > PATIENCE:
            sys.exit(f"markers: in vain for {PATIENCE} s: {what}")
        time.sleep(0.2)


def size(folder):
    files = (os.path.join(top, name) for top, _, names in os.walk(folder) for name in names)
    return sum(os.path.getsize(file) for file in files if os.path.exists(file))


class Kafka:
    def __init__(self, bootstrap, folder):
        self.bootstrap, self.folder = bootstrap, folder
        lib = os.environ.get("TIDEGATE_KAFKA_HOME") or os.path.expanduser("~/.cache/tidegate/kafka-4.3.1")
        self.java = ["java", "-cp", os.environ.get("KAFKA_LIB", lib + "/lib") + "/*"]

    def compacts_soon(self):
        settings = ["--alter", "--entity-type", "topics", "--entity-name", "tidegate-state-changelog"]
        tool = ["kafka.admin.ConfigCommand", "--bootstrap-server", self.bootstrap]
        subprocess.run(self.java + tool + settings + ["--add-config", SOON], check=True, stdout=subprocess.DEVNULL)

    def changelog(self):
        """Records that are no marks of transactions, and bytes."""
        segments = glob.glob(f"{self.folder}/data/tidegate-state-changelog-*/*.log")
        tool = ["org.apache.kafka.tools.DumpLogSegments", "--files", ",".join(segments)]
        if subprocess.run(self.java + [tool[0], "--help"], capture_output=True).returncode not in (0, 1):
            tool[0] = "kafka.tools.DumpLogSegments"
        dumped = subprocess.run(self.java + tool, capture_output=True, text=True).stdout
        batches = (line for line in dumped.splitlines() if "isControl: false" in line)
        records = sum(int(re.search(r"count: (\d+)", line).group(1)) for line in batches)
        return records, sum(os.path.getsize(segment) for segment in segments if os.path.exists(segment))


def measure(options, bootstrap):
    with tempfile.TemporaryDirectory(prefix="tidegate-markers-") as folder:
        kafka = Kafka(bootstrap, os.environ["KAFKA_DIR"]) if bootstrap else None
        changelog = kafka.changelog if kafka else lambda: (None, size(f"{folder}/tidegate-data/log"))
        binary = os.path.abspath(options.tidegate)
        if bootstrap:
            create = [binary, "topics", "create", "-b", bootstrap, "--set", f"processing.partitions={PARTITIONS}"]
            subprocess.run(create, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        instance = Instance(binary, folder, bootstrap)
        rows, right = {}, True

        def note(what):
            (entries, store_bytes), (records, log_bytes) = instance.store(), changelog()
            rows[what] = {"store_entries": entries, "store_bytes": store_bytes, "changelog_records": records,
                          "log_bytes": log_bytes}
            return rows[what]

        try:
            until("ready", lambda: is_ready(instance))
            if kafka:
                kafka.compacts_soon()
            instance.send(options.keys, "ADD")
            until("the stores hold all keys", lambda: instance.store()[0] >= options.keys * 0.95)
            note("added")
            begun = time.monotonic()
            instance.send(options.keys, "REMOVE")
            removed = time.monotonic() - begun
            until("the horizon is the frontier", lambda: instance.frontier()["horizon"] == instance.frontier()["frontier"])
            until("no key is listed", lambda: not json.loads(instance.call("/api/v1/keys?removed=true"))["entries"])
            gone = time.monotonic() - begun
            # RocksDB's estimate counts what was overwritten until it compacts: it is shown as it is after a while.
            deadline = time.monotonic() + SETTLES
            while instance.store()[0] > OWN and time.monotonic() < deadline:
                time.sleep(0.2)
            if kafka:
                until("the changelog is compacted", lambda: changelog()[0] <= max(options.keys // 100, 10 * PARTITIONS))
            last = note("removed")
            rows["seconds"] = {"removed": round(removed, 1), "markers_gone": round(gone, 1)}
            right = last["store_bytes"] <= rows["added"]["store_bytes"]
        finally:
            instance.process.terminate()
            instance.process.wait()
        if options.output == "json":
            print(json.dumps(rows))
        else:
            for what, row in rows.items():
                print(f"{what:>8}  " + "  ".join(f"{name} {value}" for name, value in row.items()))
        return 0 if right else 1


def is_ready(instance):
    try:
        instance.call("/readyz")
        return True
    except urllib.error.HTTPError:
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tidegate")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--embedded", action="store_true")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    parser.add_argument("--bootstrap", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.embedded or options.bootstrap:
        sys.exit(measure(options, options.bootstrap))
    with tempfile.TemporaryDirectory(prefix="tidegate-markers-kafka-") as folder:
        wrapper = os.path.join(os.path.dirname(os.path.abspath(__file__)), "with-kafka.sh")
        command = [wrapper, sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--bootstrap", "@BOOTSTRAP@"]
        sys.exit(subprocess.run(command, env={**os.environ, "KAFKA_DIR": folder}).returncode)


if __name__ == "__main__":
    main()
