package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stateRoot holds one folder per cluster. Everything that a cluster writes is below it, but for its control groups.
const stateRoot = "/var/lib/quorumail-cluster"

// maxNodes is how many nodes the addresses of one cluster have room for.
const maxNodes = 9

// State is what the program remembers of a running cluster, in state.json.
type State struct {
	Name    string  `json:"name"`
	Network string  `json:"network"` // the first two numbers of its /16, such as "10.213"
	Bin     string  `json:"bin"`     // the folder of the binaries it runs
	Control Process `json:"control"`
	Nodes   []*Node `json:"nodes"`
	// MadeFolders are the mount points that had to be made on the host and are removed by `down`.
	MadeFolders []string `json:"madeFolders,omitempty"`
}

// Node is one machine of the cluster that runs pods.
type Node struct {
	Name    string  `json:"name"`
	Index   int     `json:"index"` // from 1; decides its addresses
	Zone    string  `json:"zone"`
	Process Process `json:"process"`
	// CutFrom lists the nodes it was partitioned from; "*" stands for everything.
	CutFrom []string `json:"cutFrom,omitempty"`
}

// Process names one process for good: ids are reused, an id with its start time and boot is not.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot
	Boot  string `json:"boot"`
}

func (s *State) dir(parts ...string) string {
	return filepath.Join(append([]string{stateRoot, s.Name}, parts...)...)
}

func (s *State) kubeconfig() string { return s.dir("kubeconfig") }

func (s *State) node(name string) (*Node, error) {
	var names []string
	for _, n := range s.Nodes {
		if n.Name == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	return nil, fmt.Errorf("cluster %s has no node %q; it has %s", s.Name, name, strings.Join(names, ", "))
}

func (s *State) save() error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(s.dir("state.json"), data, 0o600)
}

// loadState returns nil when there is no such cluster.
func loadState(name string) (*State, error) {
	data, err := os.ReadFile(filepath.Join(stateRoot, name, "state.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &State{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("failed to read the state of cluster %s: %w", name, err)
	}
	return s, nil
}

// running returns the cluster, or an error that says how to start it.
func running(name string) (*State, error) {
	s, err := loadState(name)
	if err != nil {
		return nil, err
	}
	if s == nil || !s.Control.alive() {
		return nil, fmt.Errorf("cluster %s is not running; start it with `cluster up --name %s`", name, name)
	}
	return s, nil
}

// writeFile replaces the file in one step, so that a reader never sees half of it.
func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(temporary, data, mode); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// lockCluster lets one command at a time change a cluster. The lock is released when the process ends.
func lockCluster(name string) (unlock func(), err error) {
	path := "/run/quorumail-cluster." + name + ".lock"
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			say("waiting for another command on cluster %s", name)
			if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
				return nil, err
			}
		}
		// The one who held it may have removed the file.
		mine, err1 := f.Stat()
		now, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, now) {
			return func() { os.Remove(path); f.Close() }, nil
		}
		f.Close()
	}
}

func bootID() string {
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data))
}

// identify reads the start time of a running process.
func identify(pid int) (Process, error) {
	start, state, err := processStat(pid)
	if err != nil {
		return Process{}, err
	}
	if state == "Z" {
		return Process{}, fmt.Errorf("process %d has ended", pid)
	}
	return Process{PID: pid, Start: start, Boot: bootID()}, nil
}

func processStat(pid int) (start uint64, state string, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, "", err
	}
	// The name of the program, in brackets, may hold anything; the fields after it are numbered from 3.
	text := string(data)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return 0, "", fmt.Errorf("unreadable /proc/%d/stat", pid)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0], err
}

func (p Process) alive() bool {
	if p.PID == 0 || p.Boot != bootID() {
		return false
	}
	start, state, err := processStat(p.PID)
	return err == nil && start == p.Start && state != "Z"
}

// signal sends a signal to exactly this process; one that has ended is no error.
func (p Process) signal(sig syscall.Signal) error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, sig); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("failed to signal process %d: %w", p.PID, err)
	}
	return nil
}

func (p Process) waitEnd(limit time.Duration) bool {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if !p.alive() {
			return true
		}
	}
	return !p.alive()
}
