package main

// `cluster selftest` proves on a running cluster what tests rely on. It works in a namespace of its own and leaves
// the cluster as it was.

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

const (
	selftestNamespace = "cluster-selftest"
	selftestWait      = 90 * time.Second
)

type selftester struct {
	options *options
	state   *State
	api     *API
	pods    []testPod // sorted by node
	service testService
}

type testPod struct{ name, ip, node string }

type testService struct {
	Spec struct {
		ClusterIP string
		Ports     []struct{ NodePort int }
	}
	Status struct {
		LoadBalancer struct{ Ingress []struct{ IP string } }
	}
}

func selftest(name string) error {
	s, err := running(name)
	if err != nil {
		return err
	}
	if len(s.Nodes) < 3 {
		return errors.New("the self-test needs three nodes")
	}
	api, err := newAPI(s)
	if err != nil {
		return err
	}
	t := &selftester{options: &options{name: name}, state: s, api: api}
	defer t.clean()
	for _, step := range []struct {
		promise string
		check   func() error
	}{
		{"an earlier self-test is cleaned up", t.clean},
		{"non-root pods with volumes run, one on each node", t.podsRun},
		{"pods keep data on their volumes", t.volumesKeepData},
		{"pods see one another's own addresses", t.sourceAddresses},
		{"Services work from pods, by name", t.names},
		{"Services work from the host: ClusterIP, NodePort, LoadBalancer", t.services},
		{"logs can be read", t.logs},
		{"a partition cuts two nodes off, and heals", t.partitions},
		{"an isolated node is missed, and comes back", t.isolation},
		{"a lost node is missed, and comes back with its data", t.loss},
		{"a wiped disk is empty", t.wipe},
		{"volumes are emptied and offered again", t.recycled},
	} {
		begin := time.Now()
		if err := step.check(); err != nil {
			return fmt.Errorf("not true: %s: %w", step.promise, err)
		}
		say("ok  %-66s %5.1f s", step.promise, time.Since(begin).Seconds())
	}
	return nil
}

// change runs a verb that changes the cluster, as the command line does.
func (t *selftester) change(verb func(*State) error) error {
	return withCluster(t.options, func(s *State) error { t.state = s; return verb(s) })
}

// within repeats a check until it holds.
func within(limit time.Duration, check func() error) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func fetch(method, url, body string) (string, error) {
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	client := http.Client{Timeout: 8 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, answer.Status, data)
	}
	return string(data), err
}

func (p testPod) url(path string) string { return "http://" + p.ip + ":8080" + path }

// reach lets one pod fetch a page by itself.
func (p testPod) reach(url string) (string, error) {
	return fetch(http.MethodGet, p.url("/get?url="+url), "")
}

func (t *selftester) clean() error {
	path := "/api/v1/namespaces/" + selftestNamespace
	if err := t.api.call(http.MethodDelete, path, nil, nil); err != nil && !isStatus(err, http.StatusNotFound) {
		return err
	}
	return within(selftestWait, func() error {
		if err := t.api.get(path, nil); !isStatus(err, http.StatusNotFound) {
			return fmt.Errorf("namespace %s is still there (%v)", selftestNamespace, err)
		}
		return nil
	})
}

