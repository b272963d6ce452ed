/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* The authority: every packet of a socket in a mapped cgroup. The test entries (`test` is a constant) take
 * slot, initiator and locality from skb->cb, and share everything else. */
#ifndef AEGIS_GOVERN_H
#define AEGIS_GOVERN_H

#include "forged.h"
#include "narrow.h"
#include "waiting.h"

__noinline int slot_by_walk(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return SLOT_NONE;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return SLOT_NONE;
	return DEEPEST_MAPPED(bpf_sk_ancestor_cgroup_id(sk, level_));
}

/* No record of who began a connection: a listener on its local port says that the peer did. */
__noinline int initiator_by_listener(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *found, *sk = skb->sk;
	struct sk_buff *buffer = buffer_of(skb);
	__u32 size = sizeof(t.ipv4);

	if (!sk || !p)
		return I_LOCAL;
	if (buffer && is_bound(BPF_CORE_READ(buffer, sk), SOCK_BINDPORT_LOCK))
		return I_LOCAL;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return I_LOCAL;
	if (sk->family == 2) {
		t.ipv4.saddr = p->peer[3];
		t.ipv4.daddr = sk->src_ip4;
		t.ipv4.dport = bpf_htons(p->local_port);
	} else {
		size = sizeof(t.ipv6);
		__builtin_memcpy(t.ipv6.saddr, p->peer, 16);
		t.ipv6.daddr[0] = sk->src_ip6[0];
		t.ipv6.daddr[1] = sk->src_ip6[1];
		t.ipv6.daddr[2] = sk->src_ip6[2];
		t.ipv6.daddr[3] = sk->src_ip6[3];
		t.ipv6.dport = bpf_htons(p->local_port);
	}
	found = bpf_skc_lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	if (!found)
		return I_LOCAL;
	bpf_sk_release(found);
	return I_PEER;
}

/* The candidate is judged once a flow (else once a packet), told of, and blocks nothing. */
__noinline int judge_candidate(struct view *v, struct state *st, struct udp_flow *f)
{
	struct descriptor *d;
	__u32 index, active, zero = 0;
	void *inner;
	__u64 seen;

	if (!v)
		return 0;
	index = MAX_SLOTS + v->slot;
	inner = bpf_map_lookup_elem(&generations, &index);
	d = inner ? bpf_map_lookup_elem(inner, &zero) : 0;
	if (!d)
		return 0;
	seen = v->recorded && st ? st->candidate : f ? f->candidate : 0;
	active = v->word;
	if (seen >> W_BITS == d->generation || !judge_flow(v, 1))
		return 0;
	if (v->recorded && st)
		st->candidate = v->stamp;
	else if (f)
		f->candidate = v->stamp;
	v->candidate = 1;
	count_word(1, v->slot < MAX_SLOTS ? v->slot : SLOT_NONE, v->word);
	if (v->word & W_DENY)
		tell(v);
	v->candidate = 0;
	v->word = active;	/* what the packet is counted as */
	return 0;
}

static __always_inline int conclude(struct view *v, struct state *st, struct udp_flow *f)
{
	__u32 candidate = MAX_SLOTS + v->slot;
	int answer = v->word & W_REFUSED ? DROP : PASS;

	count_word(0, v->slot, v->word);
	/* what is let pass all the same (observe) is told once a flow, not once a packet */
	if (v->word & W_REFUSED || (v->word & W_DENY && v->before >> W_BITS != v->generation))
		tell(v);
	if (bpf_map_lookup_elem(&generations, &candidate))
		judge_candidate(v, st, f);
	return answer;
}

/* TCP: who began it, and whether its stamp may be read and written. */
static __always_inline void view_tcp(struct __sk_buff *skb, __u32 state, struct view *v, struct state *st,
				     __u32 forced)
{
	if (state == S_LISTEN || state == S_CLOSE || !st) {
		if (state == S_LISTEN)
			v->dir = INGRESS;
		else if (st && st->initiator)
			v->dir = (st->initiator - 1) & 1;
		return;
	}
	if (!st->initiator) {
		if (forced)
			record(st, forced & CB_INITIATOR ? forced & CB_INITIATOR : 1 + v->packet_dir, &v->p);
		else if (state == S_SYN_SENT)
			record(st, I_LOCAL, &v->p);
		else
			record(st, initiator_by_listener(skb, &v->p), &v->p);
	}
	v->dir = (st->initiator - 1) & 1;
	if (!same_peer(st, &v->p))
		return;
	v->recorded = 1;
	v->live = is_live_state(state);
	v->before = st->stamp;
}

