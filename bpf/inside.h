/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* What a service sends over loopback. It stays on the host and passes, but for what the host itself would carry
 * on to another one: its answer to a foreign source (an echo, a handshake, an error that quotes the packet), the
 * next hop of a source route, what a tunnel takes out of a datagram. */
#ifndef AEGIS_INSIDE_H
#define AEGIS_INSIDE_H

#include "govern.h"

extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

/* Neither options nor extension headers. */
static __always_inline int is_plain(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u8 *b = data;

	if (data + 20 > end)
		return 0;
	return b[0] == 0x45 || (b[0] >> 4 == 6 && b[6] == P_TCP);
}

/* The kernel itself takes the datagram: of VXLAN, GENEVE, GTP or FOU it forwards or delivers what is inside. */
__noinline int is_for_a_tunnel(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple t = {};
	__u32 size = sizeof(t.ipv4);
	struct bpf_sock *found;
	struct udp_sock *udp;
	int tunnel;

	if (!p || p->proto != P_UDP || LINUX_KERNEL_VERSION < LINUX_6_2)
		return 0;
	if (p->family == 4) {
		t.ipv4.saddr = p->local[3];
		t.ipv4.daddr = p->peer[3];
		t.ipv4.sport = bpf_htons(p->local_port);
		t.ipv4.dport = bpf_htons(p->peer_port);
	} else {
		size = sizeof(t.ipv6);
		__builtin_memcpy(t.ipv6.saddr, p->local, 16);
		__builtin_memcpy(t.ipv6.daddr, p->peer, 16);
		t.ipv6.sport = bpf_htons(p->local_port);
		t.ipv6.dport = bpf_htons(p->peer_port);
	}
	found = bpf_sk_lookup_udp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	if (!found)
		return 0;
	udp = bpf_rdonly_cast(found, bpf_core_type_id_kernel(struct udp_sock));
	tunnel = udp->encap_rcv != 0;
	bpf_sk_release(found);
	return tunnel;
}

__noinline int is_carried_on(struct __sk_buff *skb, struct view *v, const struct state *st)
{
	struct bpf_sock *sk = skb->sk;
	__u32 is_call;

	if (!sk || !v || !(sk = bpf_sk_fullsock(sk)))
		return 0;
	is_call = FIELD(sk, state) == S_SYN_SENT;
	if (FIELD(sk, protocol) == P_TCP && FIELD(sk, type) == 1 && !is_call && is_plain(skb))
		return 0;
	parse(skb, EGRESS, &v->p);
	if (v->p.options & O_ROUTE || (is_call && v->p.malformed) || is_for_a_tunnel(skb, &v->p))
		return 1;
	return !is_loopback_end(v->p.family, v->p.local) && is_forged(skb, sk, st, &v->p);
}

static __always_inline int on_loopback(struct __sk_buff *skb, struct view *v, const struct state *st)
{
	if (!is_carried_on(skb, v, st)) {
		count(0, v->slot, FAILSAFE);
		return PASS;
	}
	v->p.malformed = 1;
	v->now = now_ns();
	v->remote = 1;
	return judge_flow(v, 0) ? conclude(v, 0, 0) : PASS;
}

#endif