func (t *selftester) podsRun() error {
	labels := object{"app": "web"}
	meta := func(name string) object { return object{"name": name, "labels": labels} }
	port := []object{{"port": 80, "targetPort": 8080}}
	base := "/api/v1/namespaces/" + selftestNamespace
	for _, o := range [][2]any{
		{"/api/v1/namespaces", object{"metadata": object{"name": selftestNamespace}}},
		{base + "/services", object{"metadata": meta("web"), "spec": object{"clusterIP": "None", "selector": labels, "ports": port}}},
		{base + "/services", object{"metadata": meta("front"), "spec": object{"type": "LoadBalancer", "selector": labels, "ports": port}}},
		{"/apis/apps/v1/namespaces/" + selftestNamespace + "/statefulsets", object{"metadata": meta("web"), "spec": object{
			"replicas": 3, "serviceName": "web", "podManagementPolicy": "Parallel",
			"selector": object{"matchLabels": labels},
			"template": object{"metadata": object{"labels": labels}, "spec": object{
				"terminationGracePeriodSeconds": 5,
				"securityContext": object{"runAsNonRoot": true, "runAsUser": 10001, "fsGroup": 10001,
					"seccompProfile": object{"type": "RuntimeDefault"}},
				"topologySpreadConstraints": []object{{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
					"whenUnsatisfiable": "DoNotSchedule", "labelSelector": object{"matchLabels": labels}}},
				"containers": []object{{
					"name": "web", "image": testImage, "imagePullPolicy": "Never",
					"securityContext": object{"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
						"capabilities": object{"drop": []string{"ALL"}}},
					"resources":      object{"limits": object{"memory": "64Mi"}, "requests": object{"cpu": "10m"}},
					"readinessProbe": object{"httpGet": object{"path": "/", "port": 8080}, "periodSeconds": 1},
					"volumeMounts":   []object{{"name": "data", "mountPath": "/data"}},
				}},
			}},
			"volumeClaimTemplates": []object{{"metadata": object{"name": "data"}, "spec": object{
				"accessModes": []string{"ReadWriteOnce"}, "resources": object{"requests": object{"storage": "1Gi"}}}}},
		}}},
	} {
		if err := t.api.call(http.MethodPost, o[0].(string), o[1], nil); err != nil {
			return err
		}
	}
	if err := t.threeReady(); err != nil {
		return err
	}
	nodes := map[string]bool{}
	for _, p := range t.pods {
		nodes[p.node] = true
		// Ready in the API server's eyes is a moment before routes and ARP are.
		if err := within(5*time.Second, func() error {
			answer, err := fetch(http.MethodGet, p.url("/"), "")
			if err == nil && !strings.Contains(answer, "uid=10001 ") {
				err = fmt.Errorf("pod %s does not run as it should: %s", p.name, answer)
			}
			return err
		}); err != nil {
			return err
		}
	}
	if len(nodes) != 3 {
		return fmt.Errorf("the pods run on only %d nodes", len(nodes))
	}
	return nil
}

func (t *selftester) threeReady() error {
	return within(selftestWait, func() error {
		var list struct {
			Items []struct {
				Metadata struct{ Name string }
				Spec     struct{ NodeName string }
				Status   struct {
					PodIP      string
					Phase      string
					Conditions []struct{ Type, Status, Message string }
				}
			}
		}
		if err := t.api.get("/api/v1/namespaces/"+selftestNamespace+"/pods", &list); err != nil {
			return err
		}
		t.pods = nil
		why := ""
		for _, p := range list.Items {
			why += fmt.Sprintf("; %s is %s", p.Metadata.Name, p.Status.Phase)
			for _, c := range p.Status.Conditions {
				if c.Type == "Ready" && c.Status == "True" {
					t.pods = append(t.pods, testPod{p.Metadata.Name, p.Status.PodIP, p.Spec.NodeName})
				}
				why += " " + c.Message
			}
		}
		if len(t.pods) != 3 {
			return fmt.Errorf("%d of 3 pods are Ready%s", len(t.pods), why)
		}
		sort.Slice(t.pods, func(i, j int) bool { return t.pods[i].node < t.pods[j].node })
		return nil
	})
}

func (t *selftester) volumesKeepData() error {
	for _, p := range t.pods {
		if _, err := fetch(http.MethodPut, p.url("/disk"), "data of "+p.name); err != nil {
			return err
		}
	}
	return t.dataThere(t.pods...)
}

func (t *selftester) dataThere(pods ...testPod) error {
	for _, p := range pods {
		if got, err := fetch(http.MethodGet, p.url("/disk"), ""); err != nil || got != "data of "+p.name {
			return fmt.Errorf("pod %s holds %q (%v)", p.name, got, err)
		}
	}
	return nil
}

func (t *selftester) sourceAddresses() error {
	from, to := t.pods[0], t.pods[1]
	answer, err := from.reach(to.url("/"))
	if err == nil && !strings.Contains(answer, "from="+from.ip+":") {
		err = fmt.Errorf("%s at %s calls %s, which sees %s", from.name, from.ip, to.name, answer)
	}
	return err
}

