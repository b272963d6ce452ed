/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* Passes over live flows, one network namespace at a time: stamp what existed before us, judge again after
 * a flip, destroy what is refused. */
#ifndef AEGIS_PASSES_H
#define AEGIS_PASSES_H

#include "own.h"
#include "record.h"

#define PASS_JUDGE 0
#define PASS_LISTENERS 1
#define PASS_STAMP 2

extern int bpf_sock_destroy(struct sock_common *sock) __ksym __weak;

static __always_inline void packet_of(struct sock *sk, struct packet *p)
{
	p->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
	p->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	p->peer_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	p->has_ports = 1;
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == 2) {
		set_peer4(p, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	} else {
		__u32 address[4];

		BPF_CORE_READ_INTO(&address, sk, __sk_common.skc_v6_daddr);
		set_peer6(p, address);
	}
}

/* The flow stays on this host, or may: no pass judges it, and its packets are judged by their device. */
static __always_inline int is_own(struct sock *sk, const struct packet *p)
{
	return is_loopback(p) || is_own_address(BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie), p->peer);
}

/* Functions of their own, called with an address: what they need of the stack is free again before judging. */
__noinline __u32 slot_below(__u64 cgroup)
{
	struct cgroup *c = (struct cgroup *)cgroup;

	return DEEPEST_MAPPED(ancestor_id(c, level_));
}

__noinline __u32 narrow_below(__u64 cgroup)
{
	struct cgroup *c = (struct cgroup *)cgroup;

	return NARROWED(ancestor_id(c, level_));
}

/* The slot of a socket, and which narrowed failsafes hold for it. */
static __always_inline void place_of(struct sock *sk, const struct state *st, const struct control *ctl, struct view *v)
{
	__u64 cgroup;

	if (st && st->epoch == epoch_of(ctl)) {
		v->slot = st->slot;
		v->narrow = st->narrow;
		return;
	}
	cgroup = (__u64)BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	v->slot = slot_below(cgroup);
	v->narrow = narrow_below(cgroup);
}

/* An accepted connection begins after its own SYN; one that we began had its SYN acknowledged beside its data
 * (RFC 4898). Who calls can make a listener for the port later, and not a number of this. */
static __always_inline int is_accepted(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	__u32 next = BPF_CORE_READ(tp, snd_nxt), state = BPF_CORE_READ(sk, __sk_common.skc_state);
	__u64 out = BPF_CORE_READ(tp, bytes_acked) + (__u32)(next - BPF_CORE_READ(tp, snd_una));
	__u64 data = BPF_CORE_READ(tp, bytes_sent) - BPF_CORE_READ(tp, bytes_retrans);
	__u32 fin = state != S_ESTABLISHED && state != S_CLOSE_WAIT && BPF_CORE_READ(tp, write_seq) == next;

	return out == data + fin && !is_bound(sk, SOCK_BINDPORT_LOCK);
}

static __always_inline int stamp_sock(struct sock *sk, struct state *st, const struct control *ctl)
{
	struct listener_key key = {.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie)};
	struct view v = {};

	if (st->initiator)
		return 0;
	packet_of(sk, &v.p);
	key.port = v.p.local_port;
	place_of(sk, 0, ctl, &v);
	give_slot(st, v.slot, epoch_of(ctl));
	st->narrow = v.narrow;
	st->netns = key.netns;
	st->stamp = stamp_unmanaged(ctl);
	record(st, bpf_map_lookup_elem(&listeners, &key) && is_accepted(sk) ? I_PEER : I_LOCAL, &v.p);
	return 0;
}

static __always_inline int note_listener(struct sock *sk)
{
	struct listener_key key = {.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie)};
	__u8 one = 1;

	key.port = BPF_CORE_READ(sk, __sk_common.skc_num);
	bpf_map_update_elem(&listeners, &key, &one, BPF_ANY);
	return 0;
}

