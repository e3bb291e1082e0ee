"""The certificate for mail clients from an issuer of cert-manager. cert-manager itself is not run: its resource type is installed, in
the shape that the operator relies on, and the test does what an issuer does - it sees the Certificate, writes the Secret, says so."""

import contextlib
import json
import ssl
import socket
import subprocess

import pytest

import mail
from test_kubernetes_operator import as_list, only_local, thing

NAMESPACE = "mail-issued"
HOST = "mail.issued.example"
PASSWORD = "a password for this test"
SECRET = "issued-tls"
CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: certificates.cert-manager.io}
spec:
  group: cert-manager.io
  scope: Namespaced
  names: {kind: Certificate, listKind: CertificateList, plural: certificates, singular: certificate, shortNames: [cert, certs]}
  versions:
    - name: v1
      served: true
      storage: true
      subresources: {status: {}}
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec:
              type: object
              required: [issuerRef, secretName]
              properties:
                secretName: {type: string}
                dnsNames: {type: array, items: {type: string}, x-kubernetes-list-type: atomic}
                issuerRef:
                  type: object
                  required: [name]
                  properties: {name: {type: string}, kind: {type: string}, group: {type: string}}
                usages:
                  type: array
                  items: {type: string, enum: [signing, digital signature, content commitment, key encipherment, server auth, client auth]}
                privateKey:
                  type: object
                  properties:
                    rotationPolicy: {type: string, enum: [Never, Always]}
                    algorithm: {type: string, enum: [RSA, ECDSA, Ed25519]}
                    size: {type: integer}
                revisionHistoryLimit: {type: integer, format: int32, default: 1}
            status:
              type: object
              properties:
                conditions:
                  type: array
                  x-kubernetes-list-type: map
                  x-kubernetes-list-map-keys: [type]
                  items:
                    type: object
                    required: [type, status]
                    properties:
                      type: {type: string}
                      status: {type: string, enum: ["True", "False", Unknown]}
                      reason: {type: string}
                      message: {type: string}
                      observedGeneration: {type: integer, format: int64}
                      lastTransitionTime: {type: string, format: date-time}
