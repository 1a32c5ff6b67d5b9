"""Checks deploy/grafana/nearshore.json, and asks a Prometheus each of its queries.

usage: dashboard.py                  checks the dashboard and the alerts (called by scripts/validate)
       dashboard.py --ask URL        prints how many series each query has; fails if one is an error (by scripts/alerts)

The rules are those of Grafana's dashboard-linter: a data source, job and instance to choose, which every query uses;
titles, descriptions, units; counters only in rate(), irate() or increase(), over $__rate_interval. One is ours: each
metric in the dashboard and in the alerts is in docs/metrics.md, whose rows a test compares with the program.
"""

import json
import pathlib
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "deploy/grafana/nearshore.json"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
NAME = re.compile(r"\b(?:nearshore|process)_[a-z0-9_]+")


def metrics():
    """Kind of each metric of docs/metrics.md, by name."""
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| (\w+) \|", (ROOT / "docs/metrics.md").read_text(encoding="utf-8"), re.M)
    return dict(rows)


def exported(kinds):
    """The names of the series of these metrics, each with its kind: a histogram has three, which are counters."""
    names = {}
    for name, kind in kinds.items():
        if kind == "histogram":
            names |= {name + suffix: "counter" for suffix in ("_bucket", "_sum", "_count")}
        else:
            names[name] = kind
    return names


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def check_variables(dashboard, require):
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    source = variables.get("datasource", {})
    require(source.get("type") == "datasource" and source.get("query") == "prometheus", "no variable datasource of type prometheus")
    for name in ("job", "instance"):
        one = variables.get(name, {})
        require(one.get("type") == "query", f"no variable {name}")
        require(one.get("datasource", {}).get("uid") == "${datasource}", f"variable {name} does not use $datasource")
        require(one.get("multi") and one.get("includeAll") and one.get("allValue") == ".+", f"variable {name} must offer several values and all, as .+")
        require(one.get("refresh") == 2, f"variable {name} is not read again when the time range changes")
    require(dashboard.get("editable") is False, "the dashboard is editable; a change would be lost")


def check_panel(panel, names, require):
    title = panel.get("title", "")
    require(bool(title), f"panel {panel['id']} has no title")
    require(bool(panel.get("description")), f"{title}: no description")
    require(bool(panel["fieldConfig"]["defaults"].get("unit")), f"{title}: no unit")
    require(bool(panel.get("targets")), f"{title}: no query")
    for part in [panel, *panel.get("targets", [])]:
        require(part.get("datasource", {}).get("uid") == "${datasource}", f"{title}: does not use $datasource")
    for target in panel.get("targets", []):
        check_query(title, target["expr"], names, require)


def check_query(title, query, names, require):
    for name in NAME.findall(query):
        require(name in names, f"{title}: {name} is not exported, see docs/metrics.md")
    for found in re.finditer(r"((?:nearshore|process)_[a-z0-9_]+)(\{[^}]*\})?", query):
        name, labels = found[1], found[2] or ""
        for label in ("job", "instance"):
            require(f'{label}=~"${label}"' in labels, f"{title}: {name} is not chosen by ${label}")
        before = query[: found.start()]
        counts = re.search(r"\b(rate|irate|increase)\($", before)
        require(names.get(name) != "counter" or counts, f"{title}: the counter {name} is outside of rate(), irate() and increase()")
        require(names.get(name) == "counter" or not counts, f"{title}: rate() of {name}, which is no counter")
    for window in re.findall(r"\[([^\]]+)\]", query):
        require(window == "$__rate_interval", f"{title}: the window {window} is not $__rate_interval")


def check_alerts(names, require):
    text = re.sub(r"(?m)^\s*#.*$", "", ALERTS.read_text(encoding="utf-8"))
    for name in NAME.findall(text):
        require(name in names, f"alerts.yml: {name} is not exported, see docs/metrics.md")
    recorded = set(re.findall(r"record: (\S+)", text))
    used = set(re.findall(r"nearshore:[a-z0-9_:]+", text))
    require(used == recorded, f"alerts.yml: recorded and used differ: {sorted(used ^ recorded)}")
    alerts = re.findall(r"alert: (\w+)", text)
    require(len(alerts) <= 12, f"alerts.yml: {len(alerts)} alerts, at most 12 are wanted")
    page = (ROOT / "docs/runbook-alerts.md").read_text(encoding="utf-8")
    sections = re.split(r"(?m)^## ", page)[1:]
    for alert in alerts:
        section = next((one for one in sections if one.startswith(alert + "\n")), "")
        require(bool(section), f"docs/runbook-alerts.md has no section {alert}")
        for part in ("**Symptom.**", "**Questions.**", "**Steps.**", "**Lost.**"):
            require(part in section, f"docs/runbook-alerts.md: {alert} has no {part}")
        require(f"#{alert.lower()}" in text, f"{alert}: its runbook_url names another section")
    for one in sections:
        name = one.split("\n", 1)[0]
        require(not name.startswith("Nearshore") or name in alerts, f"docs/runbook-alerts.md: there is no alert {name}")


def check():
    wrong = []

    def require(holds, problem):
        if not holds:
            wrong.append(problem)

    names = exported(metrics())
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    check_variables(dashboard, require)
    for panel in panels(dashboard):
        check_panel(panel, names, require)
    check_alerts(names, require)
    for problem in wrong:
        print(f"dashboard: {problem}", file=sys.stderr)
    return 1 if wrong else 0


def ask(url):
    """Asks each query, and the number of its series; a query without series may be right where nothing happens."""
    failed = 0
    print("\n### dashboard\n\n| panel | query | series |\n| --- | --- | --- |")
    for panel in panels(json.loads(DASHBOARD.read_text(encoding="utf-8"))):
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "30s").replace("$job", ".+").replace("$instance", ".+")
            body = urllib.parse.urlencode({"query": query}).encode()
            try:
                with urllib.request.urlopen(f"{url}/api/v1/query", body) as answer:
                    found = str(len(json.load(answer)["data"]["result"]))
            except urllib.error.HTTPError as error:
                found, failed = f"error: {json.load(error)['error']}", 1
            print(f"| {panel['title']} | {target['legendFormat']} | {found} |")
    return failed


if __name__ == "__main__":
    sys.exit(ask(sys.argv[2]) if sys.argv[1:2] == ["--ask"] else check())
