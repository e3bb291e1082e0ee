"""What was declared under the chart released last is taken up after `helm upgrade`. The fixture `cluster` has made the upgrade."""

import json

import pytest
import yaml

import kubernetes
from conftest import BEFORE, DECLARED


@pytest.fixture(scope="module")
def upgraded(cluster):
    history = json.loads(cluster.helm("history", "quorumail", "--namespace", "quorumail-system", "-o", "json"))
    if len(history) < 2 or "namespace/" + BEFORE not in cluster.kubectl("get", "namespaces", "-o", "name").split():
        pytest.skip("this cluster had the chart before the tests began, or the sources have no history")
    yield cluster
    cluster.kubectl("delete", "namespace", BEFORE, "--wait=true", timeout=300)


def test_the_resource_types_are_those_of_the_new_chart(upgraded):
    for file in sorted((kubernetes.ROOT / "charts" / "quorumail" / "files" / "crds").glob("*.yaml")):
        wanted = yaml.safe_load(file.read_text())
        found = upgraded.get("crd", wanted["metadata"]["name"])
        assert [version["schema"] for version in found["spec"]["versions"]] == \
            [version["schema"] for version in wanted["spec"]["versions"]], file.name


def test_what_was_declared_before_is_ready_and_was_not_changed(upgraded):
    upgraded.wait("Ready", "mailcluster/old", "maildomain/upgrade", "mailbox/carol", namespace=BEFORE)
    # It fails when anything differs, and says what.
    assert upgraded.kubectl("diff", "-f", "-", input=DECLARED) == ""
