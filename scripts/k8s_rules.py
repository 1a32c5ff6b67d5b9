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


def main():
    objects = [o for o in yaml.safe_load_all(open(sys.argv[1], encoding="utf-8")) if o]
    broken = []

    def require(holds, problem):
        if not holds:
            broken.append(problem)

    accounts = {o["metadata"]["name"]: o for o in objects if o["kind"] == "ServiceAccount"}
    budgets = [o["spec"] for o in objects if o["kind"] == "PodDisruptionBudget"]
    deployments = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Deployment"}
    jobs = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Job"}
    crons = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "CronJob"}
    for name, spec in crons.items():
        require(spec.get("concurrencyPolicy") == "Forbid", f"{name}: two of its jobs may run at once")
    for name, spec in jobs.items():
        require(spec.get("backoffLimit", 0) >= 10, f"{name}: backoffLimit is below 10, so it gives up instead of continuing")
    jobs |= {name: spec["jobTemplate"]["spec"] for name, spec in crons.items()}
    for name, spec in jobs.items():
        pod_rules(name, spec["template"]["spec"], require, serves=False)
        account = accounts.get(spec["template"]["spec"].get("serviceAccountName"), {})
        require(account.get("automountServiceAccountToken") is False, f"{name}: its service account mounts a token")
    expected = set() if jobs else {"nearshore-ingest", "nearshore-generate"}
    require(set(deployments) == expected, f"deployments are {sorted(deployments)}")
    for name, spec in deployments.items():
        template = spec["template"]
        pod_rules(name, template["spec"], require)
        account = accounts.get(template["spec"].get("serviceAccountName"), {})
        require(account.get("automountServiceAccountToken") is False, f"{name}: its service account mounts a token")
        labels = template["metadata"]["labels"].items()
        guards = [b for b in budgets if b["selector"]["matchLabels"].items() <= labels]
        require([g.get("maxUnavailable") for g in guards] == [1], f"{name}: needs exactly one disruption budget with maxUnavailable 1")
    rolling = deployments.get("nearshore-generate", {}).get("strategy", {}).get("rollingUpdate")
    require(bool(jobs) or rolling == {"maxSurge": 0, "maxUnavailable": 1}, f"generate rolls out with {rolling}, which needs a spare GPU; use maxSurge 0 and maxUnavailable 1")
    for o in objects:
        require("namespace" not in o["metadata"], f"{o['metadata']['name']}: has a namespace; the overlay must work in any")
        require(o["kind"] != "Secret", f"{o['metadata']['name']}: is a secret; create secrets outside the repository")

    for line in broken:
        print(line, file=sys.stderr)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
