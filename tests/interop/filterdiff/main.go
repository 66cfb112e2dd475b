// Filterdiff makes random rules and packets, asks the packet filter of the
// reference about each, and writes everything as text lines for diff.c, which
// asks ours and compares. The same seed gives the same stream.
//
// Ours is stricter in a few places on purpose. Each of them is worked out here
// from further questions to the reference ("would you let this begin?") and a
// plain list of the flows that we began, and is counted under a letter, so that
// no other difference can hide behind them.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"

	"go4.org/netipx"
	"tailscale.com/net/ipset"
	"tailscale.com/net/packet"
	"tailscale.com/tailcfg"
	"tailscale.com/types/ipproto"
	"tailscale.com/types/views"
	"tailscale.com/wgengine/filter"
)

var (
	rnd *rand.Rand
	out *bufio.Writer
)

func quiet(string, ...any) {}

func one[T any](of ...T) T { return of[rnd.IntN(len(of))] }

func chance(percent int) bool { return rnd.IntN(100) < percent }

// ---- the small world: few addresses and ports, so that things meet ----

var (
	self4 = netip.MustParseAddr("100.64.0.10")
	self6 = netip.MustParseAddr("fd7a:115c:a1e0::10")
	ports = []uint16{0, 1, 22, 53, 80, 443, 4999, 5000, 5001, 65534, 65535}
	caps  = []string{"ssh", "https://example.com/cap/x", "a"}

	notOurs = prefixes("192.168.0.0/16 172.16.0.0/12 10.0.0.0/8 169.254.0.0/16 224.0.0.0/4 " +
		"100.64.0.0/10 127.0.0.0/8 0.0.0.0/8 fe80::/10 ff00::/8 fd7a:115c:a1e0::/48 ::/127")
)

const peerCount = 20

