package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// corednsUser may read what cluster DNS answers from.
const corednsUser = "system:coredns"

const corefile = `.:53 {
    errors
    ready 127.0.0.1:8181
    cache {
        success 9984 5
        denial 9984 1
    }
    kubernetes cluster.local in-addr.arpa {
        kubeconfig %s
        pods insecure
        ttl 5
        fallthrough in-addr.arpa
    }
    auto {
        directory %s
        reload 2s
    }
    template ANY ANY . {
        rcode NXDOMAIN
    }
}
`

// startControl starts the control machine: the bridge, etcd, the control plane, DNS and this program's housekeeping.
func startControl(s *State) error {
	if _, err := issueControlPlane(s); err != nil {
		return err
	}
	// Zone files put here (db.example.test) are served inside the cluster; every other outside name does not exist.
	if err := os.MkdirAll(s.dir("zones"), 0o755); err != nil {
		return err
	}
	dns := fmt.Sprintf(corefile, s.dir("pki", "coredns.kubeconfig"), s.dir("zones"))
	if err := writeFile(s.dir("Corefile"), []byte(dns), 0o644); err != nil {
		return err
	}
	proxy, err := proxyArgs(s, "control", "node-a")
	if err != nil {
		return err
	}
	bin := func(program string, args ...string) []string {
		return append([]string{filepath.Join(s.Bin, program)}, args...)
	}
	pki := func(file string) string { return s.dir("pki", file) }
	m := &Machine{
		Hostname: s.Name + "-control",
		Logs:     s.dir("logs", "control"),
		Services: []Service{
			{Name: "etcd", Wait: "tcp:127.0.0.1:2379", Args: bin("etcd",
				"--name=control",
				"--data-dir=/run/etcd", // in memory: a control plane ends with its cluster
				"--listen-client-urls=http://127.0.0.1:2379",
				"--advertise-client-urls=http://127.0.0.1:2379",
				"--listen-peer-urls=http://127.0.0.1:2380",
				"--initial-advertise-peer-urls=http://127.0.0.1:2380",
				"--initial-cluster=control=http://127.0.0.1:2380",
				"--unsafe-no-fsync",
				"--auto-compaction-mode=periodic", "--auto-compaction-retention=10m",
				"--log-level=warn", "--logger=zap")},
			{Name: "kube-apiserver", Wait: "tcp:" + s.controlIP() + ":6443", Args: bin("kube-apiserver",
				"--advertise-address="+s.controlIP(), "--secure-port=6443",
				"--etcd-servers=http://127.0.0.1:2379", "--etcd-compaction-interval=0",
				"--authorization-mode=Node,RBAC", "--allow-privileged=true",
				"--client-ca-file="+pki("ca.crt"),
				"--tls-cert-file="+pki("apiserver.crt"), "--tls-private-key-file="+pki("apiserver.key"),
				"--kubelet-certificate-authority="+pki("ca.crt"),
				"--kubelet-client-certificate="+pki("kubelet-client.crt"), "--kubelet-client-key="+pki("kubelet-client.key"),
				"--kubelet-preferred-address-types=InternalIP",
				"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
				"--service-account-key-file="+pki("service-accounts.key"),
				"--service-account-signing-key-file="+pki("service-accounts.key"),
				"--service-cluster-ip-range="+s.services(),
				"--requestheader-client-ca-file="+pki("ca.crt"), "--requestheader-allowed-names=front-proxy-client",
				"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
				"--requestheader-extra-headers-prefix=X-Remote-Extra-",
				"--proxy-client-cert-file="+pki("front-proxy.crt"), "--proxy-client-key-file="+pki("front-proxy.key"),
				"--enable-priority-and-fairness=false", "--profiling=false")},
			{Name: "kube-controller-manager", Args: bin("kube-controller-manager",
				"--kubeconfig="+pki("controller-manager.kubeconfig"),
				"--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false",
				"--root-ca-file="+pki("ca.crt"),
				"--service-account-private-key-file="+pki("service-accounts.key"),
				"--cluster-signing-cert-file="+pki("ca.crt"), "--cluster-signing-key-file="+pki("ca.key"),
				"--allocate-node-cidrs=false",
				// A lost node is known after at most this time; kubelets report every 4 s.
				"--node-monitor-grace-period=16s", "--node-monitor-period=2s")},
			{Name: "kube-scheduler", Args: bin("kube-scheduler",
				"--kubeconfig="+pki("scheduler.kubeconfig"),
				"--authentication-kubeconfig="+pki("scheduler.kubeconfig"),
				"--authorization-kubeconfig="+pki("scheduler.kubeconfig"),
				"--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false")},
			{Name: "kube-proxy", Args: proxy},
			{Name: "coredns", Args: bin("coredns", "-conf", s.dir("Corefile"))},
			{Name: "housekeeping", Args: []string{"/proc/self/exe", "housekeeping", s.Name}},
		},
	}
	s.Control, err = startMachine(s, "control", m, connectControl(s))
	return err
}
