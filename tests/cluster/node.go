package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

const (
	pauseImage = "quorumail.test/pause:1"
	// disksPerNode is how many local PersistentVolumes every node offers.
	disksPerNode = 4
	podsPerNode  = 60
)

// nodeMounts are the folders that kubelet and CNI use whatever they are told, each node with its own.
var nodeMounts = []string{"/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers"}

// hiddenSysctls are what a kubelet would change for the whole host. It sees them as already set.
var hiddenSysctls = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0",
	"kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

const containerdConfig = `version = 2
root = %q
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  disable_apparmor = true
  max_concurrent_downloads = 1
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = %q
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = %q
      SystemdCgroup = false
`

func newNode(index int) *Node {
	letter := string(rune('a' + index - 1))
	return &Node{Name: "node-" + letter, Index: index, Zone: letter}
}

// bootNode starts the machine of a node, for the first time or again.
func bootNode(s *State, n *Node) error {
	own := func(parts ...string) string { return s.dir(append([]string{"nodes", n.Name}, parts...)...) }
	if _, err := os.Stat(s.dir("pki", n.Name+".kubeconfig")); err != nil {
		if err := issueNode(s, n); err != nil {
			return err
		}
	}
	for i := 1; i <= disksPerNode; i++ {
		if err := os.MkdirAll(s.disk(n.Name, diskName(i)), 0o755); err != nil {
			return err
		}
	}
	// After the start of a computer there are no groups of what it ran before; a kubelet stumbles over them.
	if err := removeCgroups(filepath.Join(s.cgroupName(), n.Name)); err != nil {
		return err
	}
	cgroup, err := makeCgroup(s, n.Name)
	if err != nil {
		return err
	}
	containerd := fmt.Sprintf(containerdConfig, own("containerd"), pauseImage, filepath.Join(s.Bin, "cni"), own("cni"),
		snapshotter(), filepath.Join(s.Bin, "runc"))
	if err := writeFile(own("containerd.toml"), []byte(containerd), 0o644); err != nil {
		return err
	}
	if err := writeJSON(own("cni", "10-pods.conflist"), cniConfig(s, n)); err != nil {
		return err
	}
	if err := writeJSON(own("kubelet.json"), kubeletConfig(s, n, cgroup)); err != nil {
		return err
	}
	// For pods that want no cluster DNS, and for the kubelet: still no name server of the host.
	if err := writeFile(s.dir("resolv.conf"), []byte("nameserver "+s.controlIP()+"\n"), 0o644); err != nil {
		return err
	}
	proxy, err := proxyArgs(s, n.Name, n.Name)
	if err != nil {
		return err
	}
	m := &Machine{
		Hostname: n.Name,
		Logs:     s.dir("logs", n.Name),
		Binds:    map[string]string{},
		Sysctls:  hiddenSysctls,
		Services: []Service{
			{Name: "containerd", Wait: "unix:/run/containerd/containerd.sock",
				Args: []string{filepath.Join(s.Bin, "containerd"), "--config", own("containerd.toml"), "--log-level", "warn"}},
			{Name: "kubelet", Args: []string{filepath.Join(s.Bin, "kubelet"),
				"--config=" + own("kubelet.json"), "--kubeconfig=" + s.dir("pki", n.Name+".kubeconfig"),
				"--hostname-override=" + n.Name, "--node-ip=" + s.nodeIP(n),
				"--node-labels=topology.kubernetes.io/zone=" + n.Zone + ",topology.kubernetes.io/region=local"}},
			{Name: "kube-proxy", Args: proxy},
		},
	}
	for _, point := range nodeMounts {
		m.Binds[point] = own("var", filepath.Base(filepath.Dir(point))+"-"+filepath.Base(point))
	}
	n.Process, err = startMachine(s, n.Name, m, connectNode(s, n))
	return err
}

func kubeletConfig(s *State, n *Node, cgroup string) any {
	type object = map[string]any
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"authentication": object{"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": s.dir("pki", "ca.crt")}},
		"authorization":          object{"mode": "Webhook"},
		"tlsCertFile":            s.dir("pki", n.Name+".crt"),
		"tlsPrivateKeyFile":      s.dir("pki", n.Name+".key"),
		"clusterDNS":             []string{s.dnsIP()},
		"clusterDomain":          "cluster.local",
		"resolvConf":             s.dir("resolv.conf"),
		"cgroupDriver":           "cgroupfs",
		"cgroupRoot":             cgroup,
		"failCgroupV1":           false,
		"failSwapOn":             false,
		"enforceNodeAllocatable": []string{"none"},
		"maxPods":                podsPerNode,
		// Together with the controller manager's 16 s: a node is missed soon, at little load.
		"nodeStatusUpdateFrequency": "4s",
		"nodeStatusReportFrequency": "1m",
		"nodeLeaseDurationSeconds":  16,
		// All nodes share one disk, which no node may clear or refuse to use.
		"evictionHard":                object{"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%"},
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
	}
}

func cniConfig(s *State, n *Node) any {
	type object = map[string]any
	return object{
		"cniVersion": "1.0.0", "name": "pods",
		"plugins": []object{
			{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
				"ipMasq": false, // pods see one another's own addresses
				"ipam": object{
					"type": "host-local", "dataDir": "/run/cni",
					"ranges": [][]object{{{"subnet": s.podRange(n.Index)}}},
					"routes": []object{{"dst": "0.0.0.0/0"}},
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}
}

// proxyArgs writes the configuration of a kube-proxy that runs on a machine and takes itself for node.
func proxyArgs(s *State, machine, node string) ([]string, error) {
	type object = map[string]any
	config := s.dir("machines", machine+".proxy.json")
	err := writeJSON(config, object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection": object{"kubeconfig": s.dir("pki", "proxy.kubeconfig")},
		"mode":             "iptables",
		"clusterCIDR":      s.allPods(),
		"hostnameOverride": node,
		"conntrack":        object{"maxPerCore": 0, "min": 0}, // belongs to the host
	})
	return []string{filepath.Join(s.Bin, "kube-proxy"), "--config=" + config}, err
}

func writeJSON(path string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(data, '\n'), 0o644)
}

// makeMountPoints makes what a node mounts over and the host lacks, and remembers it for `down`.
func makeMountPoints(s *State) error {
	for _, point := range nodeMounts {
		if _, err := os.Stat(point); err == nil {
			continue
		}
		s.MadeFolders = append(s.MadeFolders, point)
		if err := os.MkdirAll(point, 0o755); err != nil {
			return err
		}
	}
	return nil
}