func prefixes(text string) (list []netip.Prefix) {
	for _, s := range strings.Fields(text) {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

func last(ip netip.Addr, n int) netip.Addr {
	b := ip.AsSlice()
	b[len(b)-1] = byte(n)
	ip, _ = netip.AddrFromSlice(b)
	return ip
}

// Peer n has the addresses that end in n, and answers for the addresses of the
// network behind it that do.
func peerAddr(six bool, n int) netip.Addr {
	if six {
		return last(netip.MustParseAddr("fd7a:115c:a1e0::"), n)
	}
	return last(one(netip.MustParseAddr("100.64.0.0"), netip.MustParseAddr("100.64.0.0"),
		netip.MustParseAddr("10.1.0.0")), n)
}

func ourAddr(six bool) netip.Addr {
	switch k := rnd.IntN(20); {
	case k < 14:
		if six {
			return self6
		}
		return self4
	case k < 18:
		if six {
			return last(netip.MustParseAddr("2001:db8:7::"), 1+rnd.IntN(4))
		}
		return last(netip.MustParseAddr("192.168.7.0"), 1+rnd.IntN(4))
	default:
		if six {
			return netip.MustParseAddr(one("2606:4700::1111", "ff02::fb", "fe80::1", "fd7a:115c:a1e0::77",
				"::1", "2001:db8:8::1"))
		}
		return netip.MustParseAddr(one("8.8.8.8", "224.0.0.251", "169.254.1.1", "169.254.169.254",
			"255.255.255.255", "10.9.9.9", "192.168.8.1", "100.64.0.11", "127.0.0.1"))
	}
}

func peerOf(ip netip.Addr) int {
	b := ip.AsSlice()
	return int(b[len(b)-1])
}

// ---- rules ----

func ruleAddr(dst bool) string {
	six := chance(35)
	net := func() netip.Addr {
		if dst {
			return ourAddr(six)
		}
		return peerAddr(six, 1+rnd.IntN(peerCount))
	}
	switch k := rnd.IntN(100); {
	case k < 8:
		return "*"
	case k < 60:
		return net().String()
	case k < 72:
		a := net()
		p, _ := a.Prefix(rnd.IntN(a.BitLen() + 1))
		return p.String()
	case k < 80:
		a := net()
		return fmt.Sprintf("%v/%d", a, a.BitLen()-rnd.IntN(9)) // often with host bits
	case k < 90:
		return net().String() + "-" + net().String() // often the wrong way around
	case k < 95:
		return one("", "bogus", "10.0.0.0/33", "/8", "10.0.0", "010.0.0.1", "1.1.1.1-2.2.2.2-3.3.3.3",
			"10.0.0.1-::1", "**", "10.0.0.0/08", "::/129", "1.2.3.4/", "cap:", "-", "100.64.0.1 ",
			"::ffff:100.64.0.1", "0.0.0.0-255.255.255.255", "::-ffff::", "100.64.0.1/32-100.64.0.2/32")
	default:
		return "cap:" + one(caps...)
	}
}

func makeRules() (rules []tailcfg.FilterRule) {
	for range rnd.IntN(7) {
		var r tailcfg.FilterRule
		for range rnd.IntN(6) {
			r.SrcIPs = append(r.SrcIPs, ruleAddr(false))
		}
		for range rnd.IntN(5) {
			d := tailcfg.NetPortRange{IP: ruleAddr(true)}
			switch rnd.IntN(3) {
			case 0:
				d.Ports = tailcfg.PortRange{First: 0, Last: 65535}
			case 1:
				d.Ports.First = one(ports...)
				d.Ports.Last = d.Ports.First
			default:
				d.Ports = tailcfg.PortRange{First: one(ports...), Last: one(ports...)}
			}
			if rnd.IntN(4000) == 0 {
				bits := 32
				d.Bits = &bits
			}
			r.DstPorts = append(r.DstPorts, d)
		}
		if chance(40) {
			for range rnd.IntN(4) {
				r.IPProto = append(r.IPProto, one(6, 17, 1, 58, 132, 47, 99, 50, 0, 255, 300, -1, 2))
			}
		}
		if rnd.IntN(2000) == 0 {
			r.SrcBits = []int{32}
		}
		rules = append(rules, r)
	}
	return rules
}

func writeRules(rules []tailcfg.FilterRule) {
	fmt.Fprintln(out, "B")
	for _, r := range rules {
		fmt.Fprintln(out, "R")
		write := []func(){
			func() {
				for _, s := range r.SrcIPs {
					fmt.Fprintf(out, "s %s\n", s)
				}
			},
			func() {
				for _, d := range r.DstPorts {
					if d.Bits != nil {
						fmt.Fprintln(out, "b")
					}
					fmt.Fprintf(out, "d %d %d %s\n", d.Ports.First, d.Ports.Last, d.IP)
				}
			},
			func() {
				for _, p := range r.IPProto {
					fmt.Fprintf(out, "p %d\n", p)
				}
			},
		}
		rnd.Shuffle(3, func(i, k int) { write[i], write[k] = write[k], write[i] })
		for _, w := range write {
			w()
		}
		if len(r.SrcBits) > 0 {
			fmt.Fprintln(out, "b")
		}
		fmt.Fprintln(out, "E")
	}
	fmt.Fprintln(out, "X")
}

// ---- one case: a policy, a few peers, a flow table ----

type flow struct {
	proto         ipproto.Proto
	remote, local netip.AddrPort
}

type world struct {
	caps    [256]map[string]bool
	jailed  [256]bool
	shields bool
	local   *netipx.IPSet

	normal, jail *filter.Filter // as the reference runs them, with its flow state
	rules        *filter.Filter // the same rules without flows
	expanded     *filter.Filter // capabilities replaced by the addresses that have them

	ours, theirs map[flow]int // flows by who began them, and the peer they lead to
}

// mine: is that a flow of ours that leads to this peer?
func (w *world) mine(t flow, peer int) bool {
	to, ok := w.ours[t]
	return ok && to == peer
}

func (w *world) hasCap(ip netip.Addr, cap tailcfg.NodeCapability) bool {
	net := netip.MustParsePrefix("100.64.0.0/24")
	if ip.Is6() {
		net = netip.MustParsePrefix("fd7a:115c:a1e0::/120")
	}
	return net.Contains(ip) && w.caps[peerOf(ip)][string(cap)]
}

func (w *world) setRules(rules []tailcfg.FilterRule) {
	matches, _ := filter.MatchesFromFilterRules(rules)
	if w.shields {
		w.normal = filter.NewShieldsUpFilter(w.local, nil, w.normal, quiet)
		w.rules, w.expanded = w.normal, w.normal
	} else {
		w.normal = filter.New(matches, w.hasCap, w.local, nil, w.normal, quiet)
		w.rules = filter.New(matches, w.hasCap, w.local, nil, nil, quiet)
		plain := make([]filter.Match, len(matches))
		for i, m := range matches {
			for _, c := range m.SrcCaps {
				for n := 1; n <= peerCount; n++ {
					for _, net := range []string{"100.64.0.0", "fd7a:115c:a1e0::"} {
						ip := last(netip.MustParseAddr(net), n)
						if w.hasCap(ip, c) {
							m.Srcs = append(m.Srcs[:len(m.Srcs):len(m.Srcs)], netip.PrefixFrom(ip, ip.BitLen()))
						}
					}
				}
			}
			m.SrcCaps = nil
			m.SrcsContains = ipset.NewContainsIPFunc(views.SliceOf(m.Srcs))
			plain[i] = m
		}
		w.expanded = filter.New(plain, nil, w.local, nil, nil, quiet)
	}
	w.jail = filter.New(nil, nil, w.local, nil, w.jail, quiet)
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

func newWorld() *world {
	w := &world{ours: map[flow]int{}, theirs: map[flow]int{}, shields: chance(4)}
	fmt.Fprintf(out, "C %d\n4 %v\n6 %v\n", bit(w.shields), self4, self6)
	var set netipx.IPSetBuilder
	routes := prefixes(one("", "192.168.7.0/24", "192.168.7.0/30 2001:db8:7::/64", "0.0.0.0/0 ::/0",
		"0.0.0.0/0 192.168.7.2/31", "::/0"))
	for _, p := range routes {
		if p.Bits() == 0 {
			set.AddPrefix(p)
			for _, not := range notOurs {
				set.RemovePrefix(not)
			}
		}
	}
	for _, p := range routes {
		if p.Bits() != 0 {
			set.AddPrefix(p)
		}
		fmt.Fprintf(out, "r %v\n", p)
	}
	set.Add(self4)
	set.Add(self6)
	w.local, _ = set.IPSet()
	for n := 1; n <= peerCount; n++ {
		w.caps[n] = map[string]bool{}
		w.jailed[n] = chance(5)
		fmt.Fprintf(out, "P %d %d", n, bit(w.jailed[n]))
		for _, c := range caps {
			if chance(15) {
				w.caps[n][c] = true
				fmt.Fprintf(out, " %s", c)
			}
		}
		fmt.Fprintln(out)
	}
	return w
}

func (w *world) filterFor(peer int) *filter.Filter {
	if w.jailed[peer] {
		return w.jail
	}
	return w.normal
}

var garbage = []byte(strings.Repeat("\xff", 20))

// lets asks the reference, without any flows: may src begin this?
func (w *world) lets(peer int, proto ipproto.Proto, src, dst netip.AddrPort) bool {
	if w.jailed[peer] || w.shields {
		return false
	}
	if proto == ipproto.ICMPv4 && src.Addr().Is4() || proto == ipproto.ICMPv6 && src.Addr().Is6() {
		return ask(w.expanded, proto, src, dst)
	}
	return ask(w.rules, proto, src, dst)
}

func ask(f *filter.Filter, proto ipproto.Proto, src, dst netip.AddrPort) bool {
	var q packet.Parsed
	q.Decode(garbage)
	q.IPVersion = 4
	if src.Addr().Is6() {
		q.IPVersion = 6
	}
	q.Src, q.Dst, q.IPProto = src, dst, proto
	if proto == ipproto.TCP {
		q.TCPFlags = packet.TCPSyn
	}
	return f.RunIn(&q, 0) == filter.Accept
}

func (w *world) pings(peer int, src, dst netip.Addr) bool {
	proto := ipproto.ICMPv4
	if src.Is6() {
		proto = ipproto.ICMPv6
	}
	return w.lets(peer, proto, netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0))
}

// ---- what ours has to say ----

func isSYN(q *packet.Parsed) bool {
	return q.TCPFlags&(packet.TCPSyn|packet.TCPAck) == packet.TCPSyn
}

func ownICMP(q *packet.Parsed) bool {
	return q.IPVersion == 4 && q.IPProto == ipproto.ICMPv4 || q.IPVersion == 6 && q.IPProto == ipproto.ICMPv6
}

// icmp gives kind ("", "request", "reply", "error") and number of an ICMP packet.
func icmp(six bool, b []byte) (kind string, number uint16) {
	if len(b) < 8 {
		return "", 0
	}
	request, reply, errors := byte(8), byte(0), []byte{3, 11, 12}
	if six {
		request, reply, errors = 128, 129, []byte{1, 2, 3, 4}
	}
	number = binary.BigEndian.Uint16(b[4:])
	switch {
	case b[0] == request && b[1] == 0:
		return "request", number
	case b[0] == reply && b[1] == 0:
		return "reply", number
	case strings.IndexByte(string(errors), b[0]) >= 0:
		return "error", 0
	}
	return "", 0
}

func bodyOf(b []byte) []byte {
	if b[0]>>4 == 4 {
		return b[int(b[0]&15)*4:]
	}
	if b[6] == 44 {
		return b[48:]
	}
	return b[40:]
}

// quoted reads the packet inside an ICMP error.
func quoted(six bool, b []byte) (src, dst netip.AddrPort, proto ipproto.Proto, ok bool) {
	var from, to netip.Addr
	var total int
	n := len(b)
	if six {
		if n < 40 || b[0]>>4 != 6 {
			return
		}
		from, _ = netip.AddrFromSlice(b[8:24])
		to, _ = netip.AddrFromSlice(b[24:40])
		proto, total = ipproto.Proto(b[6]), 40+int(binary.BigEndian.Uint16(b[4:]))
		head := 40
		if proto == 44 {
			if n < 48 || binary.BigEndian.Uint16(b[42:])>>3 != 0 {
				return
			}
			proto, head = ipproto.Proto(b[40]), 48
		}
		if total < head {
			return
		}
		b = b[head:]
	} else {
		if n < 20 || b[0]>>4 != 4 {
			return
		}
		head := int(b[0]&15) * 4
		total = int(binary.BigEndian.Uint16(b[2:]))
		if head < 20 || n < head || total < head || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return
		}
		from, _ = netip.AddrFromSlice(b[12:16])
		to, _ = netip.AddrFromSlice(b[16:20])
		proto, b = ipproto.Proto(b[9]), b[head:]
	}
	src, dst = netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0)
	switch {
	case proto == 0 || proto == 255 || proto == ipproto.TSMP: // no flow
		return
	case proto == ipproto.TCP || proto == ipproto.UDP || proto == ipproto.SCTP:
		if len(b) < 4 {
			return
		}
		src = netip.AddrPortFrom(from, binary.BigEndian.Uint16(b))
		dst = netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2:]))
	case !six && proto == ipproto.ICMPv4 || six && proto == ipproto.ICMPv6:
		kind, number := icmp(six, b)
		if kind != "request" {
			return
		}
		src = netip.AddrPortFrom(from, number)
	}
	return src, dst, proto, true
}

