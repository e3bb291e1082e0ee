package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// readyWait is how long `up` waits for the API server and then for the nodes.
const readyWait = 2 * time.Minute

var validNetwork = regexp.MustCompile(`^\d{1,3}\.\d{1,3}$`)

// up starts a cluster, or whatever is missing of it, and returns when it can be used.
func up(o *options) error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster needs root: it makes namespaces, mounts and network links")
	}
	cache, err := build()
	if err != nil {
		return err
	}
	unlock, err := lockCluster(o.name)
	if err != nil {
		return err
	}
	defer unlock()
	begin := time.Now()
	s, err := loadState(o.name)
	if err != nil {
		return err
	}
	if s != nil && !s.Control.alive() {
		say("removing what is left of the cluster %s that ended without `down`", s.Name)
		if err := remove(s); err != nil {
			return err
		}
		s = nil
	}
	if s == nil {
		if s, err = begun(o, cache); err != nil {
			return err
		}
	}
	for len(s.Nodes) < o.nodes {
		s.Nodes = append(s.Nodes, newNode(len(s.Nodes)+1))
	}
	if len(s.Nodes) > o.nodes {
		say("the cluster has %d nodes already and keeps them", len(s.Nodes))
	}
	var booted []*Node
	for _, n := range s.Nodes {
		if n.Process.alive() {
			continue
		}
		if err := startNode(s, n.Name); err != nil {
			return errors.Join(err, s.save())
		}
		booted = append(booted, n)
		if err := s.save(); err != nil {
			return err
		}
	}
	if err := makeUsable(s, cache, booted); err != nil {
		return fmt.Errorf("%w\nlogs are in %s", err, s.dir("logs"))
	}
	say("cluster %s is ready after %s: %d nodes\nexport KUBECONFIG=%s", s.Name, time.Since(begin).Round(100*time.Millisecond), len(s.Nodes), s.kubeconfig())
	fmt.Println(s.kubeconfig())
	return nil
}

// begun starts the control machine of a new cluster.
func begun(o *options, cache string) (*State, error) {
	if !validNetwork.MatchString(o.network) {
		return nil, fmt.Errorf("%q is not the first half of an address, such as 10.213", o.network)
	}
	s := &State{Name: o.name, Network: o.network, Bin: filepath.Join(cache, "bin")}
	if err := checkNetwork(s); err != nil {
		return nil, err
	}
	// A folder without state.json is from a start that failed at once.
	if err := os.RemoveAll(s.dir()); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.dir(), 0o711); err != nil {
		return nil, err
	}
	err := makeMountPoints(s)
	if err == nil {
		err = startControl(s)
	}
	return s, errors.Join(err, s.save())
}

// makeUsable waits for the API server, creates what belongs to every cluster, loads its images and waits for nodes.
func makeUsable(s *State, cache string, booted []*Node) error {
	var loading sync.WaitGroup
	var loadError error
	loading.Add(1)
	go func() {
		defer loading.Done()
		if len(booted) > 0 {
			loadError = load(s, booted, ownImage(cache, "pause"), ownImage(cache, "testimage"))
		}
	}()
	api, err := newAPI(s)
	if err != nil {
		return err
	}
	if err := wait("the API server", func() error { return api.call("GET", "/readyz", nil, nil) }); err != nil {
		return err
	}
	if err := wait("the cluster's own objects", func() error { return ensureObjects(s, api) }); err != nil {
		return err
	}
	if err := wait("the default service account", func() error {
		return api.get("/api/v1/namespaces/default/serviceaccounts/default", nil)
	}); err != nil {
		return err
	}
	loading.Wait()
	if loadError != nil {
		return loadError
	}
	return waitNodes(s, api, s.Nodes)
}

// waitNodes waits until nodes are Ready, but for those that are cut off.
func waitNodes(s *State, api *API, nodes []*Node) error {
	return wait("the nodes", func() error {
		ready, err := api.nodeReady()
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if len(n.CutFrom) > 0 {
				continue
			}
			// The API server may not have noticed yet that the node was away.
			if !ready[n.Name] || !answers("tcp:"+s.nodeIP(n)+":10250", time.Second) {
				return fmt.Errorf("node %s is not Ready", n.Name)
			}
		}
		return nil
	})
}

