"""What namespaces that share a MailCluster rely on: each has its own, none has another's, and none learns of another."""

import json
import smtplib

import pytest

import kubernetes
import mail

HOME = "tenants-mail"
A, B = "tenant-a", "tenant-b"
REF = {"name": "shared", "namespace": HOME}
PASSWORDS = {A: "a password of a", B: "a password of b"}


def thing(kind, namespace, name, spec, **more):
    version = "v1" if kind in ["Namespace", "Secret"] else "quorumail.io/v1alpha1"
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    return json.dumps({"apiVersion": version, "kind": kind, "metadata": metadata, **({"spec": spec} if spec else {}), **more})


def domain(namespace, name, domain, **spec):
    return thing("MailDomain", namespace, name, {"clusterRef": REF, "domain": domain, **spec})


def mailbox(namespace, name, address, **spec):
    return thing("Mailbox", namespace, name, {"clusterRef": REF, "address": address,
                                              "passwordSecretRef": {"name": "people", "key": "info"}, **spec})


def tenant(namespace, host):
    """Objects of the same names in every namespace."""
    return [thing("Secret", namespace, "people", None, stringData={"info": PASSWORDS[namespace]}),
            domain(namespace, "site", host),
            mailbox(namespace, "info", f"info@{host}"),
            thing("Mailbox", namespace, "made", {"clusterRef": REF, "address": f"made@{host}"}),
            thing("MailingList", namespace, "all", {"clusterRef": REF, "address": f"all@{host}", "posting": "Anyone",
                                                    "memberSelector": {}})]


@pytest.fixture(scope="module")
def shared(cluster):
    """A MailCluster that allows tenant-a, and two tenants."""
    spaces = [thing("Namespace", None, name, None) for name in [HOME, A, B]]
    spec = {"nodes": 1, "partitions": 2, "storage": {"size": "1Gi", "deletionPolicy": "Delete"}, "allowedNamespaces": [A]}
    cluster.apply("\n---\n".join([*spaces, thing("MailCluster", HOME, "shared", spec),
                                  *tenant(A, "a.example"), *tenant(B, "b.example")]))
    cluster.wait("Ready", "mailcluster/shared", namespace=HOME)
    cluster.wait("Ready", "maildomain/site", "mailbox/info", "mailbox/made", "mailinglist/all", namespace=A, within=90)
    for port in [25, 587, 993]:
        kubernetes.wait_port(cluster.address("service/shared", port, namespace=HOME))
    yield cluster
    for name in [A, B, HOME]:
        cluster.kubectl("delete", "namespace", name, "--timeout=120s", timeout=150)


def address(shared, port):
    return shared.address("service/shared", port, namespace=HOME)


def login(shared, user, password):
    return mail.login(address(shared, 993), user, password)


def has(shared, user, password, token):
    client = login(shared, user, password)
    found = token in mail.tokens(client)
    client.logout()
    return found


def arrives(shared, user, password):
    """A message from elsewhere is taken for the address, and read there."""
    msg = mail.message("x@elsewhere.example", user, "hello")
    mail.send(address(shared, 25), msg)
    mail.wait_for(lambda: has(shared, user, password, msg["X-Token"]), within=20, what=f"mail of {user}")


def allow(shared, *namespaces):
    shared.kubectl("-n", HOME, "patch", "mailcluster", "shared", "--type=merge", "-p",
                   json.dumps({"spec": {"allowedNamespaces": list(namespaces)}}))


def told(shared, namespace, kind, name, reason, within=30):
    """The Ready condition, once it has this reason."""
    def there():
        condition = shared.condition(kind, name, namespace=namespace)
        return condition.get("reason") == reason and condition

    return mail.wait_for(there, within=within, what=f"{kind} {namespace}/{name} {reason}")


def test_people_of_a_namespace_that_is_allowed_send_and_read_mail(shared):
    arrives(shared, "info@a.example", PASSWORDS[A])
    made = shared.secret("made-credentials", "password", namespace=A)
    msg = mail.message("made@a.example", "all@a.example", "to all of us")
    mail.submit(address(shared, 587), "made@a.example", made, msg)
    mail.wait_for(lambda: has(shared, "info@a.example", PASSWORDS[A], msg["X-Token"]), within=20, what="mail of the list")


def test_a_namespace_that_is_not_allowed_is_told_what_it_is_told_of_a_cluster_that_does_not_exist(shared):
    messages = {told(shared, B, kind, name, "NotAllowed")["message"]
                for kind, name in [("maildomain", "site"), ("mailbox", "info"), ("mailinglist", "all")]}
    assert len(messages) == 1 and f"have {B} added to its spec.allowedNamespaces" in min(messages), messages
    shared.apply(thing("MailDomain", B, "lost", {"clusterRef": {**REF, "name": "gone"}, "domain": "lost.example"}))
    missing = told(shared, B, "maildomain", "lost", "NotAllowed")["message"]
    assert missing == min(messages).replace("/shared ", "/gone "), missing
    for kind in ["maildomain", "mailbox", "mailinglist"]:
        for found in shared.get("-n", B, kind)["items"]:
            assert "finalizers" not in found["metadata"], found
            assert "Ready" in json.dumps(found["status"]) and HOME not in json.dumps(found["status"]).replace(f"{HOME}/", ""), found
    assert [s["metadata"]["name"] for s in shared.get("-n", B, "secrets")["items"]] == ["people"]
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        mail.send(address(shared, 25), mail.message("x@elsewhere.example", "info@b.example", "nobody"))
    shared.kubectl("-n", B, "delete", "maildomain/lost", "--timeout=20s")


