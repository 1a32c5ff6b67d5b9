"""Checks the Helm chart: equal to the kustomize, refusals of wrong values, topics, alerts, queries of KEDA.

usage: helm_chart.py HELM BUILT OUT    (called by scripts/validate)

HELM is the program; BUILT is a folder with the built kustomizations k8s.yaml, gpu.yaml, align.yaml, align-parts.yaml, backfill.yaml. Into
OUT it writes each variant of the chart, as NAME.yaml with all objects, NAME.core.yaml and NAME.crds.yaml, and
keda.test.yml for promtool.
"""

import os
import pathlib
import re
import subprocess
import sys

import yaml

REPO = pathlib.Path(__file__).resolve().parent.parent
CHART = REPO / "deploy" / "helm" / "nearshore"

# What Helm adds to objects and kustomize does not have.
LABELS = ("helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/instance", "app.kubernetes.io/version")
ANNOTATIONS = ("checksum/config", "helm.sh/resource-policy")
# Kustomize ends the names of generated ConfigMaps with a hash of their content.
HASHED = re.compile(r"^(nearshore(?:-addresses)?)-[0-9a-z]{10}$")
# The chart names a backfill by its namespace, because a Job cannot be changed.
RENAMED = {("Job", "nearshore-backfill-next"): "nearshore-backfill"}
GPU_LABEL = "NVIDIA-H200"

# Of each kustomization: values of the chart, and whether only what they add is compared.
EQUAL = {
    "k8s": ([], False),
    "gpu": (["generate.gpu.enabled=true"], False),
    "align": (["align.enabled=true"], True),
    "align-parts": (["align.enabled=true", "align.parts=4"], True),
    "backfill": (["backfill.enabled=true"], True),
}

# Variants that are checked like the kustomizations.
VARIANTS = {
    "default": [],
    "keda": [
        "ingest.scaling.kind=keda", "generate.scaling.kind=keda", "monitoring.podMonitor.enabled=true", "monitoring.rules.enabled=true",
        "monitoring.podMonitor.labels.release=prometheus", "topics.create=strimzi", "networkPolicy.egress.enabled=true",
        "monitoring.prometheusAuthentication=prometheus", "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring",
        "environment.NEARSHORE__KAFKA__GROUP_PREFIX=shop",
    ],
    "hpa": [
        "ingest.scaling.kind=hpa", "generate.scaling.kind=hpa", "topics.create=job", "models.source=init",
        "models.init.image=registry.example.com/fetch:1", "models.init.args[0]=s3://models/a", "imagePullSecrets[0]=registry",
        "artefacts.existing=shared", "image.pullPolicy=Always", f"image.digest=sha256:{'0' * 64}",
    ],
    "mig": [
        "generate.gpu.enabled=true", "generate.gpu.resource=nvidia.com/mig-1g.18gb", f"generate.gpu.product={GPU_LABEL}",
        "generate.gpu.kvMbMax=4096", "models.source=image", f"models.image.reference=registry.example.com/models/a@sha256:{'0' * 64}",
        "ingest.staticMembership=false", "ingest.scaling.kind=keda", "ingest.scaling.triggers[0].type=kafka",
        "ingest.scaling.triggers[0].metadata.topic=user-events", "align.enabled=true", "backfill.enabled=true",
    ],
}

# Values that must be refused, with what the message must say.
REFUSED = {
    "ingest.replica=3": ["/ingest", "additional properties 'replica' not allowed"],
    "ingest.replicas=two": ["/ingest/replicas", "want integer"],
    "ingest.replicas=13": ["ingest.replicas = 13 is more than partitions = 12"],
    "generate.scaling.kind=keda,generate.scaling.max=13": ["generate.scaling.max = 13 is more than partitions = 12"],
    "generate.scaling.kind=hpa,generate.scaling.min=5": ["generate.scaling.min = 5 is more than generate.scaling.max = 4"],
    "generate.scaling.min=0": ["/generate/scaling/min", "minimum"],
    "generate.gpu.resource=gpu": ["/generate/gpu/resource", "does not match"],
    "models.source=image": ["needs models.image.reference"],
    "models.source=bucket": ["/models/source", "must be one of"],
    "image.tag=latest": ["image.tag is latest"],
    "redis.url=redis://user:secret@redis:6379": ["redis.url has a password", "redis.password_file"],
    "environment.PASSWORD=x": ["invalid propertyName 'PASSWORD'"],
    "kafka.brokers=kafka": ["/kafka/brokers", "does not match"],
}


def fail(message):
    sys.exit(f"helm_chart.py: error: {message}")


def helm(values):
    """Runs helm template; its output and errors."""
    command = [sys.argv[1], "template", "nearshore", str(CHART), "--namespace", "shop"]
    for value in values:
        command += ["--set", value]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, "\n".join(line for line in done.stderr.splitlines() if not line.startswith("level=INFO"))


