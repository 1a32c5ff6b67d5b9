"""Compares what the clients of docs/clients show; scripts/clients prepares them and starts this."""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time

import redis

BUILT = pathlib.Path(os.environ["CLIENTS_BUILT"])
LANGUAGES = os.environ["CLIENTS_LANGUAGES"].split()
NEARSHORE = os.environ["CLIENTS_NEARSHORE"]
SOURCES = pathlib.Path(__file__).resolve().parent.parent / "docs" / "clients"
COMMANDS = {
    "python": ["venv/bin/python", str(SOURCES / "recall.py")],
    "node": ["node", "recall.mjs"],
    "go": ["./recall"],
    "java": ["java", "-XX:TieredStopAtLevel=1", "-cp", ".:jars/*", "Recall"],
}
FILES = {"python": "recall.py", "node": "recall.mjs", "go": "recall.go", "java": "Recall.java"}
LINES_MAX, COLUMNS_MAX = 10, 120
# The login that the page gives to readers of lists.
PAGE = (SOURCES.parent / "reading.md").read_text(encoding="utf-8")
READER = re.search(r"^ACL SETUSER reader .*$", PAGE, re.MULTILINE)
# From the start of the process: a JVM on a busy machine takes most of it.
ANSWER_MAX = 30
GIVE_UP_MAX = 3

checks = 0


def fail(text):
    sys.exit(f"clients: error: {text}")


def check(good, text):
    global checks
    checks += 1
    if not good:
        fail(text)


# --- what is shown -----------------------------------------------------------------------------------------------


def ask(language, url, ca, segment, users):
    """What the client prints about these users, a document each without its `user`; and its standard error."""
    settings = {**os.environ, "REDIS_URL": url, **({"REDIS_CA": str(ca)} if ca else {})}
    command = [*COMMANDS[language], segment, *users]
    where = BUILT / language
    said = subprocess.run(command, cwd=where, env=settings, capture_output=True, text=True, timeout=ANSWER_MAX)
    if said.returncode != 0:
        fail(f"{language} ended with {said.returncode}: {said.stderr.strip()}")
    documents = [json.loads(line) for line in said.stdout.splitlines()]
    if [one.pop("user", None) for one in documents] != users:
        fail(f"{language} was asked about {users} and printed: {said.stdout}")
    return documents, said.stderr


def ask_nearshore(config, user):
    command = [NEARSHORE, "get", user, "--json", "--config", str(config)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_MAX)
    if said.returncode != 0:
        return {"unavailable": said.stderr.strip()}
    document = json.loads(said.stdout)
    return {field: document[field] for field in ("list_id", "source", "names", "skus")}


def write_config(path, url, ca):
    text = f"[redis]\nurl = {json.dumps(url)}\n" + (f"tls_ca = {json.dumps(str(ca))}\n" if ca else "")
    path.write_text(text, encoding="utf-8")
    return path


def compare_running(arguments, work):
    config = write_config(work / "nearshore.toml", arguments.redis, arguments.ca)
    about = (arguments.redis, arguments.ca, arguments.segment, arguments.users)
    shown = {language: ask(language, *about)[0] for language in LANGUAGES}
    # It does not take a segment.
    if NEARSHORE and arguments.segment == "default":
        shown["nearshore get"] = [ask_nearshore(config, user) for user in arguments.users]
    first, *others = shown
    for nth, user in enumerate(arguments.users):
        document = shown[first][nth]
        check("unavailable" not in document, f"{user}: {first}: {document.get('unavailable')}")
        for other in others:
            check(shown[other][nth] == document, f"{user}: {other} shows {shown[other][nth]}, {first} {document}")
        print(f"{user}: {', '.join(shown)} show the same {len(document['names'])} names")


# --- servers -----------------------------------------------------------------------------------------------------


def openssl(*arguments):
    said = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    if said.returncode != 0:
        fail(f"openssl {arguments[0]}: {said.stderr.strip()}")


def authority(work, name):
    key, ca = work / f"{name}.key", work / f"{name}.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", key, "-out", ca, "-days", 30, "-subj", f"/CN={name}")
    return key, ca


