package main

// What a provider of clusters does beside Kubernetes: volumes that were released are emptied and offered again, and
// Services of type LoadBalancer get an address. One loop on the control machine.

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const housekeepingPause = time.Second

// housekeeping is the hidden verb `housekeeping`.
func housekeeping(name string) error {
	var api *API
	told := ""
	for ; ; time.Sleep(housekeepingPause) {
		s, err := loadState(name)
		if err == nil && s != nil {
			if api == nil {
				api, err = newAPI(s)
			}
			if err == nil {
				err = recycle(s, api)
			}
			if err == nil {
				err = giveAddresses(s, api)
			}
		}
		if err != nil && err.Error() != told {
			told = err.Error()
			note("%v", err)
		}
	}
}

func diskName(i int) string { return fmt.Sprintf("d%d", i) }

func (s *State) disk(node, disk string) string { return s.dir("nodes", node, "disks", disk) }

// emptyDisk removes all that is on a disk. The folder itself stays, since pods may have it mounted.
func emptyDisk(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(folder, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// recycle empties the released volumes of nodes that are Ready and makes them available again. A node that is not may
// still run a pod that writes.
func recycle(s *State, api *API) error {
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ Local *struct{ Path string } }
			Status   struct{ Phase string }
		}
	}
	// Version 0: from the API server's memory, which costs it little.
	if err := api.get("/api/v1/persistentvolumes?resourceVersion=0", &list); err != nil {
		return err
	}
	var ready map[string]bool
	for _, volume := range list.Items {
		if volume.Status.Phase != "Released" || volume.Spec.Local == nil {
			continue
		}
		if ready == nil {
			var err error
			if ready, err = api.nodeReady(); err != nil {
				return err
			}
		}
		for _, n := range s.Nodes {
			for i := 1; i <= disksPerNode; i++ {
				folder := s.disk(n.Name, diskName(i))
				if volume.Spec.Local.Path != folder || !ready[n.Name] {
					continue
				}
				if err := freshDisk(folder); err != nil {
					return err
				}
				free := object{"spec": object{"claimRef": nil}}
				if err := api.call(http.MethodPatch, "/api/v1/persistentvolumes/"+volume.Metadata.Name, free, nil); err != nil {
					return err
				}
				note("volume %s emptied", volume.Metadata.Name)
			}
		}
	}
	return nil
}

// freshDisk replaces a disk that nobody uses any more by a new one, with its first owner and rights.
func freshDisk(folder string) error {
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	return os.MkdirAll(folder, 0o755)
}

// giveAddresses gives every Service of type LoadBalancer an address that the host and all pods reach.
func giveAddresses(s *State, api *API) error {
	type address struct {
		IP string `json:"ip"`
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name, Namespace string }
			Spec     struct{ Type string }
			Status   struct {
				LoadBalancer struct{ Ingress []address }
			}
		}
	}
	if err := api.get("/api/v1/services?resourceVersion=0", &list); err != nil {
		return err
	}
	used := map[string]bool{}
	for _, service := range list.Items {
		for _, a := range service.Status.LoadBalancer.Ingress {
			used[a.IP] = true
		}
	}
	for _, service := range list.Items {
		if service.Spec.Type != "LoadBalancer" || len(service.Status.LoadBalancer.Ingress) > 0 {
			continue
		}
		free := 1
		for used[s.balancerIP(free)] {
			free++
		}
		if free > 254 {
			return fmt.Errorf("no address is left for Service %s/%s", service.Metadata.Namespace, service.Metadata.Name)
		}
		used[s.balancerIP(free)] = true
		path := fmt.Sprintf("/api/v1/namespaces/%s/services/%s/status", service.Metadata.Namespace, service.Metadata.Name)
		status := object{"status": object{"loadBalancer": object{"ingress": []address{{s.balancerIP(free)}}}}}
		if err := api.call(http.MethodPatch, path, status, nil); err != nil {
			return err
		}
	}
	return nil
}
