package main

// What a cluster runs is built or fetched once and kept in the user's cache folder, in a folder named after all that
// decides its content. Nothing of it is committed.

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"time"
)

// cacheFormat changes when the way of building changes though no source file does.
const cacheFormat = "1"

// tools are the modules below tools/ with what they build. Each has its own go.mod: their dependencies disagree.
var tools = []struct {
	folder, target string
	programs       []string
}{
	{"coredns", ".", []string{"coredns"}},
	{"etcd", "tool", []string{"etcd"}},
	{"helm", "tool", []string{"helm"}},
	{"kubernetes", "tool", []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"}},
	{"versitygw", "tool", []string{"versitygw"}}, // S3 on a folder, for the tests of backups
}

// fetched are unpacked from Debian's packages and not installed: an installation would start daemons, or push out
// another container engine.
var fetched = []struct{ pkg, from, program string }{
	{"containerd", "usr/bin/containerd", "containerd"},
	{"containerd", "usr/bin/containerd-shim-runc-v2", "containerd-shim-runc-v2"},
	{"containerd", "usr/bin/ctr", "ctr"},
	{"runc", "usr/sbin/runc", "runc"},
	{"containernetworking-plugins", "usr/lib/cni", "cni"},
}

// installed are found on the PATH, or installed by apt-get when this runs as root.
var installed = []struct{ pkg, program string }{
	{"iproute2", "ip"},
	{"iptables", "iptables"},
	{"util-linux", "nsenter"},
	{"buildah", "buildah"},
	{"libseccomp2", ""}, // runc needs it; found by the loader, not on the PATH
}

// basePackages make the root of product images: what a dynamically linked program needs, and no shell.
var basePackages = []string{"base-files", "ca-certificates", "libc6", "libgcc-s1", "netbase", "tzdata"}

// sourceDir is tests/cluster in the source tree.
func sourceDir() (string, error) {
	candidates := []string{os.Getenv("QUORUMAIL_CLUSTER_SOURCE")}
	if _, file, _, ok := runtime.Caller(0); ok {
		candidates = append(candidates, filepath.Dir(file))
	}
	if exe, err := os.Executable(); err == nil {
		candidates = append(candidates, filepath.Dir(exe))
	}
	if dir, err := os.Getwd(); err == nil {
		for ; dir != "/"; dir = filepath.Dir(dir) {
			candidates = append(candidates, dir, filepath.Join(dir, "tests/cluster"))
		}
	}
	for _, dir := range candidates {
		if _, err := os.Stat(filepath.Join(dir, "tools/kubernetes/go.mod")); dir != "" && err == nil {
			return dir, nil
		}
	}
	return "", errors.New("cannot find the sources of tests/cluster; run this inside the repository or set QUORUMAIL_CLUSTER_SOURCE")
}

// cacheDir is the folder of everything built from the present sources.
func cacheDir() (string, error) {
	source, err := sourceDir()
	if err != nil {
		return "", err
	}
	files, _ := filepath.Glob(filepath.Join(source, "tools/*/*"))
	more, _ := filepath.Glob(filepath.Join(source, "pause/*.go"))
	test, _ := filepath.Glob(filepath.Join(source, "testimage/*.go"))
	files = append(append(files, more...), test...)
	sort.Strings(files)
	sum := sha256.New()
	fmt.Fprintln(sum, cacheFormat, runtime.GOARCH)
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(sum, filepath.Base(f), len(data))
		sum.Write(data)
	}
	home, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, "quorumail/cluster", hex.EncodeToString(sum.Sum(nil))[:16]), nil
}

// build makes whatever is missing and returns the cache folder.
func build() (string, error) {
	if err := installPackages(); err != nil {
		return "", err
	}
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		say("another build is at work, waiting for it")
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
			return "", err
		}
	}
	if err := fetchPrograms(bin); err != nil {
		return "", err
	}
	if err := buildTools(bin); err != nil {
		return "", err
	}
	if err := buildBase(dir); err != nil {
		return "", err
	}
	if err := buildOwnImages(dir); err != nil {
		return "", err
	}
	now := time.Now()
	if err := os.Chtimes(lock.Name(), now, now); err != nil {
		return "", err
	}
	return dir, dropOldBuilds(dir)
}

// oldBuild is how long a build that no command asked for is kept.
const oldBuild = 14 * 24 * time.Hour

