package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// certificateLife is longer than any test cluster.
const certificateLife = 365 * 24 * time.Hour

// authority signs the certificates of one cluster. Its files are below pki/.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority makes a certificate authority, or reads the one made before.
func newAuthority(dir string) (*authority, error) {
	certFile, keyFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	if _, err := os.Stat(keyFile); err != nil {
		key, err := newKey(keyFile)
		if err != nil {
			return nil, err
		}
		template := newTemplate(pkix.Name{CommonName: "quorumail-test-cluster"})
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return nil, err
		}
		if err := writePEM(certFile, "CERTIFICATE", der); err != nil {
			return nil, err
		}
	}
	certDER, err := readPEM(certFile)
	if err != nil {
		return nil, err
	}
	keyDER, err := readPEM(keyFile)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir}
	if a.cert, err = x509.ParseCertificate(certDER); err != nil {
		return nil, err
	}
	a.key, err = x509.ParseECPrivateKey(keyDER)
	return a, err
}

// issue writes NAME.crt and NAME.key, for a client and, if hosts are given, a server.
func (a *authority) issue(name string, subject pkix.Name, hosts ...string) error {
	key, err := newKey(filepath.Join(a.dir, name+".key"))
	if err != nil {
		return err
	}
	template := newTemplate(subject)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, host := range hosts {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	return writePEM(filepath.Join(a.dir, name+".crt"), "CERTIFICATE", der)
}

func newTemplate(subject pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(certificateLife),
	}
}

func newKey(file string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePEM(file, "EC PRIVATE KEY", der)
}

func writePEM(file, kind string, der []byte) error {
	return writeFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func readPEM(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("no PEM block in %s", file)
	}
	return block.Bytes, nil
}

// kubeconfig writes a kubeconfig that holds the certificate issued as name.
func (a *authority) kubeconfig(file, cluster, server, name string) error {
	read := func(f string) []byte {
		data, _ := os.ReadFile(filepath.Join(a.dir, f))
		return data // encoding/json writes it in base64, as a kubeconfig wants it
	}
	type object = map[string]any
	data, err := json.MarshalIndent(object{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": cluster,
		"clusters": []object{{"name": cluster, "cluster": object{
			"server": server, "certificate-authority-data": read("ca.crt")}}},
		"users": []object{{"name": name, "user": object{
			"client-certificate-data": read(name + ".crt"), "client-key-data": read(name + ".key")}}},
		"contexts": []object{{"name": cluster, "context": object{"cluster": cluster, "user": name}}},
	}, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(file, data, 0o600)
}

// issueControlPlane makes everything that the control machine needs.
func issueControlPlane(s *State) (*authority, error) {
	a, err := newAuthority(s.dir("pki"))
	if err != nil {
		return nil, err
	}
	masters := []string{"system:masters"}
	for _, c := range []struct {
		name    string
		subject pkix.Name
		hosts   []string
	}{
		{"apiserver", pkix.Name{CommonName: "kube-apiserver"}, []string{
			s.controlIP(), s.serviceIP(1), "127.0.0.1", "localhost", "kubernetes", "kubernetes.default",
			"kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}},
		{"kubelet-client", pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: masters}, nil},
		{"front-proxy", pkix.Name{CommonName: "front-proxy-client"}, nil},
		{"admin", pkix.Name{CommonName: "admin", Organization: masters}, nil},
		{"controller-manager", pkix.Name{CommonName: "system:kube-controller-manager", Organization: masters}, nil},
		{"scheduler", pkix.Name{CommonName: "system:kube-scheduler"}, nil},
		{"proxy", pkix.Name{CommonName: "system:kube-proxy"}, nil},
		{"coredns", pkix.Name{CommonName: corednsUser}, nil},
	} {
		if err := a.issue(c.name, c.subject, c.hosts...); err != nil {
			return nil, err
		}
	}
	if _, err := newKey(s.dir("pki", "service-accounts.key")); err != nil {
		return nil, err
	}
	for _, name := range []string{"controller-manager", "scheduler", "proxy", "coredns"} {
		if err := a.kubeconfig(s.dir("pki", name+".kubeconfig"), s.Name, s.server(), name); err != nil {
			return nil, err
		}
	}
	return a, a.kubeconfig(s.kubeconfig(), s.Name, s.server(), "admin")
}

// issueNode makes the identity of a kubelet, which is client and server.
func issueNode(s *State, n *Node) error {
	a, err := newAuthority(s.dir("pki"))
	if err != nil {
		return err
	}
	subject := pkix.Name{CommonName: "system:node:" + n.Name, Organization: []string{"system:nodes"}}
	if err := a.issue(n.Name, subject, n.Name, s.nodeIP(n)); err != nil {
		return err
	}
	return a.kubeconfig(s.dir("pki", n.Name+".kubeconfig"), s.Name, s.server(), n.Name)
}