/* Returns the verdict word of a live connection of the pass's service, 0 for every other socket. */
static __always_inline __u32 pass_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;
	struct control *ctl = control();
	struct view v = {};
	struct tcp_sock *tp;
	struct state *st;
	struct sock *sk;
	__u32 state;

	if (!common || !ctl)
		return 0;
	state = common->skc_state;
	tp = bpf_skc_to_tcp_sock(common);
	if (!tp)
		return 0;
	sk = (struct sock *)tp;
	if (state == S_LISTEN)
		return ctl->pass_stamp == PASS_LISTENERS ? note_listener(sk) : 0;
	if (!is_live_state(state) || ctl->pass_stamp == PASS_LISTENERS)
		return 0;
	st = bpf_sk_storage_get(&states, tp, 0, ctl->pass_stamp ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (!st)
		return 0;
	if (ctl->pass_stamp)
		return stamp_sock(sk, st, ctl);
	place_of(sk, st, ctl, &v);
	if (!st->initiator || v.slot != ctl->pass_slot || v.slot >= MAX_SLOTS)
		return 0;
	packet_of(sk, &v.p);
	if (is_own(sk, &v.p))
		return 0;
	v.p.proto = P_TCP;
	v.dir = v.packet_dir = (st->initiator - 1) & 1;
	v.now = now_ns();
	v.live = 1;
	v.reuse = 1;
	v.before = st->stamp;
	if (!judge_flow(&v, 0))
		return 0;
	st->stamp = v.stamp;
	return v.word;
}

/* The same for a connected UDP socket; its flow's entry is judged by pass_flow. */
static __always_inline __u32 pass_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *up = ctx->udp_sk;
	struct control *ctl = control();
	struct view v = {};
	struct udp_flow *f;
	struct state *st;
	struct sock *sk;

	if (!up || !ctl)
		return 0;
	sk = (struct sock *)up;
	if (BPF_CORE_READ(sk, __sk_common.skc_state) != S_ESTABLISHED)
		return 0;
	st = bpf_sk_storage_get(&states, up, 0, 0);
	place_of(sk, st, ctl, &v);
	if (v.slot != ctl->pass_slot || v.slot >= MAX_SLOTS)
		return 0;
	packet_of(sk, &v.p);
	if (is_own(sk, &v.p))
		return 0;
	v.p.proto = P_UDP;
	v.now = now_ns();
	f = live_flow(v.slot, &v.p, v.now);
	if (f) {
		v.dir = (f->initiator - 1) & 1;
		v.live = 1;
		v.reuse = 1;
		v.before = f->stamp;
	}
	return judge_flow(&v, 0) ? v.word : 0;
}

/* A callback of bpf_for_each_map_elem, which some kernels allow where they refuse iterators over a map's elements. */
static long pass_flow(void *flows, struct udp_key *key, struct udp_flow *f, __u32 *slot)
{
	struct view v = {};

	v.now = now_ns();
	if (!is_live_flow(f, v.now))
		return 0;
	set_peer6(&v.p, key->peer);
	v.p.netns = key->netns;
	v.p.peer_port = key->peer_port;
	v.p.local_port = key->local_port;
	v.p.has_ports = 1;
	v.p.proto = P_UDP;
	v.slot = *slot;
	v.dir = v.packet_dir = (f->initiator - 1) & 1;
	v.remote = 1;
	v.live = 1;
	v.reuse = 1;
	v.before = f->stamp;
	/* what depends on a socket's cgroup is judged at the flow's next packet, which has one */
	if (v.slot < MAX_SLOTS && judge_flow(&v, 0) && !v.depends)
		f->stamp = v.stamp;
	return 0;
}

static __always_inline void pass_flows(void)
{
	struct control *ctl = control();
	void *flows;
	__u32 slot;

	if (!ctl)
		return;
	slot = ctl->pass_slot;
	flows = bpf_map_lookup_elem(&udp_flows, &slot);
	if (flows)
		bpf_for_each_map_elem(flows, pass_flow, &slot, 0);
}

#endif