func (w *world) errorIsOurs(peer int, six bool, b []byte, dst netip.Addr) bool {
	if len(b) < 8 {
		return false
	}
	qsrc, qdst, proto, ok := quoted(six, b[8:])
	if !ok || qsrc.Addr() != dst {
		return false
	}
	if w.mine(flow{proto, qdst, qsrc}, peer) {
		return true
	}
	if w.jailed[peer] || w.shields {
		return false
	}
	if proto == ipproto.ICMPv4 || proto == ipproto.ICMPv6 {
		qsrc, qdst = netip.AddrPortFrom(qsrc.Addr(), 0), netip.AddrPortFrom(qdst.Addr(), 0)
	}
	// The capabilities of whoever reports an error do not count: without them.
	saved := w.caps
	w.caps = [256]map[string]bool{}
	defer func() { w.caps = saved }()
	return ask(w.rules, proto, qdst, qsrc)
}

// malformed: what the reference reads and we do not.
func malformed(b []byte) bool {
	if len(b) >= 20 && b[0]>>4 == 4 && b[0]&15 < 5 {
		return true
	}
	return len(b) >= 48 && b[0]>>4 == 6 && b[6] == 44 && b[40] == 99 && binary.BigEndian.Uint16(b[42:])&0xfff9 == 1
}

