package main

// A machine is a process tree of its own: the first process is this program again, as init of new process, mount,
// network and host name namespaces. To lose a machine is to kill that one process: the kernel then ends everything in
// it at once - kubelet, containerd, shims, containers - and frees its mounts and links.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Machine describes what the init of a machine sets up and runs.
type Machine struct {
	Hostname string
	Logs     string            // folder of the logs
	Binds    map[string]string // mount point to the folder shown there
	Sysctls  map[string]string // settings of the kernel it sees in /proc/sys, whatever the host has
	Services []Service
}

// Service is one program that a machine keeps running.
type Service struct {
	Name string
	Args []string
	Env  []string
	// Wait, if set, is the socket that must answer before the next service starts: "unix:/path" or "tcp:host:port".
	Wait string
}

// serviceWait is how long a service may take to open its socket.
const serviceWait = 60 * time.Second

const (
	restartPause    = time.Second
	restartPauseMax = 10 * time.Second
	// shutdownGrace is how long the processes of a machine get between SIGTERM and SIGKILL.
	shutdownGrace = 8 * time.Second
)

// startMachine starts the machine's init and calls connect, which gives it its network, before the services start.
func startMachine(s *State, name string, m *Machine, connect func(pid int) error) (Process, error) {
	if err := os.MkdirAll(m.Logs, 0o755); err != nil {
		return Process{}, err
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return Process{}, err
	}
	spec := s.dir("machines", name+".json")
	if err := writeFile(spec, data, 0o600); err != nil {
		return Process{}, err
	}
	log, err := os.OpenFile(filepath.Join(m.Logs, "init.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return Process{}, err
	}
	defer log.Close()
	readGo, writeGo, err := os.Pipe()
	if err != nil {
		return Process{}, err
	}
	defer writeGo.Close()
	cmd := exec.Command("/proc/self/exe", "machine", spec)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + s.Bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	cmd.ExtraFiles = []*os.File{readGo}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS |
			syscall.CLONE_NEWIPC,
	}
	err = cmd.Start()
	readGo.Close()
	if err != nil {
		return Process{}, fmt.Errorf("failed to start machine %s (root and its capabilities are needed): %w", name, err)
	}
	process, err := identify(cmd.Process.Pid)
	if err == nil {
		err = joinCgroup(s, systemCgroup, process.PID)
	}
	if err == nil {
		err = connect(process.PID)
	}
	if err == nil {
		_, err = writeGo.Write([]byte{1})
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return Process{}, fmt.Errorf("failed to start machine %s: %w", name, err)
	}
	go cmd.Wait() // no zombie while this command still runs
	return process, nil
}

