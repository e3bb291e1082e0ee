use jiff::Timestamp;

use super::*;
use crate::mailcluster::certificates::{Stored, current};

fn cluster(spec: &str) -> MailCluster {
    let text = format!(
        "{{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {{name: mc, namespace: ns, uid: u1}}, spec: {spec}}}"
    );
    serde_yaml::from_str(&text).unwrap()
}

fn objects(spec: &str) -> Objects {
    let cluster = cluster(spec);
    let certificates = current(&Stored::default(), "mc", &public_names(&cluster), Timestamp::now()).unwrap();
    let surroundings = Surroundings {
        shape: Shape::founded(u64::from(cluster.spec.nodes)),
        image: "mailnode:1".into(),
        pull_policy: "Never".into(),
        operator_namespace: "quorumail-system".into(),
        relay_username: spec.contains("secretRef").then(|| "user".to_owned()),
        zones: Vec::new(),
        configs: BTreeMap::new(),
    };
    build(&cluster, &certificates, &surroundings)
}

fn pod(objects: &Objects) -> k8s_openapi::api::core::v1::PodSpec {
    objects.nodes.spec.clone().unwrap().template.spec.unwrap()
}

#[test]
fn pods_run_without_privileges() {
    let pod = pod(&objects("{}"));
    let context = pod.security_context.unwrap();
    assert_eq!(
        (context.run_as_non_root, context.seccomp_profile.unwrap().type_),
        (Some(true), "RuntimeDefault".into())
    );
    assert_eq!(pod.automount_service_account_token, Some(false));
    let container = pod.containers[0].security_context.clone().unwrap();
    assert_eq!(container.read_only_root_filesystem, Some(true));
    assert_eq!(container.allow_privilege_escalation, Some(false));
    assert_eq!(container.capabilities.unwrap().drop, Some(vec!["ALL".to_owned()]));
}

#[test]
fn everything_is_owned_by_the_cluster_and_found_by_its_label() {
    let objects = objects("{networkPolicy: {enabled: true}}");
    let mut all: Vec<ObjectMeta> = objects.secrets.iter().map(|s| s.metadata.clone()).collect();
    all.extend(objects.services.iter().map(|s| s.metadata.clone()));
    all.extend([objects.config.metadata, objects.account.metadata, objects.nodes.metadata]);
    all.push(objects.budget.unwrap().metadata);
    all.push(objects.network.unwrap().metadata);
    for meta in all {
        assert_eq!(meta.labels.unwrap()[CLUSTER_LABEL], "mc");
        let owner = meta.owner_references.unwrap().remove(0);
        assert_eq!(
            (owner.kind.as_str(), owner.uid.as_str(), owner.controller),
            ("MailCluster", "u1", Some(true))
        );
    }
}

#[test]
fn the_configuration_names_every_node() {
    let config = config(
        &cluster("{nodes: 5, partitions: 8, hostname: mail.example.org}"),
        &Shape::founded(5),
        &[],
        None,
    );
    assert_eq!((config.peers.len(), config.partitions, config.replicas), (5, 8, 3));
    assert_eq!(config.peers[4].address, "mc-4.mc-nodes.ns.svc:9444");
    assert_eq!(config.peers[4].admin, "mc-4.mc-nodes.ns.svc:9443");
    assert_eq!(config.hostname, "mail.example.org");
    assert_eq!(shape_of(&config), Shape::founded(5));
}

#[test]
fn a_changed_configuration_replaces_the_pods_and_a_renewed_certificate_does_not() {
    let hash = |o: &Objects| o.nodes.spec.clone().unwrap().template.metadata.unwrap().annotations.unwrap();
    assert_eq!(hash(&objects("{}")), hash(&objects("{}")), "the certificates differ, the pods do not");
    assert_ne!(hash(&objects("{}")), hash(&objects("{smtp: {maxMessageSize: 1Mi}}")));
    assert_ne!(hash(&objects("{}")), hash(&objects("{deletedMail: {keep: 30d}}")));
    assert_eq!(
        hash(&objects("{nodes: 1}")),
        hash(&objects("{nodes: 5}")),
        "nodes take that up while they run"
    );
}