func (t *selftester) names() error {
	for _, name := range []string{"front", "front." + selftestNamespace + ".svc.cluster.local"} {
		for _, p := range t.pods {
			url := "http://" + name + "/"
			// The nodes hear of a new Service a moment after its pods are Ready.
			if err := within(5*time.Second, func() error { _, err := p.reach(url); return err }); err != nil {
				return err
			}
			// Enough times to be sent to each pod, the caller itself included.
			for range 6 {
				if _, err := p.reach(url); err != nil {
					return err
				}
			}
		}
	}
	to := t.pods[2]
	answer, err := t.pods[0].reach("http://" + to.name + ".web:8080/")
	if err == nil && !strings.Contains(answer, "pod="+to.name) {
		err = fmt.Errorf("the name of %s leads to %s", to.name, answer)
	}
	return err
}

func (t *selftester) services() error {
	if err := within(selftestWait, func() error {
		err := t.api.get("/api/v1/namespaces/"+selftestNamespace+"/services/front", &t.service)
		if err == nil && len(t.service.Status.LoadBalancer.Ingress) == 0 {
			err = errors.New("the Service has no LoadBalancer address")
		}
		return err
	}); err != nil {
		return err
	}
	port := t.service.Spec.Ports[0].NodePort
	urls := []string{
		"http://" + t.service.Spec.ClusterIP,
		"http://" + t.service.Status.LoadBalancer.Ingress[0].IP,
		fmt.Sprintf("http://%s:%d", t.state.controlIP(), port),
	}
	for _, n := range t.state.Nodes {
		urls = append(urls, fmt.Sprintf("http://%s:%d", t.state.nodeIP(n), port))
	}
	for _, url := range urls {
		if err := within(5*time.Second, func() error { _, err := fetch(http.MethodGet, url, ""); return err }); err != nil {
			return err
		}
	}
	if answer, err := t.pods[0].reach(urls[1]); err != nil {
		return fmt.Errorf("from a pod: %s (%w)", answer, err)
	}
	return nil
}

func (t *selftester) logs() error {
	for _, p := range t.pods {
		if err := run(exec.Command(filepath.Join(t.state.Bin, "kubectl"), "--kubeconfig", t.state.kubeconfig(),
			"--namespace", selftestNamespace, "logs", p.name)); err != nil {
			return err
		}
	}
	return nil
}

func (t *selftester) partitions() error {
	a, b, c := t.pods[0], t.pods[1], t.pods[2]
	if err := t.change(func(s *State) error { return partition(s, a.node, b.node) }); err != nil {
		return err
	}
	defer t.change(func(s *State) error { return heal(s, nil, true) })
	if answer, err := a.reach(b.url("/")); err == nil {
		return fmt.Errorf("%s still reaches %s: %s", a.node, b.node, answer)
	}
	if _, err := a.reach(c.url("/")); err != nil {
		return err
	}
	if err := t.change(func(s *State) error { return heal(s, []string{b.node}, false) }); err != nil {
		return err
	}
	return within(5*time.Second, func() error { _, err := a.reach(b.url("/")); return err })
}

func (t *selftester) isolation() error {
	a, b := t.pods[0], t.pods[1]
	if err := t.change(func(s *State) error { return partition(s, b.node, everything) }); err != nil {
		return err
	}
	defer t.change(func(s *State) error { return heal(s, nil, true) })
	if _, err := a.reach(b.url("/")); err == nil {
		return fmt.Errorf("%s still reaches %s", a.node, b.node)
	}
	if err := t.missed(b); err != nil {
		return err
	}
	if err := t.change(func(s *State) error { return heal(s, []string{b.node}, false) }); err != nil {
		return err
	}
	return t.back(b)
}

