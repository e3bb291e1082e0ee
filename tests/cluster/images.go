package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const testImage = "quorumail.test/testimage:1"

// ownImages are the images of this program's own: each is one static binary.
var ownImages = []struct{ folder, name string }{
	{"pause", pauseImage},
	{"testimage", testImage},
}

func ownImage(cache, folder string) string { return filepath.Join(cache, folder+".tar") }

func buildOwnImages(cache string) error {
	source, err := sourceDir()
	if err != nil {
		return err
	}
	for _, image := range ownImages {
		archive := ownImage(cache, image.folder)
		if _, err := os.Stat(archive); err == nil {
			continue
		}
		say("building the image %s", image.name)
		program := filepath.Join(cache, image.folder+".program")
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./"+image.folder)
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if err := run(cmd); err != nil {
			return err
		}
		if err := writeImage(archive, image.name, program); err != nil {
			return err
		}
		if err := os.Remove(program); err != nil {
			return err
		}
	}
	return nil
}

// writeImage writes a docker archive of an image that holds nothing but a program.
func writeImage(archive, name, program string) error {
	binary, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	layer, err := tarOf(map[string][]byte{"program": binary})
	if err != nil {
		return err
	}
	type object = map[string]any
	config, err := json.Marshal(object{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": object{"Entrypoint": []string{"/program"}, "User": "65534:65534"},
		"rootfs": object{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	})
	if err != nil {
		return err
	}
	configFile, layerFile := digest(config)+".json", digest(layer)+".tar"
	manifest, err := json.Marshal([]object{{"Config": configFile, "RepoTags": []string{name}, "Layers": []string{layerFile}}})
	if err != nil {
		return err
	}
	data, err := tarOf(map[string][]byte{configFile: config, layerFile: layer, "manifest.json": manifest})
	if err != nil {
		return err
	}
	return writeFile(archive, data, 0o644)
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func tarOf(files map[string][]byte) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, data := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// buildImage builds a Containerfile with buildah and saves the image as a docker archive. The Containerfile can copy
// the base root with `COPY --from=base . /`, as it can with `docker build --build-context base=DIR`.
func buildImage(o *options) error {
	if o.image == "" || o.toTar == "" {
		return errors.New("`cluster image` needs --name and --out")
	}
	cache, err := build()
	if err != nil {
		return err
	}
	out, err := filepath.Abs(o.toTar)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	// The archive is what counts: a store that stays would only grow.
	store, err := os.MkdirTemp(filepath.Dir(out), ".image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(store)
	buildah := func(verb string, args ...string) *exec.Cmd {
		where := []string{"--root", filepath.Join(store, "root"), "--runroot", filepath.Join(store, "run"), "--storage-driver", "vfs", verb}
		return exec.Command("buildah", append(where, args...)...)
	}
	args := []string{"--isolation", "chroot", "--layers=false", "--pull-never",
		"--build-context", "base=" + filepath.Join(cache, "base-root"), "--tag", o.image, "--file", o.containerfile}
	for _, a := range o.buildArgs {
		args = append(args, "--build-arg", a)
	}
	if err := run(buildah("bud", append(args, o.context)...)); err != nil {
		return err
	}
	archive := filepath.Join(store, "image.tar")
	if err := run(buildah("push", "--quiet", o.image, "docker-archive:"+archive+":"+o.image)); err != nil {
		return err
	}
	return os.Rename(archive, out)
}

// load imports archives into the containerd of each node, all nodes at the same time.
func load(s *State, nodes []*Node, archives ...string) error {
	if len(archives) == 0 {
		return errors.New("`cluster load` needs the path of at least one archive")
	}
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		if !n.Process.alive() {
			errs[i] = fmt.Errorf("node %s is stopped, no image was loaded into it", n.Name)
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			for _, archive := range archives {
				if err := loadInto(s, n, archive); err != nil {
					errs[i] = fmt.Errorf("failed to load %s into %s: %w", archive, n.Name, err)
					return
				}
			}
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

func loadInto(s *State, n *Node, archive string) error {
	if !answers("unix:"+containerdSocket(n), serviceWait) {
		return errors.New("its containerd does not answer")
	}
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	// It answers a moment before all of its services are there.
	for attempt := 0; ; attempt++ {
		if _, err := file.Seek(0, 0); err != nil {
			return err
		}
		cmd := inMachine(n.Process, filepath.Join(s.Bin, "ctr"), "--namespace", "k8s.io", "images", "import",
			"--snapshotter", snapshotter(), "-")
		cmd.Stdin = file
		err := run(cmd)
		if err == nil || attempt == 5 || !strings.Contains(err.Error(), "not") {
			return err
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// containerdSocket is a node's socket as seen from the host.
func containerdSocket(n *Node) string {
	return fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", n.Process.PID)
}

// snapshotter is overlayfs where the state folder can carry it, as on any disk but the inside of another container.
func snapshotter() string {
	const overlayMagic = 0x794c7630
	var fs syscall.Statfs_t
	if syscall.Statfs(stateRoot, &fs) == nil && fs.Type == overlayMagic {
		return "native"
	}
	return "overlayfs"
}
