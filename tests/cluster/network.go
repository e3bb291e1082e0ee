package main

// One /16 holds a cluster, here with the default 10.213:
//
//	10.213.0.1            the host, at the end of a veth pair named after the cluster: the only trace outside
//	10.213.0.2            the control machine: the bridge, API server, DNS, and a kube-proxy for the host's traffic
//	10.213.0.(10+i)       node i
//	10.213.(16+i).0/24    the pods of node i
//	10.213.1.0/24         addresses of Services of type LoadBalancer
//	10.213.128.0/17       ClusterIPs
//
// The host reaches Services and NodePorts through the control machine, which no fault touches. Nothing here leads to
// the world outside: pods reach the host and one another.

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

func (s *State) hostIP() string          { return s.Network + ".0.1" }
func (s *State) controlIP() string       { return s.Network + ".0.2" }
func (s *State) nodeIP(n *Node) string   { return fmt.Sprintf("%s.0.%d", s.Network, 10+n.Index) }
func (s *State) podRange(i int) string   { return fmt.Sprintf("%s.%d.0/24", s.Network, 16+i) }
func (s *State) allPods() string         { return s.Network + ".16.0/20" }
func (s *State) services() string        { return s.Network + ".128.0/17" }
func (s *State) serviceIP(i int) string  { return fmt.Sprintf("%s.128.%d", s.Network, i) }
func (s *State) balancers() string       { return s.Network + ".1.0/24" }
func (s *State) balancerIP(i int) string { return fmt.Sprintf("%s.1.%d", s.Network, i) }
func (s *State) server() string          { return "https://" + s.controlIP() + ":6443" }
func (s *State) dnsIP() string           { return s.serviceIP(10) }
func (s *State) hostLink() string        { return s.Name + "0" }

// mac gives every machine an address that stays. A bridge left to itself takes that of one of its ports, another one
// whenever a node comes or goes, and all who know the old one lose the control machine for a while.
func (s *State) mac(index int) string {
	var a, b int
	fmt.Sscanf(s.Network, "%d.%d", &a, &b)
	return fmt.Sprintf("02:71:%02x:%02x:00:%02x", a, b, index)
}

// ip runs a batch of `ip` commands, on the host (pid 0) or in the network of a machine.
func ip(pid int, commands ...string) error {
	cmd := exec.Command("ip", "-batch", "-")
	if pid != 0 {
		cmd = exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid), "ip", "-batch", "-")
	}
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	output, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("failed to set up the network: %w\n%s\nof: %s", err, bytes.TrimSpace(output), strings.Join(commands, "; "))
	}
	return nil
}

// sysctl sets a value of the network of a machine; one that this kernel does not have is left out.
func sysctl(pid int, name, value string) error {
	script := `[ ! -e "$0" ] || echo "$1" > "$0"`
	return run(exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid), "sh", "-c", script, "/proc/sys/net/"+name, value))
}

// podRoutes lead to the pods of every node that there may ever be, but for one that has them itself.
func (s *State) podRoutes(own int) []string {
	var routes []string
	for i := 1; i <= maxNodes; i++ {
		if i != own {
			routes = append(routes, fmt.Sprintf("route add %s via %s", s.podRange(i), s.nodeIP(&Node{Index: i})))
		}
	}
	return routes
}

// checkNetwork refuses a range that the host uses already.
func checkNetwork(s *State) error {
	output, err := exec.Command("ip", "-o", "route", "show", "root", s.Network+".0.0/16").Output()
	if err == nil && len(bytes.TrimSpace(output)) > 0 {
		return fmt.Errorf("this host already has routes into %s.0.0/16; choose other addresses with --network:\n%s", s.Network, output)
	}
	if _, err := os.Stat("/sys/class/net/" + s.hostLink()); err == nil {
		return fmt.Errorf("this host already has a network link %s; choose another --name", s.hostLink())
	}
	return nil
}

func connectControl(s *State) func(pid int) error {
	return func(pid int) error {
		if err := ip(0, fmt.Sprintf("link add %s type veth peer name host netns %d", s.hostLink(), pid)); err != nil {
			return err
		}
		if err := ip(pid, append([]string{
			"link set lo up",
			"link add br0 address " + s.mac(0) + " type bridge",
			"link set host master br0 up",
			"addr add " + s.controlIP() + "/24 dev br0",
			"link set br0 up",
		}, s.podRoutes(0)...)...); err != nil {
			return err
		}
		if err := ip(0, append([]string{
			"addr add " + s.hostIP() + "/24 dev " + s.hostLink(),
			"link set " + s.hostLink() + " up",
			"route add " + s.services() + " via " + s.controlIP(),
			"route add " + s.balancers() + " via " + s.controlIP(),
		}, s.podRoutes(0)...)...); err != nil {
			return err
		}
		if err := sysctl(pid, "ipv4/ip_forward", "1"); err != nil {
			return err
		}
		// What passes the bridge from node to node is no business of this machine's packet filter.
		return sysctl(pid, "bridge/bridge-nf-call-iptables", "0")
	}
}

func connectNode(s *State, n *Node) func(pid int) error {
	return func(pid int) error {
		// The kernel removes the link of a machine that was lost, but not at once.
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			ip(s.Control.PID, "link del "+n.Name)
			err := ip(0, fmt.Sprintf("link add %s netns %d type veth peer name eth0 netns %d", n.Name, s.Control.PID, pid))
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return err
			}
		}
		if err := ip(s.Control.PID, "link set "+n.Name+" master br0 up"); err != nil {
			return err
		}
		if err := ip(pid, append([]string{
			"link set lo up",
			"link set eth0 address " + s.mac(n.Index),
			"addr add " + s.nodeIP(n) + "/24 dev eth0",
			"link set eth0 up",
			"route add default via " + s.controlIP(),
		}, s.podRoutes(n.Index)...)...); err != nil {
			return err
		}
		for _, name := range []string{"ipv4/ip_forward", "bridge/bridge-nf-call-iptables"} {
			if err := sysctl(pid, name, "1"); err != nil {
				return err
			}
		}
		return nil
	}
}
