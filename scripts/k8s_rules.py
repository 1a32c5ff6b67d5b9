"""What our Kubernetes objects promise beyond their schema.

usage: k8s_rules.py BUILT.yaml       (called by scripts/validate)
"""

import sys

import yaml


def pod_rules(name, spec, say, serves=True):
    """The restricted profile, no token, time to drain; what serves has probes."""
    security = spec.get("securityContext", {})
    say(security.get("runAsNonRoot") is True, f"{name}: may run as root")
    say(security.get("seccompProfile", {}).get("type") == "RuntimeDefault", f"{name}: no seccomp profile")
    say(spec.get("automountServiceAccountToken") is False, f"{name}: gets a token of the API server")
    say(spec.get("serviceAccountName", "default") != "default", f"{name}: shares the default service account")
    say(spec.get("terminationGracePeriodSeconds", 30) >= 30, f"{name}: is killed before it has drained")
    for container in spec["containers"]:
        container_rules(f"{name}/{container['name']}", container, say)
        if serves:
            probe_rules(f"{name}/{container['name']}", container, say)


def container_rules(name, container, say):
    """Least privilege, bounded memory, no secret in the environment."""
    security = container.get("securityContext", {})
    say(security.get("allowPrivilegeEscalation") is False, f"{name}: may escalate privileges")
    say(security.get("readOnlyRootFilesystem") is True, f"{name}: can write to its root file system")
    say(security.get("capabilities", {}).get("drop") == ["ALL"], f"{name}: keeps capabilities")
    resources = container.get("resources", {})
    say({"cpu", "memory"} <= set(resources.get("requests", {})), f"{name}: requests no cpu or memory")
    say("memory" in resources.get("limits", {}), f"{name}: has no memory limit")
    image = container["image"]
    say(":" in image.rsplit("/", 1)[-1] and not image.endswith(":latest"), f"{name}: {image} names no version")
    for variable in container.get("env", []):
        from_secret = "secretKeyRef" in variable.get("valueFrom", {})
        say(not from_secret, f"{name}: {variable['name']} is a secret in the environment")


def probe_rules(name, container, say):
    """A slow start survives, a stuck process does not."""
    paths = {}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        paths[probe] = container.get(probe, {}).get("httpGet", {}).get("path")
    expected = {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    say(paths == expected, f"{name}: probes are {paths}")
    start = container.get("startupProbe", {})
    budget = start.get("periodSeconds", 10) * start.get("failureThreshold", 3)
    say(budget >= 600 and "initialDelaySeconds" not in start, f"{name}: is given {budget} s to start")


def main():
    objects = [o for o in yaml.safe_load_all(open(sys.argv[1], encoding="utf-8")) if o]
    broken = []

    def say(holds, what):
        if not holds:
            broken.append(what)

    accounts = {o["metadata"]["name"]: o for o in objects if o["kind"] == "ServiceAccount"}
    budgets = [o["spec"] for o in objects if o["kind"] == "PodDisruptionBudget"]
    deployments = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Deployment"}
    jobs = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Job"}
    for name, spec in jobs.items():
        pod_rules(name, spec["template"]["spec"], say, serves=False)
        account = accounts.get(spec["template"]["spec"].get("serviceAccountName"), {})
        say(account.get("automountServiceAccountToken") is False, f"{name}: its service account gives out a token")
        say(spec.get("backoffLimit", 0) >= 10, f"{name}: gives up instead of going on")
    expected = set() if jobs else {"nearshore-ingest", "nearshore-generate"}
    say(set(deployments) == expected, f"deployments are {sorted(deployments)}")
    for name, spec in deployments.items():
        template = spec["template"]
        pod_rules(name, template["spec"], say)
        account = accounts.get(template["spec"].get("serviceAccountName"), {})
        say(account.get("automountServiceAccountToken") is False, f"{name}: its service account gives out a token")
        labels = template["metadata"]["labels"].items()
        guards = [b for b in budgets if b["selector"]["matchLabels"].items() <= labels]
        say([g.get("maxUnavailable") for g in guards] == [1], f"{name}: is not covered by one disruption budget")
    rolling = deployments.get("nearshore-generate", {}).get("strategy", {}).get("rollingUpdate")
    say(bool(jobs) or rolling == {"maxSurge": 0, "maxUnavailable": 1}, f"generate rolls out with {rolling}: no GPU is spare")
    for o in objects:
        say("namespace" not in o["metadata"], f"{o['metadata']['name']}: names a namespace")
        say(o["kind"] != "Secret", f"{o['metadata']['name']}: a secret in the repository")

    for line in broken:
        print(line, file=sys.stderr)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
