#!/bin/sh
# Puts the jars of a Kafka broker for the tests into ${TIDEGATE_KAFKA_HOME:-$HOME/.cache/tidegate/kafka-4.3.1}/lib.
# Does nothing when they are there; needs mvn and a Java runtime of 17 or newer otherwise.
set -eu
home="${TIDEGATE_KAFKA_HOME:-$HOME/.cache/tidegate/kafka-4.3.1}"
here="$(cd "$(dirname "$0")" && pwd)"
[ -e "$home/.complete" ] && exit 0
mkdir -p "$home"
# Two runs at once: the second waits and then finds the jars.
exec 9>"$home/.lock"
if command -v flock >/dev/null 2>&1; then flock 9; fi
[ -e "$home/.complete" ] && exit 0
command -v mvn >/dev/null 2>&1 || { echo "install.sh: mvn is not installed" >&2; exit 1; }
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cp "$here/pom.xml" "$work/pom.xml"
mvn -q -B -f "$work/pom.xml" dependency:copy-dependencies "-DoutputDirectory=$home/lib" >&2
ls "$home"/lib/kafka_2.13-4.3.1.jar >/dev/null
touch "$home/.complete"