def render(values):
    code, out, error = helm(values)
    if code:
        fail(f"helm template with {values}: {error}")
    return [o for o in yaml.safe_load_all(out) if o]


def unhashed(value):
    """The same with kustomize's names without their hashes."""
    if isinstance(value, dict):
        return {key: unhashed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [unhashed(inner) for inner in value]
    found = HASHED.match(value) if isinstance(value, str) else None
    return found[1] if found else value


def without(value, labels):
    """The same without labels that only Helm has, wherever labels are."""
    if isinstance(value, list):
        return [without(inner, labels) for inner in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, inner in value.items():
        inner = without(inner, labels)
        if key in ("labels", "matchLabels", "selector") and isinstance(inner, dict):
            inner = {name: label for name, label in inner.items() if name not in labels}
        if key == "annotations":
            inner = {name: text for name, text in inner.items() if name not in ANNOTATIONS}
            if not inner:
                continue
        kept[key] = inner
    return kept


def named(items):
    """A list whose items have names, by name, because their order means nothing; another list as it is."""
    for key in ("name", "mountPath"):
        if items and all(isinstance(item, dict) and key in item for item in items):
            names = [item.get("mountPath", item[key]) for item in items]
            if len(set(names)) == len(names):
                return dict(zip(names, items))
    return items


def differences(path, ours, theirs):
    """Lines that say where two values differ: kustomize's first."""
    if isinstance(ours, list) and isinstance(theirs, list):
        ours, theirs = named(ours), named(theirs)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lines = []
        for key in sorted(set(ours) | set(theirs), key=str):
            inner = f"{path}.{key}"
            if key not in theirs:
                lines.append(f"{inner}: {ours[key]!r} is not in the chart")
            elif key not in ours:
                lines.append(f"{inner}: {theirs[key]!r} is only in the chart")
            else:
                lines += differences(inner, ours[key], theirs[key])
        return lines
    return [] if ours == theirs else [f"{path}: {ours!r}, in the chart {theirs!r}"]


def by_name(objects):
    found = {}
    for o in objects:
        kind = o["kind"]
        name = RENAMED.get((kind, o["metadata"]["name"]), o["metadata"]["name"])
        o = {**o, "metadata": {**o["metadata"], "name": name}}
        found[f"{kind}/{name}"] = o
    return found


def compare(built, values, added):
    """Where the chart with these values differs from a kustomization; with `added` only in what the values add."""
    ours = by_name(unhashed(list(built)))
    theirs = by_name(without(render(values), LABELS))
    if added:
        before = by_name(without(render([]), LABELS))
        theirs = {name: o for name, o in theirs.items() if name not in before or name in ours}
    return differences("", ours, theirs)


def check_equal(folder):
    for name, (values, added) in EQUAL.items():
        built = [o for o in yaml.safe_load_all((folder / f"{name}.yaml").read_text(encoding="utf-8")) if o]
        found = compare(built, values, added)
        if found:
            fail(f"the chart with {values} differs from deploy/k8s ({name}):\n  " + "\n  ".join(found))
        # The check itself: each of these changes must be seen, at its place.
        for change, place in (("ingest.replicas=3", "replicas: 2, in the chart 3"), ("networkPolicy.enabled=false", "NetworkPolicy")):
            if name == "k8s" and not any(place in line for line in compare(built, [*values, change], added)):
                fail(f"the comparison does not see {change}")
    print(f"helm chart: equal to {', '.join(EQUAL)}", file=sys.stderr)


def check_refusals():
    for values, parts in REFUSED.items():
        code, _, error = helm([values])
        missing = [part for part in parts if part not in error]
        if code == 0 or missing:
            fail(f"--set {values} must be refused with {parts}; helm says: {error or 'nothing'}")
    print(f"helm chart: {len(REFUSED)} values refused", file=sys.stderr)


def check_topics(objects):
    """KafkaTopics have the settings that deploy/topics.sh gives."""
    environment = {**os.environ, "KAFKA_TOPICS": "echo", "PARTITIONS": "12", "REPLICAS": "3"}
    said = subprocess.run([REPO / "deploy/topics.sh", "b:1"], capture_output=True, text=True, check=True, env=environment)
    expected = {}
    for line in said.stdout.splitlines():
        words = line.split()
        value = lambda flag: words[words.index(flag) + 1]
        config = dict(words[at + 1].split("=") for at, word in enumerate(words) if word == "--config")
        expected[value("--topic")] = (int(value("--partitions")), int(value("--replication-factor")), config)
    topics = [o["spec"] for o in objects if o["kind"] == "KafkaTopic"]
    found = {t["topicName"]: (t["partitions"], t["replicas"], t["config"]) for t in topics}
    lines = differences("topics", expected, found)
    if lines or len(found) < 8:
        fail("KafkaTopics differ from deploy/topics.sh:\n  " + "\n  ".join(lines))


def check_monitoring(objects):
    """The objects of Prometheus Operator are those of deploy/prometheus."""
    specs = {o["kind"]: o["spec"] for o in without(objects, LABELS) if "spec" in o}
    folder = REPO / "deploy" / "prometheus"
    rules = yaml.safe_load((folder / "alerts.yml").read_text(encoding="utf-8"))
    monitor = yaml.safe_load((folder / "podmonitor.yml").read_text(encoding="utf-8"))["spec"]
    lines = differences("PrometheusRule", rules, specs["PrometheusRule"]) + differences("PodMonitor", monitor, specs["PodMonitor"])
    if lines:
        fail("the chart's monitoring differs from deploy/prometheus:\n  " + "\n  ".join(lines))


# Series that each of KEDA's queries adds up, and series of other roles, namespaces and lanes, which it must leave out.
INGEST = 'nearshore_consumer_lag{namespace="shop",pod="nearshore-ingest-0",group="nearshore-ingest-main",topic="%s",partition="0"}'
GENERATE = 'namespace="shop",pod="nearshore-generate-7c9-x1"'
COUNTED = {
    ("nearshore-ingest", 0): [INGEST % "user-events", INGEST % "profile-changes"],
    ("nearshore-generate", 0): [f'nearshore_queued_work_seconds{{{GENERATE},lane="{lane}"}}' for lane in ("urgent", "live")],
    ("nearshore-generate", 1): [
        f'nearshore_consumer_lag{{{GENERATE},group="nearshore-generate",topic="{topic}",partition="0"}}' for topic in ("regen-urgent", "regen-live")
    ],
}
OTHERS = [
    'nearshore_consumer_lag{namespace="shop",pod="nearshore-ingest-0",group="nearshore-stock",topic="catalog",partition="0"}',
    (INGEST % "user-events").replace("shop", "staging"),
    (INGEST % "user-events").replace("nearshore-ingest-0", "other-ingest-0"),
    f'nearshore_queued_work_seconds{{{GENERATE},lane="backfill"}}',
    f'nearshore_queued_work_seconds{{{GENERATE},lane="live"}}'.replace("shop", "staging"),
    f'nearshore_consumer_lag{{{GENERATE},group="nearshore-generate",topic="regen-backfill",partition="0"}}',
]


def keda_test(objects):
    """A test for promtool of KEDA's queries: with work, idle (series at 0), and without series, which must be no answer."""
    scalers = {o["metadata"]["name"]: o["spec"]["triggers"] for o in objects if o["kind"] == "ScaledObject"}
    queries = {(name, at): t["metadata"]["query"] for name, triggers in scalers.items() for at, t in enumerate(triggers)}
    if set(queries) != set(COUNTED):
        fail(f"KEDA has the queries {sorted(queries)}")
    tests = []
    for of, query in queries.items():
        for value, answer in ((300, 600), (0, 0), (None, None)):
            inputs = [{"series": one, "values": f"{value}x10"} for one in COUNTED[of] if value is not None]
            inputs += [{"series": one, "values": "900000x10"} for one in OTHERS]
            samples = [] if answer is None else [{"labels": "{}", "value": answer}]
            tests.append({
                "interval": "15s",
                "input_series": inputs,
                "promql_expr_test": [{"expr": query, "eval_time": "1m", "exp_samples": samples}],
            })
    return yaml.safe_dump({"rule_files": [], "evaluation_interval": "15s", "tests": tests}, width=1000)


def mig_rules(objects):
    """A part of a GPU is asked for by its profile, on the product that is named."""
    pod = next(o for o in objects if o["kind"] == "Deployment")["spec"]["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    if limits.get("nvidia.com/mig-1g.18gb") != "1" or pod["nodeSelector"] != {"nvidia.com/gpu.product": GPU_LABEL}:
        fail(f"the MIG profile or the product is lost: {limits}, {pod.get('nodeSelector')}")
    if not any("image" in volume for volume in pod["volumes"]):
        fail("models.source = image mounts no image")


def main():
    built, out = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    check_equal(built)
    check_refusals()
    for name, values in VARIANTS.items():
        objects = render(values)
        # CRDs are checked by other tools than Kubernetes' own kinds.
        crds = [o for o in objects if "." in o["apiVersion"] and not re.search(r"\.k8s\.io/", o["apiVersion"])]
        core = [o for o in objects if o not in crds]
        for ending, some in (("", objects), (".core", core), (".crds", crds)):
            (out / f"{name}{ending}.yaml").write_text(yaml.safe_dump_all(some, width=1000), encoding="utf-8")
        if name == "keda":
            check_topics(objects)
            check_monitoring(objects)
            (out / "keda.test.yml").write_text(keda_test(objects), encoding="utf-8")
        if name == "mig":
            mig_rules(objects)


if __name__ == "__main__":
    main()
