/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* The programs. Each is a few lines over one of the headers: govern.h (packets), calls.h (connect and
 * sendmsg), record.h (what sockets and cgroups tell us), passes.h (over live flows). */
#include "account.h"
#include "calls.h"
#include "inside.h"
#include "passes.h"

char _license[] SEC("license") = "Dual BSD/GPL";

static __always_inline int on_packet(struct __sk_buff *skb, __u32 dir)
{
	struct view v = {.packet_dir = dir, .dir = dir};
	struct control *ctl = control();
	struct bpf_sock *sk = skb->sk;
	struct state *st;
	int answer;

	if (!sk || !ctl)
		return PASS;
	st = bpf_sk_storage_get(&states, sk, 0, 0);
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return PASS;
	if (st && st->epoch == epoch_of(ctl)) {
		v.slot = st->slot;
		v.narrow = st->narrow;
	} else {
		v.slot = slot_by_walk(skb);
		v.narrow = narrow_bits(skb);
		if (!st) {
			st = bpf_sk_storage_get(&states, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
			if (st) {
				st->netns = netns_of(skb);
				if (may_have_named_any_source(skb))
					mark(st, M_ANY_SOURCE);
			}
		}
		if (st) {
			give_slot(st, v.slot, epoch_of(ctl));
			st->narrow = v.narrow;
		} else {
			count(0, SLOT_NONE, C_NO_STORAGE);
		}
	}
	if (v.slot < MAX_SLOTS && skb->ifindex == 1 && dir == EGRESS)
		return on_loopback(skb, &v, st);
	if (v.slot >= MAX_SLOTS || skb->ifindex == 1 || (dir == INGRESS && skb->pkt_type == LOOPED)) {
		count(0, v.slot < SLOT_ROWS ? v.slot : SLOT_NONE, v.slot == SLOT_NONE ? UNMANAGED : FAILSAFE);
		if (v.slot == SLOT_NONE && st && st->initiator)
			st->stamp = stamp_unmanaged(ctl);
		if (v.slot >= MAX_SLOTS && skb->ifindex != 1 && is_accounting())
			account_free(skb, &v);
		return PASS;
	}
	v.remote = 1;
	parse(skb, dir, &v.p);
	as_asked(skb, sk, dir, &v.p);
	answer = judge_packet(skb, sk, &v, st, ctl, 0);
	if (is_accounting())
		account(skb, &v, st);
	return answer;
}

SEC("cgroup_skb/egress")
int aegis_egress(struct __sk_buff *skb)
{
	return on_packet(skb, EGRESS) & 1;
}

SEC("cgroup_skb/ingress")
int aegis_ingress(struct __sk_buff *skb)
{
	return on_packet(skb, INGRESS) & 1;
}

SEC("cgroup/connect4")
int aegis_connect4(struct bpf_sock_addr *ctx)
{
	return on_call4(ctx, HOOK_CONNECT) & 1;
}

SEC("cgroup/connect6")
int aegis_connect6(struct bpf_sock_addr *ctx)
{
	return on_call6(ctx, HOOK_CONNECT) & 1;
}

SEC("cgroup/sendmsg4")
int aegis_sendmsg4(struct bpf_sock_addr *ctx)
{
	return on_call4(ctx, HOOK_SENDMSG) & 1;
}

SEC("cgroup/sendmsg6")
int aegis_sendmsg6(struct bpf_sock_addr *ctx)
{
	return on_call6(ctx, HOOK_SENDMSG) & 1;
}

SEC("cgroup/sock_create")
int aegis_create(struct bpf_sock *ctx)
{
	return on_create(ctx) & 1;
}

SEC("sockops")
int aegis_sockops(struct bpf_sock_ops *ctx)
{
	return on_sockops(ctx);
}

SEC("cgroup/setsockopt")
int aegis_option(struct bpf_sockopt *ctx)
{
	return on_option(ctx) & 1;
}

SEC("raw_tp/cgroup_mkdir")
int aegis_mkdir(struct bpf_raw_tracepoint_args *ctx)
{
	return on_mkdir(ctx);
}

SEC("raw_tp/cgroup_release")
int aegis_release(struct bpf_raw_tracepoint_args *ctx)
{
	return on_release(ctx);
}

SEC("iter/tcp")
int aegis_pass_tcp(struct bpf_iter__tcp *ctx)
{
	pass_tcp(ctx);
	return 0;
}

/* One byte for every socket destroyed. Not loaded where the kernel has no bpf_sock_destroy. */
SEC("iter/tcp")
int aegis_cut_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;

	if (sk && pass_tcp(ctx) & W_REFUSED && !bpf_sock_destroy(sk))
		bpf_seq_write(ctx->meta->seq, "+", 1);
	return 0;
}

SEC("iter/udp")
int aegis_cut_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *sk = ctx->udp_sk;

	if (sk && pass_udp(ctx) & W_REFUSED && !bpf_sock_destroy((struct sock_common *)sk))
		bpf_seq_write(ctx->meta->seq, "+", 1);
	return 0;
}

#define CB_GIVEN (1 << 31)

static __always_inline int on_test(struct __sk_buff *skb, __u32 dir)
{
	struct view v = {.packet_dir = dir, .dir = dir};
	__u32 flags = skb->cb[CB_FLAGS];
	struct control *ctl = control();
	struct bpf_sock *sk = skb->sk;
	struct state *st;
	int answer;

	if (!sk || !ctl)
		return PASS;
	st = bpf_sk_storage_get(&states, sk, 0, flags & CB_STORAGE ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return PASS;
	v.slot = skb->cb[CB_SLOT];
	if (v.slot >= MAX_SLOTS || flags & CB_LOCAL) {
		count(0, v.slot < SLOT_ROWS ? v.slot : SLOT_NONE, v.slot == SLOT_NONE ? UNMANAGED : FAILSAFE);
		return PASS;
	}
	if (st && st->epoch == epoch_of(ctl)) {
		v.narrow = st->narrow;
	} else {
		v.narrow = narrow_bits(skb);
		if (st) {
			st->epoch = epoch_of(ctl);
			st->narrow = v.narrow;
		}
	}
	parse(skb, dir, &v.p);
	answer = judge_packet(skb, sk, &v, st, ctl, flags | CB_GIVEN);
	if (is_accounting())
		account(skb, &v, st);
	return answer;
}

/* Never attached, from here on. */
SEC("cgroup_skb/egress")
int aegis_test_egress(struct __sk_buff *skb)
{
	return on_test(skb, EGRESS) & 1;
}

SEC("cgroup_skb/ingress")
int aegis_test_ingress(struct __sk_buff *skb)
{
	return on_test(skb, INGRESS) & 1;
}

/* Run by the agent, over no packet at all. */
SEC("cgroup_skb/ingress")
int aegis_pass_flows(struct __sk_buff *skb)
{
	pass_flows();
	return PASS;
}

/* Run by the agent before it takes a turn of flows. */
SEC("cgroup_skb/ingress")
int aegis_settle(struct __sk_buff *skb)
{
	settle_all();
	return PASS;
}

SEC("cgroup_skb/ingress")
int aegis_empty(struct __sk_buff *skb)
{
	return 1;
}
