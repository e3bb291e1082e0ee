// Command testimage is what `cluster selftest` runs in its pods: a web server that writes to its volume, resolves
// names and calls other pods on request.
//
//	GET /          the pod's name and user id
//	PUT /disk      writes the body to /data/file and syncs it; GET reads it back
//	GET /get?url=  fetches url from inside the pod
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const file = "/data/file"

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _ := os.Hostname()
		fmt.Fprintf(w, "pod=%s uid=%d from=%s\n", host, os.Getuid(), r.RemoteAddr)
	})
	http.HandleFunc("GET /disk", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, file)
	})
	http.HandleFunc("PUT /disk", func(w http.ResponseWriter, r *http.Request) {
		if err := write(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	http.HandleFunc("GET /get", func(w http.ResponseWriter, r *http.Request) {
		client := http.Client{Timeout: 5 * time.Second}
		answer, err := client.Get(r.FormValue("url"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		io.Copy(w, answer.Body)
	})
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	go func() {
		<-end
		os.Exit(0)
	}()
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":8080", nil))
	os.Exit(1)
}

func write(body io.Reader) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, body); err != nil {
		return err
	}
	return f.Sync()
}
