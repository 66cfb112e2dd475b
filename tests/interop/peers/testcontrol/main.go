// Testcontrol serves the test control server of the tailscale.com module, which
// speaks as the hosted service does, together with a relay and a STUN server,
// and lets a test steer it by plain HTTP requests on a second address:
//
//	GET  /nodes                    all nodes as JSON
//	POST /auth?url=URL             the user has logged in at the login URL
//	POST /approve?node=KEY         an admin approves the machine
//	POST /expire?on=true           every node key counts as expired, or no longer
//	POST /rename?node=KEY&name=N   give the node another name
//	POST /ping?node=KEY            ask the node to visit a URL; did it come?
//	POST /c2n?node=KEY&path=P      a request through the control connection
//	POST /raw?node=KEY             body: a MapResponse, delivered as it is
//	POST /fake?count=N             add a peer that does not exist, or N of them
//	POST /masquerade?node=KEY&peer=KEY&as=IP   the peer sees the node as IP
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
)

var (
	listen  = flag.String("listen", "127.0.0.1:8080", "address of the control server")
	admin   = flag.String("admin", "127.0.0.1:8081", "address for the test's requests")
	relay   = flag.String("relay", "127.0.0.1:8444", "address of the relay, always TLS")
	stun    = flag.String("stun", "127.0.0.1:3479", "address of the STUN server")
	cert    = flag.String("cert", "", "certificate of the relay (PEM)")
	certKey = flag.String("key", "", "its key (PEM)")
	useTLS  = flag.Bool("tls", false, "control server over https too")
	authKey = flag.String("authkey", "", "auth key that every node must show")
	login   = flag.Bool("require-auth", false, "every node has to log in at a URL")
	approve = flag.Bool("machine-auth", false, "an admin has to approve every machine")
	domain  = flag.String("domain", "", "MagicDNS domain")
)

// steering is the test's side of one control server.
type steering struct {
	control *testcontrol.Server
	base    string

	mu     sync.Mutex
	visits map[string]chan struct{} // path of a ping request that was sent out
	next   int
}

func main() {
	flag.Parse()
	base := "http://" + *listen
	if *useTLS {
		base = "https://" + *listen
	}
	s := &steering{
		base:   base,
		visits: map[string]chan struct{}{},
		control: &testcontrol.Server{
			DERPMap:            relayMap(),
			RequireAuth:        *login,
			RequireAuthKey:     *authKey,
			RequireMachineAuth: *approve,
			MagicDNSDomain:     *domain,
			ExplicitBaseURL:    base,
			Verbose:            true,
		},
	}
	serveRelay()
	go func() { log.Fatal(http.ListenAndServe(*admin, s.admin())) }()

	server := &http.Server{Addr: *listen, Handler: s, TLSNextProto: noHTTP2()}
	log.Printf("ready")
	if *useTLS {
		log.Fatal(server.ListenAndServeTLS(*cert, *certKey))
	}
	log.Fatal(server.ListenAndServe())
}

// noHTTP2 keeps the outer server on HTTP/1.1: the upgrade to Noise needs it.
func noHTTP2() map[string]func(*http.Server, *tls.Conn, http.Handler) {
	return map[string]func(*http.Server, *tls.Conn, http.Handler){}
}

func serveRelay() {
	d := derpserver.New(key.NewNode(), log.Printf)
	server := &http.Server{Addr: *relay, Handler: derpserver.Handler(d), TLSNextProto: noHTTP2()}
	go func() { log.Fatal(server.ListenAndServeTLS(*cert, *certKey)) }()
	go func() { log.Fatal(stunserver.New(context.Background()).ListenAndServe(*stun)) }()
}

func relayMap() *tailcfg.DERPMap {
	host, port := split(*relay)
	_, stunPort := split(*stun)
	return &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{1: {
		RegionID: 1, RegionCode: "test", RegionName: "Test",
		Nodes: []*tailcfg.DERPNode{{
			Name: "1a", RegionID: 1, HostName: host, IPv4: host, IPv6: "none",
			DERPPort: port, STUNPort: stunPort, STUNTestIP: host,
		}},
	}}}
}

func split(address string) (string, int) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		log.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		log.Fatal(err)
	}
	return host, n
}

// ServeHTTP is what the nodes see: the control server, and the pages that ping
// requests send them to.
func (s *steering) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, "/visit/") {
		s.control.ServeHTTP(w, r)
		return
	}
	s.mu.Lock()
	came := s.visits[r.Method+" "+r.URL.Path]
	delete(s.visits, r.Method+" "+r.URL.Path)
	s.mu.Unlock()
	if came != nil {
		close(came)
	}
	w.WriteHeader(http.StatusOK)
}

