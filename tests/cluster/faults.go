package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// everything stands for the whole network in a partition.
const everything = "*"

// stopNode shuts a node down; hard, it is lost at once with all it runs, as by a power cut.
func stopNode(s *State, name string, hard bool) error {
	n, err := s.node(name)
	if err != nil {
		return err
	}
	if !hard {
		if err := n.Process.signal(syscall.SIGTERM); err != nil {
			return err
		}
		if n.Process.waitEnd(shutdownGrace + 2*time.Second) {
			return nil
		}
	}
	return killMachine(n.Process)
}

// killMachine ends a machine's first process, with which the kernel ends all others of it.
func killMachine(p Process) error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	if !p.waitEnd(20 * time.Second) {
		return fmt.Errorf("process %d does not end", p.PID)
	}
	return nil
}

func startNode(s *State, name string) error {
	n, err := s.node(name)
	if err != nil {
		return err
	}
	if n.Process.alive() {
		return nil
	}
	if err := bootNode(s, n); err != nil {
		return err
	}
	// A partition outlasts the start of a node.
	for _, other := range n.CutFrom {
		if err := cut(s, n, other); err != nil {
			return err
		}
	}
	return nil
}

// returnNode starts a node and waits until it is Ready.
func returnNode(s *State, name string) error {
	if err := startNode(s, name); err != nil {
		return err
	}
	if err := s.save(); err != nil { // before the wait, which may be interrupted
		return err
	}
	n, err := s.node(name)
	if err != nil {
		return err
	}
	api, err := newAPI(s)
	if err != nil {
		return err
	}
	return waitNodes(s, api, []*Node{n})
}

// apiServer is the service of the control machine that stopAPI ends.
const apiServer = "kube-apiserver"

// stopAPI ends the API server at once and keeps it from coming back; everything else goes on.
func stopAPI(s *State) error {
	if err := os.WriteFile(inControl(s, holdFile(apiServer)), nil, 0o600); err != nil {
		return err
	}
	process, err := serviceProcess(s.Control, apiServer)
	if err != nil {
		return err // it is stopped already, or just being started again, which the file prevents from now on
	}
	return killMachine(process)
}

// startAPI lets the API server come back, and waits until it answers.
func startAPI(s *State) error {
	if err := os.Remove(inControl(s, holdFile(apiServer))); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	api, err := newAPI(s)
	if err != nil {
		return err
	}
	return wait("the API server", func() error { return api.call("GET", "/readyz", nil, nil) })
}

// inControl is where this process sees a file of the control machine.
func inControl(s *State, path string) string {
	return fmt.Sprintf("/proc/%d/root%s", s.Control.PID, path)
}

// serviceProcess finds the process of a service by its parent, the machine's init, and its program.
func serviceProcess(machine Process, service string) (Process, error) {
	// Each thread of the init has children of its own.
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", machine.PID))
	if err != nil {
		return Process{}, err
	}
	for _, list := range lists {
		pids, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(pids)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return Process{}, err
			}
			program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			if err == nil && filepath.Base(program) == service {
				return identify(pid)
			}
		}
	}
	return Process{}, fmt.Errorf("no %s is running", service)
}

func execInNode(cluster, name string, args []string) error {
	s, err := running(cluster)
	if err != nil {
		return err
	}
	n, err := s.node(name)
	if err != nil {
		return err
	}
	if !n.Process.alive() {
		return fmt.Errorf("node %s is stopped", name)
	}
	cmd := inMachine(n.Process, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "PATH="+s.Bin+":"+os.Getenv("PATH"))
	return cmd.Run()
}

// partition cuts a node and its pods off from everything, or from one other node and its pods, in both directions.
func partition(s *State, name, other string) error {
	n, err := s.node(name)
	if err != nil {
		return err
	}
	pairs := [][2]any{{n, other}}
	if other != everything {
		peer, err := s.node(other)
		if err != nil {
			return err
		}
		pairs = append(pairs, [2]any{peer, name})
	}
	for _, pair := range pairs {
		n, from := pair[0].(*Node), pair[1].(string)
		if slices.Contains(n.CutFrom, from) {
			continue
		}
		if n.Process.alive() {
			if err := cut(s, n, from); err != nil {
				return err
			}
		}
		n.CutFrom = append(n.CutFrom, from)
	}
	return nil
}

func cut(s *State, n *Node, other string) error {
	if other == everything {
		return ip(s.Control.PID, "link set "+n.Name+" down")
	}
	return dropFrom(s, n, other, "-I")
}

func join(s *State, n *Node, other string) error {
	if other == everything {
		return ip(s.Control.PID, "link set "+n.Name+" up")
	}
	return dropFrom(s, n, other, "-D")
}

// dropFrom adds or removes the rules by which a node drops what comes from another node and its pods.
func dropFrom(s *State, n *Node, other, action string) error {
	peer, err := s.node(other)
	if err != nil {
		return err
	}
	for _, source := range []string{s.nodeIP(peer), s.podRange(peer.Index)} {
		args := strings.Fields("iptables -w -t raw " + action + " PREROUTING -s " + source + " -j DROP")
		if err := run(inMachine(n.Process, args...)); err != nil {
			return err
		}
	}
	return nil
}

// heal ends every partition that the named nodes take part in.
func heal(s *State, names []string, all bool) error {
	for _, name := range names {
		if _, err := s.node(name); err != nil {
			return err
		}
	}
	for _, n := range s.Nodes {
		var left []string
		for _, other := range n.CutFrom {
			if !all && !slices.Contains(names, n.Name) && !slices.Contains(names, other) {
				left = append(left, other)
				continue
			}
			if n.Process.alive() {
				if err := join(s, n, other); err != nil {
					return err
				}
			}
		}
		n.CutFrom = left
	}
	return nil
}

func wipeDisk(s *State, node, disk string) error {
	n, err := s.node(node)
	if err != nil {
		return err
	}
	folder := s.disk(n.Name, disk)
	for i := 1; i <= disksPerNode; i++ {
		if disk == diskName(i) {
			return emptyDisk(folder)
		}
	}
	return fmt.Errorf("node %s has no disk %q; it has %s to %s", node, disk, diskName(1), diskName(disksPerNode))
}
