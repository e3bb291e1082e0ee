"""Fixtures that more than one file of tests uses."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kubernetes  # noqa: E402


@pytest.fixture(scope="session")
def cluster():
    """A Kubernetes with the chart installed. Left running for the next run; `make down` ends it."""
    if os.environ.get("QUORUMAIL_E2E") == "dev":
        pytest.skip("QUORUMAIL_E2E=dev: without Kubernetes")
    found = kubernetes.find()
    kubernetes.install(found)
    yield found
    found.close()
