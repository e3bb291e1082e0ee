package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// cgroupMounts lists the hierarchies: one on cgroup v2; on v1 one for each controller and perhaps a v2 one beside them.
func cgroupMounts() (mounts []string, unified bool, err error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, false, err
	}
	for _, line := range strings.Split(string(data), "\n") {
		before, after, found := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if !found || len(fields) < 5 || !strings.HasPrefix(fields[4], "/sys/fs/cgroup") {
			continue
		}
		switch {
		case strings.HasPrefix(after, "cgroup2 ") && fields[4] == "/sys/fs/cgroup":
			return []string{fields[4]}, true, nil
		case strings.HasPrefix(after, "cgroup ") || strings.HasPrefix(after, "cgroup2 "):
			mounts = append(mounts, fields[4])
		}
	}
	if len(mounts) == 0 {
		return nil, false, fmt.Errorf("no control groups are mounted below /sys/fs/cgroup")
	}
	return mounts, false, nil
}

func (s *State) cgroupName() string { return "quorumail-" + s.Name }

// makeCgroup makes the control group below which a kubelet keeps its pods, with all controllers usable in it.
func makeCgroup(s *State, node string) (string, error) {
	mounts, unified, err := cgroupMounts()
	if err != nil {
		return "", err
	}
	for _, mount := range mounts {
		parent := mount
		for _, part := range []string{s.cgroupName(), node} {
			if unified {
				if err := enableControllers(parent); err != nil {
					return "", err
				}
			}
			child := filepath.Join(parent, part)
			if err := os.MkdirAll(child, 0o755); err != nil {
				return "", err
			}
			if !unified {
				// A group without processors and memory nodes of its own takes no process.
				for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
					if value, err := os.ReadFile(filepath.Join(parent, file)); err == nil {
						if err := os.WriteFile(filepath.Join(child, file), value, 0o644); err != nil {
							return "", err
						}
					}
				}
			}
			parent = child
		}
	}
	return "/" + s.cgroupName() + "/" + node, nil
}

// systemCgroup holds what machines run beside pods. Whoever started the cluster may end, with its group.
const systemCgroup = "system"

// joinCgroup moves a process, and so all its children, into a control group of the cluster.
func joinCgroup(s *State, name string, pid int) error {
	group, err := makeCgroup(s, name)
	if err != nil {
		return err
	}
	mounts, _, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		if err := os.WriteFile(filepath.Join(mount, group, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0o644); err != nil {
			return fmt.Errorf("failed to move process %d into a control group: %w", pid, err)
		}
	}
	return nil
}

// enableControllers passes every controller of a v2 group on to its children.
func enableControllers(group string) error {
	available, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, controller := range strings.Fields(string(available)) {
		err := os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		if err != nil {
			switch controller {
			case "cpu", "memory", "pids", "cpuset":
				return fmt.Errorf("failed to pass the controller %s on from %s: %w (in a container, start it with its own "+
					"control group and move its processes into a child group first)", controller, group, err)
			}
		}
	}
	return nil
}

// removeCgroups removes the groups below a cluster's or a node's that has ended, the innermost first.
func removeCgroups(name string) error {
	mounts, _, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		root := filepath.Join(mount, name)
		var groups []string
		filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				groups = append(groups, path)
			}
			return nil
		})
		for i := len(groups) - 1; i >= 0; i-- {
			// Processes that were just killed leave their group a moment later.
			deadline := time.Now().Add(5 * time.Second)
			for {
				err := syscall.Rmdir(groups[i])
				if err == nil || err == syscall.ENOENT {
					break
				}
				if err != syscall.EBUSY || time.Now().After(deadline) {
					return fmt.Errorf("failed to remove the control group %s: %w", groups[i], err)
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
	return nil
}