#[test]
fn pods_of_two_templates_read_two_configurations_with_one_list_of_nodes() {
    let (old, new) = ("{nodes: 3}", "{nodes: 5, smtp: {maxMessageSize: 1Mi}}");
    let before = objects(old).config.data.unwrap();
    let file = before.keys().find(|key| *key != CONFIG_FILE).unwrap().clone();
    let cluster = cluster(new);
    let shape = Shape { generation: 2, founders: 3, staying: 5, running: 5 };
    let certificates = current(&Stored::default(), "mc", &public_names(&cluster), Timestamp::now()).unwrap();
    let surroundings = Surroundings {
        shape,
        image: "mailnode:1".into(),
        pull_policy: "Never".into(),
        relay_username: None,
        zones: Vec::new(),
        operator_namespace: "quorumail-system".into(),
        configs: [(file.clone(), before[&file].clone()), ("mailnode-x.yaml".into(), "[of tomorrow]".into())]
            .into(),
    };
    let built = build(&cluster, &certificates, &surroundings);
    let data = built.config.data.clone().unwrap();
    let read = |file: &str| serde_yaml::from_str::<MailnodeConfig>(&data[file]).unwrap();
    assert_eq!((read(&file).smtp.max_message_size, shape_of(&read(&file))), (25 << 20, shape));
    let args = pod(&built).containers[0].args.clone().unwrap();
    let reads = args[1].rsplit_once('/').unwrap().1;
    assert_ne!(reads, file);
    assert_eq!(read(reads).smtp.max_message_size, 1 << 20);
    assert_eq!(data["mailnode-x.yaml"], "[of tomorrow]", "what cannot be read stays as it is");
    let (only, nodes) = ("of: tomorrow\nfounders: [9]\n", serde_yaml::to_value(read(&file)).unwrap());
    let told: serde_yaml::Mapping = serde_yaml::from_str(&with_nodes(only, &nodes).unwrap()).unwrap();
    let keys: Vec<&str> = told.keys().filter_map(|key| key.as_str()).collect();
    assert_eq!(
        keys,
        ["of", "founders", "peers", "generation"],
        "fields of other versions stay, and none comes"
    );
}

#[test]
fn nodes_that_leave_run_until_they_are_empty() {
    let cluster = cluster("{nodes: 3}");
    let shape = Shape { generation: 4, founders: 1, staying: 3, running: 5 };
    let zones = ["west", "east", "", "", ""].map(str::to_owned).to_vec();
    let config = config(&cluster, &shape, &zones, None);
    let leaving: Vec<bool> = config.peers.iter().map(|peer| peer.leaving).collect();
    assert_eq!(leaving, [false, false, false, true, true]);
    assert_eq!((config.founders.clone(), config.generation), (vec![0], 4));
    assert_eq!((shape_of(&config), zones_of(&config)), (shape, zones), "read back as it was written");
    let certificates = current(&Stored::default(), "mc", &public_names(&cluster), Timestamp::now()).unwrap();
    let surroundings = Surroundings {
        shape,
        image: "mailnode:1".into(),
        pull_policy: "Never".into(),
        operator_namespace: "quorumail-system".into(),
        relay_username: None,
        zones: Vec::new(),
        configs: BTreeMap::new(),
    };
    assert_eq!(build(&cluster, &certificates, &surroundings).nodes.spec.unwrap().replicas, Some(5));
}

#[test]
fn zones_are_told_and_replace_no_pods() {
    let with = |zones: &[&str]| {
        let cluster = cluster("{nodes: 3}");
        let certificates =
            current(&Stored::default(), "mc", &public_names(&cluster), Timestamp::now()).unwrap();
        let surroundings = Surroundings {
            shape: Shape { generation: 2, ..Shape::founded(3) },
            image: "mailnode:1".into(),
            pull_policy: "Never".into(),
            operator_namespace: "quorumail-system".into(),
            relay_username: None,
            zones: zones.iter().map(|zone| (*zone).to_owned()).collect(),
            configs: BTreeMap::new(),
        };
        build(&cluster, &certificates, &surroundings)
    };
    let (before, after) = (with(&[]), with(&["west", "east", "north"]));
    let text = &after.config.data.unwrap()[CONFIG_FILE];
    let peers = serde_yaml::from_str::<MailnodeConfig>(text).unwrap().peers;
    assert_eq!(peers.iter().map(|peer| peer.zone.as_str()).collect::<Vec<_>>(), ["west", "east", "north"]);
    assert_eq!(before.nodes, after.nodes);
}

#[test]
fn volumes_outlive_the_cluster_unless_told_otherwise() {
    let policy = |spec| {
        let set = objects(spec).nodes.spec.unwrap();
        set.persistent_volume_claim_retention_policy.unwrap().when_deleted.unwrap()
    };
    assert_eq!(policy("{}"), "Retain");
    assert_eq!(policy("{storage: {deletionPolicy: Delete}}"), "Delete");
}