// in gives the verdict that ours must have, and a letter: '=' as the reference,
// else which of the strict rules was in play.
func (w *world) in(peer int, q *packet.Parsed, b []byte, ref bool) (accept bool, why byte) {
	if malformed(b) {
		return false, 'm'
	}
	if len(b) == 0 || q.IPProto == ipproto.Unknown {
		return ref, '='
	}
	src, dst := q.Src.Addr(), q.Dst.Addr()
	t := flow{q.IPProto, q.Src, q.Dst}
	switch {
	case q.IPProto == ipproto.Fragment:
		any := false
		for o, to := range w.ours {
			any = any || to == peer && o.remote.Addr() == src && o.local.Addr() == dst
		}
		return ref && w.local.Contains(dst) && (any || w.pings(peer, src, dst)), 'f'
	case q.IPProto == ipproto.TCP && !isSYN(q):
		return ref && (w.mine(t, peer) || w.lets(peer, q.IPProto, q.Src, q.Dst)), 't'
	case q.IPProto == ipproto.UDP || q.IPProto == ipproto.SCTP:
		rule := w.lets(peer, q.IPProto, q.Src, q.Dst)
		accept = ref && (w.mine(t, peer) || rule)
		_, ours := w.ours[t]
		_, theirs := w.theirs[t]
		if accept && !ours && !theirs {
			w.theirs[t] = peer
		}
		return accept, 'u'
	case ownICMP(q):
		body := bodyOf(b)
		kind, number := icmp(q.IPVersion == 6, body)
		ping := w.pings(peer, src, dst)
		switch kind {
		case "reply":
			t = flow{q.IPProto, netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, number)}
			return ref && (w.mine(t, peer) || ping), 'r'
		case "error":
			ours := w.errorIsOurs(peer, q.IPVersion == 6, body, dst) && w.local.Contains(dst)
			ours = ours && !dst.IsMulticast() && !dst.IsLinkLocalUnicast()
			if q.IPVersion == 4 && body[0] == 12 {
				return ping || ours, 'e' // the reference does not know this type
			}
			return ref && (ping || ours), 'e'
		}
		return ref && ping, 'p' // capabilities; type 18 of ICMPv4
	}
	return ref, '='
}

