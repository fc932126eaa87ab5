#!/usr/bin/env python3
"""What clients of the HTTP side can do to the engine: its rate beside an abuser, and beside a process that only
burns as much CPU as the abuser did.

    python3 benches/abuse.py TIDEGATE [--rounds 3] [--seconds 20] [--kinds bodies,drips,…] [--output table|json]

Starts TIDEGATE on an embedded log in a temporary folder and lets it work off the same batch of events again and again:
beside the abuser, beside the control, beside the abuser, beside the control. The clock runs while the batch is worked
off; the abuser goes on until its slowest kinds have had their answers. Ends with exit code 1 when a bound is broken:
the rate beside the abuser is less than 80 % of that beside the control (median of the rounds), the memory rises by more
than 64 MiB over that beside the control, or an answer is not one of those that its kind of abuse has to get. Python's
standard library and Linux's /proc are all that it needs.
"""

import argparse
import asyncio
import collections
import http.client
import json
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time

MIN_RATIO = 0.80
MAX_GROWTH_MIB = 64
# Each primary event has so many children, so that little has to be sent for much work.
FAN_OUT = 50
# So many of them are sent at once.
REQUEST = 100_000
# The abuser lasts at least so long: the server gives up a request after 60 s.
ABUSE_SECONDS = 66

# The answers that a kind of abuse may get. `closed` is the end of the connection without one; a client that is still
# sending may miss an answer for it. `unanswered` is what was under way when the abuser ended.
RIGHT = {
    "bodies": {"413", "503", "closed", "unanswered"},
    "chunked": {"413", "503", "closed", "unanswered"},
    "drips": {"408", "503", "closed", "unanswered"},
    "heads": {"closed", "408", "unanswered"},
    "tokens": {"401", "closed"},
    "deep": {"400", "503", "closed"},
    "connections": {"closed"},
}


# --- the abuser ---------------------------------------------------------------------------------