def test_wrong_lists_of_namespaces_are_refused_with_a_plain_message(shared):
    for wrong, words in [(["No Name"], "must be names of namespaces"), (["*", A], "list nothing beside it"), ([A, A], "uplicate")]:
        with pytest.raises(RuntimeError) as refused:
            allow(shared, *wrong)
        assert words in str(refused.value), refused.value
    with pytest.raises(RuntimeError) as refused:
        shared.kubectl("-n", A, "patch", "mailbox", "info", "--type=merge", "-p",
                       json.dumps({"spec": {"clusterRef": {"namespace": B}}}))
    assert "clusterRef cannot be changed" in str(refused.value), refused.value


def test_objects_of_the_same_names_in_two_namespaces_do_not_disturb_each_other(shared):
    allow(shared, A, B)
    shared.wait("Ready", "maildomain/site", "mailbox/info", "mailbox/made", "mailinglist/all", namespace=B, within=60)
    for namespace, host in [(A, "a.example"), (B, "b.example")]:
        arrives(shared, f"info@{host}", PASSWORDS[namespace])
    secrets = {shared.secret("made-credentials", "password", namespace=n) for n in [A, B]}
    assert len(secrets) == 2
    msg = mail.message("x@elsewhere.example", "all@b.example", "to all of b")
    mail.send(address(shared, 25), msg)
    mail.wait_for(lambda: has(shared, "info@b.example", PASSWORDS[B], msg["X-Token"]), within=20, what="mail of the list")
    assert not has(shared, "info@a.example", PASSWORDS[A], msg["X-Token"])
    shared.kubectl("-n", B, "delete", "mailbox/made", "mailinglist/all", "--timeout=60s")
    made = shared.secret("made-credentials", "password", namespace=A)
    login(shared, "made@a.example", made).logout()
    assert shared.condition("mailinglist", "all", namespace=A)["status"] == "True"


def test_what_one_namespace_has_another_cannot_claim(shared):
    shared.apply("\n---\n".join([domain(B, "grab", "a.example"), mailbox(B, "spy", "info@a.example"),
                                 mailbox(B, "alias", "alias@b.example", aliases=["made@a.example"]),
                                 thing("MailingList", B, "tap", {"clusterRef": REF, "address": "info@a.example"})]))
    message = told(shared, B, "maildomain", "grab", "Conflict")["message"]
    assert "domain a.example is taken" in message and A not in message, message
    for kind, name in [("mailbox", "spy"), ("mailbox", "alias"), ("mailinglist", "tap")]:
        message = told(shared, B, kind, name, "DomainNotFound")["message"]
        assert A not in message, message
    contested = mail.wait_for(lambda: shared.condition("maildomain", "site", "Contested", namespace=A), within=20)
    assert contested["status"] == "True" and B not in contested["message"], contested
    arrives(shared, "info@a.example", PASSWORDS[A])
    shared.kubectl("-n", B, "delete", "mailbox/spy", "mailbox/alias", "mailinglist/tap", "--timeout=60s")
    arrives(shared, "info@a.example", PASSWORDS[A])
    assert shared.condition("maildomain", "site", namespace=A)["status"] == "True"


def test_a_namespace_that_is_taken_off_keeps_what_it_has_and_goes_on_when_it_is_put_back(shared):
    allow(shared, B)
    for kind, name in [("maildomain", "site"), ("mailbox", "info"), ("mailinglist", "all")]:
        told(shared, A, kind, name, "NotAllowed")
    arrives(shared, "info@a.example", PASSWORDS[A])
    shared.kubectl("-n", A, "patch", "mailbox", "info", "--type=merge", "-p", json.dumps({"spec": {"suspended": True}}))
    assert told(shared, B, "maildomain", "grab", "Conflict")
    # A wish of a namespace that is allowed is carried out meanwhile, so that this one was seen and not.
    shared.apply(mailbox(B, "later", "later@b.example"))
    shared.wait("Ready", "mailbox/later", namespace=B, within=60)
    login(shared, "info@a.example", PASSWORDS[A]).logout()
    shared.kubectl("-n", A, "delete", "mailbox/made", "--timeout=60s")
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        mail.send(address(shared, 25), mail.message("x@elsewhere.example", "made@a.example", "gone"))
    allow(shared, "*")
    shared.wait("Ready", "maildomain/site", "mailbox/info", "mailinglist/all", namespace=A, within=60)
    with pytest.raises(Exception, match="(?i)suspended|auth"):
        login(shared, "info@a.example", PASSWORDS[A])
    shared.kubectl("-n", A, "patch", "mailbox", "info", "--type=merge", "-p", json.dumps({"spec": {"suspended": False}}))
    mail.wait_for(lambda: login(shared, "info@a.example", PASSWORDS[A]), within=30, what="a login")


def test_a_domain_that_changes_hands_does_not_bring_the_old_mail_along(shared):
    shared.kubectl("-n", A, "delete", "mailinglist/all", "mailbox/info", "maildomain/site", "--timeout=60s")
    shared.wait("Ready", "maildomain/grab", namespace=B, within=90)
    shared.apply(mailbox(B, "info-a", "info@a.example") + "\n---\n" + mailbox(B, "new-a", "new@a.example"))
    shared.wait("Ready", "mailbox/new-a", namespace=B, within=60)
    assert "address info@a.example is taken" in told(shared, B, "mailbox", "info-a", "Conflict")["message"]
    arrives(shared, "new@a.example", PASSWORDS[B])