// noteOut keeps the list of our flows.
func (w *world) noteOut(peer int, q *packet.Parsed, b []byte) {
	t := flow{q.IPProto, q.Dst, q.Src}
	switch {
	case q.IPProto == ipproto.TCP:
		if _, ours := w.ours[t]; ours || isSYN(q) {
			w.ours[t] = peer
		}
	case q.IPProto == ipproto.UDP || q.IPProto == ipproto.SCTP:
		if _, theirs := w.theirs[t]; theirs {
			w.theirs[t] = peer
		} else {
			w.ours[t] = peer
		}
	case ownICMP(q):
		if kind, number := icmp(q.IPVersion == 6, bodyOf(b)); kind == "request" {
			w.ours[flow{q.IPProto, netip.AddrPortFrom(q.Dst.Addr(), 0),
				netip.AddrPortFrom(q.Src.Addr(), number)}] = peer
		}
	}
}

// ---- packets ----

func header(six bool, src, dst netip.Addr, proto byte, body []byte) []byte {
	if six {
		b := make([]byte, 40, 40+len(body))
		b[0], b[6], b[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
		copy(b[8:], src.AsSlice())
		copy(b[24:], dst.AsSlice())
		return append(b, body...)
	}
	b := make([]byte, 20, 60+len(body))
	if chance(5) {
		b = b[:20+4*rnd.IntN(11)]
	}
	b[0], b[8], b[9] = byte(0x40+len(b)/4), 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(body)))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	return append(b, body...)
}

func transport(six bool, proto byte) []byte {
	b := make([]byte, 20+rnd.IntN(5))
	binary.BigEndian.PutUint16(b, one(ports...))
	binary.BigEndian.PutUint16(b[2:], one(ports...))
	switch proto {
	case 6:
		b[12], b[13] = 0x50, one[byte](2, 2, 2, 16, 18, 4, 0, 3, 17, 0xc2, 20, 24)
	case 1, 58:
		if (proto == 58) == six {
			b[0], b[1] = one[byte](8, 0, 3, 11, 12, 18, 5, 13), 0
			if six {
				b[0] = one[byte](128, 129, 1, 2, 3, 4, 134, 0)
			}
			if chance(5) {
				b[1] = 1
			}
			b[4], b[5] = 0, one[byte](1, 2, 3)
		}
	case 99:
		copy(b, "p12345678")
	}
	if chance(4) {
		b = b[:rnd.IntN(len(b)+1)]
	}
	return b
}