class Abuser:
    def __init__(self, port, token):
        self.port = port
        self.answers = {kind: collections.Counter() for kind in RIGHT}
        self.authorization = f"authorization: Bearer {token}\r\n"

    def head(self, what, headers="", token=True):
        return f"{what} HTTP/1.1\r\nhost: x\r\n{self.authorization if token else ''}{headers}\r\n".encode()

    def post(self, headers):
        return self.head("POST /api/v1/events", f"content-type: application/json\r\n{headers}")

    async def connect(self):
        """A connection; one that is closed at once has no place, and is tried again."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def answer(self, reader):
        """The status of one answer, whose body is read, too."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line[15:]))
            return head[9:12].decode()
        except (OSError, asyncio.IncompleteReadError):
            return "closed"

    async def send(self, writer, chunks, pause):
        try:
            for chunk in chunks:
                writer.write(chunk)
                await writer.drain()
                if pause:
                    await asyncio.sleep(pause)
        except OSError:
            pass  # the answer tells

    async def one(self, kind, chunks, pause=0.0):
        """One request on a connection of its own, whose answer may come before all of it is sent."""
        reader, writer = await self.connect()
        sending = asyncio.create_task(self.send(writer, chunks, pause))
        try:
            self.answers[kind][await self.answer(reader)] += 1
        except asyncio.CancelledError:
            self.answers[kind]["unanswered"] += 1
            raise
        finally:
            sending.cancel()
            writer.close()

    async def again(self, kind, chunks, pause=0.0):
        """The same again and again, each on a connection of its own."""
        while True:
            try:
                await self.one(kind, chunks, pause)
            except OSError:
                pass
            await asyncio.sleep(0.01)

    async def alike(self, kind, request):
        """The same again and again, on one connection while the server keeps it."""
        while True:
            try:
                reader, writer = await self.connect()
                status = ""
                while status != "closed":
                    writer.write(request)
                    status = await self.answer(reader)
                    self.answers[kind][status] += 1
                writer.close()
            except OSError:
                pass
            await asyncio.sleep(0.01)

    async def idle(self):
        """One of many connections that say nothing; opened again a second after the server has closed it."""
        while True:
            await asyncio.sleep(1)
            try:
                reader, writer = await self.connect()
                await reader.read(1)
                writer.close()
            except OSError:
                pass
            self.answers["connections"]["closed"] += 1

    def work(self, kind):
        """What is done at the same time."""
        block, hundred = bytes(1 << 16), 100 << 20
        body = [self.post(f"content-length: {hundred}\r\n")] + [block] * (hundred // len(block))
        chunked = [self.post("transfer-encoding: chunked\r\n")] + [b"10000\r\n" + block + b"\r\n"] * 1600
        drip = [self.post("content-length: 100000\r\n")] + [b" "] * 1000
        long_head = self.head("GET /livez", "x: " + "y" * 1000 + "\r\n")
        deep = [b"[" * (1 << 20), b'{"key":' + b'{"a":' * 200_000]
        deep = [self.post(f"content-length: {len(text)}\r\n") + text for text in deep]
        tokens = [f"authorization: {value}\r\n" for value in ("Bearer " + "0" * 64, "Basic eDp5", "Bearer " + "x" * 8000)]
        tokens = [self.head("GET /api/v1/status", value, token=False) for value in tokens]
        match kind:
            case "bodies":
                return [self.again(kind, body) for _ in range(4)]
            case "chunked":
                return [self.again(kind, chunked) for _ in range(4)]
            case "drips":
                return [self.again(kind, drip, pause=1.0) for _ in range(150)]
            case "heads":
                return [self.again(kind, [bytes([byte]) for byte in long_head], pause=1.0) for _ in range(150)]
            case "tokens":
                return [self.alike(kind, request) for request in tokens for _ in range(4)]
            case "deep":
                return [self.alike(kind, request) for request in deep for _ in range(4)]
            case "connections":
                return [self.idle() for _ in range(10_000)]

    async def run(self, kinds):
        """Until standard input ends."""
        tasks = [asyncio.create_task(work) for kind in kinds for work in self.work(kind)]
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return {kind: dict(counts) for kind, counts in self.answers.items() if counts}


def spin(share):
    """Burns this share of one processor, evenly, until standard input ends."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    begin, before = time.monotonic(), time.process_time()
    while not ended.wait(0.005):
        while time.process_time() - before < share * (time.monotonic() - begin) and not ended.is_set():
            pass


# --- the instance -------------------------------------------------------------------------------


def cpu_seconds(stat):
    """User and system time, and the name, of what a stat file of /proc is about."""
    with open(stat) as file:
        name, rest = file.read().split("(", 1)[1].rsplit(")", 1)
    user, system = rest.split()[11:13]
    return name, (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Instance:
    """TIDEGATE and its numbers, asked on a connection that was there before the abuse."""

    def __init__(self, binary, folder):
        self.token = secrets.token_hex(16)
        children = [f'{{ key = "item-${{1}}-{n}", action = "ADD", payload = "of ${{key}}" }}' for n in range(FAN_OUT)]
        with open(f"{folder}/rules.toml", "w") as file:
            file.write(f"[[rule]]\nwhen = {{ key_regex = '^order-(\\d+)$' }}\nspawn = [{', '.join(children)}]\n")
        with open(f"{folder}/token", "w") as file:
            file.write(self.token)
        arguments = ["run", "--rules", "rules.toml", "--listen", "127.0.0.1:0", "--set", "server.token_file=token"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
        self.log = open(f"{folder}/stderr", "w+")
        self.process = subprocess.Popen([binary, *arguments], cwd=folder, env=environment, stderr=self.log)
        self.port = self.wait("its address", self.address)
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.wait("ready", lambda: self.ask("GET", "/readyz")[0] == 200)

    def address(self):
        with open(self.log.name) as file:
            found = [line for line in file if "answers on" in line]
        return found and int(found[0].strip().rsplit(":", 1)[1])

    def wait(self, what, ask):
        for _ in range(600):
            if answer := ask():
                return answer
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        with open(self.log.name) as file:
            sys.exit(f"abuse: in vain: {what}\n{file.read()[-2000:]}")

    def ask(self, method, path, body=None):
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/x-ndjson"}
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read().decode()

    def send(self, primaries):
        # A request takes 8 MiB.
        for first in range(0, primaries, REQUEST):
            numbers = range(first, min(first + REQUEST, primaries))
            lines = "".join(f'{{"key":"order-{n % 400}","action":"ADD"}}\n' for n in numbers)
            status, answer = self.ask("POST", "/api/v1/events", lines)
            if status != 202:
                sys.exit(f"abuse: the batch was not taken: {status} {answer}")

    def processed(self):
        lines = self.ask("GET", "/metrics")[1].splitlines()
        counts = [line for line in lines if line.startswith("tidegate_events_processed_total")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in counts)

    def memory_mib(self):
        """Its own, without mapped files."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

    def cpu(self):
        """CPU seconds by what the threads are called."""
        seconds = collections.Counter()
        for thread in os.listdir(f"/proc/{self.process.pid}/task"):
            try:
                name, used = cpu_seconds(f"/proc/{self.process.pid}/task/{thread}/stat")
                seconds[name] += used
            except OSError:
                pass  # it has ended
        return seconds


def good_caller(port, token, ended, seen):
    """Somebody who asks for the status now and then: what they get, and how long it takes."""
    while not ended.wait(0.25):
        begin = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/api/v1/status", headers={"authorization": f"Bearer {token}"})
            status = str(connection.getresponse().status)
        except (OSError, http.client.HTTPException):
            status = "closed"
        connection.close()
        seen.append((status, time.monotonic() - begin))


# --- the measure --------------------------------------------------------------------------------


def turn(instance, primaries, command=None, at_least=0.0):
    """The rate at which a batch is worked off beside the command, and the memory."""
    child = None
    if command:
        arguments = [sys.executable, __file__, *command]
        child = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ended, seen = threading.Event(), []
    caller = threading.Thread(target=good_caller, args=(instance.port, instance.token, ended, seen))
    wanted = instance.processed() + primaries * (FAN_OUT + 1)
    # The batch comes first: then nothing of it is lost to a lack of places, and the clock is the engine's alone.
    instance.send(primaries)
    if child:
        child.stdout.readline()
    caller.start()
    begin, used, peak = time.monotonic(), instance.cpu(), 0.0
    done = instance.processed()
    missing = wanted - done
    burnt = cpu_seconds(f"/proc/{child.pid}/stat")[1] if child else 0.0
    while done < wanted:
        peak = max(peak, instance.memory_mib())
        time.sleep(0.05)
        done = instance.processed()
        if time.monotonic() - begin > 600:
            sys.exit("abuse: a batch was not worked off within 600 s")
    seconds = time.monotonic() - begin
    used = instance.cpu() - used
    result = {"rate": missing / seconds, "seconds": round(seconds, 1), "answers": {}}
    if child:
        result["share"] = (cpu_seconds(f"/proc/{child.pid}/stat")[1] - burnt) / seconds
        while time.monotonic() - begin < at_least:
            peak = max(peak, instance.memory_mib())
            instance.processed()
            time.sleep(0.1)
        output, _ = child.communicate("")
        if child.returncode != 0:
            sys.exit(f"abuse: {command[0]} failed")
        result["answers"] = json.loads(output) if output.strip() else {}
    ended.set()
    caller.join()
    result["peak_mib"] = peak
    result["cpu"] = {name: round(value, 1) for name, value in used.most_common(5) if value >= 0.1}
    result["good_caller"] = dict(collections.Counter(status for status, _ in seen))
    result["good_caller_ms"] = round(statistics.median([spent for _, spent in seen] or [0]) * 1000, 1)
    return result


def measure(options):
    with tempfile.TemporaryDirectory(prefix="tidegate-abuse-") as folder:
        instance = Instance(os.path.abspath(options.binary), folder)
        try:
            # Caches fill up, and the batch is measured.
            turn(instance, 10_000)
            rate = turn(instance, 20_000)["rate"]
            primaries = max(1000, min(250_000, int(rate * options.seconds / (FAN_OUT + 1))))
            turn(instance, primaries)
            rounds = []
            for number in range(1, options.rounds + 1):
                command = ["abuse", str(instance.port), instance.token, ",".join(options.kinds)]
                abuse = turn(instance, primaries, command, at_least=options.abuse_seconds)
                control = turn(instance, primaries, ["spin", str(abuse["share"])])
                rounds.append((abuse, control))
                if options.output == "table":
                    show(number, abuse, control)
        finally:
            instance.process.kill()
            instance.process.wait()
    return rounds


def show(number, abuse, control):
    print(f"round {number}: {abuse['rate']:,.0f} events/s beside the abuser, {control['rate']:,.0f} beside the control:"
          f" {abuse['rate'] / control['rate']:.0%}")
    for name, of in (("abuser", abuse), ("control", control)):
        print(f"  {name:8} burns {of['share']:.2f} of a CPU; {of['seconds']} s, memory up to {of['peak_mib']:.0f} MiB; a "
              f"good caller got {of['good_caller']}, in {of['good_caller_ms']} ms; the instance's CPU {of['cpu']}")
    for kind, answers in abuse["answers"].items():
        print(f"  {kind:12} {answers}", flush=True)


def judge(rounds):
    broken = []
    ratios = [abuse["rate"] / control["rate"] for abuse, control in rounds]
    if statistics.median(ratios) < MIN_RATIO:
        broken.append(f"the rate falls to {statistics.median(ratios):.0%}, at least {MIN_RATIO:.0%} is wanted")
    growth = max(abuse["peak_mib"] for abuse, _ in rounds) - max(control["peak_mib"] for _, control in rounds)
    if growth > MAX_GROWTH_MIB:
        broken.append(f"the memory grows by {growth:.0f} MiB, at most {MAX_GROWTH_MIB} MiB are wanted")
    for abuse, _ in rounds:
        for kind, answers in abuse["answers"].items():
            if strange := set(answers) - RIGHT[kind]:
                broken.append(f"{kind} got {sorted(strange)}")
    return ratios, growth, broken


def main():
    if sys.argv[1:2] == ["abuse"]:
        port, token, kinds = sys.argv[2:]
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        print("begins", flush=True)
        print(json.dumps(asyncio.run(Abuser(int(port), token).run(kinds.split(",")))))
        return
    if sys.argv[1:2] == ["spin"]:
        print("begins", flush=True)
        spin(float(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", metavar="TIDEGATE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of work in a batch, about")
    parser.add_argument("--abuse-seconds", type=float, default=ABUSE_SECONDS, help="that the abuser lasts at least")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(RIGHT), help=", ".join(RIGHT))
    parser.add_argument("--output", choices=["table", "json"], default="table")
    options = parser.parse_args()
    rounds = measure(options)
    ratios, growth, broken = judge(rounds)
    if options.output == "json":
        print(json.dumps({"rounds": rounds, "ratios": ratios, "growth_mib": growth, "broken": broken}))
    else:
        print(f"rate {', '.join(f'{ratio:.0%}' for ratio in ratios)} of the control's (median "
              f"{statistics.median(ratios):.0%}), memory {growth:+.0f} MiB")
    for what in broken:
        print(f"abuse: {what}", file=sys.stderr)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
