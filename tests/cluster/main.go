// Command cluster is a real Kubernetes of several nodes on one machine, for tests and for trying the product: API
// server, scheduler, kubelets, containers, Services, volumes, and nodes that can be lost. It needs root on Linux and
// no container engine. See README.md.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

const usage = `cluster - a local Kubernetes of several nodes

  cluster build                        build and fetch, once, what a cluster runs
  cluster up [--nodes 3]               start the cluster, or what is missing of it; prints its kubeconfig
  cluster down                         end it and remove all it made but the build
  cluster status [-o json]             nodes and their state
  cluster kubeconfig                   print the path of the administrator's kubeconfig
  cluster bin                          print the folder that holds kubectl, helm, ...
  cluster selftest                     prove on a running cluster that everything below works

  cluster base-image                   print the folder that product images copy as their root
  cluster image --name N --containerfile F --context DIR --out FILE.tar
                                       build an image (buildah) and save it as a docker archive
  cluster load FILE.tar...             load images into all nodes

  cluster node stop NAME [--hard]      shut a node down; --hard: lose it at once, as by a power cut
  cluster node start NAME              start it again
  cluster node exec NAME -- CMD...     run a command inside a node
  cluster partition NAME [OTHER]       cut a node off the network, or off one other node
  cluster heal NAME|--all              end all partitions of a node
  cluster wipe-disk NODE DISK          empty a disk (d1, d2, ...) of a node
  cluster api stop                     end the API server, and keep it from coming back
  cluster api start                    let it come back, and wait until it answers
  cluster recycle                      empty released volumes now (happens by itself every second)

All verbs take --name NAME (default qm), the name of the cluster.
`

