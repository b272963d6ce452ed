/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* connect and sendmsg: the refused caller gets EPERM at once. What cannot be known here (a socket without
 * storage, a mapping that changed, a namespace not read yet) is left to the packet. */
#ifndef AEGIS_CALLS_H
#define AEGIS_CALLS_H

#include "flows.h"
#include "own.h"

#define SOCK_RAW_TYPE 3

static __always_inline void forget_connection(struct state *st)
{
	st->initiator = 0;
	st->stamp = 0;
	st->candidate = 0;
}

/* v->p holds the peer's address. */
static __always_inline int on_call(struct bpf_sock_addr *ctx, struct view *v)
{
	struct bpf_sock *sk = ctx->sk;
	struct control *ctl = control();
	struct udp_flow *f = 0;
	struct state *st;

	if (!sk || !ctl || ctx->type == SOCK_RAW_TYPE)
		return PASS;
	st = bpf_sk_storage_get(&states, sk, 0, 0);
	if (!st)
		return PASS;
	v->p.proto = ctx->protocol;
	if (v->p.proto == P_TCP)
		forget_connection(st);
	v->slot = st->slot;
	if (st->epoch != epoch_of(ctl) || v->slot >= MAX_SLOTS)
		return PASS;
	if (v->p.proto == P_TCP || v->p.proto == P_UDP) {
		v->p.peer_port = bpf_ntohs(ctx->user_port);
		v->p.local_port = sk->src_port;
		v->p.has_ports = 1;
	}
	v->narrow = st->narrow;
	v->now = now_ns();
	v->p.netns = st->netns;
	if (v->p.proto == P_UDP && v->p.local_port)
		f = live_flow(v->slot, &v->p, v->now);
	if (f) {
		v->dir = (f->initiator - 1) & 1;
		v->live = 1;
		v->reuse = 1;
		v->before = f->stamp;
	}
	if (!judge_flow(v, 0))
		return PASS;
	/* the first packet need not be judged again; a failsafe may depend on its device, a denial is told there */
	if (v->p.proto == P_TCP && !(v->word & W_DENY) && reason_of(v->word) != FAILSAFE) {
		record(st, I_LOCAL, &v->p);
		st->stamp = v->stamp;
	}
	if (!(v->word & W_REFUSED) || is_own_address(bpf_get_netns_cookie(ctx), v->p.peer))
		return PASS;
	count_word(0, v->slot, v->word);
	tell(v);
	return DROP;
}

static __always_inline int on_call4(struct bpf_sock_addr *ctx, __u8 hook)
{
	struct view v = {.hook = hook};

	set_peer4(&v.p, ctx->user_ip4);
	return on_call(ctx, &v);
}

static __always_inline int on_call6(struct bpf_sock_addr *ctx, __u8 hook)
{
	struct view v = {.hook = hook};
	__u32 address[4];

	address[0] = ctx->user_ip6[0];
	address[1] = ctx->user_ip6[1];
	address[2] = ctx->user_ip6[2];
	address[3] = ctx->user_ip6[3];
	set_peer6(&v.p, address);
	return on_call(ctx, &v);
}

#endif