// makePacket makes a packet of peer to us, or of us to peer.
func makePacket(peer int, inbound bool) []byte {
	six := chance(35)
	proto := one[byte](6, 6, 6, 17, 17, 17, 1, 58, 132, 99, 47, 50, 2)
	if (proto == 1 || proto == 58) && chance(85) {
		proto = map[bool]byte{false: 1, true: 58}[six]
	}
	if chance(2) {
		proto = byte(rnd.IntN(256))
	}
	src, dst := peerAddr(six, peer), ourAddr(six)
	if !inbound {
		src, dst = dst, src
		if chance(2) {
			dst = ourAddr(six) // multicast and the like
		}
	}
	body := transport(six, proto)
	if (proto == 1 || proto == 58) && len(body) >= 8 && chance(70) {
		quote := one[byte](6, 17, 17, 132, 47, proto)
		q := header(six, dst, src, quote, transport(six, quote))
		if chance(10) {
			q = header(six, ourAddr(six), src, quote, transport(six, quote))
		}
		body = append(body[:8:8], q...)
		if chance(10) {
			body = body[:8+rnd.IntN(len(q)+1)]
		}
	}
	if six && chance(8) {
		frag := make([]byte, 8, 8+len(body))
		frag[0] = proto
		binary.BigEndian.PutUint16(frag[2:], one[uint16](0, 1, 0, 9<<3, 10<<3, 10<<3|1, 185<<3, 1<<3))
		proto, body = 44, append(frag, body...)
		if chance(5) {
			body = body[:rnd.IntN(9)]
		}
	}
	b := header(six, src, dst, proto, body)
	if !six && chance(8) {
		binary.BigEndian.PutUint16(b[6:], one[uint16](0x2000, 0x2000, 9, 10, 0x200a, 185, 1, 0x4000))
	}
	switch rnd.IntN(60) {
	case 0:
		b = b[:rnd.IntN(len(b)+1)]
	case 1:
		b[0] = byte(rnd.IntN(256))
	case 2:
		k := rnd.IntN(8)
		b[k] ^= byte(1 << rnd.IntN(8))
	case 3:
		b = append(b, make([]byte, rnd.IntN(16))...)
	case 4:
		b[0] = b[0]&0xf0 | byte(rnd.IntN(16))
	}
	return b
}

// trim cuts padding off, as the step before the filter does.
func trim(b []byte) []byte {
	total := len(b)
	if len(b) >= 20 && b[0]>>4 == 4 {
		total = int(binary.BigEndian.Uint16(b[2:]))
	} else if len(b) >= 40 && b[0]>>4 == 6 {
		total = 40 + int(binary.BigEndian.Uint16(b[4:]))
	}
	if total >= 20 && total <= len(b) {
		return b[:total]
	}
	return b
}

func mark(accept bool, reject bool) byte {
	if accept {
		return 'A'
	}
	if reject {
		return 'R'
	}
	return 'D'
}

// send runs one packet through the reference and writes it with our verdict.
func (w *world) send(peer int, inbound bool, raw []byte) {
	b := trim(raw)
	var q packet.Parsed
	q.Decode(b)
	if inbound {
		ref := w.filterFor(peer).RunIn(&q, 0) == filter.Accept
		accept, why := w.in(peer, &q, b, ref)
		if accept == ref {
			why = '='
		}
		reject := !accept && q.IPVersion == 4 && q.IPProto == ipproto.TCP && q.TCPFlags&packet.TCPSyn != 0 &&
			!malformed(b) && w.local.Contains(q.Dst.Addr()) &&
			!q.Dst.Addr().IsMulticast() && !q.Dst.Addr().IsLinkLocalUnicast()
		fmt.Fprintf(out, "i %d %c %c %s\n", peer, mark(accept, reject), why, hex.EncodeToString(raw))
		return
	}
	res, _ := w.filterFor(peer).RunOut(&q, 0)
	accept, why := res == filter.Accept, byte('=')
	if malformed(b) && accept {
		accept, why = false, 'm'
	}
	if len(b) == 0 || q.IPProto == ipproto.TSMP && accept {
		accept, why = false, 'm' // nothing to send; the reference stops TSMP elsewhere
	}
	if accept {
		w.noteOut(peer, &q, b)
	}
	fmt.Fprintf(out, "o %d %c %c %s\n", peer, mark(accept, false), why, hex.EncodeToString(raw))
}

