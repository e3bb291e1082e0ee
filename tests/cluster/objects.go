package main

import "fmt"

const storageClass = "local"

// clusterObjects are what any cluster offers to its users: DNS, a default StorageClass. Paths first.
func clusterObjects(s *State) [][2]any {
	dnsPorts := []object{{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}}
	return [][2]any{
		{"/apis/storage.k8s.io/v1/storageclasses", object{
			"metadata": object{"name": storageClass, "annotations": object{
				"storageclass.kubernetes.io/is-default-class": "true"}},
			"provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"}},
		{"/apis/rbac.authorization.k8s.io/v1/clusterroles", object{
			"metadata": object{"name": corednsUser},
			"rules": []object{
				{"apiGroups": []string{""}, "resources": []string{"services", "namespaces", "pods", "endpoints"}, "verbs": []string{"list", "watch"}},
				{"apiGroups": []string{"discovery.k8s.io"}, "resources": []string{"endpointslices"}, "verbs": []string{"list", "watch"}}}}},
		{"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", object{
			"metadata": object{"name": corednsUser},
			"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": corednsUser},
			"subjects": []object{{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": corednsUser}}}},
		// DNS runs on the control machine, not in pods: a lost node must not take names away from the others.
		{"/api/v1/namespaces/kube-system/services", object{
			"metadata": object{"name": "kube-dns", "labels": object{"k8s-app": "kube-dns"}},
			"spec":     object{"clusterIP": s.dnsIP(), "ports": dnsPorts}}},
		{"/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", object{
			"metadata": object{"name": "kube-dns", "labels": object{
				"kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": "quorumail-test-cluster"}},
			"addressType": "IPv4",
			"endpoints":   []object{{"addresses": []string{s.controlIP()}}},
			"ports":       dnsPorts}},
	}
}

// volumeObject is the PersistentVolume of one disk of a node.
func volumeObject(s *State, n *Node, disk string) object {
	return object{
		"metadata": object{"name": n.Name + "-" + disk},
		"spec": object{
			"capacity":                      object{"storage": "10Gi"}, // not enforced
			"accessModes":                   []string{"ReadWriteOnce"},
			"persistentVolumeReclaimPolicy": "Retain",
			"storageClassName":              storageClass,
			"local":                         object{"path": s.disk(n.Name, disk)},
			"nodeAffinity": object{"required": object{"nodeSelectorTerms": []object{{"matchExpressions": []object{
				{"key": "kubernetes.io/hostname", "operator": "In", "values": []string{n.Name}}}}}}},
		},
	}
}

// ensureObjects creates whatever is missing of the objects above.
func ensureObjects(s *State, api *API) error {
	for _, o := range clusterObjects(s) {
		if err := api.ensure(o[0].(string), o[1].(object)); err != nil {
			return fmt.Errorf("failed to create an object at %s: %w", o[0], err)
		}
	}
	for _, n := range s.Nodes {
		for i := 1; i <= disksPerNode; i++ {
			if err := api.ensure("/api/v1/persistentvolumes", volumeObject(s, n, diskName(i))); err != nil {
				return fmt.Errorf("failed to create the volume %s of %s: %w", diskName(i), n.Name, err)
			}
		}
	}
	return nil
}