def sign(work, by, name, alternatives):
    key, asked, signed, more = (work / f"{name}.{end}" for end in ("key", "csr", "crt", "ext"))
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", *curve, "-keyout", key, "-out", asked, "-subj", f"/CN={name}")
    more.write_text(f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth\n", encoding="utf-8")
    with_ca = ["-CA", by[1], "-CAkey", by[0], "-CAcreateserial"]
    openssl("x509", "-req", "-in", asked, *with_ca, "-out", signed, "-days", 30, "-extfile", more)
    return key, signed


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """A redis-server that speaks TLS alone; scripts/lib.sh ends what has a file *.pid."""

    def __init__(self, work, name, certificate, ca):
        folder = work / name
        folder.mkdir()
        self.port = free_port()
        key, signed = certificate
        tls = ["--tls-cert-file", signed, "--tls-key-file", key, "--tls-ca-cert-file", ca, "--tls-auth-clients", "no"]
        where = ["--port", 0, "--tls-port", self.port, "--bind", "127.0.0.1", "--dir", folder]
        command = ["redis-server", *where, *tls, "--save", "", "--appendonly", "no", "--pidfile", folder / "redis.pid"]
        with (folder / "redis.log").open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, cwd=folder)
        (folder / "redis.pid").write_text(str(self.process.pid), encoding="utf-8")
        # The administrator does not check names, so that the wrong one can be prepared.
        self.admin = redis.Redis(port=self.port, ssl=True, ssl_cert_reqs=ssl.CERT_NONE, ssl_check_hostname=False)
        for _ in range(200):
            try:
                self.admin.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        else:
            fail(f"redis-server did not start: {(folder / 'redis.log').read_text(encoding='utf-8')}")

    def url(self, host="localhost", login="reader:secret@"):
        return f"rediss://{login}{host}:{self.port}"

    def fill(self, commands):
        for command in commands:
            self.admin.execute_command(*command)
        self.admin.execute_command(*READER.group().split())


# --- checks ------------------------------------------------------------------------------------------------------


def check_lines():
    """What reads is short, and stays so."""
    for language, file in FILES.items():
        lines = (SOURCES / file).read_text(encoding="utf-8").splitlines()
        for nth, line in enumerate(lines, 1):
            short = len(line.expandtabs(4)) <= COLUMNS_MAX
            check(short, f"docs/clients/{file}:{nth} has over {COLUMNS_MAX} columns")
        begin = next(nth for nth, line in enumerate(lines) if "begin recall" in line)
        end = next(nth for nth, line in enumerate(lines) if "end recall" in line)
        counted = [line for line in map(str.strip, lines[begin + 1 : end]) if line.strip("})];") and line[:2] != "//"]
        check(len(counted) <= LINES_MAX, f"docs/clients/{file}: what reads has {len(counted)} lines, not {LINES_MAX}")
        print(f"{language}: {len(counted)} lines read a list, of {len(lines)}")


def check_cases(server, ca, cases, config):
    for language in LANGUAGES:
        started = time.monotonic()
        for segment in dict.fromkeys(case["segment"] for case in cases):
            asked = [case for case in cases if case["segment"] == segment]
            shown, _ = ask(language, server.url(), ca, segment, [case["user"] for case in asked])
            for case, document in zip(asked, shown, strict=True):
                what = f"{language}, {case['user']!r} of segment {segment}: {case['why']}"
                check(document == case["shows"], f"{what}: it shows {document}, not {case['shows']}")
        print(f"{language}: {len(cases)} cases by TLS, {time.monotonic() - started:.1f} s")
    if NEARSHORE:
        asked = [case for case in cases if case["segment"] == "default"]
        for case in asked:
            document = ask_nearshore(config, case["user"])
            check(document == case["shows"], f"nearshore get {case['user']!r}: {document}, not {case['shows']}")
        print(f"nearshore get: {len(asked)} cases by TLS")


# What a reader of lists must not be able to do.
DENIED = (
    "GET main:{u-1}:profile", "HGETALL main:{u-1}:state", "SET nearshore:active x", "DEL main:{u-1}:recall",
    "HSET main:{u-1}:recall doc x", "SREM nearshore:oos:{12} a", "KEYS *", "CONFIG GET *", "ACL LIST", "FLUSHALL",
    "EVAL x 0",
)