func main() {
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// options are the flags of all verbs; each verb reads those that concern it.
type options struct {
	name, network, output                string
	nodes, disks                         int
	hard, all                            bool
	image, containerfile, context, toTar string
	buildArgs                            stringList
}

type stringList []string

func (l *stringList) String() string     { return strings.Join(*l, ",") }
func (l *stringList) Set(s string) error { *l = append(*l, s); return nil }

var validName = regexp.MustCompile(`^[a-z][a-z0-9]{0,9}$`)

// parse reads flags and arguments in any order; what follows "--" is left as it is.
func parse(args []string) (o *options, rest []string, err error) {
	o = &options{}
	verb := ""
	if len(args) > 0 {
		verb = args[0]
	}
	flags := flag.NewFlagSet("cluster", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	clusterFlag := "name"
	if verb == "image" { // there the name is the image's
		clusterFlag = "cluster"
		flags.StringVar(&o.image, "name", "", "name of the image")
	}
	flags.StringVar(&o.name, clusterFlag, cmp.Or(os.Getenv("QUORUMAIL_CLUSTER_NAME"), "qm"), "name of the cluster")
	flags.StringVar(&o.network, "network", cmp.Or(os.Getenv("QUORUMAIL_CLUSTER_NETWORK"), "10.213"),
		"first two numbers of the /16 that the cluster uses")
	flags.StringVar(&o.output, "o", "", "output format: json")
	flags.IntVar(&o.nodes, "nodes", 3, "number of nodes")
	flags.BoolVar(&o.hard, "hard", false, "without a shutdown")
	flags.BoolVar(&o.all, "all", false, "every node")
	flags.StringVar(&o.containerfile, "containerfile", "Containerfile", "path of the Containerfile")
	flags.StringVar(&o.context, "context", ".", "folder that the Containerfile copies from")
	flags.StringVar(&o.toTar, "out", "", "archive to write")
	flags.Var(&o.buildArgs, "build-arg", "NAME=VALUE for the Containerfile")
	for len(args) > 0 {
		if args[0] == "--" {
			rest = append(rest, args[1:]...)
			break
		}
		if !strings.HasPrefix(args[0], "-") {
			rest, args = append(rest, args[0]), args[1:]
			continue
		}
		if err := flags.Parse(args); err != nil {
			return nil, nil, err
		}
		used := len(args) - flags.NArg()
		if used > 0 && args[used-1] == "--" {
			rest = append(rest, flags.Args()...)
			break
		}
		args = flags.Args()
	}
	if !validName.MatchString(o.name) {
		return nil, nil, fmt.Errorf("%q is no name for a cluster: at most 10 small letters and digits, a letter first", o.name)
	}
	if o.nodes < 1 || o.nodes > maxNodes {
		return nil, nil, fmt.Errorf("a cluster has 1 to %d nodes", maxNodes)
	}
	return o, rest, nil
}

func command(args []string) error {
	if len(args) == 2 && args[0] == "machine" {
		return machineInit(args[1])
	}
	if len(args) == 2 && args[0] == "housekeeping" {
		return housekeeping(args[1])
	}
	o, rest, err := parse(args)
	if err != nil {
		return err
	}
	verb := ""
	if len(rest) > 0 {
		verb, rest = rest[0], rest[1:]
	}
	if (verb == "node" || verb == "api") && len(rest) > 0 {
		verb, rest = verb+" "+rest[0], rest[1:]
	}
	want := func(count int, what string) error {
		if len(rest) != count {
			return fmt.Errorf("`cluster %s` needs %s", verb, what)
		}
		return nil
	}
	switch verb {
	case "build":
		dir, err := build()
		if err == nil {
			fmt.Println(filepath.Join(dir, "bin"))
		}
		return err
	case "up":
		return up(o)
	case "down":
		return down(o.name)
	case "status":
		return status(o)
	case "kubeconfig":
		s, err := running(o.name)
		if err == nil {
			fmt.Println(s.kubeconfig())
		}
		return err
	case "bin", "base-image":
		dir, err := build()
		if err == nil {
			fmt.Println(filepath.Join(dir, map[string]string{"bin": "bin", "base-image": "base-root"}[verb]))
		}
		return err
	case "image":
		return buildImage(o)
	case "load":
		return withCluster(o, func(s *State) error { return load(s, s.Nodes, rest...) })
	case "node stop":
		if err := want(1, "the name of a node"); err != nil {
			return err
		}
		return withCluster(o, func(s *State) error { return stopNode(s, rest[0], o.hard) })
	case "node start":
		if err := want(1, "the name of a node"); err != nil {
			return err
		}
		return withCluster(o, func(s *State) error { return returnNode(s, rest[0]) })
	case "node exec":
		if len(rest) < 2 {
			return fmt.Errorf("`cluster node exec` needs the name of a node and a command")
		}
		return execInNode(o.name, rest[0], rest[1:])
	case "api stop":
		return withCluster(o, stopAPI)
	case "api start":
		return withCluster(o, startAPI)
	case "partition":
		if len(rest) == 1 {
			rest = append(rest, everything)
		}
		if err := want(2, "the names of one or two nodes"); err != nil {
			return err
		}
		return withCluster(o, func(s *State) error { return partition(s, rest[0], rest[1]) })
	case "heal":
		if !o.all {
			if err := want(1, "the name of a node, or --all"); err != nil {
				return err
			}
		}
		return withCluster(o, func(s *State) error { return heal(s, rest, o.all) })
	case "wipe-disk":
		if err := want(2, "the names of a node and of a disk"); err != nil {
			return err
		}
		return withCluster(o, func(s *State) error { return wipeDisk(s, rest[0], rest[1]) })
	case "recycle":
		s, err := running(o.name)
		if err != nil {
			return err
		}
		api, err := newAPI(s)
		if err != nil {
			return err
		}
		return recycle(s, api)
	case "selftest":
		return selftest(o.name)
	case "", "help":
		fmt.Print(usage)
		return nil
	}
	return fmt.Errorf("there is no verb %q; see `cluster help`", verb)
}

// withCluster changes a running cluster and remembers the result.
func withCluster(o *options, change func(*State) error) error {
	unlock, err := lockCluster(o.name)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := running(o.name)
	if err != nil {
		return err
	}
	err = change(s)
	if saved := s.save(); err == nil {
		err = saved
	}
	return err
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// run runs a command silently; if it fails, the error holds what it wrote.
func run(cmd *exec.Cmd) error {
	output, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