// dropOldBuilds removes builds of other sources that were long unused, unless a cluster runs them.
func dropOldBuilds(current string) error {
	locks, _ := filepath.Glob(filepath.Join(filepath.Dir(current), "*/lock"))
	for _, lock := range locks {
		dir := filepath.Dir(lock)
		info, err := os.Stat(lock)
		if err != nil || dir == current || time.Since(info.ModTime()) < oldBuild {
			continue
		}
		used := false
		clusters, _ := filepath.Glob(filepath.Join(stateRoot, "*"))
		for _, cluster := range clusters {
			s, err := loadState(filepath.Base(cluster))
			used = used || err != nil || s != nil && filepath.Dir(s.Bin) == dir
		}
		if !used {
			say("removing the unused build %s", dir)
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func installPackages() error {
	var missing []string
	for _, p := range installed {
		if p.program == "" {
			if found, _ := filepath.Glob("/usr/lib*/*/" + p.pkg[:10] + "*.so.*"); len(found) > 0 {
				continue
			}
			if found, _ := filepath.Glob("/usr/lib*/" + p.pkg[:10] + "*.so.*"); len(found) > 0 {
				continue
			}
		} else if onPath(p.program) {
			continue
		}
		missing = append(missing, p.pkg)
	}
	if len(missing) == 0 {
		return nil
	}
	list := strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("these packages are missing: %s; install them, or run this as root on Debian", list)
	}
	say("installing the Debian packages %s", list)
	args := append([]string{"install", "-y", "-q", "--no-install-recommends"}, missing...)
	if run(aptGet(args...)) == nil {
		return nil
	}
	// Most likely the lists of packages are missing or out of date.
	if err := run(aptGet("update", "-q")); err != nil {
		return err
	}
	return run(aptGet(args...))
}

func onPath(program string) bool {
	if _, err := exec.LookPath(program); err == nil {
		return true
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if _, err := os.Stat(filepath.Join(dir, program)); err == nil {
			return true
		}
	}
	return false
}

func aptGet(args ...string) *exec.Cmd {
	cmd := exec.Command("apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	return cmd
}

// unpack puts the content of Debian packages into a folder.
func unpack(into string, packages ...string) error {
	temporary, err := os.MkdirTemp("", "quorumail-packages-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if os.Geteuid() == 0 {
		os.Chmod(temporary, 0o777) // apt-get downloads as its own user
	}
	download := aptGet(append([]string{"download", "-q"}, packages...)...)
	download.Dir = temporary
	if run(download) != nil {
		if err := run(aptGet("update", "-q")); err != nil {
			return err
		}
		download = aptGet(append([]string{"download", "-q"}, packages...)...)
		download.Dir = temporary
		if err := run(download); err != nil {
			return err
		}
	}
	files, _ := filepath.Glob(filepath.Join(temporary, "*.deb"))
	if len(files) < len(packages) {
		return fmt.Errorf("apt-get download fetched only %d of the packages %s", len(files), strings.Join(packages, " "))
	}
	for _, f := range files {
		if err := run(exec.Command("dpkg-deb", "-x", f, into)); err != nil {
			return err
		}
	}
	return nil
}

// fetchPrograms puts the daemons that come from packages into bin.
func fetchPrograms(bin string) error {
	var packages []string
	for _, f := range fetched {
		if _, err := os.Stat(filepath.Join(bin, f.program)); err != nil && (len(packages) == 0 || packages[len(packages)-1] != f.pkg) {
			packages = append(packages, f.pkg)
		}
	}
	if len(packages) == 0 {
		return nil
	}
	say("fetching %s", strings.Join(packages, ", "))
	temporary, err := os.MkdirTemp(filepath.Dir(bin), "unpacked-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if !onPath("apt-get") {
		return fmt.Errorf("no apt-get here; put these into %s yourself: containerd containerd-shim-runc-v2 ctr runc cni/", bin)
	}
	if err := unpack(temporary, packages...); err != nil {
		return err
	}
	for _, f := range fetched {
		to := filepath.Join(bin, f.program)
		if _, err := os.Stat(to); err == nil {
			continue
		}
		if err := os.Rename(filepath.Join(temporary, f.from), to); err != nil {
			return err
		}
	}
	return nil
}

func buildTools(bin string) error {
	source, err := sourceDir()
	if err != nil {
		return err
	}
	for _, tool := range tools {
		missing := false
		for _, p := range tool.programs {
			if _, err := os.Stat(filepath.Join(bin, p)); err != nil {
				missing = true
			}
		}
		if !missing {
			continue
		}
		dir := filepath.Join(source, "tools", tool.folder)
		flags := "-s -w"
		if tool.folder == "kubernetes" {
			version, err := kubernetesVersion(dir)
			if err != nil {
				return err
			}
			flags += versionFlags(version)
		}
		temporary, err := os.MkdirTemp(filepath.Dir(bin), "built-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(temporary)
		say("building %s (%s)", tool.folder, strings.Join(tool.programs, ", "))
		output := temporary + "/" // a folder: each program gets its own name
		if len(tool.programs) == 1 {
			output += tool.programs[0]
		}
		cmd := exec.Command("go", "build", "-v", "-trimpath", "-ldflags", flags, "-o", output, tool.target)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if err := withProgress(tool.folder, cmd); err != nil {
			return fmt.Errorf("failed to build %s: %w", tool.folder, err)
		}
		for _, p := range tool.programs {
			if err := os.Rename(filepath.Join(temporary, p), filepath.Join(bin, p)); err != nil {
				return err
			}
		}
	}
	return nil
}

var kubernetesRequire = regexp.MustCompile(`(?m)^\s*(?:require )?k8s\.io/kubernetes (v(\d+)\.(\d+)\.\d+)`)

func kubernetesVersion(dir string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return nil, err
	}
	found := kubernetesRequire.FindStringSubmatch(string(data))
	if found == nil {
		return nil, fmt.Errorf("%s/go.mod does not require k8s.io/kubernetes", dir)
	}
	return found[1:], nil
}

// versionFlags tell the programs their version; without it they take each other for 0.0 and refuse to work together.
func versionFlags(version []string) string {
	flags := ""
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags += fmt.Sprintf(" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s", pkg, version[0], version[1], version[2])
	}
	return flags
}

// withProgress runs a go build and tells now and then how far it has come; its messages are shown if it fails.
func withProgress(what string, cmd *exec.Cmd) error {
	output, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	cmd.Stdout = os.Stderr
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	var other []string
	compiled, told := 0, time.Now()
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		line := lines.Text()
		if strings.ContainsAny(line, " :") {
			other = append(other, line)
		} else {
			compiled++
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			say("  %s: %d packages compiled in %s", what, compiled, time.Since(begin).Round(time.Second))
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w\n%s", err, strings.Join(other[max(0, len(other)-40):], "\n"))
	}
	say("  %s: done in %s", what, time.Since(begin).Round(time.Second))
	return nil
}

// buildBase makes the folder that product images copy as their root.
func buildBase(dir string) error {
	base := filepath.Join(dir, "base-root")
	if _, err := os.Stat(base); err == nil {
		return nil
	}
	say("building the base root of images (%s)", strings.Join(basePackages, ", "))
	temporary, err := os.MkdirTemp(dir, "base-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if err := os.Chmod(temporary, 0o755); err != nil {
		return err
	}
	if err := unpack(temporary, basePackages...); err != nil {
		return err
	}
	for _, unneeded := range []string{"usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/bug", "usr/sbin/update-ca-certificates"} {
		if err := os.RemoveAll(filepath.Join(temporary, unneeded)); err != nil {
			return err
		}
	}
	if err := bundleCertificates(temporary); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"etc/passwd":        "root:x:0:0:root:/:/nonexistent\nnobody:x:65534:65534:nobody:/:/nonexistent\n",
		"etc/group":         "root:x:0:\nnogroup:x:65534:\n",
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	} {
		if err := writeFile(filepath.Join(temporary, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return os.Rename(temporary, base)
}

// bundleCertificates does what the script of ca-certificates does after installation: one file of all authorities.
func bundleCertificates(root string) error {
	files, _ := filepath.Glob(filepath.Join(root, "usr/share/ca-certificates/*/*.crt"))
	var bundle []byte
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		bundle = append(bundle, data...)
	}
	if err := os.RemoveAll(filepath.Join(root, "usr/share/ca-certificates")); err != nil {
		return err
	}
	return writeFile(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"), bundle, 0o644)
}