def check_login(server, ca):
    """The login of the page reads lists and nothing else."""
    login = {"username": "reader", "password": "secret", "ssl": True, "ssl_ca_certs": str(ca)}
    reader = redis.Redis("localhost", server.port, **login)
    for command in DENIED:
        try:
            said = reader.execute_command(*command.split())
        except redis.exceptions.NoPermissionError:
            said = None
        check(said is None, f"the login of docs/reading.md may {command}: {said}")
    print(f"the login of docs/reading.md: {len(DENIED)} other commands are denied")


def check_fault(what, url, ca, says=""):
    """Each client says that there is nothing, and why, and ends well: its page shows the shop's own products."""
    for language in LANGUAGES:
        (document,), more = ask(language, url, ca, "default", ["u-1"])
        check("unavailable" in document, f"{what}: {language} shows {document}")
        why = document["unavailable"] + more
        check(re.search(says, why, re.IGNORECASE), f"{what}: {language} gives another reason: {why}")
    print(f"{what}: all say that there is no list")


def check_hang(server, ca):
    """Each client gives up on a Redis that accepts connections and does not answer."""
    usual, stalled = {}, {}
    for language in LANGUAGES:
        started = time.monotonic()
        ask(language, server.url(), ca, "default", ["u-1"])
        usual[language] = time.monotonic() - started
    server.process.send_signal(signal.SIGSTOP)
    for language in LANGUAGES:
        started = time.monotonic()
        (document,), more = ask(language, server.url(), ca, "default", ["u-1"])
        stalled[language] = time.monotonic() - started
        why = document.get("unavailable", "") + more
        check(re.search("time|deadline", why, re.IGNORECASE), f"a Redis that hangs: {language}: {document} {more}")
    server.process.send_signal(signal.SIGCONT)
    for language in LANGUAGES:
        more = stalled[language] - usual[language]
        # Limits in the clients are at most 0.5 s; the rest is what the start of a process varies by.
        check(more < GIVE_UP_MAX, f"a Redis that hangs: {language} took {more:.1f} s more than usual, not {GIVE_UP_MAX}")
    print(f"a Redis that hangs: all give up within {GIVE_UP_MAX} s")


def check_all(work):
    check_lines()
    ours, foreign = authority(work, "ca"), authority(work, "foreign")
    right = Server(work, "right", sign(work, ours, "right", "DNS:localhost,IP:127.0.0.1"), ours[1])
    wrong = Server(work, "wrong", sign(work, ours, "wrong", "DNS:elsewhere.example"), ours[1])
    vectors = json.loads((SOURCES / "cases.json").read_text(encoding="utf-8"))
    right.fill(vectors["redis"])
    wrong.fill(vectors["redis"])
    config = write_config(work / "nearshore.toml", right.url(login=""), ours[1])
    check_cases(right, ours[1], vectors["cases"], config)
    check_login(right, ours[1])
    check_fault("a certificate of another CA", right.url(), foreign[1], says="certificate|certification")
    another_host = "certificate.*localhost|alternative.*localhost|altnames"
    check_fault("a certificate of another host", wrong.url(), ours[1], says=another_host)
    check_fault("a wrong password", right.url(login="reader:guess@"), ours[1], says="password|auth")
    check_fault("a server without TLS", f"rediss://localhost:{plain(work)}", ours[1])
    check_hang(right, ours[1])
    right.admin.delete("nearshore:active")
    check_fault("a Redis in which nothing was ever published", right.url(), ours[1])


def plain(work):
    """The port of a redis-server that knows no TLS."""
    folder, port = work / "plain", free_port()
    folder.mkdir()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
    (folder / "redis.pid").write_text(str(process.pid), encoding="utf-8")
    for _ in range(200):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return port
        time.sleep(0.05)
    return fail("redis-server did not start")


def main():
    parser = argparse.ArgumentParser(prog="scripts/clients")
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--redis")
    parser.add_argument("--ca", type=pathlib.Path)
    parser.add_argument("--segment", default="default")
    parser.add_argument("users", nargs="*")
    arguments = parser.parse_intermixed_args()
    if bool(arguments.redis) != bool(arguments.users):
        fail("--redis and users go together, see --help")
    if "node" in LANGUAGES:  # it looks for packages beside the program
        shutil.copy(SOURCES / "recall.mjs", BUILT / "node" / "recall.mjs")
    if arguments.redis:
        compare_running(arguments, arguments.work)
    else:
        check_all(arguments.work)
    print(f"{checks} passed, 0 failed")


main()