#[test]
fn well_known_ports_lead_to_the_ports_of_the_container() {
    let objects = objects("{service: {type: NodePort, externalTrafficPolicy: Local, annotations: {a: b}}}");
    let service = objects.services[1].clone();
    let spec = service.spec.unwrap();
    assert_eq!(
        (spec.type_.as_deref(), spec.external_traffic_policy.as_deref()),
        (Some("NodePort"), Some("Local"))
    );
    assert_eq!(service.metadata.annotations.unwrap()["a"], "b");
    let ports = pod(&objects).containers[0].ports.clone().unwrap();
    let target = |port: &ServicePort| {
        let Some(IntOrString::String(name)) = &port.target_port else { panic!("{port:?}") };
        ports.iter().find(|p| p.name.as_ref() == Some(name)).unwrap().container_port
    };
    let pairs: Vec<_> = spec.ports.unwrap().iter().map(|p| (p.port, target(p))).collect();
    assert_eq!(pairs, [(25, 2525), (587, 2587), (465, 2465), (143, 2143), (993, 2993), (443, 8443)]);
}

#[test]
fn nodes_find_each_other_before_they_are_ready() {
    let spec = objects("{}").services[0].spec.clone().unwrap();
    assert_eq!((spec.cluster_ip.as_deref(), spec.publish_not_ready_addresses), (Some("None"), Some(true)));
}

#[test]
fn at_most_one_node_is_disrupted_at_a_time() {
    assert!(objects("{nodes: 1}").budget.is_none());
    for spec in ["{nodes: 3}", "{nodes: 5}"] {
        assert_eq!(objects(spec).budget.unwrap().spec.unwrap().max_unavailable, Some(IntOrString::Int(1)));
    }
}

#[test]
fn a_given_certificate_is_mounted_and_none_is_made() {
    let objects = objects("{tls: {secretName: mine}}");
    assert_eq!(objects.secrets.len(), 3);
    let volumes = pod(&objects).volumes.unwrap();
    assert!(
        volumes.iter().any(|v| v.secret.as_ref().is_some_and(|s| s.secret_name.as_deref() == Some("mine")))
    );
}

#[test]
fn an_issued_certificate_is_mounted_by_the_name_of_a_self_signed_one() {
    let (issued, own) = (objects("{tls: {issuerRef: {name: private}}}"), objects("{}"));
    assert_eq!((issued.secrets.len(), own.secrets.len()), (3, 4));
    assert_eq!(issued.nodes, own.nodes, "no pod is replaced when one becomes the other");
}

#[test]
fn the_password_of_a_relay_is_mounted_and_never_in_the_configuration() {
    let objects = objects("{smtp: {relay: {host: relay.example.org, tls: Required, secretRef: {name: r}}}}");
    let text = objects.config.data.clone().unwrap()[CONFIG_FILE].clone();
    assert!(
        text.contains("passwordFile: /etc/quorumail/relay/password") && text.contains("username: user"),
        "{text}"
    );
    assert!(pod(&objects).volumes.unwrap().iter().any(|v| v.name == "relay"));
}

#[test]
fn spread_is_a_wish_unless_a_label_is_named() {
    let keys = |spec| {
        let constraints = pod(&objects(spec)).topology_spread_constraints.unwrap();
        constraints.into_iter().map(|c| (c.topology_key, c.when_unsatisfiable)).collect::<Vec<_>>()
    };
    assert!(keys("{}").iter().all(|(_, otherwise)| otherwise == "ScheduleAnyway"));
    assert_eq!(keys("{scheduling: {spread: rack}}"), [("rack".to_owned(), "DoNotSchedule".to_owned())]);
}

#[test]
fn waits_that_contradict_each_other_are_found_before_the_mailnodes_refuse_them() {
    let invalid = |retry: &str| invalid_retry(&cluster(&format!("{{smtp: {{retry: {retry}}}}}"))).is_some();
    assert!(!invalid("{initial: 60s, max: 1h, giveUpAfter: 5d}") && !invalid("{max: 2h}") && !invalid("{}"));
    assert!(
        invalid("{initial: 2h, max: 1h}")
            && invalid("{initial: 0s}")
            && invalid("{initial: 6d, giveUpAfter: 5d}")
    );
}
