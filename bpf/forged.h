/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* What a process does to look like its own peer (ADR 0026). */
#ifndef AEGIS_FORGED_H
#define AEGIS_FORGED_H

#include "asked.h"
#include "own.h"

#define LOOPED 5		/* skb->pkt_type: the copy of a multicast or broadcast that comes back to its sender */
#define SOL_IPV4 0
#define SOL_IPV6 41
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

static __always_inline struct inet_sock *inet_of(struct __sk_buff *skb)
{
	struct sk_buff *buffer = buffer_of(skb);

	return buffer ? (struct inet_sock *)BPF_CORE_READ(buffer, sk) : 0;
}

/* A socket that is older than the programs. IP_FREEBIND needs no privilege, and once bound by it a socket keeps
 * its address when the option is off again. */
static __always_inline int may_have_named_any_source(struct __sk_buff *skb)
{
	struct inet_sock *inet = inet_of(skb);

	return inet && (source_options(inet) || is_bound((struct sock *)inet, SOCK_BINDADDR_LOCK));
}

/* The options are noted when they are set: whoever puts them off again may have chosen a source meanwhile. The
 * source that routing chooses for every other socket is the host's, also where the agent has not heard of it. */
static __always_inline int on_option(struct bpf_sockopt *ctx)
{
	int names = (ctx->level == SOL_IPV4 && (ctx->optname == 15 || ctx->optname == 19)) ||
		    (ctx->level == SOL_IPV6 && (ctx->optname == 78 || ctx->optname == 75));
	struct bpf_sock *sk = ctx->sk;
	struct state *st;

	ctx->optlen = 0;	/* the kernel takes the caller's own value, however long */
	if (!names || !sk)
		return PASS;
	st = bpf_sk_storage_get(&states, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!st)
		return DROP;
	mark(st, M_ANY_SOURCE);
	return PASS;
}

/* What may leave from a foreign address and be taken for a peer's: anything of such a socket, but the later
 * packets of a call whose first one was looked at. */
static __always_inline int is_suspect(const struct bpf_sock *sk, const struct state *st, const struct packet *p)
{
	/* a subflow of MPTCP has what its call was given, and no namespace: the kernel made it */
	if (st && st->netns && !(st->marks & M_ANY_SOURCE))
		return 0;
	return p->proto != P_TCP || sk->protocol != P_TCP || sk->state == S_SYN_SENT;
}

/* An outgoing packet from an address that is not its host's: whoever gets it, perhaps the same service,
 * would take it for another's. IP_TRANSPARENT needs CAP_NET_ADMIN: a proxy of root's; in a namespace of one's
 * own anyone has it. */
__noinline int is_of_foreign_source(struct __sk_buff *skb, const struct packet *p, const struct state *st)
{
	struct inet_sock *inet = inet_of(skb);

	if (!(st && st->marks & M_ANY_SOURCE) && !may_have_named_any_source(skb))
		return 0;
	if (!p || !inet || (source_options(inet) & INET_TRANSPARENT && root_translates(skb)))
		return 0;
	return own_address(netns_of(skb), p->local) != OWN_YES;
}

static __always_inline int is_forged(struct __sk_buff *skb, const struct bpf_sock *sk, const struct state *st,
				     const struct packet *p)
{
	return is_suspect(sk, st, p) && is_of_foreign_source(skb, p, st);
}

/* A program asked for an address of its own host, and the host leads it elsewhere: a published port. */
static __always_inline int is_own_all_the_same(struct __sk_buff *skb, const struct view *v, __u32 forced)
{
	if (forced || v->dir != EGRESS || v->p.malformed)
		return 0;
	return (is_loopback(&v->p) || own_address(netns_of(skb), v->p.peer) == OWN_YES) && is_translated(skb);
}

#endif
