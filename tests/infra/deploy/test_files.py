"""The deployment files against the schemas of Compose and Kubernetes, and a linter of Dockerfiles.

No container engine is needed, so none of this builds or starts anything.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[3] / "infra" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
VERSION = "1.37"
SECRET = re.compile(
    r"^(?!PREFECT_INTEGRATIONS_).*"  # Names of keys.
    r"(PASSWORD|AUTH_STRING$|SECRET|ACCESS_KEY|DATABASE_(CONNECTION_)?URL|STORE_URI$|ENCRYPTION_KEY)"
)


def manifests() -> Iterator[Any]:
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            for number, one in enumerate(yaml.safe_load_all(path.read_text())):
                yield pytest.param(one, id=f"{path.name}-{number}-{one['kind']}")


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_compose_file_is_valid_and_its_parts_are_there(compose: Any) -> None:
    from compose_spec import PyCompose

    text = json.dumps({key: value for key, value in compose.items() if not key.startswith("x-")})

    def filled(digest: str) -> str:
        """As `docker compose` does it: variables first, with numbers as such, then the schema."""
        given = re.sub(r"\$\{\w+_DIGEST:\?[^}]*\}", digest, text)
        given = re.sub(
            r"\$\{\w+(:[-?])?([^}]*)\}", lambda found: found[2] if found[1] == ":-" else "given", given
        )
        return re.sub(r'"cpus": "([\d.]+)"', r'"cpus": \1', given)

    with pytest.raises(ValueError, match="invalid image digest"):
        PyCompose.from_json(filled("17-alpine"))
    checked = PyCompose.from_json(filled(f"sha256:{'1' * 64}"))
    checked.validate()
    services = set(checked.service_names())
    assert services == {"postgres", "s3", "prefect", "mlflow", "relay", "worker"}
    for name, service in compose["services"].items():
        asked = service.get("healthcheck") or service["environment"].get("HEALTH_URL")
        assert asked, f"{name} has no health check"
        for other, how in service.get("depends_on", {}).items():
            assert other in services
            assert how == {"condition": "service_healthy"}
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


LOCAL = "${RESPROUT_IMAGE:-resprout:latest}"
"""Built here, which gives it no digest."""
BY_DIGEST = re.compile(r"[\w./-]+(:[\w.-]+)?@(sha256:[0-9a-f]{64}|\$\{\w+_DIGEST:\?[^}]+\})")


def test_images_come_by_digest(compose: Any) -> None:
    images = {service["image"] for service in compose["services"].values()} - {LOCAL}
    images.add(compose["x-image"]["build"]["args"]["BASE"])
    images.add(
        json.loads((KUBERNETES / "pool.json").read_text())["variables"]["properties"]["image"]["default"]
    )
    base = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    images |= {f"{one['newName']}@{one['digest']}" for one in base["images"]}
    assert len(images) == 4, "the base of the cluster and of its pool is one"
    assert [one for one in images if not BY_DIGEST.fullmatch(one)] == []
    named = {one["name"] for one in base["images"]}
    assert set(re.findall(r"^ +image: (\S+)$", all_text(), re.MULTILINE)) == named
    stages = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert set(stages) == {"${BASE}"}
    assert not BY_DIGEST.fullmatch("postgres:17-alpine")


def test_every_service_is_confined(compose: Any) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "cpus", "pids_limit"} <= set(service), name
        assert any(place.startswith("/tmp") for place in service["tmpfs"]), name
        assert "build" in service or "cap_add" in service or service["user"] != "root", name


def test_each_server_has_a_database_user_who_reaches_no_other(compose: Any, tmp_path: Path) -> None:
    from servers import postgres_server

    passwords = {f"{name.upper()}_DATABASE_PASSWORD": f"it's {name}" for name in OWNERS}
    assert passwords.keys() <= compose["services"]["postgres"]["environment"].keys()
    script = tmp_path / "databases.sql"
    script.write_text(compose["configs"]["databases"]["content"])
    with postgres_server() as server:
        place = ["-h", "127.0.0.1", "-p", str(server.port), "-v", "ON_ERROR_STOP=1"]

        def psql(user: str, database: str, *words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [server.bin_folder / "psql", *place, "-U", user, "-d", database, *words],
                env={**os.environ, **passwords}, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip

        made = psql("postgres", "postgres", "-f", str(script))
        assert made.returncode == 0, made.stderr
        for user in OWNERS:
            for database in OWNERS:
                done = psql(user, database, "-c", "CREATE TABLE t (); CREATE EXTENSION IF NOT EXISTS pg_trgm")
                assert (done.returncode == 0) == (user == database), (user, database, done.stderr)
        rights = psql("postgres", "postgres", "-Atc", "SELECT rolname FROM pg_roles WHERE rolsuper")
        assert rights.stdout.split() == ["postgres"]
    for name in OWNERS:
        address = rf"://{name}:\$\{{{name.upper()}_DATABASE_PASSWORD:\?\}}@postgres:5432/{name}\b"
        assert re.search(address, (DEPLOY / "compose.yaml").read_text()), name


OWNERS = ("prefect", "mlflow", "relay")


def test_prefect_and_mlflow_in_containers_are_not_open(compose: Any) -> None:
    """Their hosts are named, Prefect asks for its auth string, and a policy says which pods reach them."""
    variables = compose["services"]["prefect"]["environment"]
    assert "PREFECT_SERVER_API_AUTH_STRING" in variables
    for service in ("worker", "relay"):
        assert "PREFECT_API_AUTH_STRING" in compose["services"][service]["environment"]
    server, worker = "resprout.infra.prefect.server_process", "resprout.infra.prefect.worker"
    assert server in compose["services"]["prefect"]["command"]
    assert worker in compose["services"]["worker"]["command"]

    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]
        for one in (parameter.values[0] for parameter in manifests())
        if one["kind"] == "Deployment"
    }
    assert server in pods["prefect"]["command"]
    for name, variable in {"prefect": "SERVER_API", "worker": "API", "relay": "API"}.items():
        found = [one for one in pods[name]["env"] if one["name"] == f"PREFECT_{variable}_AUTH_STRING"]
        assert found[0]["valueFrom"]["secretKeyRef"]["key"] == "prefect-auth"
    hosts = next(one for one in pods["mlflow"]["env"] if one["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS")
    assert "*" not in hosts["value"]
    assert "mlflow:5000" in hosts["value"].split(",")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        # A probe's own Host header is the pod's address.
        assert pods["prefect"][probe]["httpGet"]["httpHeaders"] == [{"name": "Host", "value": "prefect"}]

    template = json.loads((KUBERNETES / "pool.json").read_text())["job_configuration"]["job_manifest"]
    run = template["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
    wanted = {"prefect": {"worker", "relay", run}, "mlflow": {"relay", run}}
    for policy in documents("network.yaml")[1:]:
        (ingress,) = policy["spec"]["ingress"]
        ((reason,),) = (one["podSelector"]["matchExpressions"] for one in ingress["from"])
        assert set(reason["values"]) == wanted[policy["metadata"]["name"]]


def test_no_secret_is_written_out_in_the_compose_file(compose: Any) -> None:
    seen = 0
    for name, service in compose["services"].items():
        for variable, value in service["environment"].items():
            if SECRET.search(variable) and "RELAY__RULES" not in variable and not value.startswith("s3://"):
                assert re.search(r"\$\{\w+:\?[^}]*\}", value), f"{name}: {variable}"
                seen += 1
    assert seen > 10
    example = (DEPLOY / "resprout.env.example").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()))
    given = re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE)
    assert {name for name, _ in given} == asked
    assert all(value == "" for _, value in given)


@pytest.mark.parametrize("manifest", manifests())
def test_a_manifest_is_what_kubernetes_takes(manifest: Any) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_the_check_of_manifests_can_fail() -> None:
    import kubernetes_validate

    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@pytest.mark.parametrize(("folder", "kind"), [(".", "Kustomization"), ("triggers", "Component")])
def test_the_kustomization_lists_every_file_but_the_example(folder: str, kind: str) -> None:
    base = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
    files = {path.name for path in (KUBERNETES / folder).glob("*.yaml")}
    assert base["kind"] == kind
    assert set(base["resources"]) == files - {"kustomization.yaml", "secret.example.yaml"}


def test_the_base_needs_no_rules_and_the_component_says_whose() -> None:
    assert "resprout-rules" not in "".join(path.read_text() for path in KUBERNETES.glob("*.yaml"))
    guide = (DEPLOY / "README.md").read_text()
    for command in ("create configmap resprout-rules", "resprout triggers apply --url http://relay:8300"):
        assert f"kubectl -n resprout {command}" in guide or f"-- {command}" in guide


def test_prefect_writes_its_pages_where_a_read_only_container_lets_it() -> None:
    image = (DEPLOY / "Dockerfile").read_text()
    for name, folder in (("PREFECT_UI_STATIC_DIRECTORY", "/tmp/"), ("PREFECT_HOME", "/var/lib/resprout/")):
        assert re.search(rf"^ +{name}={folder}", image, re.MULTILINE)
    (prefect, _) = documents("prefect.yaml")
    (box,) = prefect["spec"]["template"]["spec"]["containers"]
    assert {one["mountPath"] for one in box["volumeMounts"]} == {"/tmp", "/var/lib/resprout"}


def test_pods_have_no_rights_limits_probes_and_secrets_by_reference() -> None:
    pods = 0
    for manifest in (parameter.values[0] for parameter in manifests()):
        assert manifest["kind"] != "PersistentVolumeClaim"
        if manifest["kind"] == "Secret":
            assert set(manifest["stringData"].values()) == {""}
        if manifest["kind"] != "Deployment":
            continue
        pods += 1
        pod = manifest["spec"]["template"]["spec"]
        (box,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert box["securityContext"]["readOnlyRootFilesystem"] is True
        assert box["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"requests", "limits"} <= set(box["resources"])
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(box)
        for variable in box.get("env", ()):
            if SECRET.search(variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], variable["name"]
    assert pods == 4


def test_the_secrets_that_pods_read_are_in_the_example() -> None:
    example = {one["metadata"]["name"]: set(one["stringData"]) for one in documents("secret.example.yaml")}
    read = re.findall(r"secretKeyRef: \{name: ([\w-]+), key: ([\w-]+)\}", all_text())
    assert {name for name, _ in read} | {"resprout-run"} == set(example)
    assert {key for _, key in read} == example["resprout"]


def test_the_pool_makes_jobs_that_kubernetes_takes() -> None:
    import kubernetes_validate

    template = json.loads((KUBERNETES / "pool.json").read_text())
    values = {name: one.get("default") for name, one in template["variables"]["properties"].items()}
    values |= {"command": ["python"], "env": [], "labels": {}, "name": "run"}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        found = re.fullmatch(r"\{\{ (\w+) \}\}", value) if isinstance(value, str) else None
        if found:
            return values[found[1]]
        return (
            re.sub(r"\{\{ (\w+) \}\}", lambda one: values[one[1]], value) if isinstance(value, str) else value
        )

    kubernetes_validate.validate(filled(template["job_configuration"]["job_manifest"]), VERSION, strict=True)


def test_the_dockerfile_passes_its_linter_and_does_not_run_as_root() -> None:
    hadolint = shutil.which("hadolint") or str(Path(sys.executable).parent / "hadolint")
    done = subprocess.run(
        [hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout
    last = (DEPLOY / "Dockerfile").read_text().rpartition("FROM ")[2]
    assert re.search(r"^USER 10001", last, re.MULTILINE)
    assert "HEALTHCHECK" in last


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def all_text() -> str:
    return "".join(path.read_text() for path in KUBERNETES.rglob("*.yaml"))
