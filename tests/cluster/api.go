package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// API is a client of the cluster's API server with the rights of its administrator.
type API struct {
	base   string
	client *http.Client
}

// object is any Kubernetes resource.
type object = map[string]any

// statusError is an answer of the API server other than success.
type statusError struct {
	code    int
	message string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("the API server answers %d: %s", e.code, e.message)
}

func isStatus(err error, code int) bool {
	var status *statusError
	return errors.As(err, &status) && status.code == code
}

func newAPI(s *State) (*API, error) {
	ca, err := os.ReadFile(s.dir("pki", "ca.crt"))
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(s.dir("pki", "admin.crt"), s.dir("pki", "admin.key"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &API{base: s.server(), client: &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}},
	}}, nil
}

// call sends body, unless nil, and reads the answer into out, unless nil.
func (a *API) call(method, path string, body, out any) error {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return err
		}
	}
	request, err := http.NewRequest(method, a.base+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	answer, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if data, err = io.ReadAll(answer.Body); err != nil {
		return err
	}
	if answer.StatusCode >= 300 {
		var status struct{ Message string }
		json.Unmarshal(data, &status)
		return &statusError{answer.StatusCode, status.Message}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}

func (a *API) get(path string, out any) error { return a.call(http.MethodGet, path, nil, out) }

// ensure creates an object unless it exists. path is that of its collection.
func (a *API) ensure(path string, o object) error {
	err := a.get(fmt.Sprintf("%s/%s", path, o["metadata"].(object)["name"]), nil)
	if isStatus(err, http.StatusNotFound) {
		err = a.call(http.MethodPost, path, o, nil)
	}
	return err
}

// nodeReady tells of each registered node whether it is Ready.
func (a *API) nodeReady() (map[string]bool, error) {
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := a.get("/api/v1/nodes", &list); err != nil {
		return nil, err
	}
	ready := map[string]bool{}
	for _, n := range list.Items {
		ready[n.Metadata.Name] = false
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" {
				ready[n.Metadata.Name] = c.Status == "True"
			}
		}
	}
	return ready, nil
}
