/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* UDP: the first datagram of a flow decides who initiated it. */
#ifndef AEGIS_FLOWS_H
#define AEGIS_FLOWS_H

#include "identity.h"

static __always_inline void udp_key_of(const struct packet *p, struct udp_key *key)
{
	key->netns = p->netns;
	__builtin_memcpy(key->peer, p->peer, 16);
	key->peer_port = p->peer_port;
	key->local_port = p->local_port;
	key->zero = 0;
}

static __always_inline int is_live_flow(const struct udp_flow *f, __u64 now)
{
	/* another CPU's clock may be a jiffy ahead */
	return now < f->last_ns || now - f->last_ns <= (f->both ? UDP_BOTH_WAYS_NS : UDP_ONE_WAY_NS);
}

static __always_inline struct udp_flow *live_flow(__u32 slot, const struct packet *p, __u64 now)
{
	void *flows = bpf_map_lookup_elem(&udp_flows, &slot);
	struct udp_key key;
	struct udp_flow *f;

	if (!flows)
		return 0;
	udp_key_of(p, &key);
	f = bpf_map_lookup_elem(flows, &key);
	return f && is_live_flow(f, now) ? f : 0;
}

/* A datagram passed and begins a flow. */
__noinline int begin_flow(const struct view *v)
{
	struct udp_flow fresh = {};
	struct udp_key key;
	void *flows;

	if (!v)
		return 0;
	flows = bpf_map_lookup_elem(&udp_flows, &v->slot);
	if (!flows)
		return 0;
	udp_key_of(&v->p, &key);
	fresh.stamp = v->stamp;
	fresh.last_ns = v->now;
	fresh.initiator = v->dir == INGRESS ? I_PEER : I_LOCAL;
	if (!bpf_map_update_elem(flows, &key, &fresh, BPF_ANY))
		count(0, v->slot < MAX_SLOTS ? v->slot : SLOT_NONE, C_UDP_CREATED);
	return 0;
}

/* A refused datagram neither begins a flow nor keeps one alive. */
static __always_inline void continue_flow(struct udp_flow *f, const struct view *v)
{
	if (f->stamp != v->stamp)
		f->stamp = v->stamp;
	if (v->word & W_REFUSED)
		return;
	f->last_ns = v->now;
	if (v->packet_dir != v->dir && !f->both)
		f->both = 1;
}

#endif
