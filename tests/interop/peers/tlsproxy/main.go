// Tlsproxy is a reverse proxy as people put it before a control server: TLS at the front,
// plain HTTP behind, connections upgraded and carried by the standard library.
//
//	tlsproxy -listen ADDRESS -to URL -cert FILE -key FILE
package main

import (
	"crypto/tls"
	"flag"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
)

var (
	listen  = flag.String("listen", "127.0.0.1:8443", "where to listen")
	to      = flag.String("to", "http://127.0.0.1:8080", "the server behind")
	cert    = flag.String("cert", "", "certificate (PEM)")
	certKey = flag.String("key", "", "its key (PEM)")
)

func main() {
	flag.Parse()
	behind, err := url.Parse(*to)
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Addr:    *listen,
		Handler: httputil.NewSingleHostReverseProxy(behind),
		// HTTP/1.1 only: the upgrade needs it.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	log.Fatal(server.ListenAndServeTLS(*cert, *certKey))
}
