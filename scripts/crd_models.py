"""Checks objects of KEDA and Prometheus Operator by models made from their CRDs.

usage: crd_models.py FILE.yaml...    (called by scripts/validate; needs cloudcoil-models-keda and -prometheus-operator)

The models pass over fields that they do not know, so what a model has read is written again and compared: a field that was
lost on the way is unknown. Kinds without a model (KafkaTopic) are counted and left to scripts/k8s_rules.py.
"""

import sys

import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as operator

MODELS = {
    ("keda.sh/v1alpha1", "ScaledObject"): keda.ScaledObject,
    ("monitoring.coreos.com/v1", "PodMonitor"): operator.PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): operator.PrometheusRule,
}


def lost(path, given, kept):
    """Places of `given` that are not in `kept`."""
    if isinstance(given, dict) and isinstance(kept, dict):
        unknown = [f"{path}.{key} is unknown" for key in given if key not in kept]
        return unknown + [line for key in given if key in kept for line in lost(f"{path}.{key}", given[key], kept[key])]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [line for at, pair in enumerate(zip(given, kept)) for line in lost(f"{path}[{at}]", *pair)]
    return [] if str(given) == str(kept) else [f"{path}: {given!r} is read as {kept!r}"]


def problems(o):
    model = MODELS[(o["apiVersion"], o["kind"])]
    name = f"{o['kind']}/{o['metadata']['name']}"
    try:
        read = model.model_validate(o)
    except ValueError as error:
        return [f"{name}: {error}"]
    return lost(name, o, read.model_dump(by_alias=True, exclude_unset=True, mode="json"))


def check_itself():
    """An unknown field and a wrong type must be seen."""
    spec = {"scaleTargetRef": {"name": "a"}, "triggers": [{"type": "cpu", "metadata": {"value": "1"}}]}
    good = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "a"}, "spec": spec}
    unknown = {**good, "spec": {**spec, "maxReplicas": 3}}
    wrong = {**good, "spec": {**spec, "maxReplicaCount": "many"}}
    if problems(good) or not problems(unknown) or not problems(wrong):
        sys.exit(f"crd_models.py: error: the models do not tell good from bad: {[problems(o) for o in (good, unknown, wrong)]}")


def main():
    check_itself()
    objects = [o for path in sys.argv[1:] for o in yaml.safe_load_all(open(path, encoding="utf-8")) if o]
    known = [o for o in objects if (o["apiVersion"], o["kind"]) in MODELS]
    found = [line for o in known for line in problems(o)]
    for line in found:
        print(line, file=sys.stderr)
    kinds = {o["kind"] for o in known}
    if kinds != {kind for _, kind in MODELS}:
        sys.exit(f"crd_models.py: error: only {sorted(kinds)} were checked")
    print(f"crd models: {len(known)} objects, {len(objects) - len(known)} of kinds without a model", file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
