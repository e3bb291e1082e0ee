"""Fixtures that more than one file of tests uses."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kubernetes  # noqa: E402

BEFORE = "before-the-upgrade"
# What people of the previous version have declared.
DECLARED = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: {BEFORE}}}
---
apiVersion: quorumail.io/v1alpha1
kind: MailCluster
metadata: {{name: old, namespace: {BEFORE}}}
spec: {{nodes: 1, partitions: 1, hostname: mail.upgrade.example, storage: {{size: 1Gi}}}}
---
apiVersion: quorumail.io/v1alpha1
kind: MailDomain
metadata: {{name: upgrade, namespace: {BEFORE}}}
spec: {{clusterRef: {{name: old}}, domain: upgrade.example}}
---
apiVersion: quorumail.io/v1alpha1
kind: Mailbox
metadata: {{name: carol, namespace: {BEFORE}}}
spec: {{address: carol@upgrade.example}}
"""



def pytest_collection_modifyitems(config, items):
    """QUORUMAIL_E2E=kubernetes takes the tests that need a Kubernetes, QUORUMAIL_E2E=dev the others; all, if it is not set."""
    part = os.environ.get("QUORUMAIL_E2E")
    if part is None:
        return
    if part not in ("kubernetes", "dev"):
        raise pytest.UsageError(f"QUORUMAIL_E2E={part}: kubernetes and dev are there")
    # By the fixture below, however far up it is asked for.
    taken = {item for item in items if ("cluster" in item.fixturenames) == (part == "kubernetes")}
    config.hook.pytest_deselected(items=[item for item in items if item not in taken])
    items[:] = [item for item in items if item in taken]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A Kubernetes with the chart installed: upgraded from the one released last, if none was there before, with things
    that were declared then. Left running for the next run; `make down` ends it."""
    found = kubernetes.find()
    if kubernetes.install_previous_chart(found, tmp_path_factory.mktemp("previous")):
        found.apply(DECLARED)
    kubernetes.install(found)
    yield found
    found.close()
