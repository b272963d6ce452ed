/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* What a process does to look like its own peer (ADR 0026). */
#ifndef AEGIS_FORGED_H
#define AEGIS_FORGED_H

#include "asked.h"
#include "own.h"

#define LOOPED 5		/* skb->pkt_type: the copy of a multicast or broadcast that comes back to its sender */
#define INET_FREEBIND (1UL << 11)
#define INET_TRANSPARENT (1UL << 15)

/* The two options, as bits of `inet_flags`. */
static __always_inline unsigned long source_options(const struct inet_sock *inet)
{
	unsigned long found = 0;

	if (bpf_core_field_exists(struct inet_sock, inet_flags))
		return BPF_CORE_READ(inet, inet_flags) & (INET_FREEBIND | INET_TRANSPARENT);
	if (BPF_CORE_READ_BITFIELD_PROBED((struct inet_sock___bits *)inet, freebind))
		found |= INET_FREEBIND;
	if (BPF_CORE_READ_BITFIELD_PROBED((struct inet_sock___bits *)inet, transparent))
		found |= INET_TRANSPARENT;
	return found;
}

/* Whether the socket may send from addresses that are not its host's without having been allowed to.
 * IP_FREEBIND needs no privilege, and once bound by it a socket keeps its address when the option is off
 * again. IP_TRANSPARENT needs CAP_NET_ADMIN: a proxy of root's; in a namespace of one's own anyone has it. The
 * source that routing chooses for every other socket is the host's, also where the agent has not heard of it. */
static __always_inline int may_name_any_source(struct __sk_buff *skb)
{
	struct sk_buff *buffer = buffer_of(skb);
	struct inet_sock *inet;
	unsigned long options;

	if (!buffer)
		return 0;
	inet = (struct inet_sock *)BPF_CORE_READ(buffer, sk);
	options = source_options(inet);
	if (options & INET_TRANSPARENT && root_translates(skb))
		return 0;
	return options || is_bound((struct sock *)inet, SOCK_BINDADDR_LOCK);
}

/* A UDP socket has no recorded peer; there it remembers the last source that was found to be its host's. */
static __always_inline int is_known_source(const struct bpf_sock *sk, const struct state *st, const struct packet *p)
{
	return st && sk->protocol == P_UDP && st->peer[3] == p->local[3] && st->peer[2] == p->local[2] &&
	       st->peer[1] == p->local[1] && st->peer[0] == p->local[0];
}

/* An outgoing packet from an address that is not its host's: whoever gets it, perhaps the same service,
 * would take it for another's. */
__noinline int is_of_foreign_source(struct __sk_buff *skb, const struct packet *p, struct state *st)
{
	if (!p)
		return 0;
	if (p->malformed)
		return 1;
	if (may_name_any_source(skb) && !is_own_address(netns_of(skb), p->local))
		return 1;
	if (st && p->proto == P_UDP)
		__builtin_memcpy(st->peer, p->local, 16);
	return 0;
}

/* What a peer could take for the beginning of a flow: every datagram, and the first packet of a call. */
static __always_inline int begins_something(const struct bpf_sock *sk, const struct packet *p)
{
	return p->proto == P_UDP || (p->proto == P_TCP && sk->state == S_SYN_SENT);
}

/* A program asked for an address of its own host, and the host leads it elsewhere: a published port. */
static __always_inline int is_own_all_the_same(struct __sk_buff *skb, const struct view *v, __u32 forced)
{
	if (forced || v->dir != EGRESS || v->p.malformed || is_loopback(&v->p))
		return 0;
	return own_address(netns_of(skb), v->p.peer) == OWN_YES && is_translated(skb);
}

#endif