/* No cached verdict answered. */
static __always_inline int judge_anew(struct __sk_buff *skb, struct bpf_sock *sk, struct view *v, struct state *st,
				      const struct control *ctl, __u32 forced)
{
	struct udp_flow *f = 0;
	int managed;

	v->dir = forced & CB_INITIATOR ? (forced & CB_INITIATOR) - 1 : v->packet_dir;
	if (!v->p.malformed && v->p.proto == P_UDP && !(forced & CB_INITIATOR)) {
		v->p.netns = st && st->netns ? st->netns : netns_of(skb);
		f = live_flow(v->slot, &v->p, v->now);
		if (f) {
			v->dir = (f->initiator - 1) & 1;
			v->live = 1;
			v->reuse = 1;
			v->before = f->stamp;
		}
	} else if (!v->p.malformed && v->p.proto == P_TCP) {
		if (forced & CB_TCP)
			view_tcp(skb, S_ESTABLISHED, v, st, forced);
		else if (sk->protocol == P_TCP && sk->type == 1)
			view_tcp(skb, sk->state, v, st, forced);
	}
	managed = judge_flow(v, 0);
	if (managed && v->word & W_DENY && is_own_all_the_same(skb, v, forced)) {
		v->word = FAILSAFE;
		v->stamp = v->generation << W_BITS | FAILSAFE;
	}
	if (!managed) {
		v->word = UNMANAGED;
		v->stamp = stamp_unmanaged(ctl) | (v->dir == INGRESS ? W_INGRESS : 0);
	}
	if (v->recorded && st)
		st->stamp = v->stamp;
	else if (f)
		continue_flow(f, v);
	else if (v->p.proto == P_UDP && !v->p.malformed && !(v->stamp & W_REFUSED) && !(forced & CB_INITIATOR) &&
		 !is_dhcp(&v->p, v->dir))	/* whoever offers an address begins no flow to be answered */
		begin_flow(v);
	if (!managed) {
		count(0, v->slot, UNMANAGED);
		return PASS;
	}
	if (f && is_accounting())
		v->waits = waits(skb, f, v, st) & 1;
	return conclude(v, st, f);
}

/* A cached verdict may answer: an unbroken record of this very connection in this very generation. */
static __always_inline int judge_packet(struct __sk_buff *skb, struct bpf_sock *sk, struct view *v, struct state *st,
					const struct control *ctl, __u32 forced)
{
	__u32 zero = 0, state = forced & CB_TCP ? S_ESTABLISHED : sk->state;
	struct descriptor *d;
	void *inner;
	__u64 stamp;

	v->now = now_ns();
	v->expired = !!(forced & CB_EXPIRED);
	if (!forced && v->packet_dir == EGRESS && is_forged(skb, sk, st, &v->p))
		v->p.malformed = 1;
	if (!st || !st->initiator || v->p.proto != P_TCP || v->p.malformed || state == S_LISTEN || state == S_CLOSE)
		return judge_anew(skb, sk, v, st, ctl, forced);
	inner = bpf_map_lookup_elem(&generations, &v->slot);
	d = inner ? bpf_map_lookup_elem(inner, &zero) : 0;
	stamp = st->stamp;
	if (!d || stamp >> W_BITS != d->generation || !same_peer(st, &v->p) || v->expired || is_expired(d, v->now))
		return judge_anew(skb, sk, v, st, ctl, forced);
	v->generation = d->generation;
	v->before = stamp;
	v->word = stamp & ((1 << W_BITS) - 1);
	v->dir = (st->initiator - 1) & 1;
	v->recorded = 1;
	return conclude(v, st, 0);
}

#endif
