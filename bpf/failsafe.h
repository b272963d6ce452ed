/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* What no snapshot can deny (contracts §1.7), and the view of a flow that every judgement starts from. */
#ifndef AEGIS_FAILSAFE_H
#define AEGIS_FAILSAFE_H

#include "search.h"

/* 127/8, 0.0.0.0, ::1 and ::. */
static __always_inline int is_loopback_end(__u8 family, const __u32 *end)
{
	if (family == 4)
		return !end[3] || (end[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !(end[0] | end[1] | end[2]) && (!end[3] || end[3] == bpf_htonl(1));
}

static __always_inline int is_loopback(const struct packet *p)
{
	return is_loopback_end(p->family, p->peer);
}

static __always_inline int is_answer(const struct packet *p)
{
	/* 0 3 4 5 11 12 14 16 18, and 1 2 3 4 129 */
	if (p->proto == P_ICMP && p->family == 4)
		return p->icmp_type < 32 && (0x55839U >> p->icmp_type & 1);
	if (p->proto == P_ICMP6 && p->family == 6)
		return (p->icmp_type >= 1 && p->icmp_type <= 4) || p->icmp_type == 129;
	return 0;
}

static __always_inline int is_link_local6(const struct packet *p)
{
	return (p->peer[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* NDP never crosses a router: who receives it checks the hop limit, as RFC 4861 asks. MLD (RFC 3810) stays on
 * the link by its hop limit of 1, is sent to groups and comes from link-local addresses or, before there is
 * one, from none. */
static __always_inline int is_discovery(const struct packet *p, __u32 packet_dir)
{
	__u32 t = p->icmp_type;

	if (p->proto != P_ICMP6 || p->family != 6)
		return 0;
	if (t >= 133 && t <= 137)
		return p->hop_limit == 255;
	if (p->hop_limit != 1 || !((t >= 130 && t <= 132) || t == 143))
		return 0;
	if (packet_dir == EGRESS)
		return *(const __u8 *)p->peer == 0xff;
	return is_link_local6(p) || !(p->peer[0] | p->peer[1] | p->peer[2] | p->peer[3]);
}

/* A client asks by broadcast, or on the link by multicast; who answers is not known before. It renews by
 * unicast at first, and by broadcast when that is refused (RFC 2131 section 4.4.5). */
static __always_inline int is_dhcp(const struct packet *p, __u32 dir)
{
	if (p->proto != P_UDP)
		return 0;
	if (p->family == 4)
		return p->local_port == 68 && p->peer_port == 67 && (dir == INGRESS || p->peer[3] == ~0U);
	if (p->local_port != 546 || p->peer_port != 547)
		return 0;
	if (dir == INGRESS)
		return is_link_local6(p);
	return p->peer[0] == bpf_htonl(0xff020000) && !p->peer[1] && !p->peer[2] &&
	       p->peer[3] == bpf_htonl(0x00010002);
}

static __always_inline int inside(const __u32 *address, const __u32 *net, const __u32 *mask)
{
	return !(((address[0] ^ net[0]) & mask[0]) | ((address[1] ^ net[1]) & mask[1]) |
		 ((address[2] ^ net[2]) & mask[2]) | ((address[3] ^ net[3]) & mask[3]));
}

struct rule_search {
	struct failsafe_list *list;
	const struct packet *p;
	__u32 dir;
	__u32 port;
	__u32 found;		/* F_SAFE, F_DEPENDS */
	__u32 narrow;
};
#define F_SAFE 1
#define F_DEPENDS 2		/* a rule that names a cgroup was asked: another socket may get another answer */

static int try_rule(__u32 i, struct rule_search *s)
{
	const struct failsafe_rule *r = &s->list->rules[i & (MAX_FAILSAFE - 1)];
	const struct packet *p = s->p;

	if (i >= s->list->count)
		return 1;
	if (r->dir != s->dir || (r->port && r->port != s->port))
		return 0;
	if (r->proto ? r->proto != p->proto : r->port && !p->has_ports)
		return 0;
	if (!inside(p->peer, r->net, r->mask))
		return 0;
	if (r->cgroup) {
		s->found |= F_DEPENDS;
		if (!(s->narrow >> (i & (MAX_FAILSAFE - 1)) & 1))
			return 0;
	}
	s->found |= F_SAFE;
	return 1;
}

/* All that is known of one packet, or of one call, while it is judged. */
struct view {
	struct packet p;
	__u64 now;
	__u64 before;		/* the flow's stamp so far; 0 for none */
	__u64 stamp;		/* the answer, with its generation */
	__u64 generation;
	__u32 word;
	__u32 slot;
	__u32 dir;		/* of the initiation */
	__u32 packet_dir;
	__u32 narrow;		/* bit i: the socket is inside the cgroup of failsafe rule i */
	__u8 live;		/* established, or in the table of UDP flows */
	__u8 reuse;		/* `before` answers where it is of this generation */
	__u8 recorded;		/* the flow's stamp is the socket's */
	__u8 expired;
	__u8 hook;
	__u8 candidate;
	__u8 remote;		/* the packet uses a device other than loopback */
	__u8 waits;		/* counted in its flow's record */
	__u8 depends;		/* on the socket's cgroup, beside its slot */
	__u8 zero[3];
};

/* What can never be denied. */
static __always_inline int is_failsafe(const struct view *v)
{
	const struct packet *p = &v->p;
	struct failsafe_list *list;
	__u32 zero = 0;

	/* on another device such an address is forged, or leads out of the host */
	if (!v->remote && is_loopback(p))
		return 1;
	if (p->malformed)
		return 0;
	if (p->proto == P_ICMP || p->proto == P_ICMP6)
		if (is_discovery(p, v->packet_dir) || (v->packet_dir == INGRESS && is_answer(p)))
			return 1;
	if (is_dhcp(p, v->dir))
		return 1;
	list = bpf_map_lookup_elem(&failsafes, &zero);
	if (list && list->count) {
		struct rule_search s = {.list = list, .p = p, .dir = v->dir, .narrow = v->narrow};

		s.port = v->dir == EGRESS ? p->peer_port : p->local_port;
		bpf_loop(MAX_FAILSAFE, try_rule, &s, 0);
		return s.found;
	}
	return 0;
}

#endif