func (s *steering) admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /nodes", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(s.control.AllNodes())
	})
	mux.HandleFunc("POST /auth", func(w http.ResponseWriter, r *http.Request) {
		answer(w, s.control.CompleteAuth(r.FormValue("url")), "no such login")
	})
	mux.HandleFunc("POST /expire", func(w http.ResponseWriter, r *http.Request) {
		s.control.SetExpireAllNodes(r.FormValue("on") == "true")
		answer(w, true, "")
	})
	mux.HandleFunc("POST /fake", func(w http.ResponseWriter, r *http.Request) {
		count, _ := strconv.Atoi(r.FormValue("count"))
		for i := 0; i < max(count, 1); i++ {
			s.control.AddFakeNode()
		}
		answer(w, true, "")
	})
	mux.HandleFunc("POST /approve", s.withNode(s.approve))
	mux.HandleFunc("POST /rename", s.withNode(s.rename))
	mux.HandleFunc("POST /ping", s.withNode(s.ping))
	mux.HandleFunc("POST /c2n", s.withNode(s.c2n))
	mux.HandleFunc("POST /raw", s.withNode(s.raw))
	mux.HandleFunc("POST /masquerade", s.withNode(s.masquerade))
	return mux
}

func answer(w http.ResponseWriter, ok bool, problem string) {
	if !ok {
		http.Error(w, problem, http.StatusConflict)
		return
	}
	fmt.Fprintln(w, "ok")
}

// withNode looks up the node that ?node= names by its key.
func (s *steering) withNode(f func(http.ResponseWriter, *http.Request, *tailcfg.Node)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var k key.NodePublic
		if err := k.UnmarshalText([]byte(r.URL.Query().Get("node"))); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		n := s.control.Node(k)
		if n == nil {
			http.Error(w, "no such node", http.StatusNotFound)
			return
		}
		f(w, r, n)
	}
}

func (s *steering) approve(w http.ResponseWriter, r *http.Request, n *tailcfg.Node) {
	answer(w, s.control.CompleteDeviceApproval(s.base, s.base+"/admin", &n.Key), "no such node")
}

func (s *steering) rename(w http.ResponseWriter, r *http.Request, n *tailcfg.Node) {
	n.Name = r.URL.Query().Get("name")
	s.control.UpdateNode(n)
	answer(w, true, "")
}

// ping sends a ping request and waits until the node has visited its URL.
func (s *steering) ping(w http.ResponseWriter, r *http.Request, n *tailcfg.Node) {
	came := make(chan struct{})
	s.mu.Lock()
	s.next++
	path := fmt.Sprintf("/visit/%d", s.next)
	s.visits["HEAD "+path] = came
	s.mu.Unlock()
	if !s.control.AddPingRequest(n.Key, &tailcfg.PingRequest{URL: s.base + path, Log: true}) {
		answer(w, false, "the node is not connected")
		return
	}
	select {
	case <-came:
		answer(w, true, "")
	case <-time.After(20 * time.Second):
		answer(w, false, "the node did not come")
	}
}

// c2n sends a request to the node and writes out its answer, status first.
func (s *steering) c2n(w http.ResponseWriter, r *http.Request, n *tailcfg.Node) {
	path := r.URL.Query().Get("path")
	request, err := http.NewRequest("POST", "http://unused"+path, strings.NewReader("hello"))
	if err != nil {
		answer(w, false, err.Error())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
	defer cancel()
	response, err := s.control.NodeRoundTripper(n.Key).RoundTrip(request.WithContext(ctx))
	if err != nil {
		answer(w, false, err.Error())
		return
	}
	defer response.Body.Close()
	fmt.Fprintln(w, response.StatusCode)
	io.Copy(w, response.Body)
}

func (s *steering) raw(w http.ResponseWriter, r *http.Request, n *tailcfg.Node) {
	var m tailcfg.MapResponse
	if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer(w, s.control.AddRawMapResponse(n.Key, &m), "the node is not connected")
}

// masquerade lets ?peer= see the node as ?as=.
func (s *steering) masquerade(w http.ResponseWriter, r *http.Request, n *tailcfg.Node) {
	var peer key.NodePublic
	as, err := netip.ParseAddr(r.URL.Query().Get("as"))
	if err == nil {
		err = peer.UnmarshalText([]byte(r.URL.Query().Get("peer")))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.control.SetMasqueradeAddresses([]testcontrol.MasqueradePair{{
		Node: n.Key, Peer: peer, NodeMasqueradesAs: as,
	}})
	answer(w, true, "")
}