// wait repeats a step until it succeeds.
func wait(what string, step func() error) error {
	for deadline := time.Now().Add(readyWait); ; time.Sleep(100 * time.Millisecond) {
		err := step()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s for %s: %w", readyWait, what, err)
		}
	}
}

// down ends a cluster and removes all that it made on this host.
func down(name string) error {
	unlock, err := lockCluster(name)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := loadState(name)
	if err != nil {
		return err
	}
	if s == nil {
		s = &State{Name: name} // a start that failed at once may have left a folder
	}
	return remove(s)
}

func remove(s *State) error {
	machines := []Process{s.Control}
	for _, n := range s.Nodes {
		machines = append(machines, n.Process)
	}
	errs := make([]error, len(machines))
	var wg sync.WaitGroup
	for i, p := range machines {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[i] = killMachine(p)
		}()
	}
	wg.Wait()
	// With the machines went their namespaces and mounts. The link goes with its routes, but by itself only when the
	// last half-closed connection in its other namespace has timed out.
	if s.Control.PID != 0 {
		ip(0, "link del "+s.hostLink())
	}
	errs = append(errs, removeCgroups(s.cgroupName()))
	for i := len(s.MadeFolders) - 1; i >= 0; i-- {
		if err := os.Remove(s.MadeFolders[i]); err != nil && !errors.Is(err, os.ErrNotExist) {
			say("left in place: %v", err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if s.Control.PID != 0 {
		if err := waitLinkGone(s); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(s.dir()); err != nil {
		return err
	}
	os.Remove(stateRoot) // unless other clusters are in it
	return nil
}

func waitLinkGone(s *State) error {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat("/sys/class/net/" + s.hostLink()); err != nil {
			return nil
		}
	}
	return fmt.Errorf("the network link %s is still there", s.hostLink())
}

// nodeStatus is one node as `cluster status -o json` tells it.
type nodeStatus struct {
	Name    string   `json:"name"`
	Zone    string   `json:"zone"`
	Address string   `json:"address"`
	Pods    string   `json:"pods"`
	Running bool     `json:"running"`
	Ready   bool     `json:"ready"`
	CutFrom []string `json:"cutFrom"`
	PID     int      `json:"pid"`
}

func status(o *options) error {
	s, err := running(o.name)
	if err != nil {
		return err
	}
	api, err := newAPI(s)
	if err != nil {
		return err
	}
	ready, apiError := api.nodeReady()
	var nodes []nodeStatus
	for _, n := range s.Nodes {
		nodes = append(nodes, nodeStatus{n.Name, n.Zone, s.nodeIP(n), s.podRange(n.Index), n.Process.alive(),
			ready[n.Name], append([]string{}, n.CutFrom...), n.Process.PID})
	}
	if o.output == "json" {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(struct {
			Name       string       `json:"name"`
			Kubeconfig string       `json:"kubeconfig"`
			Bin        string       `json:"bin"`
			Server     string       `json:"server"`
			NodePortIP string       `json:"nodePortIP"` // answers NodePorts whichever nodes are lost
			HostIP     string       `json:"hostIP"`     // this host as pods see it
			Zones      string       `json:"zones"`      // folder of DNS zone files
			Logs       string       `json:"logs"`
			APIReady   bool         `json:"apiReady"`
			Nodes      []nodeStatus `json:"nodes"`
		}{s.Name, s.kubeconfig(), s.Bin, s.server(), s.controlIP(), s.hostIP(), s.dir("zones"), s.dir("logs"), apiError == nil, nodes})
	}
	if apiError != nil {
		say("the API server does not answer: %v", apiError)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tZONE\tADDRESS\tPODS\tRUNNING\tREADY\tCUT FROM")
	for _, n := range nodes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%v\t%v\t%s\n", n.Name, n.Zone, n.Address, n.Pods, n.Running, n.Ready, strings.Join(n.CutFrom, ","))
	}
	return w.Flush()
}
