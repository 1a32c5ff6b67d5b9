"""Checks rules for Nearshore's Kubernetes objects that their schema does not have.

usage: k8s_rules.py BUILT.yaml       (called by scripts/validate)
"""

import sys

import yaml


def pod_rules(name, spec, require, serves=True):
    """Checks a pod: restricted profile, no token, time to drain; a pod that serves has probes."""
    security = spec.get("securityContext", {})
    require(security.get("runAsNonRoot") is True, f"{name}: may run as root")
    require(security.get("seccompProfile", {}).get("type") == "RuntimeDefault", f"{name}: no seccomp profile")
    require(spec.get("automountServiceAccountToken") is False, f"{name}: mounts a token of the API server")
    require(spec.get("serviceAccountName", "default") != "default", f"{name}: shares the default service account")
    require(spec.get("terminationGracePeriodSeconds", 30) >= 30, f"{name}: terminationGracePeriodSeconds is below 30, so it is killed before it has drained")
    for container in spec.get("initContainers", []):
        container_rules(f"{name}/{container['name']}", container, require)
    for container in spec["containers"]:
        container_rules(f"{name}/{container['name']}", container, require)
        if serves:
            probe_rules(f"{name}/{container['name']}", container, require)


def container_rules(name, container, require):
    """Checks a container: least privilege, bounded memory, no secret in the environment."""
    security = container.get("securityContext", {})
    require(security.get("allowPrivilegeEscalation") is False, f"{name}: may escalate privileges")
    require(security.get("readOnlyRootFilesystem") is True, f"{name}: can write to its root file system")
    require(security.get("capabilities", {}).get("drop") == ["ALL"], f"{name}: keeps capabilities")
    resources = container.get("resources", {})
    require({"cpu", "memory"} <= set(resources.get("requests", {})), f"{name}: requests no cpu or memory")
    require("memory" in resources.get("limits", {}), f"{name}: has no memory limit")
    image = container["image"]
    require(":" in image.rsplit("/", 1)[-1] and not image.endswith(":latest"), f"{name}: the image {image} has no version")
    for variable in container.get("env", []):
        from_secret = "secretKeyRef" in variable.get("valueFrom", {})
        require(not from_secret, f"{name}: {variable['name']} is a secret in the environment")


def part_rules(name, spec, require):
    """Checks a Job whose pods each read a part: as many pods at once as there are parts."""
    for container in spec["template"]["spec"]["containers"]:
        args = container.get("args", [])
        if "--part" not in args:
            continue
        part, _, of = args[args.index("--part") + 1].partition("/")
        counts = [str(spec.get(key)) for key in ("completions", "parallelism")]
        require(part == "job" and spec.get("completionMode") == "Indexed", f"{name}: pods do not know which part is theirs")
        require(counts == [of, of], f"{name}: {of} parts, and completions and parallelism are {counts}: the first pod waits for pods that do not run")


