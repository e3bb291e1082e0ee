package main

import (
	"os"
	"slices"
	"testing"
)

// A whole cluster is started, proved and ended only on request: it needs root and some minutes.
func TestClusterKeepsItsPromises(t *testing.T) {
	if os.Getenv("QUORUMAIL_CLUSTER_TEST") == "" {
		t.Skip("set QUORUMAIL_CLUSTER_TEST=1 to start a real cluster")
	}
	const name, network = "selftest", "10.219"
	defer func() {
		if err := command([]string{"down", "--name", name}); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat("/sys/class/net/" + name + "0"); err == nil {
			t.Error("`down` left a network link")
		}
		if _, err := os.Stat(stateRoot + "/" + name); err == nil {
			t.Error("`down` left its state")
		}
	}()
	for _, args := range [][]string{
		{"up", "--name", name, "--network", network},
		{"up", "--name", name}, // changes nothing
		{"selftest", "--name", name},
	} {
		if err := command(args); err != nil {
			t.Fatal(err)
		}
	}
}

// The machines of a cluster are this program again, and under `go test` this program is the test.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && (os.Args[1] == "machine" || os.Args[1] == "housekeeping") {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestFlagsAndArgumentsComeInAnyOrder(t *testing.T) {
	for _, args := range [][]string{
		{"node", "stop", "node-a", "--hard", "--name", "x"},
		{"--name", "x", "node", "stop", "--hard", "node-a"},
	} {
		o, rest, err := parse(args)
		if err != nil || o.name != "x" || !o.hard || !slices.Equal(rest, []string{"node", "stop", "node-a"}) {
			t.Errorf("%v gives %+v %v %v", args, o, rest, err)
		}
	}
	_, rest, err := parse([]string{"node", "exec", "node-a", "--", "ls", "-l"})
	if err != nil || !slices.Equal(rest, []string{"node", "exec", "node-a", "ls", "-l"}) {
		t.Errorf("gives %v %v", rest, err)
	}
}

func TestAnotherClusterNameIsNoPath(t *testing.T) {
	for _, name := range []string{"", "../etc", "a/b", "averyverylongname", "9x"} {
		if _, _, err := parse([]string{"down", "--name", name}); err == nil {
			t.Errorf("%q is taken as a name", name)
		}
	}
}

func TestAProcessIsKnownByItsStart(t *testing.T) {
	p, err := identify(os.Getpid())
	if err != nil || !p.alive() {
		t.Fatalf("%+v %v", p, err)
	}
	p.Start++
	if p.alive() {
		t.Error("a process with the same id is taken for one that ended")
	}
}

func TestVersionIsThatOfGoMod(t *testing.T) {
	version, err := kubernetesVersion("tools/kubernetes")
	if err != nil || len(version) != 3 || version[0][0] != 'v' {
		t.Errorf("%v %v", version, err)
	}
}
