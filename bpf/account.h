/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* What flows there are, governed or not, for people and not for verdicts: nothing here decides anything.
 * Off while `accounts` is empty. Traffic over loopback is not counted. */
#ifndef AEGIS_ACCOUNT_H
#define AEGIS_ACCOUNT_H

#include "govern.h"

/* A connection is counted once: TCP by its socket, UDP where the flow begins. */
static __always_inline __u32 begins(struct bpf_sock *sk, const struct view *v, struct state *st)
{
	if (v->p.proto == P_UDP && v->slot < MAX_SLOTS)
		return !v->live && !(v->word & W_REFUSED);
	if (!st || st->marks & M_COUNTED || (v->p.proto != P_TCP && v->p.proto != P_UDP) || sk->state == S_LISTEN)
		return 0;
	mark(st, M_COUNTED);
	return 1;
}

/* The headers that the further segments of a large packet have on the wire; IPv6 without extensions. */
static __always_inline __u32 repeated(struct __sk_buff *skb, const struct view *v)
{
	__u32 header = 40;
	__u8 b = 0;

	if (skb->gso_segs < 2 || bpf_skb_load_bytes(skb, 0, &b, 1))
		return 0;
	if (v->p.family == 4)
		header = (b & 15) * 4;
	if (v->p.proto == P_UDP)
		header += 8;
	else if (v->p.proto == P_TCP && !bpf_skb_load_bytes(skb, header + 12, &b, 1))
		header += (b >> 4) * 4;
	return (skb->gso_segs - 1) * header;
}

__noinline int account(struct __sk_buff *skb, const struct view *v, struct state *st)
{
	struct flow_count one = {};
	struct bpf_sock *sk = skb->sk;
	struct flow_key key = {};

	if (!v || v->waits || v->p.malformed || !sk || !(sk = bpf_sk_fullsock(sk)))
		return 0;
	key.cgroup = bpf_skb_cgroup_id(skb);
	__builtin_memcpy(key.local, v->p.local, 16);
	__builtin_memcpy(key.peer, v->p.peer, 16);
	key.verdict = v->word & (W_REASON | W_DENY | W_REFUSED);
	key.slot = v->slot;
	key.port = !v->p.has_ports ? 0 : v->dir == INGRESS ? v->p.local_port : v->p.peer_port;
	key.proto = v->p.proto;
	key.dir = v->dir;
	one.first_ns = one.last_ns = v->now;
	one.packets[v->packet_dir & 1] = skb->gso_segs ? skb->gso_segs : 1;
	one.bytes[v->packet_dir & 1] = skb->len + repeated(skb, v);
	one.connections = begins(sk, v, st);
	if (st) {
		one.start_ns = st->start_ns;
		one.pid = st->pid;
	}
	enter(&key, &one);
	return 0;
}

/* Who began what nothing governs: TCP as recorded; else whoever sent first on the socket. */
static __always_inline __u32 side_of_free(struct __sk_buff *skb, struct bpf_sock *sk, struct state *st, struct view *v)
{
	__u32 side;

	if (sk->protocol == P_TCP && sk->state == S_LISTEN)
		return INGRESS;
	if (sk->protocol == P_TCP && st && st->initiator)
		return (st->initiator - 1) & 1;
	if (st && st->marks & M_FIRST)
		return ((st->marks & M_FIRST) - 1) & 1;
	if (sk->protocol == P_TCP && sk->state != S_SYN_SENT)
		side = (initiator_by_listener(skb, &v->p) - 1) & 1;
	else
		side = v->packet_dir;
	if (st)
		mark(st, 1 + side);
	return side;
}

/* A packet that no service's rules are asked about. */
__noinline int account_free(struct __sk_buff *skb, struct view *v)
{
	struct bpf_sock *sk = skb->sk;
	struct state *st;

	if (!sk || !v)
		return 0;
	st = bpf_sk_storage_get(&states, sk, 0, 0);
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 0;
	parse(skb, v->packet_dir, &v->p);
	as_asked(skb, sk, v->packet_dir, &v->p);
	v->word = UNMANAGED;
	v->now = now_ns();
	v->dir = side_of_free(skb, sk, st, v);
	return account(skb, v, st);
}

#endif