def probe_rules(name, container, require):
    """Checks that a slow start is allowed and that a stuck process is restarted."""
    paths = {}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        paths[probe] = container.get(probe, {}).get("httpGet", {}).get("path")
    expected = {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    require(paths == expected, f"{name}: probes are {paths}")
    start = container.get("startupProbe", {})
    budget = start.get("periodSeconds", 10) * start.get("failureThreshold", 3)
    require(budget >= 600 and "initialDelaySeconds" not in start, f"{name}: has {budget} s to start, at least 600 without initialDelaySeconds are needed")


def role_rules(name, spec, objects, require):
    """Checks what a role has beside its pods: an account without a token, one disruption budget."""
    template = spec["template"]
    pod_rules(name, template["spec"], require)
    accounts = {o["metadata"]["name"]: o for o in objects if o["kind"] == "ServiceAccount"}
    account = accounts.get(template["spec"].get("serviceAccountName"), {})
    require(account.get("automountServiceAccountToken") is False, f"{name}: its service account mounts a token")
    labels = template["metadata"]["labels"].items()
    budgets = [o["spec"] for o in objects if o["kind"] == "PodDisruptionBudget"]
    guards = [b for b in budgets if b["selector"]["matchLabels"].items() <= labels]
    require([g.get("maxUnavailable") for g in guards] == [1], f"{name}: needs exactly one disruption budget with maxUnavailable 1")
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy"]
    closed = [p for p in policies if "Ingress" in p["policyTypes"] and p["podSelector"]["matchLabels"].items() <= labels]
    require(len(closed) == 1, f"{name}: anyone may connect to its pods, for no NetworkPolicy selects them")


def scaling_rules(roles, objects, require):
    """Checks autoscalers: never to zero, never by a missing answer, no fixed number of replicas beside them."""
    targets = {}
    for o in objects:
        if o["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"):
            targets[o["spec"]["scaleTargetRef"]["name"]] = o
    for name, (kind, spec) in roles.items():
        variables = {v["name"] for c in spec["template"]["spec"]["containers"] for v in c.get("env", [])}
        static = "NEARSHORE__KAFKA__INSTANCE_ID" in variables
        scaler = targets.pop(name, None)
        if scaler is None:
            require(static == name.endswith("-ingest"), f"{name}: kafka.instance_id is for ingest, where no autoscaler removes pods")
            require("replicas" in spec, f"{name}: has neither replicas nor an autoscaler")
            continue
        require(not static, f"{name}: is a static member and has an autoscaler, so partitions of a removed pod wait for session_timeout")
        require("replicas" not in spec, f"{name}: each upgrade would set the number of replicas that the autoscaler chose")
        require(scaler["spec"]["scaleTargetRef"].get("kind") == kind, f"{name}: its autoscaler is for another kind than {kind}")
        least = scaler["spec"].get("minReplicaCount", scaler["spec"].get("minReplicas", 0))
        require(least >= 1, f"{name}: scaled to zero nothing exports the work that waits")
        require("idleReplicaCount" not in scaler["spec"], f"{name}: scaled to zero nothing exports the work that waits")
        require("fallback" not in scaler["spec"], f"{name}: with a fallback a missing answer changes the number of replicas")
        for trigger in scaler["spec"].get("triggers", []):
            held = trigger["type"] != "prometheus" or trigger["metadata"].get("ignoreNullValues") == "false"
            require(held, f"{name}: an empty answer of Prometheus would be 0 and scale down")
            texts = all(isinstance(value, str) for value in trigger["metadata"].values())
            require(texts, f"{name}: KEDA's trigger metadata are texts")
    require(not targets, f"autoscalers of nothing: {sorted(targets)}")


def topic_rules(o, require):
    """Checks a KafkaTopic, of whose CRD no package could be had: the fields of kafka.strimzi.io/v1."""
    name, spec = o["metadata"]["name"], o["spec"]
    require(o["apiVersion"] in ("kafka.strimzi.io/v1", "kafka.strimzi.io/v1beta2"), f"{name}: apiVersion {o['apiVersion']}")
    require("strimzi.io/cluster" in o["metadata"]["labels"], f"{name}: has no label strimzi.io/cluster, so Strimzi ignores it")
    require(set(spec) <= {"topicName", "partitions", "replicas", "config"}, f"{name}: unknown fields {sorted(spec)}")
    whole = all(isinstance(spec.get(key), int) and spec[key] > 0 for key in ("partitions", "replicas"))
    require(whole, f"{name}: partitions and replicas are numbers above 0")
    require(all(isinstance(value, str) for value in spec["config"].values()), f"{name}: settings are texts")


def main():
    objects = [o for o in yaml.safe_load_all(open(sys.argv[1], encoding="utf-8")) if o]
    broken = []

    def require(holds, problem):
        if not holds:
            broken.append(problem)

    accounts = {o["metadata"]["name"]: o for o in objects if o["kind"] == "ServiceAccount"}
    jobs = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Job"}
    crons = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "CronJob"}
    for name, spec in crons.items():
        require(spec.get("concurrencyPolicy") == "Forbid", f"{name}: two of its jobs may run at once")
    for name, spec in jobs.items():
        require(spec.get("backoffLimit", 0) >= 10, f"{name}: backoffLimit is below 10, so it gives up instead of continuing")
    jobs |= {name: spec["jobTemplate"]["spec"] for name, spec in crons.items()}
    for name, spec in jobs.items():
        pod_rules(name, spec["template"]["spec"], require, serves=False)
        part_rules(name, spec, require)
        account = accounts.get(spec["template"]["spec"].get("serviceAccountName"), {})
        require(account.get("automountServiceAccountToken") is False, f"{name}: its service account mounts a token")
    kinds = ("Deployment", "StatefulSet")
    roles = {o["metadata"]["name"]: (o["kind"], o["spec"]) for o in objects if o["kind"] in kinds}
    expected = {"nearshore-ingest": "StatefulSet", "nearshore-generate": "Deployment"}
    found = {name: kind for name, (kind, _) in roles.items()}
    require(found == expected or (bool(jobs) and not found), f"roles are {found}")
    for name, (_, spec) in roles.items():
        role_rules(name, spec, objects, require)
    scaling_rules(roles, objects, require)
    if "nearshore-generate" in roles:
        rolling = roles["nearshore-generate"][1].get("strategy", {}).get("rollingUpdate")
        safe = rolling == {"maxSurge": 0, "maxUnavailable": 1}
        require(safe, f"generate rolls out with {rolling}, which needs a spare GPU; use maxSurge 0 and maxUnavailable 1")
    for o in objects:
        require("namespace" not in o["metadata"], f"{o['metadata']['name']}: has a namespace; it must work in any")
        require(o["kind"] != "Secret", f"{o['metadata']['name']}: is a secret; create secrets outside the repository")
        if o["kind"] == "KafkaTopic":
            topic_rules(o, require)

    for line in broken:
        print(line, file=sys.stderr)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