// machineInit is the hidden verb `machine`: process 1 of a machine.
func machineInit(spec string) error {
	data, err := os.ReadFile(spec)
	if err != nil {
		return err
	}
	m := &Machine{}
	if err := json.Unmarshal(data, m); err != nil {
		return err
	}
	// Whoever started the machine gives it its network, then one byte. If that one dies first, so does the machine.
	connected := os.NewFile(3, "connected")
	if _, err := io.ReadFull(connected, make([]byte, 1)); err != nil {
		return errors.New("the command that started this machine ended before its network was ready")
	}
	connected.Close()
	if err := m.setUp(); err != nil {
		return err
	}
	r := &runner{machine: m, running: map[int]*Service{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	go r.reap()
	go r.startAll()
	<-ended
	r.shutDown()
	return nil
}

func (m *Machine) setUp() error {
	if err := syscall.Sethostname([]byte(m.Hostname)); err != nil {
		return err
	}
	if err := mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	// As after every start of a computer, /run is empty.
	if err := mount("run", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	var points []string
	for point := range m.Binds {
		points = append(points, point)
	}
	sort.Strings(points)
	for _, point := range points {
		if err := os.MkdirAll(m.Binds[point], 0o755); err != nil {
			return err
		}
		if err := mount(m.Binds[point], point, "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	for name, value := range m.Sysctls {
		seen := "/run/sysctl/" + name
		if err := writeFile(seen, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := mount(seen, "/proc/sys/"+name, "", syscall.MS_BIND, ""); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	// Shared among the containers of this machine (mountPropagation: Bidirectional), not with the host.
	return mount("none", "/", "", syscall.MS_REC|syscall.MS_SHARED, "")
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := syscall.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("failed to mount %s on %s: %w", source, target, err)
	}
	return nil
}

// runner keeps the services of a machine running.
type runner struct {
	machine *Machine
	mu      sync.Mutex
	running map[int]*Service
	ending  bool
}

func (r *runner) startAll() {
	for i := range r.machine.Services {
		service := &r.machine.Services[i]
		r.start(service)
		if service.Wait != "" && !answers(service.Wait, serviceWait) {
			note("%s has not opened %s within %s, see its log", service.Name, service.Wait, serviceWait)
		}
	}
	note("all services started")
}

func (r *runner) start(service *Service) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ending {
		return
	}
	if _, err := os.Stat(holdFile(service.Name)); err == nil {
		time.AfterFunc(restartPause, func() { r.start(service) })
		return
	}
	log, err := os.OpenFile(filepath.Join(r.machine.Logs, service.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		note("%v", err)
		return
	}
	defer log.Close()
	cmd := exec.Command(service.Args[0], service.Args[1:]...)
	cmd.Env = append(os.Environ(), service.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		note("failed to start %s: %v", service.Name, err)
		return
	}
	note("%s started", service.Name)
	r.running[cmd.Process.Pid] = service
	cmd.Process.Release() // reaped below, with everybody's orphans
}

// holdFile is the file, in the machine's own /run, while which exists a service that has ended is not started again.
func holdFile(service string) string { return "/run/hold-" + service }

// reap collects every process that ends in the machine and restarts its services.
func (r *runner) reap() {
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	pause := map[*Service]time.Duration{}
	started := map[*Service]time.Time{}
	for range child {
		for {
			// A service is entered in r.running under the lock that start holds, so it is known here.
			r.mu.Lock()
			var status syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
			service := r.running[pid]
			delete(r.running, pid)
			ending := r.ending
			r.mu.Unlock()
			if err != nil || pid <= 0 {
				break
			}
			if service == nil || ending {
				continue
			}
			wait := min(max(2*pause[service], restartPause), restartPauseMax)
			if time.Since(started[service]) > time.Minute {
				wait = restartPause
			}
			pause[service], started[service] = wait, time.Now()
			note("%s ended (status %d, signal %d), again in %s", service.Name, status.ExitStatus(), status.Signal(), wait)
			time.AfterFunc(wait, func() { r.start(service) })
		}
	}
}

// shutDown ends the machine as an orderly power-off does: SIGTERM to all, then the end of process 1 kills the rest.
func (r *runner) shutDown() {
	r.mu.Lock()
	r.ending = true
	r.mu.Unlock()
	syscall.Kill(-1, syscall.SIGTERM)
	for deadline := time.Now().Add(shutdownGrace); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if others, _ := filepath.Glob("/proc/[1-9]*"); len(others) <= 1 {
			return
		}
	}
}

// answers waits until something accepts connections at "unix:/path" or "tcp:host:port".
func answers(address string, limit time.Duration) bool {
	network, target, _ := strings.Cut(address, ":")
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if c, err := net.DialTimeout(network, target, time.Second); err == nil {
			c.Close()
			return true
		}
	}
	return false
}

// inMachine prepares a command that runs inside a machine, in all of its namespaces.
func inMachine(p Process, args ...string) *exec.Cmd {
	enter := []string{"--target", fmt.Sprint(p.PID), "--mount", "--net", "--pid", "--uts", "--ipc", "--"}
	return exec.Command("nsenter", append(enter, args...)...)
}

func note(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().UTC().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}
