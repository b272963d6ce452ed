/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* Datagrams that wait to be counted. The accounts are a large hash whose memory is cold for nearly every datagram;
 * a flow's own record was just read. So a busy flow counts there, and moves its numbers to the accounts once a
 * second and whenever the agent takes a turn. What an evicted flow had waiting is lost with it: a second at most. */
#ifndef AEGIS_WAITING_H
#define AEGIS_WAITING_H

#include "flows.h"

#define WAIT_NS 1000000000ULL

static __always_inline void add(struct flow_count *n, const struct flow_count *one)
{
	int at;

	for (at = 0; at < 2; at++) {
		if (!one->packets[at])
			continue;
		__sync_fetch_and_add(&n->packets[at], one->packets[at]);
		__sync_fetch_and_add(&n->bytes[at], one->bytes[at]);
	}
	if (one->connections)
		__sync_fetch_and_add(&n->connections, one->connections);
	if (n->last_ns < one->last_ns)
		n->last_ns = one->last_ns;
	if (one->pid && n->pid != one->pid) {
		n->start_ns = one->start_ns;
		n->pid = one->pid;
	}
}

static __always_inline int is_accounting(void)
{
	__u32 zero = 0;

	return !!bpf_map_lookup_elem(&accounts, &zero);
}

/* Add to the turn that is being counted in. */
static __always_inline void enter(const struct flow_key *key, const struct flow_count *one)
{
	__u32 zero = 0;
	void *flows = bpf_map_lookup_elem(&accounts, &zero);
	struct flow_count *n;

	if (!flows)
		return;
	n = bpf_map_lookup_elem(flows, key);
	if (!n) {
		if (!bpf_map_update_elem(flows, key, one, BPF_NOEXIST))
			return;
		n = bpf_map_lookup_elem(flows, key);
	}
	if (n)
		add(n, one);
	else
		count(0, key->slot < SLOT_ROWS ? key->slot : SLOT_NONE, C_LOST_FLOWS);
}

/* Move what waits in a flow's record to the accounts. */
__noinline int settle(const struct udp_key *key, struct udp_flow *f, __u32 slot)
{
	struct flow_count one = {};
	struct flow_key k = {};

	if (!key || !f || !f->waits_since)
		return 0;
	one.first_ns = __sync_lock_test_and_set(&f->waits_since, 0);
	one.last_ns = f->waits_last;
	one.packets[0] = __sync_lock_test_and_set(&f->packets[0], 0);
	one.packets[1] = __sync_lock_test_and_set(&f->packets[1], 0);
	one.bytes[0] = __sync_lock_test_and_set(&f->bytes[0], 0);
	one.bytes[1] = __sync_lock_test_and_set(&f->bytes[1], 0);
	one.start_ns = f->start_ns;
	one.pid = f->pid;
	if (!one.first_ns)
		return 0;	/* another CPU was faster */
	k.cgroup = f->cgroup;
	__builtin_memcpy(k.local, f->local, 16);
	__builtin_memcpy(k.peer, key->peer, 16);
	k.verdict = f->verdict;
	k.slot = slot;
	k.proto = P_UDP;
	k.dir = (f->initiator - 1) & 1;
	k.port = k.dir == INGRESS ? key->local_port : key->peer_port;
	enter(&k, &one);
	return 0;
}

static __always_inline int is_counted_as(const struct udp_flow *f, const struct view *v, __u64 cgroup, __u32 verdict)
{
	return f->verdict == verdict && f->cgroup == cgroup && f->local[3] == v->p.local[3] &&
	       f->local[2] == v->p.local[2] && f->local[1] == v->p.local[1] && f->local[0] == v->p.local[0];
}

/* Whether the datagram waits in its flow's record; else the caller counts it in the accounts. */
__noinline int waits(struct __sk_buff *skb, struct udp_flow *f, const struct view *v, const struct state *st)
{
	struct udp_key key;
	__u64 cgroup;
	__u32 verdict, at;

	if (!f || !v)
		return 0;
	at = v->packet_dir & 1;
	cgroup = bpf_skb_cgroup_id(skb);
	verdict = v->word & (W_REASON | W_DENY | W_REFUSED);
	if (v->now - f->counted_ns < WAIT_NS && !skb->gso_segs && is_counted_as(f, v, cgroup, verdict)) {
		__sync_fetch_and_add(&f->packets[at], 1);
		__sync_fetch_and_add(&f->bytes[at], skb->len);
		f->waits_last = v->now;
		if (!f->waits_since)
			f->waits_since = v->now;
		return 1;
	}
	udp_key_of(&v->p, &key);
	settle(&key, f, v->slot);
	f->counted_ns = v->now;
	f->cgroup = cgroup;
	__builtin_memcpy(f->local, v->p.local, 16);
	f->verdict = verdict;
	if (st) {
		f->start_ns = st->start_ns;
		f->pid = st->pid;
	}
	return 0;
}

static long settle_flow(void *flows, struct udp_key *key, struct udp_flow *f, __u32 *slot)
{
	struct udp_key copy = *key;	/* a map's key may not be passed on */

	settle(&copy, f, *slot);
	return 0;
}

static long settle_slot(__u32 slot, void *none)
{
	void *flows = bpf_map_lookup_elem(&udp_flows, &slot);

	if (flows)
		bpf_for_each_map_elem(flows, settle_flow, &slot, 0);
	return 0;
}

/* Run by the agent before it takes a turn. */
static __always_inline void settle_all(void)
{
	bpf_loop(MAX_SLOTS, settle_slot, 0, 0);
}

#endif