// reply turns a packet around, so that flows get answers.
func reply(b []byte) []byte {
	b = append([]byte(nil), b...)
	swap := func(i, k, n int) {
		for ; n > 0; n-- {
			b[i], b[k] = b[k], b[i]
			i, k = i+1, k+1
		}
	}
	at := 0
	switch {
	case len(b) >= 28 && b[0]>>4 == 4 && int(b[0]&15)*4+8 <= len(b):
		swap(12, 16, 4)
		at = int(b[0]&15) * 4
		if b[9] == 1 {
			b[at] ^= 8
			return b
		}
	case len(b) >= 48 && b[0]>>4 == 6:
		swap(8, 24, 16)
		at = 40
		if b[6] == 58 {
			b[at] ^= 1
			return b
		}
	default:
		return b
	}
	swap(at, at+2, 2)
	if len(b) >= at+14 && chance(70) {
		b[at+13] |= 16
	}
	return b
}

func peerIn(b []byte, inbound bool) (int, bool) {
	var q packet.Parsed
	q.Decode(b)
	ip := q.Dst.Addr()
	if inbound {
		ip = q.Src.Addr()
	}
	if !ip.IsValid() {
		return 0, false
	}
	n := peerOf(ip)
	return n, n >= 1 && n <= peerCount
}

func (w *world) forget(peer int) {
	fmt.Fprintf(out, "F %d\n", peer)
	for _, m := range []map[flow]int{w.ours, w.theirs} {
		for t, to := range m {
			if to == peer {
				delete(m, t)
			}
		}
	}
}

// play is one case: some packets, now and then an answer, a peer that goes, new
// rules in the middle.
func play(packets int) {
	w := newWorld()
	rules := makeRules()
	w.setRules(rules)
	writeRules(rules)
	var recent [][]byte
	for n := range packets {
		inbound := chance(70)
		peer := 1 + rnd.IntN(peerCount)
		b := makePacket(peer, inbound)
		if len(recent) > 0 && chance(35) {
			b = reply(one(recent...))
			if p, ok := peerIn(b, true); ok && chance(60) {
				inbound, peer = true, p
			} else if p, ok := peerIn(b, false); ok {
				inbound, peer = false, p
			} else {
				continue
			}
		}
		if p, ok := peerIn(b, inbound); ok {
			peer = p
		} else if !inbound {
			peer = 0
		}
		recent = append(recent, b)
		if len(recent) > 12 {
			recent = recent[1:]
		}
		w.send(peer, inbound, b)
		if n == packets/2 {
			rules = makeRules()
			w.setRules(rules)
			writeRules(rules)
		}
		if chance(1) {
			w.forget(1 + rnd.IntN(peerCount))
		}
	}
}

// playLRU fills the flow table, which holds as many flows here as there.
func playLRU(packets int) {
	fmt.Fprintf(out, "C 0\n4 %v\n6 %v\n", self4, self6)
	var set netipx.IPSetBuilder
	set.Add(self4)
	set.Add(self6)
	local, _ := set.IPSet()
	f := filter.New(nil, nil, local, nil, nil, quiet)
	fmt.Fprintln(out, "B\nX")
	for range packets {
		six, inbound := chance(30), chance(50)
		peer := 1 + rnd.IntN(3)
		proto := one[byte](17, 17, 17, 132)
		src, dst := last(netip.MustParseAddr("100.64.0.0"), peer), self4
		if six {
			src, dst = last(netip.MustParseAddr("fd7a:115c:a1e0::"), peer), self6
		}
		body := make([]byte, 12)
		theirs, mine := uint16(53), uint16(rnd.IntN(120))
		if !inbound {
			src, dst = dst, src
			theirs, mine = mine, theirs
		}
		binary.BigEndian.PutUint16(body, theirs)
		binary.BigEndian.PutUint16(body[2:], mine)
		b := header(six, src, dst, proto, body)
		var q packet.Parsed
		q.Decode(b)
		if inbound {
			fmt.Fprintf(out, "i %d %c = %s\n", peer, mark(f.RunIn(&q, 0) == filter.Accept, false), hex.EncodeToString(b))
		} else {
			f.RunOut(&q, 0)
			fmt.Fprintf(out, "o %d A = %s\n", peer, hex.EncodeToString(b))
		}
	}
}

func main() {
	seed := flag.Uint64("seed", 1, "of the random numbers")
	cases := flag.Int("cases", 8000, "how many policies")
	packets := flag.Int("packets", 150, "how many packets for each")
	flag.Parse()
	rnd = rand.New(rand.NewPCG(*seed, 0))
	out = bufio.NewWriterSize(os.Stdout, 1<<20)
	for range *cases {
		play(*packets)
	}
	playLRU(*packets * 100)
	fmt.Fprintln(out, "Q")
	if err := out.Flush(); err != nil {
		os.Exit(1)
	}
}