// missed waits until a node is not Ready and its pod is no endpoint of the Service.
func (t *selftester) missed(p testPod) error {
	begin := time.Now()
	if err := within(30*time.Second, func() error {
		ready, err := t.api.nodeReady()
		if err == nil && ready[p.node] {
			err = fmt.Errorf("%s is still Ready", p.node)
		}
		for _, n := range t.state.Nodes {
			if err == nil && n.Name != p.node && !ready[n.Name] {
				err = fmt.Errorf("%s is lost, but %s is not Ready either", p.node, n.Name)
			}
		}
		return err
	}); err != nil {
		return err
	}
	say("    %s is not Ready after %.1f s", p.node, time.Since(begin).Seconds())
	if err := t.endpoints(p, false); err != nil {
		return err
	}
	say("    %s is no endpoint after %.1f s", p.name, time.Since(begin).Seconds())
	// From here every connection must be answered.
	time.Sleep(2 * time.Second)
	for range 10 {
		if _, err := fetch(http.MethodGet, "http://"+t.service.Spec.ClusterIP, ""); err != nil {
			return err
		}
	}
	return nil
}

func (t *selftester) endpoints(p testPod, want bool) error {
	return within(selftestWait, func() error {
		var list struct {
			Items []struct {
				Endpoints []struct {
					TargetRef  struct{ Name string }
					Conditions struct{ Ready bool }
				}
			}
		}
		query := "?labelSelector=kubernetes.io/service-name%3Dfront"
		if err := t.api.get("/apis/discovery.k8s.io/v1/namespaces/"+selftestNamespace+"/endpointslices"+query, &list); err != nil {
			return err
		}
		ready := false
		for _, slice := range list.Items {
			for _, e := range slice.Endpoints {
				ready = ready || e.TargetRef.Name == p.name && e.Conditions.Ready
			}
		}
		if ready != want {
			return fmt.Errorf("%s as a ready endpoint: %v", p.name, ready)
		}
		return nil
	})
}

// back waits until a node and its pod serve again.
func (t *selftester) back(p testPod) error {
	if err := t.endpoints(p, true); err != nil {
		return err
	}
	if err := t.threeReady(); err != nil {
		return err
	}
	for _, now := range t.pods {
		if now.name == p.name {
			return within(10*time.Second, func() error { return t.dataThere(now) })
		}
	}
	return fmt.Errorf("pod %s is gone", p.name)
}

func (t *selftester) loss() error {
	p := t.pods[2]
	if err := t.change(func(s *State) error { return stopNode(s, p.node, true) }); err != nil {
		return err
	}
	missed := t.missed(p)
	begin := time.Now()
	if err := t.change(func(s *State) error { return returnNode(s, p.node) }); err != nil {
		return err
	}
	if missed != nil {
		return missed
	}
	err := t.back(p)
	say("    %s serves again %.1f s after its start", p.name, time.Since(begin).Seconds())
	return err
}

func (t *selftester) wipe() error {
	p := t.pods[0]
	if err := t.change(func(s *State) error {
		for i := 1; i <= disksPerNode; i++ {
			if err := wipeDisk(s, p.node, diskName(i)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if answer, err := fetch(http.MethodGet, p.url("/disk"), ""); err == nil {
		return fmt.Errorf("%s still holds %q", p.name, answer)
	}
	_, err := fetch(http.MethodPut, p.url("/disk"), "new")
	return err
}

func (t *selftester) recycled() error {
	if err := t.clean(); err != nil {
		return err
	}
	return within(selftestWait, func() error {
		var list struct {
			Items []struct {
				Metadata struct{ Name string }
				Spec     struct {
					Local    struct{ Path string }
					ClaimRef *struct{ Namespace string }
				}
				Status struct{ Phase string }
			}
		}
		if err := t.api.get("/api/v1/persistentvolumes", &list); err != nil {
			return err
		}
		for _, v := range list.Items {
			if v.Spec.ClaimRef != nil && v.Spec.ClaimRef.Namespace == selftestNamespace {
				return fmt.Errorf("volume %s is %s", v.Metadata.Name, v.Status.Phase)
			}
			if v.Status.Phase == "Available" {
				if left, _ := filepath.Glob(v.Spec.Local.Path + "/*"); len(left) > 0 {
					return fmt.Errorf("volume %s still holds %v", v.Metadata.Name, left)
				}
			}
		}
		return nil
	})
}