"""


def openssl(*words, directory):
    subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=directory)


class Issuer:
    """What cert-manager and an authority do together."""

    def __init__(self, cluster, directory):
        self.cluster, self.directory, self.number = cluster, directory, 100
        self.key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl("req", "-x509", *self.key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=an authority", directory=directory)
        self.authority = (directory / "ca.crt").read_text()

    def certificate(self, name=SECRET):
        """The Certificate, once it is there."""
        with contextlib.suppress(RuntimeError):
            return self.cluster.get("-n", NAMESPACE, "certificates.cert-manager.io", name)

    def say(self, *conditions):
        """Conditions of the Certificate: type, status, reason and message of each."""
        generation = self.certificate()["metadata"]["generation"]
        told = [{"type": type_, "status": status, "reason": reason, "message": message, "observedGeneration": generation}
                for type_, status, reason, message in conditions]
        self.cluster.kubectl("-n", NAMESPACE, "patch", "certificates.cert-manager.io", SECRET, "--subresource=status", "--type=merge",
                             "-p", json.dumps({"status": {"conditions": told}}))

    def sign(self, names):
        """A new key and a certificate for it; its serial number."""
        self.number += 1
        openssl("req", *self.key, "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/", "-addext",
                "subjectAltName=critical," + ",".join(f"DNS:{name}" for name in names), directory=self.directory)
        openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-set_serial", str(self.number), "-days", "2",
                "-copy_extensions", "copy", "-out", "tls.crt", directory=self.directory)
        return self.number

    def secret(self, name, annotations=None):
        files = {key: (self.directory / key).read_text() for key in ["tls.crt", "tls.key", "ca.crt"]}
        return {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "stringData": files,
                "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations or {}}}

    def issue(self):
        """Fills the Secret that the Certificate asks for, and says so. The serial number."""
        spec = self.certificate()["spec"]
        number = self.sign(spec["dnsNames"])
        secret = self.secret(spec["secretName"], {"cert-manager.io/certificate-name": SECRET})
        self.cluster.kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=cert-manager-certificates-issuing", "-f", "-",
                             input=json.dumps(secret))
        self.say(("Ready", "True", "Ready", "Certificate is up to date and has not expired"))
        return number

    def served(self):
        """The serial number of the certificate that a new connection sees; it is for the hostname, and of this authority."""
        context = ssl.create_default_context(cadata=self.authority)
        with socket.create_connection(mail.split(imaps(self.cluster)), timeout=10) as plain, \
                context.wrap_socket(plain, server_hostname=HOST) as connection:
            return int(connection.getpeercert()["serialNumber"], 16)

    def serves(self, number):
        """Whether that is so; kubelets take a while to bring a Secret to pods."""
        with contextlib.suppress(ssl.SSLError, RuntimeError, KeyError):
            return self.served() == number


def imaps(cluster):
    return cluster.address("pod/issued-0", 2993, NAMESPACE)


def mailcluster(name="issued", **tls):
    spec = {"nodes": 1, "partitions": 1, "hostname": HOST, "storage": {"size": "1Gi", "deletionPolicy": "Delete"}}
    return thing("MailCluster", name, {**spec, "tls": tls} if tls else spec, namespace=NAMESPACE)


def state(cluster, kind="CertificateReady", name="issued"):
    return cluster.condition("mailcluster", name, kind, namespace=NAMESPACE)


def waits_for(cluster, reason, *words, kind="CertificateReady", within=30):
    def told():
        found = state(cluster, kind)
        return found.get("reason") == reason and all(word in found["message"] for word in words) and found
    return mail.wait_for(told, within=within, every=0.5, what=f"{kind} {reason} {words}")


def pod(cluster):
    """Its UID, and how often its container was started again."""
    found = cluster.get("-n", NAMESPACE, "pod", "issued-0")
    return found["metadata"]["uid"], found["status"]["containerStatuses"][0]["restartCount"]


def data(cluster, secret):
    return cluster.get("-n", NAMESPACE, "secret", secret)["data"]


@pytest.fixture(scope="module")
def issuer(cluster, tmp_path_factory):
    """A MailCluster that asks an issuer, in a Kubernetes without cert-manager."""
    only_local(cluster, "is known to have no cert-manager")
    cluster.apply(as_list([
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        mailcluster(issuerRef={"name": "private"}),
        thing("MailDomain", "issued", {"domain": "issued.example", "clusterRef": {"name": "issued"}}, namespace=NAMESPACE),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "people", "namespace": NAMESPACE}, "stringData": {"ida": PASSWORD}},
        thing("Mailbox", "ida", {"address": "ida@issued.example", "clusterRef": {"name": "issued"},
                                 "passwordSecretRef": {"name": "people", "key": "ida"}}, namespace=NAMESPACE),
    ]))
    yield Issuer(cluster, tmp_path_factory.mktemp("issuer"))
    cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=180s", timeout=200)
    cluster.kubectl("delete", "crd", "certificates.cert-manager.io", "--ignore-not-found")


def test_a_certificate_is_asked_for_as_soon_as_cert_manager_is_there(issuer):
    cluster = issuer.cluster
    waits_for(cluster, "CertManagerNotFound", "install it")
    waits_for(cluster, "CertManagerNotFound", kind="Ready")
    cluster.kubectl("apply", "-f", "-", input=CRD)
    certificate = mail.wait_for(issuer.certificate, within=30, every=0.5, what="the Certificate")
    assert certificate["spec"] == {
        "secretName": SECRET, "dnsNames": [HOST], "issuerRef": {"name": "private", "kind": "Issuer", "group": "cert-manager.io"},
        "usages": ["digital signature", "key encipherment", "server auth"], "privateKey": {"rotationPolicy": "Always"},
        "revisionHistoryLimit": 1}
    owner, = certificate["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("MailCluster", "issued")
    waits_for(cluster, "Pending", "waits for cert-manager")
    waits_for(cluster, "Pending", kind="Ready")
    issuer.say(("Ready", "False", "DoesNotExist", "Issuing certificate as Secret does not exist"),
               ("Issuing", "False", "Failed", "The certificate request has failed to complete and will be retried: no such zone"))
    waits_for(cluster, "NotIssued", "no such zone", "kubectl describe certificate")
    waits_for(cluster, "NotIssued", "no such zone", kind="Ready")
    number = issuer.issue()
    waits_for(cluster, "Issued", "up to date")
    cluster.wait("Ready", "mailcluster/issued", "mailbox/ida", namespace=NAMESPACE, within=120)
    mail.wait_for(lambda: issuer.serves(number), within=30, every=0.5, what="a certificate of the issuer")


def test_a_renewed_certificate_is_served_while_connections_live_on(issuer):
    cluster = issuer.cluster
    before, client = pod(cluster), mail.login(imaps(cluster), "ida@issued.example", PASSWORD)
    number = issuer.issue()
    mail.wait_for(lambda: issuer.serves(number), within=180, every=1, what="the new certificate")
    assert client.noop()[0] == "OK", "a connection of the time before"
    client.logout()
    assert pod(cluster) == before
    # Messages that the operator sends and reads are trusted to what the Secret says.
    mail.wait_for(lambda: cluster.condition("maildomain", "issued", "Probed", namespace=NAMESPACE).get("status") == "True",
                  within=180, every=2, what="a probe that passed")


def test_nothing_is_written_while_all_is_as_it_should_be(issuer):
    cluster = issuer.cluster

    def versions():
        things = [("certificates.cert-manager.io", SECRET), ("secret", SECRET), ("mailcluster", "issued")]
        return [cluster.get("-n", NAMESPACE, kind, name)["metadata"]["resourceVersion"] for kind, name in things]

    mail.wait_for(lambda: state(cluster, "Progressing").get("reason") == "Settled", within=60, every=1, what="a cluster that is settled")
    before = versions()
    # Two of the operator's rounds.
    with pytest.raises(AssertionError):
        mail.wait_for(lambda: versions() != before, within=35, every=5, what="a change")


def test_certificates_change_between_issued_self_signed_and_given(issuer):
    cluster, before = issuer.cluster, pod(issuer.cluster)

    def self_signed():
        try:
            return not issuer.served()
        except ssl.SSLCertVerificationError as refused:
            return "self-signed certificate" in str(refused)

    # What is not written is self-signed; applied as people do.
    cluster.apply(json.dumps(mailcluster()))
    mail.wait_for(lambda: not issuer.certificate(), within=30, every=0.5, what="the end of the Certificate")
    mail.wait_for(self_signed, within=180, every=1, what="a self-signed certificate")
    assert not state(cluster)
    owner, = cluster.get("-n", NAMESPACE, "secret", SECRET)["metadata"]["ownerReferences"]
    assert owner["kind"] == "MailCluster"

    cluster.apply(json.dumps(mailcluster(issuerRef={"name": "public", "kind": "ClusterIssuer"})))
    certificate = mail.wait_for(issuer.certificate, within=30, every=0.5, what="the Certificate again")
    assert certificate["spec"]["issuerRef"]["kind"] == "ClusterIssuer"
    waits_for(cluster, "Pending")
    assert self_signed() and state(cluster, "Ready")["status"] == "True", "the one of the time before serves until then"
    number = issuer.issue()
    mail.wait_for(lambda: issuer.serves(number), within=180, every=1, what="a certificate of the issuer again")
    assert pod(cluster) == before, "it is the same Secret all the time"
    assert "ownerReferences" not in cluster.get("-n", NAMESPACE, "secret", SECRET)["metadata"]

    issued, given = data(cluster, SECRET), issuer.sign([HOST])
    cluster.apply(json.dumps(issuer.secret("mine")))
    mine = data(cluster, "mine")
    cluster.apply(json.dumps(mailcluster(secretName="mine")))
    mail.wait_for(lambda: not issuer.certificate(), within=30, every=0.5, what="the end of the Certificate")
    mail.wait_for(lambda: issuer.serves(given), within=180, every=1, what="the certificate that is given")
    cluster.apply(json.dumps(mailcluster(issuerRef={"name": "private"})))
    mail.wait_for(issuer.certificate, within=30, every=0.5, what="the Certificate once more")
    mail.wait_for(lambda: issuer.serves(number), within=180, every=1, what="the certificate that was issued before")
    # Nobody's Secret went.
    assert (data(cluster, "mine"), data(cluster, SECRET)) == (mine, issued)


def test_a_secret_or_a_certificate_of_somebody_else_is_left_alone(issuer):
    cluster = issuer.cluster
    issuer.sign([HOST])
    cluster.apply(json.dumps(issuer.secret("taken-tls")))
    before = data(cluster, "taken-tls")
    for tls in [{}, {"issuerRef": {"name": "private"}}]:
        cluster.apply(json.dumps(mailcluster("taken", **tls)))

        def refused():
            found = state(cluster, "Ready", "taken")
            return found.get("reason") == "Conflict" and "taken-tls" in found["message"] \
                and bool(tls) == bool(state(cluster, name="taken"))
        mail.wait_for(refused, within=30, every=0.5, what=f"a condition with {tls}")
        assert data(cluster, "taken-tls") == before and not issuer.certificate("taken-tls")
    cluster.kubectl("-n", NAMESPACE, "delete", "mailcluster/taken", "--timeout=60s")
    assert data(cluster, "taken-tls") == before


def test_the_certificate_goes_with_the_mailcluster_and_its_secret_stays(issuer):
    cluster, before = issuer.cluster, data(issuer.cluster, SECRET)
    cluster.kubectl("-n", NAMESPACE, "delete", "mailcluster/issued", "--timeout=60s")
    mail.wait_for(lambda: not issuer.certificate(), within=60, every=0.5, what="the end of the Certificate")
    assert data(cluster, SECRET) == before
